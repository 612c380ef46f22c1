package live

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/capdrift/capdrift/e2e/microvm"
	"github.com/capdrift/capdrift/e2e/provision"
)

// TestMicroVM runs all these tests again inside what most nodes are: cgroup v2 alone,
// Debian's 6.1 kernel, AppArmor, all 41 capabilities; and those that read cgroups once
// more where systemd makes them. The guest gets this very binary.
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
	// One after the other: two emulated machines on two cores hinder each other.
	for _, row := range []struct {
		name    string
		systemd bool
		args    []string
		env     []string
	}{
		// No kernel changes what is judged, and what comes of what is read: minutes, here.
		{name: "plain", args: []string{"-test.skip=^(TestPaperAndKernel|TestPolicyTable|TestAgentPolicy|TestHops|TestSecretsStayInside|TestHostileNames)$"}},
		{name: "systemd", systemd: true, args: []string{"-test.run=^(TestFromPod|TestMachine)$"}, env: []string{"CAPDRIFT_E2E_CGROUP_DRIVER=systemd"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			statuses, err := microvm.Run(t.Context(), microvm.Config{
				Cache:   filepath.Join(repo, ".cache", "microvm"),
				Files:   map[string]string{"/usr/local/bin/live.test": self, "/opt/programs": programs},
				Systemd: row.systemd,
				Commands: []microvm.Command{{
					Args: append([]string{"live.test", "-test.v", "-test.timeout=35m"}, row.args...),
					Env:  append([]string{"CI=1", "CAPDRIFT_E2E_PROGRAMS=/opt/programs", "CAPDRIFT_E2E_SLOW=20", "CAPDRIFT_E2E_EXPECT=microvm"}, row.env...),
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
		})
	}
}
