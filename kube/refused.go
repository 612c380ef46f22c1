package kube

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// maxRefusals bounds how many are named of one object.
const maxRefusals = 20

// Refusal is a rule of the API server's validation that a pod spec breaks, so that no
// such pod is ever made.
type Refusal struct {
	Path string // of the field in the object: spec.template.spec.os.name
	Line int    // of that field, or of the last one on its path that is there
	Rule string
}

func (r Refusal) String() string { return fmt.Sprintf("%s (line %d): %s", r.Path, r.Line, r.Rule) }

// broken is a [Refusal] whose line is not known yet.
type broken struct {
	at   path
	rule string
}

// validator collects what the API server would refuse of a pod spec. Only rules are
// here that are about privileges: what a pod spec may hold beside them decides nothing
// that is predicted. Each cites its function in Kubernetes v1.36.3,
// pkg/apis/core/validation/validation.go.
type validator struct {
	spec *podSpec
	// passed says that the object was read from a cluster, whose API server may know more
	// values than we do. Only what no version takes is refused.
	passed   bool
	refusals []broken
}

func (v *validator) refuse(at path, rule, function string) {
	if !v.passed {
		v.add(at, rule, function)
	}
}

func (v *validator) add(at path, rule, function string) {
	if len(v.refusals) < maxRefusals {
		v.refusals = append(v.refusals, broken{at, rule + " (" + function + ")"})
	}
}

// refusals are those of a pod spec that stands at pod, and its containers, in the order
// of [podSpec.parts], at the paths given.
func (p *podSpec) refusals(meta metadata, pod path, containers []path) []broken {
	v := validator{spec: p, passed: meta.UID != ""}
	v.pod(pod)
	n := 0
	for _, part := range p.parts() {
		for i := range part.containers {
			v.container(containers[n], &part.containers[i])
			n++
		}
	}
	return v.refusals
}

func (v *validator) pod(at path) {
	p := v.spec
	if s := p.SecurityContext; s != nil {
		at := at.with("securityContext")
		v.both(at, s, "validatePodSpecSecurityContext")
		if s.FSGroup != nil {
			v.id(at.with("fsGroup"), *s.FSGroup, "validatePodSpecSecurityContext")
		}
		for i, id := range s.SupplementalGroups {
			v.id(at.with("supplementalGroups", i), id, "validatePodSpecSecurityContext")
		}
	}
	if p.ShareProcessNamespace != nil && *p.ShareProcessNamespace && p.HostPID {
		v.refuse(at.with("shareProcessNamespace"), "must not be true with hostPID: true", "validatePodSpecSecurityContext")
	}
	if !p.hostUsers() {
		for _, host := range []struct {
			field  string
			shared bool
			rule   string
		}{
			{"hostNetwork", p.HostNetwork, "must not be true when hostUsers is false, unless the feature gate UserNamespacesHostNetworkSupport is on"},
			{"hostPID", p.HostPID, "must not be true when hostUsers is false"},
			{"hostIPC", p.HostIPC, "must not be true when hostUsers is false"},
		} {
			if host.shared {
				v.refuse(at.with(host.field), host.rule, "validateHostUsers")
			}
		}
	}
	for i, volume := range p.Volumes {
		if strings.Contains(volume.kind(), "+") {
			v.refuse(at.with("volumes", i), "must not be of more than one type", "validateVolumeSource")
		}
	}
	v.os(at)
}

// hostUsers is true where the pod shares the node's user namespace.
func (p *podSpec) hostUsers() bool { return p.HostUsers == nil || *p.HostUsers }

func (v *validator) os(at path) {
	p := v.spec
	switch {
	case p.OS == nil:
	case p.OS.Name == "":
		v.refuse(at.with("os", "name"), "is required where os is set", "validateOS")
	case p.OS.Name == "linux":
		if s := p.SecurityContext; s != nil && s.WindowsOptions != nil {
			v.refuse(at.with("securityContext", "windowsOptions"), "must not be set where os.name is linux", "validateLinux")
		}
	case p.OS.Name == "windows":
		v.windows(at, []set{
			{"hostUsers", p.HostUsers != nil}, {"hostPID", p.HostPID}, {"hostIPC", p.HostIPC}, {"shareProcessNamespace", p.ShareProcessNamespace != nil},
		})
		if s := p.SecurityContext; s != nil {
			v.windows(at.with("securityContext"), append(s.ofLinux(),
				set{"fsGroup", s.FSGroup != nil}, set{"fsGroupChangePolicy", bool(s.FSGroupChangePolicy)}, set{"sysctls", len(s.Sysctls) > 0},
				set{"supplementalGroups", s.SupplementalGroups != nil}, set{"supplementalGroupsPolicy", bool(s.SupplementalGroupsPolicy)},
				set{"seLinuxChangePolicy", bool(s.SELinuxChangePolicy)}))
		}
	default:
		v.refuse(at.with("os", "name"), "must be linux or windows", "validateOS")
	}
}

