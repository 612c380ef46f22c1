package drift

import (
	"cmp"
	"encoding/json"
	"math"
	"slices"
)

// Relation places a process's user namespace beside the one its container was
// declared to run in.
type Relation string

// The relations; only processes in the same one have comparable bitmaps.
const (
	RelationSame    Relation = "same"
	RelationChild   Relation = "child"   // nested below the container's
	RelationInitial Relation = "initial" // the node's, though the container was given its own
	RelationUnknown Relation = "unknown"
)

// InitialUserNamespace is the inode of the kernel's first user namespace,
// PROC_USER_INIT_INO in include/linux/proc_ns.h.
const InitialUserNamespace uint64 = 0xEFFFFFFD

// IDRange is a line of /proc/PID/uid_map, user_namespaces(7): Length ids that
// start at Inside in the namespace are those that start at Outside in the reader's.
type IDRange struct {
	Inside, Outside, Length uint32
}

// UserNamespace is what /proc tells of a process's user namespace.
type UserNamespace struct {
	Relation Relation
	Inode    uint64 // of /proc/PID/ns/user; 0 when it was not permitted to read it
	Parent   uint64 // the inode of the user namespace above it, ioctl_ns(2) NS_GET_PARENT; 0 where it is not known
	// The maps that /proc shows without any privilege. A nil UIDMap was not
	// read; an empty one belongs to a namespace that nobody mapped yet.
	UIDMap, GIDMap, ProjectIDMap []IDRange
}

// MarshalJSON writes {"relation":"same","inode":4026531837}; an inode that could
// not be read is null.
func (u UserNamespace) MarshalJSON() ([]byte, error) {
	form := struct {
		Relation Relation `json:"relation"`
		Inode    *uint64  `json:"inode"`
	}{Relation: u.Relation}
	if u.Inode != 0 {
		form.Inode = &u.Inode
	}
	return json.Marshal(form)
}

// home returns the user namespace that the container was declared to run in:
// the node's own unless the OCI spec names one. That one was made by the runtime, so it
// lies just below the node's own, and nothing inside it can make another that does. A
// process that is in it lends what a spec cannot tell: the inode and the other maps.
// Where no parent of a namespace could be read, the maps alone are known.
func home(node Node, c *Container) UserNamespace {
	oci := c.Declared.OCI
	if oci == nil || !oci.UserNamespace {
		return node.UserNamespace
	}
	declared := UserNamespace{UIDMap: oci.UIDMap}
	for i := range c.Processes {
		u := c.Processes[i].UserNamespace
		if u.Inode != 0 && u.Parent != 0 && u.Parent == node.UserNamespace.Inode && declared.sameMaps(u) {
			return u
		}
	}
	return declared
}

// mapsComparable tells whether the map in the spec can be held against those in
// /proc. It cannot where the spec joins a namespace by path without repeating its
// map, nor where the runtime lives in a user namespace itself and so may speak of
// other ids than we see.
func mapsComparable(node Node, oci OCI) bool {
	whole := []IDRange{{Length: math.MaxUint32}}
	return len(oci.UIDMap) > 0 && (node.UserNamespace.UIDMap == nil || slices.Equal(node.UserNamespace.UIDMap, whole))
}

// relate places a process's user namespace beside its container's home.
// Inodes decide where both are known; else the maps do: those of a nested
// namespace lie within its parent's, and only the same namespace, or one made to
// look like it in every map, has equal ones.
func relate(node, home, process UserNamespace) Relation {
	inodes := home.Inode != 0 && process.Inode != 0
	nested := process.Parent != 0 && node.Inode != 0 && process.Parent != node.Inode && process.Inode != node.Inode
	switch {
	case inodes && home.Inode == process.Inode:
		return RelationSame
	case nested && process.UIDMap != nil && within(process.UIDMap, home.UIDMap):
		return RelationChild // two levels below the node's own, where no container's home is
	case process.UIDMap == nil && !inodes:
		return RelationUnknown
	case !inodes && home.sameMaps(process):
		return RelationSame
	case process.Inode != 0 && process.Inode == node.Inode,
		process.Inode == 0 && node.sameMaps(process):
		return RelationInitial
	case process.UIDMap != nil && within(process.UIDMap, home.UIDMap):
		return RelationChild
	}
	return RelationUnknown
}

// sameMaps compares the maps that both sides know.
func (u UserNamespace) sameMaps(other UserNamespace) bool {
	if u.UIDMap == nil || other.UIDMap == nil || !sameMap(u.UIDMap, other.UIDMap) {
		return false
	}
	return (u.GIDMap == nil || other.GIDMap == nil || sameMap(u.GIDMap, other.GIDMap)) &&
		(u.ProjectIDMap == nil || other.ProjectIDMap == nil || sameMap(u.ProjectIDMap, other.ProjectIDMap))
}

// sameMap compares two maps whatever the order of their lines: the kernel sorts
// those of more than five (kernel/user_namespace.c sort_idmaps).
func sameMap(a, b []IDRange) bool {
	if slices.Equal(a, b) {
		return true
	}
	if len(a) != len(b) || len(a) < 2 {
		return false
	}
	byInside := func(x, y IDRange) int { return cmp.Compare(x.Inside, y.Inside) }
	return slices.Equal(slices.SortedFunc(slices.Values(a), byInside), slices.SortedFunc(slices.Values(b), byInside))
}

// within tells whether every id that inner maps to is one that outer maps to.
func within(inner, outer []IDRange) bool {
	for _, part := range inner {
		from, to := uint64(part.Outside), uint64(part.Outside)+uint64(part.Length)
		for moved := true; moved && from < to; {
			moved = false
			for _, whole := range outer {
				start, end := uint64(whole.Outside), uint64(whole.Outside)+uint64(whole.Length)
				if start <= from && from < end {
					from, moved = end, true
				}
			}
		}
		if from < to {
			return false
		}
	}
	return true
}

// inside translates an id from the reader's user namespace into the mapped one.
func inside(ranges []IDRange, outside uint32) (uint32, bool) {
	for _, r := range ranges {
		if outside >= r.Outside && outside-r.Outside < r.Length {
			return r.Inside + (outside - r.Outside), true
		}
	}
	return 0, false
}
