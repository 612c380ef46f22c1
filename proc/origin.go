package proc

import (
	"cmp"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/capdrift/capdrift/drift"
)

// origins tells where processes came from that need an explanation ([drift.Suspicious]):
// their ancestors, and the container that these, or their mounts, are of. It is read of
// few processes, so what it takes to tell containers apart is learnt when it is first
// asked for.
type origins struct {
	containers []drift.Container // without their processes
	// cgroupOf returns the cgroup of a process, false where it cannot be told.
	cgroupOf func(r *reader, pid int) (string, bool)
	// containerOf returns which of the containers a cgroup is of, "" for none; within is
	// true where it is of a container at all.
	containerOf func(cgroup string) (id string, within bool)

	learn   sync.Once
	byMount map[int]string // by the id of a mount of its first process: container
	shared  map[int]bool   // mounts that first processes of several containers have
	// byPIDs is by the pid namespace of its first process, where it may be read: container, ""
	// where it is of several or of the node.
	byPIDs    map[uint64]string
	byStarter map[int][]string // by the parent of their first processes, a shim: containers
	pods      map[string]drift.Pod
}

// learnt reads what tells the containers apart.
func (o *origins) learnt(r *reader, nodeMount int) *origins {
	o.learn.Do(func() {
		o.byMount, o.byStarter, o.pods = make(map[int]string), make(map[int][]string), make(map[string]drift.Pod)
		o.byPIDs = map[uint64]string{r.inode("1/ns/pid"): ""}
		o.shared = make(map[int]bool)
		joins := make(map[string]bool) // containers that may enter others' mount namespaces
		for _, c := range o.containers {
			joins[c.ID] = c.Declared.OCI == nil || c.Declared.OCI.Ceiling().Has(capSysAdmin)
			if c.Pod != nil {
				o.pods[c.ID] = *c.Pod
			}
			if c.InitPID == 0 {
				continue
			}
			for _, id := range parseMounts(r.mountText(c.InitPID)) {
				if id == nodeMount {
					continue
				}
				other := o.byMount[id]
				o.shared[id] = other != ""
				if other == "" || joins[other] && !joins[c.ID] { // they are its who cannot have joined; setns(2)
					o.byMount[id] = c.ID
				}
			}
			if namespace := r.inode(r.of(c.InitPID, "ns/pid")); namespace != 0 {
				id := c.ID
				if _, taken := o.byPIDs[namespace]; taken {
					id = ""
				}
				o.byPIDs[namespace] = id
			}
			if parent, err := r.parent(c.InitPID); err == nil && parent > 1 {
				o.byStarter[parent] = append(o.byStarter[parent], c.ID)
			}
		}
		r.spent(0) // which is not the doing of the process that is read just now
	})
	return o
}

// parent returns the parent of a process.
func (r *reader) parent(pid int) (int, error) {
	fd, err := r.openStatus(pid)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	s, err := r.status(fd, pid)
	return s.PPid, err
}

// explained reads a process of a container as [reader.process] does and, where it needs an
// explanation, where it came from. That is read between two readings that both need it,
// of one and the same process: a process that was a stage of the runtime at the first one
// may be the container's program at the second, and its parent may have ended in between.
func (r *reader) explained(l *look, c *drift.Container, pid int) (drift.Process, birth, error) {
	p, born, err := r.process(l, c, pid)
	if err != nil || !l.needsOrigin(c, &p) {
		return p, born, err
	}
	return r.withOrigin(l, c, p, l.needsOrigin)
}

// capSysAdmin is CAP_SYS_ADMIN, capabilities(7), which every stage of an OCI runtime holds.
const capSysAdmin = 21

// needsOrigin reports whether it must be known where a process came from: one that holds
// more than was declared, or that may be a stage in a container that nobody named.
func (l *look) needsOrigin(c *drift.Container, p *drift.Process) bool {
	if l.origins == nil || c == nil {
		return false
	}
	if c.Declared.OCI == nil {
		return c.Managed == nil && p.Caps.Permitted.Has(capSysAdmin)
	}
	return drift.Suspicious(l.node, c, p)
}

