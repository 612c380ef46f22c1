package cri

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

// spec is the part of an OCI runtime spec that decides capabilities. Every field
// here is one that may be shown: env, args and mounts stay out.
// Source: opencontainers/runtime-spec config.md and config-linux.md.
type spec struct {
	Process *struct {
		User struct {
			UID uint32 `json:"uid"`
		} `json:"user"`
		NoNewPrivileges bool `json:"noNewPrivileges"`
		// An absent list, and an absent capabilities object, is an empty set to
		// runc and crun; containerd omits lists that are empty.
		Capabilities struct {
			Bounding    names `json:"bounding"`
			Effective   names `json:"effective"`
			Inheritable names `json:"inheritable"`
			Permitted   names `json:"permitted"`
			Ambient     names `json:"ambient"`
		} `json:"capabilities"`
	} `json:"process"`
	Linux struct {
		CgroupsPath string `json:"cgroupsPath"`
		Namespaces  []struct {
			Type string `json:"type"`
		} `json:"namespaces"`
		UIDMappings []struct {
			ContainerID uint32 `json:"containerID"`
			HostID      uint32 `json:"hostID"`
			Size        uint32 `json:"size"`
		} `json:"uidMappings"`
	} `json:"linux"`
	Annotations struct {
		Handler string `json:"io.kubernetes.cri-o.RuntimeHandler"`
	} `json:"annotations"`
}

const (
	maxUnknown = 64   // capability names kept that mean nothing
	maxPath    = 4096 // PATH_MAX, for a cgroup path
)

// decodeSpec reads a whole OCI runtime spec, as containerd stores it.
func decodeSpec(text io.Reader) (*spec, error) {
	s, err := decode[*spec](text)
	if err != nil {
		return nil, fmt.Errorf("the OCI spec %w", err)
	}
	return s, nil
}

// take fills in what a spec tells; nil when there is none.
func (f *facts) take(s *spec) {
	if s == nil {
		f.lacks("the runtime gives no OCI spec")
		return
	}
	f.handler = clip(s.Annotations.Handler)
	if f.cgroupPath = s.Linux.CgroupsPath; len(f.cgroupPath) > maxPath || strings.ContainsRune(f.cgroupPath, 0) {
		f.cgroupPath = ""
		f.lacks("the OCI spec's cgroup path is not a path")
	}
	if s.Process == nil {
		f.lacks("the OCI spec has no process")
		return
	}
	oci := &drift.OCI{NoNewPrivileges: s.Process.NoNewPrivileges, UID: s.Process.User.UID, UnknownNames: []string{}}
	list, left := s.Process.Capabilities, 0
	for _, part := range []struct {
		set   *capdecode.Set
		names names
	}{
		{&oci.Bounding, list.Bounding}, {&oci.Effective, list.Effective}, {&oci.Inheritable, list.Inheritable},
		{&oci.Permitted, list.Permitted}, {&oci.Ambient, list.Ambient},
	} {
		var unknown []string
		*part.set, unknown = capdecode.ParseOCINames(part.names.Kept)
		oci.UnknownNames = append(oci.UnknownNames, unknown...)
		left = max(left, part.names.Left) // the lists are mostly alike
	}
	slices.Sort(oci.UnknownNames)
	oci.UnknownNames = f.bound(names{slices.Compact(oci.UnknownNames), left}, maxUnknown, "unknown capability names of the OCI spec")
	for _, namespace := range s.Linux.Namespaces {
		oci.UserNamespace = oci.UserNamespace || namespace.Type == "user"
	}
	if oci.UserNamespace {
		for _, m := range s.Linux.UIDMappings {
			oci.UIDMap = append(oci.UIDMap, drift.IDRange{Inside: m.ContainerID, Outside: m.HostID, Length: m.Size})
		}
	}
	f.oci = oci
}

// bound keeps the first few of a list of names and says how many there were.
func (f *facts) bound(list names, most int, what string) []string {
	kept := list.Kept[:min(len(list.Kept), most)]
	if total := len(list.Kept) + list.Left; total > len(kept) {
		f.lacks(fmt.Sprintf("only %d of %d %s are kept", len(kept), total, what))
	}
	return append([]string{}, kept...) // an empty list is not an unknown one
}
