package cri

import (
	"encoding/json"
	"errors"
	"fmt"
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
			Bounding    []string `json:"bounding"`
			Effective   []string `json:"effective"`
			Inheritable []string `json:"inheritable"`
			Permitted   []string `json:"permitted"`
			Ambient     []string `json:"ambient"`
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
func decodeSpec(text []byte) (*spec, error) {
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
	list := s.Process.Capabilities
	for _, part := range []struct {
		set   *capdecode.Set
		names []string
	}{
		{&oci.Bounding, list.Bounding}, {&oci.Effective, list.Effective}, {&oci.Inheritable, list.Inheritable},
		{&oci.Permitted, list.Permitted}, {&oci.Ambient, list.Ambient},
	} {
		var unknown []string
		*part.set, unknown = capdecode.ParseOCINames(part.names)
		oci.UnknownNames = append(oci.UnknownNames, unknown...)
	}
	slices.Sort(oci.UnknownNames)
	oci.UnknownNames = f.bound(slices.Compact(oci.UnknownNames), maxUnknown, "unknown capability names of the OCI spec")
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

// bound clips a list of names to the first few and says so.
func (f *facts) bound(names []string, most int, what string) []string {
	if len(names) > most {
		f.lacks(fmt.Sprintf("only %d of %d %s are kept", most, len(names), what))
		names = names[:most]
	}
	kept := make([]string, len(names))
	for i, name := range names {
		kept[i] = clip(name)
	}
	return kept
}

// decode is json.Unmarshal with errors that never quote their input: those of
// encoding/json do, and the input holds secrets.
func decode[T any](text []byte) (value T, err error) {
	err = json.Unmarshal(text, &value)
	if err == nil {
		return value, nil
	}
	var zero T
	var syntax *json.SyntaxError
	var mistyped *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return zero, fmt.Errorf("is not JSON (at byte %d of %d)", syntax.Offset, len(text))
	case errors.As(err, &mistyped):
		return zero, fmt.Errorf("is not of the form expected (at byte %d of %d)", mistyped.Offset, len(text))
	}
	return zero, errors.New("cannot be decoded")
}
