package attacks

import (
	"testing"

	"github.com/capdrift/capdrift/e2e/suite"
)

// inVM are the tests that another kernel or cgroup v2 can change: who is a stage, what a user namespace
// tells, who is in which cgroup. What is about load is not one of them: an emulated machine is nothing
// to measure on.
const inVM = "^TestRow(01|02|03|04|05|09|11|13|16|18|19|21|22|23|24)"

// TestMicroVM runs attacks inside what most nodes are: cgroup v2 alone, Debian's 6.1 kernel, AppArmor,
// all 41 capabilities. The guest gets this very binary, and the capdrift that is tested.
func TestMicroVM(t *testing.T) {
	if suite.InVM() {
		t.Skip("this is inside it")
	}
	onNode(t)
	suite.RunInVM(t, suite.Guest{
		Programs: programs, Files: map[string]string{"/opt/capdrift": binary}, Env: []string{"CAPDRIFT_BINARY=/opt/capdrift"},
		Args: []string{"-test.timeout=80m", "-test.run=" + inVM},
	})
}
