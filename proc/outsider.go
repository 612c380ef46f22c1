package proc

import (
	"errors"
	"fmt"
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
	placed  bool           // it was in its group's cgroup before it was read, and after
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
// sandboxes do, or it is in the mount namespace of one, or in its pid namespace. A user namespace alone makes none:
// systemd's services (PrivateUsers=) and sandboxes of all kinds have one.
func (s *sweep) readOutsider(r *reader, pid int, o *reading) {
	empty := *o
	for range moveReads {
		*o = empty
		if s.readOutsiderOnce(r, pid, o); !errors.Is(o.err, errMoved) {
			return
		}
	}
	// It moves again and again. Whose it is its mounts tell.
	if o.owner = s.mounted(r, pid); o.owner == nil {
		o.err = fmt.Errorf("process %d moves from cgroup to cgroup while it is read", pid)
		return
	}
	if s.readStray(r, pid, o); errors.Is(o.err, errMoved) {
		o.err = nil
	}
	if s.lister(o.cgroup) == o.owner {
		o.process.Elsewhere = ""
	}
}

// moveReads is how often a process is read that moves to another cgroup meanwhile: a runtime
// moves one once.
const moveReads = 3

var errMoved = fmt.Errorf("%w where it was: it moved to another cgroup", ErrVanished)

func (s *sweep) readOutsiderOnce(r *reader, pid int, o *reading) {
	status, err := r.outsider(pid)
	if err != nil {
		if !errors.Is(err, errSkip) || errors.Is(err, errEnded) {
			o.err = err
		}
		return
	}
	o.parent = status.PPid
	apart := status.Depth > 1
	if o.owner = s.mounted(r, pid); o.owner == nil && apart {
		o.owner = s.joined(r, pid)
	}
	if o.owner == nil && !apart && !s.look.foreign {
		return
	}
	if o.cgroup = s.cgroupOf(r, pid); o.cgroup == "/" && r.exiting(pid) {
		o.err = ErrVanished
		return
	}
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
		*o.process, o.born, o.err = r.withOrigin(&s.look, c, *o.process, always)
	}
	o.placed = o.err == nil && o.cgroup == o.born.cgroup
	if o.err == nil && o.cgroup != s.cgroupOf(r, pid) {
		o.err = errMoved // and which process was where is not known
		if r.exiting(pid) {
			o.err = ErrVanished
		}
	}
	if o.owner != nil {
		o.process.Elsewhere = o.cgroup
	}
}

func always(*drift.Container, *drift.Process) bool { return true }

// What one sweep reads of processes that came while it read others.
const (
	newcomerRounds = 6
	maxNewcomers   = 64
)

// readNewcomers reads processes that came while others were read, where some of those had
// ended: one that starts its successor and ends is in no list of those that are there. Where
// some of the newcomers end each time, that is said.
func (s *sweep) readNewcomers(read []reading) {
	known, r := s.all, s.readers[0]
	for round := 0; slices.ContainsFunc(read, reading.vanished); round++ {
		if round == newcomerRounds {
			s.blind(drift.GapMissed, "processes that start others and end at once", "they came and went faster than they could be read")
			return
		}
		all, err := r.allPIDs()
		if err != nil {
			return // it could be listed before, and what was read then counts
		}
		read = nil
		for _, pid := range all {
			if has(known, pid) || s.claims[pid] != nil || len(read) == maxNewcomers {
				continue
			}
			o := reading{pid: pid, group: s.others, done: true}
			if s.readOutsider(r, pid, &o); o.vanished() {
				o.process = nil // it came and went
			}
			read = append(read, o)
		}
		s.others.readings = append(slices.Clip(s.others.readings), read...)
		known = all
	}
}

// vanished reports whether a process had ended when it was to be read.
func (o reading) vanished() bool { return errors.Is(o.err, ErrVanished) || errors.Is(o.err, errEnded) }

// joinedPIDNamespace reports whether a process is in a pid namespace below the node's and is
// not the first one of it, which only its own children and those that join it are.
func joinedPIDNamespace(p *drift.Process) bool {
	n := len(p.NamespacePIDs)
	return n > 1 && p.NamespacePIDs[n-1] != 1
}

// outsider reads the status of a process that is in no container's cgroup.
func (r *reader) outsider(pid int) (Status, error) {
	fd, err := r.openStatus(pid)
	if err != nil {
		return Status{}, err
	}
	defer unix.Close(fd)
	s, err := r.status(fd, pid)
	if err == nil {
		err = s.skips()
	}
	return s, err
}

// exiting reports whether a process is about to end, or has: cgroup v1 then tells the root
// as its cgroup (kernel/cgroup/cgroup.c proc_cgroup_show).
func (r *reader) exiting(pid int) bool {
	stat, err := r.stat(pid)
	return err != nil || stat.exiting
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
	return s.givenGroup(container)
}

