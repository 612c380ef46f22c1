package proc

import (
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/capdrift/capdrift/drift"
)

// reading is what a sweep read of one process.
type reading struct {
	pid     int
	group   *group         // [sweep.others] of those that no group claims
	done    bool           // false where there was no time for it
	process *drift.Process // nil of a process that is in no container
	born    birth
	err     error
	parent  int
	cgroup  string
	owner   *group // nil where the cgroup tells
}

// origins returns what tells the given containers apart.
func (s *sweep) origins() *origins {
	o := &origins{
		cgroupOf: s.cgroupKnown,
		containerOf: func(cgroup string) (string, bool) {
			g := s.lister(cgroup)
			if g != nil && g.given && !g.alone {
				return g.container.ID, true
			}
			_, _, named := outermostContainer(cgroup)
			return "", named
		},
	}
	for _, g := range s.groups {
		o.containers = append(o.containers, g.container)
	}
	return o
}

// readOutsider reads a process that no container's cgroup lists, where it is a container's
// all the same: it lives in a pid namespace below the node's, as only containers and
// sandboxes do, or it is in the mount namespace of one. A user namespace alone makes none:
// systemd's services (PrivateUsers=) and sandboxes of all kinds have one.
func (s *sweep) readOutsider(r *reader, pid int, o *reading) {
	status, err := r.outsider(pid)
	if err != nil {
		if err != errSkip {
			o.err = err
		}
		return
	}
	o.parent = status.PPid
	apart := status.Depth > 1
	if o.owner = s.mounted(r, pid); o.owner == nil && !apart && !s.look.foreign {
		return
	}
	o.cgroup = s.cgroupOf(r, pid)
	if g := s.lister(o.cgroup); g != nil && g.given && !g.alone {
		o.owner = nil // it is in that container's cgroup, wherever its mounts are
	} else if _, _, container := outermostContainer(o.cgroup); o.owner == nil && !apart && !container && g == nil {
		return
	}
	o.process = new(drift.Process)
	s.readStray(r, pid, o)
}

// readStray reads a process that a cgroup does not list, or did not when it was asked.
func (s *sweep) readStray(r *reader, pid int, o *reading) {
	owner := o.owner
	if owner == nil {
		owner = s.lister(o.cgroup)
	}
	c := &drift.Container{}
	if owner != nil {
		c = &owner.container
	}
	*o.process, o.born, o.err = r.explained(&s.look, c, pid)
	if o.err == nil && o.process.Lineage == nil && joinedPIDNamespace(o.process) {
		*o.process, o.born, o.err = r.withOrigin(&s.look, c, *o.process)
	}
	if o.err == nil && o.cgroup != s.cgroupOf(r, pid) {
		o.err = ErrVanished // or moved, and which process was where is not known
	}
	if o.owner != nil {
		o.process.Elsewhere = o.cgroup
	}
}

// joinedPIDNamespace reports whether a process is in a pid namespace below the node's and is
// not the first one of it, which only its own children and those that join it are.
func joinedPIDNamespace(p *drift.Process) bool {
	n := len(p.NamespacePIDs)
	return n > 1 && p.NamespacePIDs[n-1] != 1
}

// outsider reads the status of a process that is in no container's cgroup; errSkip of a
// kernel thread and of one that has ended.
func (r *reader) outsider(pid int) (Status, error) {
	fd, err := r.openStatus(pid)
	if err != nil {
		return Status{}, err
	}
	defer unix.Close(fd)
	s, err := r.status(fd, pid)
	if err == nil && (s.kernel() || s.ended() && s.Threads <= 1) {
		err = errSkip
	}
	return s, err
}

// mounted returns the container in whose mount namespace a process is, nil where it is in
// none: a process of the node that joined it (nsenter), or one that left its cgroup.
func (s *sweep) mounted(r *reader, pid int) *group {
	id := r.rootMount(pid)
	if id == 0 || id == s.look.mount {
		return nil
	}
	container := s.look.origins.learnt(r, s.look.mount).byMount[id]
	if container == "" {
		return nil
	}
	at := slices.IndexFunc(s.groups, func(g *group) bool { return g.given && g.container.ID == container })
	if at < 0 {
		return nil
	}
	return s.groups[at]
}

// takeChildren takes the processes in no container whose parents are a container's: who
// left his container's cgroup is still its own, and so are those that he starts.
func (s *sweep) takeChildren(readings []reading) {
	owners := make(map[int]*group)
	for _, g := range s.groups {
		if !g.given || g.alone || g.silent {
			continue
		}
		for i := range g.processes {
			owners[g.processes[i].PID] = g
		}
	}
	for found := true; found; {
		found = false
		for i := range readings {
			o := &readings[i]
			owner := owners[o.parent]
			if owner == nil || o.process != nil || o.err != nil {
				continue
			}
			found = true
			r := s.readers[0]
			o.owner, o.process, o.cgroup = owner, new(drift.Process), s.cgroupOf(r, o.pid)
			s.readStray(r, o.pid, o)
			s.take(owner, o.pid, o.process, o.born, o.err)
			owners[o.pid] = owner
		}
	}
}

// podOf returns the pod of a container that was not given and whose cgroup lies beside
// those of a known pod's: the kubelet makes the directory that they share.
func (s *sweep) podOf(g *group) *drift.Pod {
	dir := path.Dir(g.root)
	if g.root == "" || !amongPods(dir) {
		return nil
	}
	for _, other := range s.groups {
		if other.given && other.container.Pod != nil && other.root != "" && other.hierarchy == g.hierarchy && path.Dir(other.root) == dir {
			return other.container.Pod
		}
	}
	return nil
}

// mayHaveJoined returns the labels of the given containers that have a pid namespace of
// their own, where a group in no container's cgroup is of processes that joined one from the
// node; nil where they may have joined another, as of systemd-nspawn or of a sandbox.
func (s *sweep) mayHaveJoined(g *group) (labels []string) {
	joined := !g.guess && g.scattered && len(g.processes) > 0
	for i := range g.processes {
		p := &g.processes[i]
		joined = joined && joinedPIDNamespace(p) && p.Lineage != nil && len(p.Lineage.Ancestors) > 0 && p.Lineage.Ancestors[0].Outside
	}
	if !joined {
		return nil
	}
	for _, other := range s.groups {
		first := slices.IndexFunc(other.processes, func(p drift.Process) bool {
			n := len(p.NamespacePIDs)
			return n > 1 && p.NamespacePIDs[n-1] == 1
		})
		switch {
		case first < 0:
		case !other.given:
			return nil
		default:
			labels = append(labels, other.container.Label())
		}
	}
	return labels
}
