package proc

import (
	"fmt"
	"slices"
	"time"
)

// New processes are read at once, at whatever they cost. What that took is the
// container's debt: above a bound no more are read of it until enough was paid. All
// containers together pay paidPart of the time, in equal parts, so that in the long run
// no more than that is spent, and who owes nothing never waits.
const (
	paidPart = 100 // one hundredth of a core
	// mostDebt is for processes whose parent is in the container, twice as much for the
	// others: a runtime starts those, or an intruder. 512 ordinary processes, as many
	// as one call tells, cost a sixth of it.
	mostDebt = 200 * time.Millisecond
	// quick is what is read in the order of pids, before parents are looked up.
	quick = 5 * time.Millisecond
)

// queue is the new processes of one container that are to be read.
type queue struct {
	pids    []int
	outside int // how many of them have their parent outside, once they are in order
	ordered bool
}

// next takes from a queue the process that is to be read next, false if none is or may be.
func (m *Members) next(g *member, q *queue) (pid int, ok bool) {
	if len(q.pids) > 1 && !q.ordered && g.debt >= quick && m.fs.options.Time > 0 && g.debt < 2*mostDebt {
		m.order(g, q)
	}
	most := mostDebt
	if q.outside > 0 || !q.ordered {
		most = 2 * mostDebt
	}
	if len(q.pids) == 0 || m.fs.options.Time > 0 && g.debt >= most {
		return 0, false
	}
	pid, q.pids = q.pids[0], q.pids[1:]
	q.outside = max(0, q.outside-1)
	return pid, true
}

// order puts those first whose parent is outside the container.
func (m *Members) order(g *member, q *queue) {
	q.ordered = true
	var outside, inside []int
	parted := make(map[int]bool, len(q.pids))
	for _, pid := range q.pids {
		is, asked := g.outside[pid]
		if !asked {
			is = !has(g.known, m.reader.parentInStat(pid))
		}
		if parted[pid] = is; is {
			outside = append(outside, pid)
		} else {
			inside = append(inside, pid)
		}
	}
	g.outside = parted
	q.pids, q.outside = slices.Concat(outside, inside), len(outside)
	g.debt += m.reader.spent(0)
}

// owe enters what a read cost. now is the node's uptime.
func (m *Members) owe(g *member, now, cost time.Duration) {
	g.debt += cost
	if m.owing == 0 {
		m.owing = now
	}
}

// pay pays debts for the time since they were paid last.
func (m *Members) pay() error {
	if m.owing == 0 || m.fs.options.Time == 0 {
		return nil
	}
	l, err := m.fs.freshLook(m.reader, m.look)
	if err != nil {
		return err
	}
	var owing []*member
	for _, g := range m.groups {
		if g.debt > 0 {
			owing = append(owing, g)
		}
	}
	if len(owing) == 0 {
		m.owing = 0
		return nil
	}
	part := max(0, l.uptime-m.owing) / paidPart / time.Duration(len(owing))
	for _, g := range owing {
		g.debt = max(0, g.debt-part)
	}
	m.owing = l.uptime
	return nil
}

// tellable is how many new processes of a container one call may tell: none while it
// owes so much that none would be read.
func (m *Members) tellable(g *member) int {
	if m.fs.options.Time > 0 && g.debt >= 2*mostDebt {
		return 0
	}
	return m.appear
}

// hold has the processes that were not read appear again, those that are still there,
// and returns how many there are.
func (m *Members) hold(g *member, pids []int, still map[int]bool) (n int) {
	waiting := make([]int, 0, len(pids)+len(g.held))
	for _, pid := range pids {
		if still[pid] {
			waiting = append(waiting, pid)
		}
	}
	if len(waiting) == 0 {
		g.outside = nil
		return 0
	}
	n = len(waiting)
	g.known = slices.DeleteFunc(g.known, func(pid int) bool { return slices.Contains(waiting, pid) })
	g.held = append(waiting, g.held...)
	g.stale = true
	g.limit = fmt.Sprintf("reading its new processes takes more than %v of processor time, and more only as it is paid for, a hundredth of a core for all", mostDebt)
	return n
}
