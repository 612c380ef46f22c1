//go:build linux

package conformance

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/capdrift/capdrift/e2e/microvm"
	"github.com/capdrift/capdrift/e2e/provision"
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
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	repo, err := provision.Repo()
	if err != nil {
		t.Fatal(err)
	}
	statuses, err := microvm.Run(t.Context(), microvm.Config{
		Cache: filepath.Join(repo, ".cache", "microvm"),
		Files: map[string]string{"/usr/local/bin/conformance.test": self, "/opt/programs": programs},
		Commands: []microvm.Command{{
			Args: []string{
				"conformance.test", "-test.v", "-test.timeout=20m", "-test.run=^TestPredictions$/^containerd_" + provision.ContainerdVersion + "$",
			},
			Env: []string{
				"CI=1", "CAPDRIFT_E2E_PROGRAMS=/opt/programs", "CAPDRIFT_E2E_SLOW=20",
				"CAPDRIFT_CONFORMANCE_COUNT=40",
			},
		}},
		Output: t.Output(),
		Logf:   t.Logf,
	})
	if err != nil {
		t.Fatal(err)
	}
	if statuses[0] != 0 {
		t.Errorf("the tests inside ended with status %d", statuses[0])
	}
}
