package kube

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// aSpec is a manifest of a pod with these fields, each on a line of its own from 5 on,
// and a container with these, from 7 + len(pod) on.
func aSpec(pod, container []string) string {
	text := "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n"
	for _, line := range pod {
		text += "  " + line + "\n"
	}
	text += "  containers:\n  - name: app\n"
	for _, line := range container {
		text += "    " + line + "\n"
	}
	return text
}

func TestWhatTheAPIServerRefuses(t *testing.T) {
	type lines = []string
	const security = "spec.containers[0].securityContext"
	for _, test := range []struct {
		what           string
		pod, container lines
		want           lines // path:line: rule
	}{
		{"an ordinary pod", lines{"hostPID: true", "securityContext: {runAsUser: 2147483647, runAsGroup: 0, seccompProfile: {type: Localhost, localhostProfile: a/b.json}}"},
			lines{"securityContext: {runAsUser: 0, privileged: true, appArmorProfile: {type: Unconfined}, procMount: Default}"}, nil},
		{"a user of -1", nil, lines{"securityContext:", "  runAsUser: -1"}, lines{security + ".runAsUser:8: must be between 0 and 2147483647 (ValidateSecurityContext)"}},
		{"a user above int32", nil, lines{"securityContext: {runAsUser: 2147483648}"}, lines{security + ".runAsUser:7: must be between 0 and 2147483647 (ValidateSecurityContext)"}},
		{"a pod's user and groups", lines{"securityContext:", "  runAsUser: 4294967296", "  runAsGroup: -5", "  fsGroup: -1", "  supplementalGroups: [0, -1]"}, nil, lines{
			"spec.securityContext.runAsUser:6: must be between 0 and 2147483647 (validatePodSpecSecurityContext)",
			"spec.securityContext.runAsGroup:7: must be between 0 and 2147483647 (validatePodSpecSecurityContext)",
			"spec.securityContext.fsGroup:8: must be between 0 and 2147483647 (validatePodSpecSecurityContext)",
			"spec.securityContext.supplementalGroups[1]:9: must be between 0 and 2147483647 (validatePodSpecSecurityContext)",
		}},
		{"a user namespace with the node's others", lines{"hostUsers: false", "hostPID: true", "hostIPC: true", "hostNetwork: true"}, nil, lines{
			"spec.hostNetwork:8: must not be true when hostUsers is false, unless the feature gate UserNamespacesHostNetworkSupport is on (validateHostUsers)",
			"spec.hostPID:6: must not be true when hostUsers is false (validateHostUsers)", "spec.hostIPC:7: must not be true when hostUsers is false (validateHostUsers)",
		}},
		{"the node's namespaces without one", lines{"hostUsers: true", "hostPID: true", "hostIPC: true", "hostNetwork: true"}, nil, nil},
		{"a shared pid namespace of the node", lines{"hostPID: true", "shareProcessNamespace: true"}, nil, lines{"spec.shareProcessNamespace:6: must not be true with hostPID: true (validatePodSpecSecurityContext)"}},
		{"an unmasked /proc", nil, lines{"securityContext: {procMount: Unmasked}"}, lines{security + ".procMount:7: must not be Unmasked unless hostUsers is false (ValidateSecurityContext)"}},
		{"an unmasked /proc in a user namespace", lines{"hostUsers: false"}, lines{"securityContext: {procMount: Unmasked}"}, nil},
		{"a /proc of another kind", lines{"hostUsers: false"}, lines{"securityContext: {procMount: unmasked}"}, lines{security + ".procMount:8: must be Default or Unmasked (ValidateProcMountType)"}},
		{"privileged without escalation", nil, lines{"securityContext:", "  privileged: true", "  allowPrivilegeEscalation: false"},
			lines{security + ".allowPrivilegeEscalation:9: must not be false with privileged: true (ValidateSecurityContext)"}},
		{"CAP_SYS_ADMIN without escalation", nil, lines{"securityContext: {allowPrivilegeEscalation: false, capabilities: {add: [CAP_SYS_ADMIN]}}"},
			lines{security + ".allowPrivilegeEscalation:7: must not be false with an add of CAP_SYS_ADMIN (ValidateSecurityContext)"}},
		{"SYS_ADMIN without escalation, which is taken", nil, lines{"securityContext: {allowPrivilegeEscalation: false, capabilities: {add: [SYS_ADMIN]}}"}, nil},
		{"profiles of no type", lines{"securityContext: {seccompProfile: {type: runtime/default}, appArmorProfile: {}}"}, nil, lines{
			"spec.securityContext.seccompProfile.type:5: must be Localhost, RuntimeDefault or Unconfined (validateSeccompProfileField)",
			"spec.securityContext.appArmorProfile.type:5: must be Localhost, RuntimeDefault or Unconfined (ValidateAppArmorProfileField)",
		}},
		{"profiles with less than they need, or more", nil, lines{"securityContext:", "  seccompProfile: {type: Localhost}", "  appArmorProfile: {type: RuntimeDefault, localhostProfile: x}"}, lines{
			security + ".seccompProfile.localhostProfile:8: must be set where type is Localhost (validateSeccompProfileField)",
			security + ".appArmorProfile.localhostProfile:9: must not be set unless type is Localhost (ValidateAppArmorProfileField)",
		}},
		{"a profile outside of its directory", nil, lines{"securityContext: {seccompProfile: {type: Localhost, localhostProfile: a/../../b}}"},
			lines{security + ".seccompProfile.localhostProfile:7: must be a relative path without .. (validateLocalDescendingPath)"}},
		{"an operating system that there is not", lines{"os: {name: Windows}"}, nil, lines{"spec.os.name:5: must be linux or windows (validateOS)"}},
		{"an operating system without a name", lines{"os: {}"}, nil, lines{"spec.os.name:5: is required where os is set (validateOS)"}},
		{"Linux with options of Windows", lines{"os: {name: linux}", "securityContext: {windowsOptions: {}}"}, lines{"securityContext: {windowsOptions: {}}"}, lines{
			"spec.securityContext.windowsOptions:6: must not be set where os.name is linux (validateLinux)", security + ".windowsOptions:9: must not be set where os.name is linux (validateLinux)",
		}},
		{"Windows with fields of Linux", lines{"os: {name: windows}", "hostUsers: true", "securityContext: {sysctls: [{name: a}], runAsUser: 1}"}, lines{"securityContext: {capabilities: {}, seLinuxOptions: {}}"}, lines{
			"spec.hostUsers:6: must not be set where os.name is windows (validateWindows)", "spec.securityContext.runAsUser:7: must not be set where os.name is windows (validateWindows)",
			"spec.securityContext.sysctls:7: must not be set where os.name is windows (validateWindows)", security + ".seLinuxOptions:10: must not be set where os.name is windows (validateWindows)",
			security + ".capabilities:10: must not be set where os.name is windows (validateWindows)",
		}},
		{"Windows without them", lines{"os: {name: windows}", "securityContext: {runAsNonRoot: true, windowsOptions: {hostProcess: false}}"}, nil, nil},
		{"a volume of two types", lines{"volumes:", "- {name: a, emptyDir: {}, hostPath: {}}"}, nil, lines{"spec.volumes[0]:6: must not be of more than one type (validateVolumeSource)"}},
	} {
		all, err := ReadManifests(strings.NewReader(aSpec(test.pod, test.container)), "in.yaml")
		list := slices.Concat(all.Objects, all.Windows)
		if err != nil || len(list) != 1 {
			t.Errorf("%s: %d objects, %v", test.what, len(list), err)
			continue
		}
		var got lines
		for _, r := range list[0].Refused {
			got = append(got, fmt.Sprintf("%s:%d: %s", r.Path, r.Line, r.Rule))
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: refused is\n%s, want\n%s", test.what, strings.Join(got, "\n"), strings.Join(test.want, "\n"))
		}
	}
}

