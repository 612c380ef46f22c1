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
	if limit, ok := unseen(containers); ok {
		limits = append(limits, limit)
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

// unseen says of how many containers no_new_privs was declared and cannot be seen: kernels
// before 4.10 do not show it, proc_pid_status(5).
func unseen(containers []Container) (Limit, bool) {
	count, first := 0, ""
	for i := range containers {
		c := &containers[i]
		if c.Declared.OCI == nil || !c.Declared.OCI.NoNewPrivileges || c.Observation == UnsupportedRuntime {
			continue
		}
		if slices.ContainsFunc(c.Processes, func(p Process) bool { return p.Observation == Observed && p.NoNewPrivileges == nil }) {
			if count++; count == 1 {
				first = c.Label()
			}
		}
	}
	return Limit{
		What:  fmt.Sprintf("whether no_new_privs is set in %d containers that declare it, in %s for one", count, first),
		Why:   "this kernel does not show it: Linux does since 4.10",
		Blind: true, Code: GapNoNewPrivs,
	}, count > 0
}