// withOrigin reads where a process came from and then, once more, the process, which gets
// its origin where it needs one still.
func (r *reader) withOrigin(l *look, c *drift.Container, p drift.Process, needs func(*drift.Container, *drift.Process) bool) (drift.Process, birth, error) {
	lineage, forked := r.origin(l, c, &p)
	inode, parent := uint64(0), uint64(0)
	if !l.inodes {
		// The kernel lets the owner of a user namespace look at who is in it. To
		// ask is refused, and perhaps audited, for all others: so suspects alone are.
		inode, parent = r.identity(p.PID)
	}
	again, born, err := r.process(l, c, p.PID)
	switch {
	case err != nil:
		return drift.Process{}, birth{}, err
	case again.StartTime != p.StartTime:
		return drift.Process{}, birth{}, ErrVanished
	}
	again.Threads, again.ThreadsRead, again.Elsewhere = p.Threads, p.ThreadsRead, p.Elsewhere
	if needs(c, &again) {
		again.Lineage, again.Forked = lineage, forked
		if inode != 0 {
			again.UserNamespace.Inode, again.UserNamespace.Parent = inode, parent
		}
	}
	return again, born, nil
}

// origin reads the ancestors of a process up to the first one that is in no container, and
// concludes from them and its mounts which container it is of. forked reports whether the
// process has executed nothing since it was forked.
func (r *reader) origin(l *look, c *drift.Container, p *drift.Process) (lineage *drift.Lineage, forked bool) {
	lineage = &drift.Lineage{Ancestors: []drift.Ancestor{}, Mount: r.rootMount(p.PID)}
	if stat, err := r.stat(p.PID); err == nil {
		forked = stat.forked
	}
	known := l.origins.learnt(r, l.mount)
	for next := p.ParentPID; next > 0 && len(lineage.Ancestors) < maxAncestors; {
		a, parent, id, ok := r.ancestor(l, next)
		if !ok {
			break
		}
		a.Container = id != "" && id == c.ID
		if len(lineage.Ancestors) == 0 {
			a.Mount = r.rootMount(next)
		}
		lineage.Ancestors = append(lineage.Ancestors, a)
		if id != "" && lineage.Origin == "" && known.proves(c, id, next) {
			lineage.Origin = id
		}
		if a.Outside {
			break
		}
		next = parent
	}
	of := known.byMount[lineage.Mount]
	if of != "" && !known.shared[lineage.Mount] {
		lineage.Origin = of // more than who adopted it says
	}
	if lineage.Origin == "" {
		lineage.Origin = cmp.Or(known.byParent(c, lineage), of)
	}
	l.evidence(r, p.PID, lineage)
	return lineage, forked
}

// evidence adds what tells a process apart after it has ended.
func (l *look) evidence(r *reader, pid int, lineage *drift.Lineage) {
	lineage.Cgroup, _ = l.origins.cgroupOf(r, pid)
	lineage.Executable, lineage.ExecutableSHA256, lineage.ExecutableUnreadable = l.programs.executable(r, pid)
	if l.arguments {
		lineage.Arguments = r.arguments(pid)
	}
}

// proves reports whether an ancestor in a container says that a process in the cgroup of c
// came from there. The containers of a pod may share a pid namespace, where the first process
// of one adopts the orphans of all: within a pod it proves nothing. Of c itself the first
// process alone does, for others may have been moved as well.
func (o *origins) proves(c *drift.Container, id string, ancestor int) bool {
	if id == c.ID {
		return ancestor == c.InitPID
	}
	pod, known := o.pods[id]
	return c.Pod == nil || !known || pod != *c.Pod
}

// byParent returns which container a process is of that does not descend from one: whose
// first process has the same parent; "" where none has.
func (o *origins) byParent(c *drift.Container, lineage *drift.Lineage) string {
	if len(lineage.Ancestors) == 0 {
		return ""
	}
	started := o.byStarter[lineage.Ancestors[0].PID]
	switch {
	case len(started) == 0:
		return ""
	case slices.Contains(started, c.ID):
		return c.ID
	}
	return started[0]
}

// ancestor reads one process on the way up: its parent, and the container that it is of,
// "" for none that was given.
func (r *reader) ancestor(l *look, pid int) (a drift.Ancestor, parent int, container string, ok bool) {
	cgroup, known := l.origins.cgroupOf(r, pid)
	stat, err := r.stat(pid)
	if err != nil {
		return a, 0, "", false
	}
	fd, err := r.openStatus(pid)
	if err != nil {
		return a, 0, "", false
	}
	defer unix.Close(fd)
	s, err := r.status(fd, pid)
	if err != nil {
		return a, 0, "", false
	}
	a = drift.Ancestor{PID: pid, Name: s.Comm(), StartTime: stat.start, Forked: stat.forked}
	if known && !stat.exiting { // of which cgroup v1 tells the root
		within := false
		container, within = l.origins.containerOf(cgroup)
		a.Outside = !within && s.Depth <= 1
	}
	return a, s.PPid, container, true
}
