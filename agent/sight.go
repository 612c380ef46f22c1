package agent

import (
	"slices"

	"github.com/capdrift/capdrift/drift"
)

// judge compares everything that is known, after a sweep that read threads or did not.
func (l *Loop) judge(threads bool) (seen sample) {
	s := &l.state
	if s.runtime == nil {
		return sample{}
	}
	containers := s.sorted()
	s.expectations = drift.Expect(s.node, *s.runtime, heldBy(l.Host, s.runtime.PID, containers), l.Given, containers)
	seen.found = s.expectations.Findings()
	for _, c := range containers {
		seen.found = append(seen.found, drift.Hops(s.node, s.expectations, c)...)
		read := c
		if !threads {
			if bare := withoutThreads(c.Processes); bare != nil {
				seen.kept = append(seen.kept, drift.Compare(s.node, c)...)
				read.Processes = bare
			}
		}
		seen.found = append(seen.found, drift.Compare(s.node, read)...)
	}
	seen.found, seen.kept = l.except(s.expectations.Fold(seen.found)), l.except(s.expectations.Fold(seen.kept))
	return seen
}

// withoutThreads returns processes without the threads that an earlier look read of them,
// nil where there are none.
func withoutThreads(processes []drift.Process) []drift.Process {
	if !slices.ContainsFunc(processes, func(p drift.Process) bool { return len(p.Threads) > 0 }) {
		return nil
	}
	bare := slices.Clone(processes)
	for i := range bare {
		bare[i].Threads, bare[i].ThreadsRead = nil, false
	}
	return bare
}

// readAnew reports whether a sweep certainly read the process that shows a finding: not one
// for which it had no time and, but in a whole look, not one that is just as it was before,
// for it may have been at rest.
func (s *state) readAnew(f drift.Finding, before *drift.Container, whole bool) bool {
	c := s.containers[s.holder(f)]
	if !tied(f) || c == nil {
		return true
	}
	if c.Stale(f.PID) {
		return false
	}
	if whole || before == nil || before.Declared != c.Declared || !same(before.Managed, c.Managed) {
		return true
	}
	then, now := processOf(before.Processes, f), processOf(c.Processes, f)
	return then == nil || now == nil || !sameProcess(*then, *now)
}

// processOf returns the process that a finding names, nil where it is not among them: a
// pid alone may be another's by now.
func processOf(list []drift.Process, f drift.Finding) *drift.Process {
	for i := range list {
		if list[i].PID == f.PID && list[i].StartTime == f.StartTime {
			return &list[i]
		}
	}
	return nil
}

// holder returns the id of the container among whose processes is the one that a finding
// names: that which the finding is about, unless it is about the node.
func (s *state) holder(f drift.Finding) string {
	if f.ContainerID != "" || !tied(f) {
		return f.ContainerID
	}
	for id, c := range s.containers {
		if processOf(c.Processes, f) != nil {
			return id
		}
	}
	return ""
}

// rereadable reports whether reading the one process again can confirm a finding: not
// what is about a thread, a container, or a process that is not in its container's cgroup.
func (s *state) rereadable(f drift.Finding) bool {
	c := s.containers[s.holder(f)]
	if !tied(f) || f.TID != 0 || c == nil {
		return false
	}
	p := processOf(c.Processes, f)
	return p == nil || p.Elsewhere == ""
}

// over says why a finding that a sweep did not find is over: "" where its container could
// not be read in whole, or no runtime told what was declared. threads tells whether the
// sweep read all threads.
func (s *state) over(f drift.Finding, threads bool) string {
	c, there := s.containers[f.ContainerID]
	switch {
	case s.runtime == nil || f.Kind == drift.TransientDrift:
		return ""
	case f.Kind == drift.PolicyViolation:
		if !there {
			return ResolvedEnded // of a run before, and looked for in vain
		}
		return ""
	case f.ContainerID == "" && !tied(f):
		return ResolvedExplained // about a handler
	case f.ContainerID == "":
		if c, there = s.containers[s.holder(f)]; !there {
			return ResolvedEnded
		}
	case !there:
		return ResolvedEnded
	case f.Kind == drift.UnmanagedContainer:
		if c.Managed == nil {
			return ""
		}
		return ResolvedExplained // by the runtime, whatever can be read of it
	}
	switch {
	case !wholly(c):
		return ""
	case !tied(f):
		return ResolvedExplained
	}
	switch p := processOf(c.Processes, f); {
	case p == nil:
		return ResolvedEnded
	case f.TID != 0 && !threads || c.Stale(p.PID) || !compared(p):
		return ""
	}
	return ResolvedExplained
}

// wholly tells whether all processes of a container were read that can be.
func wholly(c *drift.Container) bool {
	return c.Observation == drift.Observed || c.Observation == drift.UnsupportedRuntime
}

// compared reports whether nothing kept a process from being held against what was
// declared: one whose user namespace is not known, or which is the runtime's own, is not
// refuted.
func compared(p *drift.Process) bool {
	return p.Observation != drift.Starting && p.Observation != drift.Helper && p.UserNamespace.Relation != drift.RelationUnknown
}
