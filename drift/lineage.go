package drift

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Lineage is how a process came to be where it is, as far as /proc tells.
type Lineage struct {
	Ancestors []Ancestor `json:"ancestors"` // the parent first
	// Mount is the id of the mount at its root directory, which belongs to one mount
	// namespace alone; proc_pid_mountinfo(5), field 1. 0 where it is not known.
	Mount int `json:"-"`
	// Origin is the id of the container that it came from, by its ancestors, the parent
	// that it shares with the container's first process, or its mount; "" where none of
	// them tells.
	Origin string `json:"-"`
	// Namespaces are the inodes of /proc/PID/ns by kind, "mnt", "pid", …; nil where
	// they may not be read, which takes CAP_SYS_PTRACE.
	Namespaces map[string]uint64 `json:"namespaces"`

	// What follows is evidence, as [Evidence] has it. It is not published here.
	Cgroup               string   `json:"-"`
	Executable           string   `json:"-"`
	ExecutableSHA256     string   `json:"-"`
	ExecutableUnreadable string   `json:"-"`
	Arguments            []string `json:"-"` // nil unless they were asked for
}

// Ancestor is a process from which another descends.
type Ancestor struct {
	PID       int    `json:"pid"`
	Name      string `json:"name"`
	Container bool   `json:"container"` // it is one of the same container's processes

	StartTime uint64 `json:"-"`
	Forked    bool   `json:"-"` // as a process's
	Mount     int    `json:"-"` // as a lineage's
	// Outside is true when its cgroup is known and is none of a container's.
	Outside bool `json:"-"`
}

// clockTick is USER_HZ, in which start times are counted, sysconf(3) _SC_CLK_TCK:
// it is 100 on every platform that Kubernetes runs on.
const clockTick = time.Second / 100

// Arrival says, one sentence each, how a process of the container came to be in
// it. first is the lineage of the container's first process. Names are the
// processes' own to choose, and quoted.
func Arrival(c Container, p Process, own, first Lineage) []string {
	var said []string
	say := func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }
	init := c.init()
	chain := make([]string, 0, len(own.Ancestors))
	for _, a := range own.Ancestors {
		chain = append(chain, fmt.Sprintf("%s (%d)", strconv.QuoteToASCII(clip(a.Name)), a.PID))
	}
	outside := slices.IndexFunc(own.Ancestors, func(a Ancestor) bool { return !a.Container })
	switch {
	case p.PID == c.InitPID:
		say("It is the container's first process.")
	case slices.ContainsFunc(own.Ancestors, func(a Ancestor) bool { return a.PID == c.InitPID && c.InitPID != 0 }):
		say("It descends from the container's first process: it was started inside.")
	case outside < 0:
		say("Its parent is not visible from here.")
	case own.Ancestors[outside].PID == 1:
		say("What started it has ended, and the node's first process adopted it; it does not descend from the container's first process.")
	default:
		say("It does not descend from the container's first process: %s, outside of the container, put it there: an exec (kubectl exec, a probe, runc exec) or nsenter.", chain[outside])
	}
	if len(chain) > 0 {
		say("Its ancestors: %s.", strings.Join(chain, " ← "))
	}
	if init != nil && p.PID != c.InitPID && p.StartTime > init.StartTime {
		say("It started %s after the container's first process.", (time.Duration(p.StartTime-init.StartTime) * clockTick).Round(time.Second))
	}
	if p.PID != c.InitPID && init != nil {
		say("%s", shared(own.Namespaces, first.Namespaces))
	}
	return said
}

// shared compares the namespaces of two processes.
func shared(own, first map[string]uint64) string {
	if len(own) == 0 || len(first) == 0 {
		return "Which namespaces it joined may not be read without CAP_SYS_PTRACE."
	}
	var same, other []string
	for _, kind := range []string{"mnt", "pid", "net", "ipc", "uts", "cgroup", "user"} {
		switch {
		case own[kind] == 0 || first[kind] == 0:
		case own[kind] == first[kind]:
			same = append(same, kind)
		default:
			other = append(other, kind)
		}
	}
	switch {
	case len(other) == 0:
		return "It is in all the namespaces of the container's first process: " + strings.Join(same, ", ") + "."
	case len(same) == 0:
		return "It shares no namespace with the container's first process."
	}
	return fmt.Sprintf("It shares the namespaces %s with the container's first process, and not %s.", strings.Join(same, ", "), strings.Join(other, ", "))
}
