//go:build linux

package conformance

import (
	"os"
	"testing"

	"github.com/capdrift/capdrift/e2e/provision"
	"github.com/capdrift/capdrift/e2e/suite"
)

// TestMicroVM tries the current containerd also where it holds all capabilities, on Debian's 6.1
// kernel with cgroup v2 alone: all fixtures, and a few generated ones. The guest gets this very
// binary.
func TestMicroVM(t *testing.T) {
	needsRoot(t)
	programs, err := provision.FromEnv(t.Context(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	suite.RunInVM(t, suite.Guest{
		Programs: programs, Env: []string{"CAPDRIFT_CONFORMANCE_COUNT=40"},
		Args: []string{"-test.timeout=20m", "-test.run=^TestPredictions$/^containerd_" + provision.ContainerdVersion + "$"},
	})
}
