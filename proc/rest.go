package proc

import (
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/capdrift/capdrift/drift"
)

// rest is what a sweep leaves of a container all of whose processes it read: the
// processor time that its cgroup had used before they were read, and which they were.
//
// A process changes its credentials, its program and its user namespace itself, by
// running (credentials(7), execve(2), unshare(2)), and so it begins and ends. Where the
// same processes have used no more time since, none of them ran, and what was read of
// them and of their threads is still so: a container at rest. What is not its own doing
// is its parent, who may have ended, and its age.
type rest struct {
	directory string
	used      string
	threads   string // used, when all their threads were read last; "" where they never were
	pids      []int
	read      int // processes; the others are zombies
}

// usageFile is the file that tells what processor time a cgroup and those below it have
// used, "" where none does: on v1 what is counted for a directory of the pids hierarchy
// is told by the same directory of another.
func usageFile(h hierarchy, root string) string {
	switch {
	case h == hierarchy{}:
		return path.Join(h.at(root), "cpu.stat") // usage_usec comes first
	case h.field == "pids":
		return path.Join(hierarchy{directory: "cpuacct"}.at(root), "cpuacct.usage")
	}
	return ""
}

// used reads it, "" where it cannot be told.
func (s *sweep) used(r *reader, g *group) string {
	file := usageFile(g.hierarchy, g.root)
	if file == "" || !g.given || g.root == "" || s.look.foreign || s.look.hides {
		return ""
	}
	fd, err := open(s.tree.fd, file, unix.O_NOFOLLOW)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	text, err := r.read(fd)
	if err != nil {
		return ""
	}
	return string(text[:min(len(text), len(beats{}[0].text))])
}

// settled finds the containers that were at rest since the last sweep, and gives them
// the processes that they were given with.
func (s *sweep) settled(rests map[string]rest) {
	for _, g := range s.groups {
		last, ok := rests[g.container.ID]
		if !ok || g.hierarchy.at(g.root) != last.directory {
			continue
		}
		since := last.used
		if g.threads = last.threads; s.withThreads {
			since = last.threads
		}
		g.resting = !g.afresh && g.used != "" && g.used == since &&
			len(g.before) == last.read && slices.Equal(g.pids, last.pids) && !slices.ContainsFunc(g.pids, func(pid int) bool {
			return s.claims[pid] != g || !has(s.all, pid)
		}) && !slices.ContainsFunc(g.before, func(p drift.Process) bool {
			u := p.UserNamespace // one whose maps are empty may be given some by another process
			return p.Observation != drift.Observed || len(u.UIDMap) == 0 || len(u.GIDMap) == 0 || !has(g.pids, p.PID)
		})
	}
}

// keep takes what was known of a container at rest.
func (s *sweep) keep(g *group) {
	g.processes = slices.Clone(g.before)
	for i := range g.processes {
		p := &g.processes[i]
		p.Age = age(s.look.uptime, p.StartTime)
		if born, ok := s.look.births.of(p.PID); ok {
			s.births = append(s.births, born)
		}
	}
}

// rests are the containers that may be at rest when the next sweep comes.
func (s *sweep) rests() map[string]rest {
	list := make(map[string]rest, len(s.groups))
	for _, g := range s.groups {
		if g.used != "" && !g.unknown && !g.silent && g.overdue == nil && g.vanished+len(g.failures)+len(g.problems) == 0 {
			if s.withThreads && !g.unread {
				g.threads = g.used
			}
			list[g.container.ID] = rest{directory: g.hierarchy.at(g.root), used: g.used, threads: g.threads, pids: g.pids, read: len(g.processes)}
		}
	}
	return list
}
