//go:build linux

package attacks

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/capdrift/capdrift/e2e/node"
	"github.com/capdrift/capdrift/e2e/suite"
)

var (
	programs string     // folder of the built programs
	binary   string     // the capdrift that is tested
	theNode  *node.Node // one for all tests; nil without root on a machine that is not CI
	full     = os.Getenv("CAPDRIFT_ATTACKS") == "full"
)

func TestMain(m *testing.M) {
	// The tests wait more than they compute.
	suite.Run(m, 4, func(ctx context.Context) (_ io.Closer, err error) {
		theNode, programs, err = suite.Node(ctx)
		if binary = os.Getenv("CAPDRIFT_BINARY"); binary == "" {
			binary = filepath.Join(programs, "capdrift")
		}
		return theNode, err
	})
}

func onNode(t testing.TB) {
	t.Helper()
	suite.NeedsRoot(t, theNode != nil)
}
