package policy

import (
	"cel.dev/cel-go/common/types"

	"github.com/capdrift/capdrift/drift"
)

// declaration is what was declared for a container at the first layer that tells:
// its pod spec, else the CRI config, else the OCI spec. What a layer leaves out has
// the value that Kubernetes gives it, so that a field without a value is one that
// nobody told.
type declaration struct{ layers *drift.Declared }

func (d declaration) layer() any {
	switch l := d.layers; {
	case l.Pod != nil:
		return types.String(drift.LayerPod)
	case l.CRI != nil:
		return types.String(drift.LayerCRI)
	case l.OCI != nil:
		return types.String(drift.LayerOCI)
	}
	return notKnown
}

// add and drop are the lists as written: the kubelet copies them to the CRI, and the
// OCI spec has none.
func (d declaration) add() any {
	switch l := d.layers; {
	case l.Pod != nil:
		return l.Pod.Add
	case l.CRI != nil:
		return l.CRI.Add
	}
	return notKnown
}

func (d declaration) drop() any {
	switch l := d.layers; {
	case l.Pod != nil:
		return l.Pod.Drop
	case l.CRI != nil:
		return l.CRI.Drop
	}
	return notKnown
}

func (d declaration) privileged() any {
	switch l := d.layers; {
	case l.Pod != nil:
		return types.Bool(l.Pod.Privileged)
	case l.CRI != nil:
		return types.Bool(l.CRI.Privileged)
	}
	return maybeBool(d.layers.Privileged, notKnown)
}

// allowPrivilegeEscalation is true where a pod spec says nothing
// (pkg/securitycontext/util.go AddNoNewPrivileges); no_new_privs is its opposite.
func (d declaration) allowPrivilegeEscalation() any {
	switch l := d.layers; {
	case l.Pod != nil:
		return types.Bool(l.Pod.AllowPrivilegeEscalation == nil || *l.Pod.AllowPrivilegeEscalation)
	case l.CRI != nil:
		return types.Bool(!l.CRI.NoNewPrivileges)
	case l.OCI != nil:
		return types.Bool(!l.OCI.NoNewPrivileges)
	}
	return notKnown
}

// runAsUser has no value where the pod spec leaves it to the image.
func (d declaration) runAsUser() any {
	switch l := d.layers; {
	case l.Pod != nil:
		return maybeInt(l.Pod.RunAsUser, notSet)
	case l.CRI != nil && l.CRI.RunAsUser != nil:
		return types.Int(*l.CRI.RunAsUser)
	case l.OCI != nil:
		return types.Int(l.OCI.UID)
	}
	return notKnown
}

// runAsNonRoot is a field of the pod spec alone. A runtime is told the user instead.
func (d declaration) runAsNonRoot() any {
	if d.layers.Pod != nil {
		return types.Bool(d.layers.Pod.RunAsNonRoot)
	}
	if user, known := d.runAsUser().(types.Int); known {
		return types.Bool(user != 0)
	}
	return notKnown
}

func (d declaration) hostUsers() any {
	switch l := d.layers; {
	case l.Pod != nil:
		return types.Bool(l.Pod.HostUsers == nil || *l.Pod.HostUsers)
	case l.CRI != nil:
		return types.Bool(!l.CRI.UserNamespace)
	case l.OCI != nil:
		return types.Bool(!l.OCI.UserNamespace)
	}
	return notKnown
}

// seccompProfile is empty where none is given.
func (d declaration) seccompProfile() any {
	var profile *string
	switch l := d.layers; {
	case l.Pod != nil:
		profile = l.Pod.SeccompProfile
	case l.CRI != nil:
		profile = l.CRI.SeccompProfile
	default:
		return notKnown
	}
	if profile == nil {
		return types.String("")
	}
	return types.String(*profile)
}

func (d declaration) readOnlyRootFilesystem() any {
	switch l := d.layers; {
	case l.Pod != nil:
		return types.Bool(l.Pod.ReadOnlyRootFilesystem != nil && *l.Pod.ReadOnlyRootFilesystem)
	case l.CRI != nil:
		return types.Bool(l.CRI.ReadOnlyRootFilesystem)
	}
	return notKnown
}