// joined returns the container in whose pid namespace a process is, nil where it is in none
// that one container alone has, and where that may not be read: it takes CAP_SYS_PTRACE.
func (s *sweep) joined(r *reader, pid int) *group {
	namespace := r.inode(r.of(pid, "ns/pid"))
	if namespace == 0 {
		return nil
	}
	container := s.look.origins.learnt(r, s.look.mount).byPIDs[namespace]
	if container == "" {
		return nil
	}
	return s.givenGroup(container)
}

// ownersOf returns which given container each process is of, by what was read.
func (s *sweep) ownersOf() map[int]*group {
	owners := make(map[int]*group, len(s.claims))
	for _, g := range s.groups {
		if !g.given || g.alone || g.silent {
			continue
		}
		for i := range g.processes {
			owners[g.processes[i].PID] = g
		}
	}
	return owners
}

// maxAsked bounds how many processes of one container one sweep asks where they came from
// for their parent alone: those that hold too much are asked all.
const maxAsked = 256

// giveBack puts processes that are in one container's cgroup and came from another with
// the one that they came from. A process is where its parent is, and who execs into a
// container has the parent that its first process has; all others are asked.
func (s *sweep) giveBack() {
	owners := s.ownersOf()
	s.giveBackOfPods(owners)
	for _, g := range slices.Clone(s.groups) {
		if !g.given || g.alone || g.silent || g.resting {
			continue
		}
		starter, asks := 0, maxAsked
		for i := range g.processes {
			if g.processes[i].PID == g.container.InitPID {
				starter = g.processes[i].ParentPID
			}
		}
		g.processes = slices.DeleteFunc(g.processes, func(p drift.Process) bool {
			foreign := p.Lineage == nil && p.Elsewhere == "" && starter > 1 && p.ParentPID != starter && p.PID != g.container.InitPID && owners[p.ParentPID] != g
			if foreign && asks > 0 {
				asks--
				asked, _, err := s.readers[0].withOrigin(&s.look, &g.container, p, always)
				if err != nil {
					return false // ended, and the next sweep says so
				}
				p = asked
			}
			owner := s.ownerByOrigin(&p)
			if owner == nil || owner == g {
				return false
			}
			p.Elsewhere, g.unknown = g.root, true // and g is at rest only without it
			owner.processes = append(owner.processes, p)
			return true
		})
	}
}

// giveBackOfPods does so with what is in cgroups of pods that are no container's.
func (s *sweep) giveBackOfPods(owners map[int]*group) {
	for _, g := range s.groups {
		if g.given || !g.alone || g.scattered {
			continue
		}
		g.processes = slices.DeleteFunc(g.processes, func(p drift.Process) bool {
			owner := s.mounted(s.readers[0], p.PID)
			if owner == nil {
				owner = owners[p.ParentPID]
			}
			if owner == nil {
				return false
			}
			again, _, err := s.readers[0].explained(&s.look, &owner.container, p.PID)
			if err != nil || again.StartTime != p.StartTime {
				return false // the next sweep says so
			}
			again.Elsewhere = g.root
			owner.processes = append(owner.processes, again)
			return true
		})
	}
}

// ownerByOrigin returns the given container that a process came from, nil where that is
// not known.
func (s *sweep) ownerByOrigin(p *drift.Process) *group {
	if p.Lineage == nil || p.Lineage.Origin == "" || p.Elsewhere != "" {
		return nil
	}
	return s.givenGroup(p.Lineage.Origin)
}

func (s *sweep) givenGroup(id string) *group {
	at := slices.IndexFunc(s.groups, func(g *group) bool { return g.given && !g.alone && g.container.ID == id })
	if at < 0 {
		return nil
	}
	return s.groups[at]
}

// takeChildren takes the processes in no container whose parents are a container's: who
// left his container's cgroup is still its own, and so are those that he starts.
func (s *sweep) takeChildren(readings []reading) {
	owners := s.ownersOf()
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
			if g := s.lister(o.cgroup); g != nil && g.given && !g.alone {
				owner, o.owner = g, nil // it came after that one's processes were listed
			}
			if o.cgroup == "/" && r.exiting(o.pid) {
				continue
			}
			if s.readStray(r, o.pid, o); o.vanished() {
				continue
			}
			s.take(owner, o)
			owners[o.pid] = owner
		}
	}
}

// takeMoved takes the processes that left the cgroups of their groups while they were read
// and live on: they are the container's in whose mount namespace they are. Whoever moves
// all the time is found in one place all the same. left are in the order of the groups.
func (s *sweep) takeMoved(left [][]drift.Process) {
	r := s.readers[0]
	for i, list := range left {
		for _, p := range list[:min(len(list), maxNewcomers)] {
			owner := s.mounted(r, p.PID)
			if owner == nil {
				continue
			}
			again, _, err := r.explained(&s.look, &owner.container, p.PID)
			if err != nil || again.StartTime != p.StartTime {
				continue // it has ended
			}
			if cgroup := s.cgroupOf(r, p.PID); s.lister(cgroup) != owner {
				again.Elsewhere = cgroup
			}
			s.groups[i].vanished--
			owner.processes = append(owner.processes, again)
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