// set is a field, and whether it has a value.
type set struct {
	field string
	set   bool
}

// ofLinux are the fields of pods and containers that none for Windows has.
func (s *securityContext) ofLinux() []set {
	return []set{
		{"appArmorProfile", s.AppArmorProfile != nil}, {"seLinuxOptions", s.SELinuxOptions != nil}, {"seccompProfile", s.SeccompProfile != nil},
		{"runAsUser", s.RunAsUser != nil}, {"runAsGroup", s.RunAsGroup != nil},
	}
}

func (v *validator) windows(at path, fields []set) {
	for _, field := range fields {
		if field.set {
			v.refuse(at.with(field.field), "must not be set where os.name is windows", "validateWindows")
		}
	}
}

func (v *validator) container(at path, c *container) {
	s := c.SecurityContext
	if s == nil {
		return
	}
	at = at.with("securityContext")
	const function = "ValidateSecurityContext"
	v.both(at, s, function)
	switch {
	case s.ProcMount == nil || *s.ProcMount == "Default":
	case *s.ProcMount != "Unmasked":
		v.refuse(at.with("procMount"), "must be Default or Unmasked", "ValidateProcMountType")
	case v.spec.hostUsers():
		v.refuse(at.with("procMount"), "must not be Unmasked unless hostUsers is false", function)
	}
	if s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation {
		at := at.with("allowPrivilegeEscalation")
		if s.Privileged != nil && *s.Privileged {
			v.refuse(at, "must not be false with privileged: true", function)
		}
		if s.Capabilities != nil && slices.Contains(s.Capabilities.Add, "CAP_SYS_ADMIN") {
			v.refuse(at, "must not be false with an add of CAP_SYS_ADMIN", function)
		}
	}
	switch os := v.spec.OS; {
	case os == nil:
	case os.Name == "linux" && s.WindowsOptions != nil:
		v.refuse(at.with("windowsOptions"), "must not be set where os.name is linux", "validateLinux")
	case os.Name == "windows":
		v.windows(at, append(s.ofLinux(),
			set{"capabilities", s.Capabilities != nil}, set{"readOnlyRootFilesystem", s.ReadOnlyRootFilesystem != nil}, set{"privileged", s.Privileged != nil},
			set{"allowPrivilegeEscalation", s.AllowPrivilegeEscalation != nil}, set{"procMount", s.ProcMount != nil}))
	}
}

// both are rules for the securityContext of a pod and of a container.
func (v *validator) both(at path, s *securityContext, function string) {
	if s.RunAsUser != nil {
		v.id(at.with("runAsUser"), *s.RunAsUser, function)
	}
	if s.RunAsGroup != nil {
		v.id(at.with("runAsGroup"), *s.RunAsGroup, function)
	}
	v.profile(at.with("seccompProfile"), s.SeccompProfile, "validateSeccompProfileField")
	v.profile(at.with("appArmorProfile"), s.AppArmorProfile, "ValidateAppArmorProfileField")
	if s.SeccompProfile != nil && s.SeccompProfile.Localhost != nil && s.SeccompProfile.Type == "Localhost" && !descends(*s.SeccompProfile.Localhost) {
		v.refuse(at.with("seccompProfile", "localhostProfile"), "must be a relative path without ..", "validateLocalDescendingPath")
	}
}

// id refuses what is no uid or gid. Source: apimachinery util/validation IsValidUserID.
func (v *validator) id(at path, id int64, function string) {
	if id < 0 || id > math.MaxInt32 {
		v.add(at, fmt.Sprintf("must be between 0 and %d", math.MaxInt32), function)
	}
}

func (v *validator) profile(at path, p *profile, function string) {
	if p == nil {
		return
	}
	switch p.Type {
	case "Localhost":
		if p.Localhost == nil || function == "ValidateAppArmorProfileField" && strings.TrimSpace(*p.Localhost) == "" {
			v.refuse(at.with("localhostProfile"), "must be set where type is Localhost", function)
		}
	case "RuntimeDefault", "Unconfined":
		if p.Localhost != nil {
			v.refuse(at.with("localhostProfile"), "must not be set unless type is Localhost", function)
		}
	default:
		v.refuse(at.with("type"), "must be Localhost, RuntimeDefault or Unconfined", function)
	}
}

// descends reports whether a path leads down only.
func descends(to string) bool {
	return !strings.HasPrefix(to, "/") && !slices.Contains(strings.Split(to, "/"), "..")
}
