package live

import (
	"testing"

	"github.com/capdrift/capdrift/e2e/suite"
)

// TestMicroVM runs all these tests again inside what most nodes are: cgroup v2 alone,
// Debian's 6.1 kernel, AppArmor, all 41 capabilities; and those that read cgroups once
// more where systemd makes them. The guest gets this very binary.
func TestMicroVM(t *testing.T) {
	if suite.InVM() {
		t.Skip("this is inside it")
	}
	onNode(t)
	// One after the other: two emulated machines on two cores hinder each other.
	for name, guest := range map[string]suite.Guest{
		// No kernel changes what is judged, and what comes of what is read: minutes, here.
		"plain": {Args: []string{"-test.skip=^(TestPaperAndKernel|TestPolicyTable|TestAgentPolicy|TestHops|TestSecretsStayInside|TestHostileNames)$"}},
		"systemd": {
			Systemd: true, Args: []string{"-test.run=^(TestFromPod|TestMachine)$"}, Env: []string{"CAPDRIFT_E2E_CGROUP_DRIVER=systemd"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			guest.Programs, guest.Args = programs, append(guest.Args, "-test.timeout=35m")
			suite.RunInVM(t, guest)
		})
	}
}
