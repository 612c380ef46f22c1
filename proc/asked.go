package proc

import (
	"fmt"
	"path"
	"slices"

	"github.com/capdrift/capdrift/drift"
)

// Where cgroup.procs tells no pids of this /proc, because the reader lives in a pid
// namespace of its own, each process is asked for its cgroup.
const (
	// aCall is how many processes of the node one call may list: with more, there is
	// a list at every second call, every third …
	aCall = 1000
	// asksACall is how many processes one call asks for their cgroup.
	asksACall = 1024
	// asks is how often one process is asked: a runtime starts it in its own cgroup
	// and moves it to the container's within milliseconds.
	asks = 4
)

// asked is what the processes of the node have answered.
type asked struct {
	sweep     sweep // which knows where the root of our cgroup namespace is
	processes map[int]*answer
	cgroups   map[string]string // each text once
	saved     int               // calls' worth of processes that were not listed yet
	round     uint32
	behind    bool // not all that are new could be asked
}

type answer struct {
	round  uint32
	left   int // how often to ask it yet
	cgroup string
	group  *member
}

// replace begins to ask, or sorts what was answered by the containers of now.
func (m *Members) replace() {
	main := m.mainHierarchy()
	if m.asked == nil || m.asked.sweep.main != main {
		m.asked = &asked{processes: map[int]*answer{}}
		m.asked.sweep.tree, m.asked.sweep.main = m.tree, main
	}
	a := m.asked
	a.cgroups = map[string]string{}
	for _, p := range a.processes {
		p.group = nil
		if p.cgroup != "" {
			p.cgroup = a.once(p.cgroup)
			p.group = m.owner(p.cgroup)
		}
	}
	// Those that somebody else has read are where he found them, until they are asked.
	for _, g := range m.groups {
		for _, pid := range g.known {
			if p := a.processes[pid]; p == nil {
				a.processes[pid] = &answer{round: a.round, left: 1, group: g}
			} else if p.cgroup == "" {
				p.group = g
			}
		}
	}
}

func (a *asked) once(cgroup string) string {
	if known, ok := a.cgroups[cgroup]; ok {
		return known
	}
	a.cgroups[cgroup] = cgroup
	return cgroup
}

func (a *asked) cgroupOf(r *reader, pid int) string { return a.sweep.cgroupOf(r, pid) }

// owner returns the innermost container that a cgroup is part of.
func (m *Members) owner(cgroup string) *member {
	for dir := cgroup; dir != "/" && dir != "."; dir = path.Dir(dir) {
		if g := m.roots[m.asked.sweep.main.at(dir)]; g != nil && (!g.alone || dir == cgroup) {
			return g
		}
	}
	return nil
}

// ask is Changes by asking.
func (m *Members) ask() ([]Change, error) {
	a := m.asked
	if a.saved += aCall; a.saved < len(a.processes) && !a.behind {
		return nil, nil
	}
	a.saved, a.behind = 0, false
	all, err := m.reader.allPIDs()
	if err != nil {
		return nil, err
	}
	hides := m.reader.hides()
	a.round++
	budget := asksACall
	for _, pid := range all {
		p := a.processes[pid]
		if p == nil {
			p = &answer{left: asks}
			a.processes[pid] = p
		}
		p.round = a.round
		if p.left == 0 {
			continue
		}
		if budget == 0 {
			a.behind = true
			continue
		}
		budget--
		p.left--
		p.cgroup = a.once(a.cgroupOf(m.reader, pid))
		p.group = m.owner(p.cgroup)
	}
	if a.sweep.unrooted.Load() {
		return nil, nil // the answers are paths from nowhere
	}
	members := make(map[*member][]int, len(m.groups))
	for pid, p := range a.processes {
		switch {
		case p.round != a.round:
			delete(a.processes, pid)
		case p.group != nil:
			members[p.group] = append(members[p.group], pid)
		}
	}
	var changes []Change
	var over []*member
	for _, g := range m.groups {
		if list := members[g]; len(list) > 0 || m.tree.exists(g.directory()) {
			slices.Sort(list)
			if hides { // who is not listed has ended, or is hidden: nobody says that he is gone
				g.known = slices.DeleteFunc(g.known, func(pid int) bool { return !has(list, pid) })
			}
			if change := g.take(list, m.tellable(g)); len(change.Appeared)+len(change.Gone)+change.Missed > 0 {
				changes = append(changes, change)
			}
			continue
		}
		changes = append(changes, Change{ContainerID: g.id, Gone: g.known, Ended: true, Missed: len(g.held)})
		over = append(over, g)
	}
	for _, g := range over {
		m.drop(g)
		m.ended[g.id] = true
	}
	return changes, nil
}

// forget has processes asked again that are not where they were.
func (m *Members) forget(pids []int, gone func(pid int) bool) {
	if m.asked == nil {
		return
	}
	for _, pid := range pids {
		if gone(pid) {
			delete(m.asked.processes, pid)
		}
	}
}

// limit says what asking misses.
func (a *asked) limit(t *tree) []drift.Limit {
	list := []drift.Limit{{
		What: "processes that join containers from elsewhere between two sweeps",
		Why: fmt.Sprintf("this program runs in a pid namespace of its own, where cgroup.procs does not tell the node's pids, "+
			"so new processes alone are asked for their cgroup, for one look in %d; run it in the node's (hostPID: true)", 1+len(a.processes)/aCall),
	}}
	if a.sweep.unrooted.Load() {
		list = append(list, drift.Limit{
			What: "processes that containers start between two sweeps", Blind: true, Code: drift.GapBetween,
			Why: "this program runs in a cgroup namespace, and its own cgroup was not found below " + t.root,
		})
	}
	return list
}
