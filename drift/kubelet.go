package drift

import "slices"

// Kubelet is the hop pod spec → CRI: what the kubelet makes of a container's
// security context. Source: pkg/kubelet/kuberuntime/security_context.go and
// pkg/securitycontext/util.go of Kubernetes 1.36.
//
// Lists are copied as they are written: no name is checked, no case or prefix
// changed. Without runAsUser the image decides, and RunAsUser is nil here; without a
// seccomp profile the kubelet's seccompDefault does, and SeccompProfile is nil.
func Kubelet(pod PodSecurity) CRI {
	return CRI{
		Add:        pod.Add,
		Drop:       pod.Drop,
		Privileged: pod.Privileged,
		// AddNoNewPrivileges: nothing said means that escalation is allowed.
		NoNewPrivileges: pod.AllowPrivilegeEscalation != nil && !*pod.AllowPrivilegeEscalation,
		RunAsUser:       pod.RunAsUser,
		UserNamespace:   pod.HostUsers != nil && !*pod.HostUsers,
		SeccompProfile:  pod.SeccompProfile,
		// ReadOnlyRootFilesystem: nothing said means that it can be written to.
		ReadOnlyRootFilesystem: pod.ReadOnlyRootFilesystem != nil && *pod.ReadOnlyRootFilesystem,
	}
}

// differences names the fields in which the CRI config is not what the kubelet
// makes of the pod spec.
func (got CRI) differences(want CRI) []string {
	var fields []string
	note := func(differs bool, field string) {
		if differs {
			fields = append(fields, field)
		}
	}
	note(!sameNames(got.Add, want.Add), "add_capabilities")
	note(!sameNames(got.Drop, want.Drop), "drop_capabilities")
	note(!sameNames(got.AddAmbient, want.AddAmbient), "add_ambient_capabilities")
	note(got.Privileged != want.Privileged, "privileged")
	note(got.NoNewPrivileges != want.NoNewPrivileges, "no_new_privs")
	note(want.RunAsUser != nil && (got.RunAsUser == nil || *got.RunAsUser != *want.RunAsUser), "run_as_user")
	note(got.UserNamespace != want.UserNamespace, "namespace_options.userns_options")
	return fields
}

// sameNames compares two lists for what they mean: neither order nor repetition.
func sameNames(a, b []string) bool {
	sorted := func(names []string) []string { return slices.Compact(slices.Sorted(slices.Values(names))) }
	return slices.Equal(sorted(a), sorted(b))
}
