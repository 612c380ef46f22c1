package drift

import "slices"

// beingStarted is the reason of a container that was seen in part because its runtime is
// starting it.
const beingStarted = "its runtime is starting it"

// Admit makes a container that was found on the node, and that its runtime is starting,
// one that the runtime manages and that was seen in part: what is in its cgroup is the
// runtime's own, and no declaration is known yet. starting are the ids of containers that
// the runtime says are made and do not run yet. Any other container is left as it is.
func Admit(c *Container, starting []string) {
	if c.Managed != nil && !*c.Managed && BeingStarted(c, starting) {
		c.Managed, c.Observation, c.Reason = new(true), Partial, beingStarted
	}
}

// BeingStarted reports whether a container that was found on the node is one that its
// runtime is starting: the runtime lists it as such, or does not list it yet, as while its
// hooks run, and whoever is in it is a stage of the runtime ([Settle]). The stage of an
// exec that is not in its container's cgroup yet looks like a container, too.
func BeingStarted(c *Container, starting []string) bool {
	if c.Origin == "" {
		return false // it was given
	}
	return slices.Contains(starting, c.ID) ||
		len(c.Processes) > 0 && !slices.ContainsFunc(c.Processes, func(p Process) bool { return p.Observation != Starting })
}
