package drift

import (
	"path"
	"slices"
)

// ociRuntimes are the programs that start a container's first process and its execs, by
// the name that /proc tells of them.
var ociRuntimes = []string{"runc", "crun", "youki", "sysbox-runc"}

// commLength is how much of a program's name the kernel keeps, TASK_COMM_LEN - 1 in
// include/linux/sched.h.
const commLength = 15

// comm returns what /proc calls a program that is executed from a path.
func comm(program string) string {
	name := path.Base(program)
	return name[:min(len(name), commLength)]
}

// settling is what the processes of one container are settled against.
type settling struct {
	node    Node
	handler Handler
	c       *Container
	byPID   map[int]*Process
}

// parent returns the parent of a process where it is one of the same container's, nil
// otherwise.
func (s *settling) parent(p *Process) *Process {
	q := s.byPID[p.ParentPID]
	if q == nil || q.StartTime > p.StartTime {
		return nil // the number was given to another process since
	}
	return q
}

// isOCIRuntime reports whether a process of this name is an OCI runtime: one of those
// that everybody knows, or the one that is configured for the container.
func (s *settling) isOCIRuntime(name string) bool {
	return slices.Contains(ociRuntimes, name) ||
		s.handler.Binary != "" && comm(s.handler.Binary) == name || s.c.Binary != "" && comm(s.c.Binary) == name
}

// maxStages bounds how far a stage's own children are followed: hooks that start others.
const maxStages = 4

// isStage reports whether a process is a stage of the OCI runtime: it is in the
// container's cgroup, holds what the runtime holds, and has not executed the program of
// the container or of the exec yet. There are three ways to be one, and a program in the
// container can choose none of them:
//
//   - its parent is an OCI runtime that lives, in no container's cgroup and in the node's
//     pid namespace, and it runs that runtime's code still: it was forked and has executed
//     nothing since, or is in the runtime's mount namespace as runc's first stage is;
//   - it is the process that the runtime calls the container's first, and has executed
//     nothing since it was forked: runc create has ended, and start has not come or not
//     been scheduled yet;
//   - its parent is a stage: the hooks that a stage runs.
//
// How long it takes proves nothing: where the container gets little processor time, a
// stage lives for minutes. Its name proves nothing either.
func (s *settling) isStage(p *Process, depth int) bool {
	if p.Forked && p.PID == s.c.InitPID && !s.c.Ended {
		return true
	}
	if p.Lineage == nil || len(p.Lineage.Ancestors) == 0 || depth == maxStages {
		return false
	}
	parent := p.Lineage.Ancestors[0]
	if parent.PID != p.ParentPID || parent.StartTime > p.StartTime {
		return false
	}
	if q := s.parent(p); q != nil {
		return s.isStage(q, depth+1) || s.isOCIRuntime(q.Name) && s.isHelper(q) && s.runsCodeOf(p, parent)
	}
	return parent.Outside && s.isOCIRuntime(parent.Name) && s.runsCodeOf(p, parent)
}

// runsCodeOf reports whether a process runs the code of the OCI runtime that is its
// parent. An OCI runtime starts one program: once that is executed, nothing else that has
// the same parent is a stage of it, as a child of that program is that was cloned with
// CLONE_PARENT, clone(2).
func (s *settling) runsCodeOf(p *Process, parent Ancestor) bool {
	shares := func(p *Process) bool {
		return p.Lineage != nil && p.Lineage.Mount != 0 && p.Lineage.Mount == parent.Mount
	}
	if !p.Forked && !shares(p) {
		return false
	}
	for i := range s.c.Processes {
		q := &s.c.Processes[i]
		if q.PID != p.PID && q.ParentPID == parent.PID && !q.Forked && !shares(q) {
			return false
		}
	}
	return true
}

// isHelper reports whether a process is the runtime's own program beside an exec, or the
// OCI runtime that it calls, which CRI-O puts into the container's cgroup where
// monitor_exec_cgroup = "container" tells it to. Both are in the mount and pid namespaces
// of the node.
func (s *settling) isHelper(p *Process) bool {
	if !s.handler.MonitorInContainer || p.Lineage == nil || len(p.Lineage.Ancestors) == 0 ||
		len(p.NamespacePIDs) != 1 || s.node.Mount == 0 || p.Lineage.Mount != s.node.Mount {
		return false
	}
	if q := s.parent(p); q != nil {
		return s.isOCIRuntime(p.Name) && s.isMonitor(q)
	}
	return s.isMonitor(p)
}

func (s *settling) isMonitor(p *Process) bool {
	return s.handler.Monitor != "" && p.Name == comm(s.handler.Monitor) && p.Lineage != nil && p.Lineage.Mount == s.node.Mount &&
		len(p.Lineage.Ancestors) > 0 && p.Lineage.Ancestors[0].Outside
}

// cameFromOutside reports whether a process was put into the container: its parent, where
// it is known, is none of the container's processes.
func (s *settling) cameFromOutside(p *Process) bool {
	return p.Lineage != nil && len(p.Lineage.Ancestors) > 0 && s.parent(p) == nil && !p.Lineage.Ancestors[0].Container
}

// Remember carries over what only an earlier look at a container could see of the
// processes that are there now: that one came from outside of it, or descends from one
// that did. A process that is adopted by the container's first process later stays what
// it was.
func Remember(before, now []Process) {
	type identity struct {
		pid   int
		start uint64
	}
	entered := make(map[identity]bool)
	numbers := make(map[int]uint64)
	for _, p := range before {
		if p.Entered {
			entered[identity{p.PID, p.StartTime}] = true
			numbers[p.PID] = p.StartTime
		}
	}
	if len(entered) == 0 {
		return
	}
	for i := range now {
		p := &now[i]
		start, isChild := numbers[p.ParentPID]
		p.Entered = p.Entered || entered[identity{p.PID, p.StartTime}] || isChild && start <= p.StartTime
	}
}

// Suspicious reports whether a process needs an explanation: it holds something, or is
// somebody, that the container's declaration does not allow where it lives. node is the
// node's own user namespace. It may be wrong in the one direction only: what it returns
// false for, [Compare] finds nothing above info about.
func Suspicious(node UserNamespace, c *Container, p *Process) bool {
	oci := c.Declared.OCI
	if oci == nil {
		return false
	}
	if oci.NoNewPrivileges && lacksNoNewPrivileges(p) {
		return true
	}
	home := node
	if oci.UserNamespace {
		home = UserNamespace{UIDMap: oci.UIDMap}
	}
	if relate(node, home, p.UserNamespace) == RelationChild {
		return false
	}
	return !excessOf(*oci, p.Caps).Empty() || home.UIDMap != nil && !sameMap(home.UIDMap, p.UserNamespace.UIDMap) || rootOf(*oci, home, p).found ||
		slices.ContainsFunc(p.Threads, func(t Thread) bool { return !excessOf(*oci, t.Caps).Empty() })
}

// AtHome reports whether a user namespace, as its maps tell, is the one that a container
// was declared to run in: its own, or the node's. c is nil where no container is known.
func AtHome(node UserNamespace, c *Container, u UserNamespace) bool {
	if c != nil && c.Declared.OCI != nil && c.Declared.OCI.UserNamespace {
		return sameMap(c.Declared.OCI.UIDMap, u.UIDMap)
	}
	return node.sameMaps(u)
}