// TestRefusalsOfTemplates: the path is that of the object, and what came from a cluster
// is doubted only where no API server takes it.
func TestRefusalsOfTemplates(t *testing.T) {
	const deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web%s}\nspec:\n  template:\n    spec:\n      containers:\n      - {name: a}\n      - name: b\n        securityContext: {runAsUser: -1}\n"
	for manifest, want := range map[string]string{
		fmt.Sprintf(deployment, ""):         "[spec.template.spec.containers[1].securityContext.runAsUser (line 10): must be between 0 and 2147483647 (ValidateSecurityContext)]",
		fmt.Sprintf(deployment, ", uid: u"): "[spec.template.spec.containers[1].securityContext.runAsUser (line 10): must be between 0 and 2147483647 (ValidateSecurityContext)]",
		strings.Replace(fmt.Sprintf(deployment, ", uid: u"), "runAsUser: -1", "procMount: Unmasked", 1):                  "[]",
		aResource("argoproj.io", "Workflow", "{templates: [{container: {image: i, securityContext: {runAsUser: -1}}}]}"): "[spec.templates[0].container.securityContext.runAsUser (line 4): must be between 0 and 2147483647 (ValidateSecurityContext)]",
	} {
		all, err := ReadManifests(strings.NewReader(manifest), "in.yaml")
		if err != nil || len(all.Objects) != 1 {
			t.Fatalf("%d objects, %v", len(all.Objects), err)
		}
		if got := fmt.Sprint(all.Objects[0].Refused); got != want {
			t.Errorf("refused is %s, want %s", got, want)
		}
	}
	many := aSpec(nil, nil)
	for i := range 30 {
		many += fmt.Sprintf("  - {name: c%d, securityContext: {runAsUser: -1}}\n", i)
	}
	all, err := ReadManifests(strings.NewReader(many), "in.yaml")
	if err != nil || len(all.Objects[0].Refused) != maxRefusals {
		t.Errorf("of 30 there are %d, %v", len(all.Objects[0].Refused), err)
	}
}
