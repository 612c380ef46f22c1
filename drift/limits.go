package drift

import (
	"fmt"
	"slices"
	"time"

	"github.com/capdrift/capdrift/capdecode"
)

// longStart is how long a stage of the runtime may take before it is worth a word. It
// excuses nothing and accuses nobody.
const longStart = 10 * time.Second

// Limits says what the settled containers of a node could not be judged by.
func Limits(node Node, containers []Container) []Limit {
	var limits []Limit
	if unnamed := capdecode.Full(node.CapLastCap) &^ comparable(node.CapLastCap); !unnamed.Empty() {
		limits = append(limits, Limit{
			What: "capabilities that are newer than every name known here: " + list(unnamed),
			Why:  "this kernel has them, so they are neither excess nor missing; a newer capdrift may know them",
		})
	}
	for _, u := range unshowns {
		if limit, ok := u.in(containers); ok {
			limits = append(limits, limit)
		}
	}
	slow := 0
	first := ""
	for i := range containers {
		c := &containers[i]
		for _, p := range c.Processes {
			if p.Observation == Starting && p.Age >= longStart {
				if slow++; slow == 1 {
					first = c.Label()
				}
			}
		}
	}
	if slow > 0 {
		limits = append(limits, Limit{
			What: fmt.Sprintf("what %d processes will hold that the OCI runtime has been starting for more than %d s, in %s for one", slow, longStart/time.Second, first),
			Why:  "until it has executed its program, a process holds what the runtime holds; a container with little processor time, or with slow hooks, starts slowly",
		})
	}
	return limits
}

// unshown is what a container declares and an old kernel does not show, proc_pid_status(5).
type unshown struct {
	what, since string
	declared    func(Declared) bool
	shown       func(Process) bool
}

var unshowns = []unshown{
	{
		"whether no_new_privs is set", "4.10",
		func(d Declared) bool { return d.OCI != nil && d.OCI.NoNewPrivileges },
		func(p Process) bool { return p.NoNewPrivileges != nil },
	},
	{
		"whether a seccomp profile is in force", "3.8, where it is built with seccomp",
		func(d Declared) bool {
			return d.CRI != nil && filters(d.CRI.SeccompProfile) || d.Pod != nil && filters(d.Pod.SeccompProfile)
		},
		func(p Process) bool { return p.Seccomp != nil },
	},
	{
		"whether ambient capabilities are held", "4.3, which is the first to have any",
		func(d Declared) bool { return d.OCI != nil && !d.OCI.Ambient.Empty() },
		func(p Process) bool { return !p.AmbientUnshown },
	},
}

func filters(profile *string) bool { return profile != nil && *profile != "Unconfined" }

// in says in how many containers it is so.
func (u unshown) in(containers []Container) (Limit, bool) {
	count, first := 0, ""
	for i := range containers {
		c := &containers[i]
		if !u.declared(c.Declared) || c.Observation == UnsupportedRuntime {
			continue
		}
		if slices.ContainsFunc(c.Processes, func(p Process) bool { return p.Observation == Observed && !u.shown(p) }) {
			if count++; count == 1 {
				first = c.Label()
			}
		}
	}
	return Limit{
		What:  fmt.Sprintf("%s in %d containers that declare it, in %s for one", u.what, count, first),
		Why:   "this kernel does not show it: Linux does since " + u.since,
		Blind: true, Code: GapOldKernel,
	}, count > 0
}
