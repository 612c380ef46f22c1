package attacks

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/capdrift/capdrift/e2e/microvm"
	"github.com/capdrift/capdrift/e2e/provision"
)

// inVM are the tests that another kernel or cgroup v2 can change: who is a stage, what a user namespace
// tells, who is in which cgroup. What is about load is not one of them: an emulated machine is nothing
// to measure on.
const inVM = "^TestRow(01|02|04|05|09|16|19|21|22)"

// TestMicroVM runs attacks inside what most nodes are: cgroup v2 alone, Debian's 6.1 kernel, AppArmor,
// all 41 capabilities. The guest gets this very binary, and the capdrift that is tested.
func TestMicroVM(t *testing.T) {
	if os.Getenv("CAPDRIFT_E2E_EXPECT") == "microvm" {
		t.Skip("this is inside it")
	}
	onNode(t)
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
		Files: map[string]string{"/usr/local/bin/attacks.test": self, "/opt/programs": programs, "/opt/capdrift": binary},
		Commands: []microvm.Command{{
			Args: []string{"attacks.test", "-test.v", "-test.timeout=35m", "-test.run=" + inVM},
			Env: []string{
				"CI=1", "CAPDRIFT_E2E_PROGRAMS=/opt/programs", "CAPDRIFT_BINARY=/opt/capdrift", "CAPDRIFT_E2E_SLOW=20",
				"CAPDRIFT_E2E_EXPECT=microvm",
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
