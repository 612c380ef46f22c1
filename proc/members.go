package proc

import (
	"context"
	"errors"
	"fmt"
	"path"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/capdrift/capdrift/drift"
)

// Bounds on what one call of [Members.Changes] does; what is over comes with the
// next ones.
const (
	maxText     = 512 << 10 // bytes of lists read, some 75,000 pids
	maxAppeared = 512       // processes told of one container
	maxTurn     = 256       // cgroups looked at of one container
)

// maxDescriptors bounds what is kept open: half of what the process may open, and
// no more than this, because the kernel keeps a page for each open list.
const maxDescriptors = 1 << 13

// Members follows which processes are in the cgroups of containers, so cheaply
// that it can be asked several times a second: what a container runs besides what
// its runtime tells of (`runc exec`, a process that joins from the host) is seen
// by its pid in the list.
//
//	members := fs.Members()
//	limits := members.Follow(sweep.Containers)     // with each list and each sweep
//	changes, err := members.Changes(ctx)           // four times a second
//	read, gone, err := members.Read(ctx, id, pids) // of those that appeared
//
// A list of pids tells who is there and not who he is. A pid that ends and is given
// again between two looks stays in the list: the next sweep, which reads the start
// time of each process, tells them apart.
//
// Members may be used by several goroutines; their calls wait for each other.
type Members struct {
	fs *FS

	mu     sync.Mutex
	tree   *tree   // nil until it could be opened
	reader *reader // nil until /proc could be opened
	look   look
	groups []*member
	byID   map[string]*member
	roots  map[string]*member // by the directory in the tree
	pulses map[string]*pulse  // likewise
	counts map[string]*count  // likewise, of the directories around them
	round  uint32             // of feeling them
	ended  map[string]bool    // containers whose cgroup was removed, while they are still given
	start  int                // the group that the next call looks at first
	late   bool               // a call could not look at all of them
	owing  time.Duration      // by the node's uptime, when debts were paid last; 0 where there are none
	asked  *asked             // where cgroup.procs cannot be used

	descriptors, most int // open ones, and how many may be
	appear            int // maxAppeared
	text              int // maxText
	buf               []byte
	pids              []int
}

// Change is what became of the members of one container between two calls.
type Change struct {
	ContainerID string
	Appeared    []int // in order, unless they had to wait
	Gone        []int // no longer in any cgroup of it, in order
	// Ended tells that the container's cgroup was removed. It is no longer followed.
	Ended bool
	// Behind is how many more appeared than one call tells; the next ones do. Missed
	// is how many of those ended before their turn came, and nobody read them.
	Behind, Missed int
}

// place is where the processes of a container are.
type place struct {
	hierarchy hierarchy
	root      string // "" when no cgroup was found
	alone     bool   // the cgroups below are not its
	scattered bool   // some processes of a cgroup, not all of it
}

// member is one container that is followed.
type member struct {
	place
	id        string
	container drift.Container // without its processes
	vital
	dirs  []*listing    // parents before their children; the container's own first
	turn  int           // which of the others is looked at first
	known []int         // what was told and is still there, in order
	held  []int         // what appeared and could not be told yet, longest held first
	left  []int         // what was told, and Read found to be gone
	stale bool          // known is not what the lists were compared with
	cut   bool          // it holds more cgroups than are followed
	debt  time.Duration // processor time that reading its new processes took, and was not paid for yet
	// outside tells of those that wait whether their parent is outside the container.
	outside map[int]bool
	limit   string // why not all of it is seen; kept until it was said
}

// Members returns a follower of nothing yet. It keeps files open: close it.
func (fs *FS) Members() *Members {
	m := &Members{fs: fs, byID: map[string]*member{}, roots: map[string]*member{}, pulses: map[string]*pulse{}, counts: map[string]*count{}, ended: map[string]bool{},
		most: maxDescriptors, appear: maxAppeared, text: maxText, buf: make([]byte, 32<<10)}
	var files unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &files) == nil && files.Cur/2 < maxDescriptors {
		m.most = int(files.Cur / 2)
	}
	return m
}

// Close closes all files. Nothing is followed then, until Follow is called again.
func (m *Members) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, g := range slices.Clone(m.groups) {
		m.drop(g)
	}
	var err error
	if m.tree != nil {
		m.tree.close()
		m.tree = nil
	}
	if m.reader != nil {
		err = unix.Close(m.reader.proc)
		m.reader = nil
	}
	m.asked = nil
	return err
}

// Follow makes the given containers those that are followed: it finds the cgroup of
// each one that is new, by its spec or where the last sweep found it, and lets go of
// what is not among them. The processes that a container is given with, as a sweep
// returns it, are known and do not appear; all others of it do, at the next call of
// Changes. It may be called as often as one likes. What it returns is what Changes
// does not see or sees by a weaker means, also since the last call.
func (m *Members) Follow(containers []drift.Container) []drift.Limit {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.open(); err != nil {
		return []drift.Limit{{What: "processes that containers start between two sweeps", Why: err.Error(), Blind: true, Code: drift.GapBetween}}
	}
	places := m.fs.places.Load()
	given := make(map[string]bool, len(containers))
	taken := make(map[string]bool, len(containers))
	var lost, scattered []string
	var fresh []*member
	for _, c := range containers {
		if given[c.ID] || c.Observation == drift.UnsupportedRuntime {
			continue
		}
		given[c.ID] = true
		at, found := m.locate(c, places)
		found = found && !taken[at.directory()]
		g := m.byID[c.ID]
		if g != nil && (!found || g.place != at) {
			m.drop(g)
			g = nil
		}
		switch {
		case !found:
			if !m.ended[c.ID] {
				lost = append(lost, c.ID)
			}
			continue
		case at.scattered:
			scattered = append(scattered, c.ID)
			continue
		case g == nil:
			g = &member{id: c.ID, place: at, stale: true}
			fresh = append(fresh, g)
		case g.cut: // what did not fit may fit now
			g.cut = false
			for _, d := range g.dirs {
				d.dirty = true
			}
			m.settle(g, new(m.text))
		}
		taken[at.directory()] = true
		delete(m.ended, c.ID)
		g.know(c.Processes)
		g.container = c
		g.container.Processes = nil
	}
	for _, g := range slices.Clone(m.groups) {
		if !given[g.id] {
			m.drop(g)
		}
	}
	for id := range m.ended {
		if !given[id] {
			delete(m.ended, id)
		}
	}
	m.add(fresh)
	m.knowElsewhere(containers)
	m.look.origins = m.origins()
	if m.look.foreign {
		m.replace()
	} else {
		m.asked = nil
	}
	return m.limits(lost, scattered)
}

// open opens the two trees, and learns what processes are read against.
func (m *Members) open() error {
	if m.reader == nil {
		dir, err := openDirectory(m.fs.proc)
		if err != nil {
			return err
		}
		m.reader = newReader(dir)
	}
	var err error
	if m.look, err = m.fs.look(m.reader); err == nil && m.tree == nil {
		m.tree, err = openTree(m.fs.cgroup, m.reader.cgroupMounts(m.fs.cgroup), m.reader.hierarchies())
	}
	return err
}

// locate finds the cgroup of a container: where its spec says, else where the last
// sweep found it.
func (m *Members) locate(c drift.Container, places *map[string]place) (place, bool) {
	for _, h := range m.tree.hierarchies {
		for _, root := range specPaths(c.CgroupPath) {
			if m.tree.exists(h.at(root)) {
				return place{hierarchy: h, root: root}, true
			}
		}
	}
	if places != nil {
		if at, ok := (*places)[c.ID]; ok && at.root != "" && m.tree.exists(at.directory()) {
			return at, true
		}
	}
	return place{}, false
}

// directory returns where a place is, relative to the tree's root.
func (p place) directory() string { return p.hierarchy.at(p.root) }

// know takes processes for told that somebody else has read.
func (g *member) know(processes []drift.Process) {
	before := len(g.known)
	for _, p := range processes {
		if p.Elsewhere == "" { // or no list of the container's tells of it
			g.known = append(g.known, p.PID)
		}
	}
	slices.Sort(g.known)
	g.known = slices.Compact(g.known)
	g.stale = g.stale || len(g.known) != before
}

// knowElsewhere takes processes for told that are in the cgroup of one container and came
// from another, with which they are given.
func (m *Members) knowElsewhere(containers []drift.Container) {
	for _, c := range containers {
		for i := range c.Processes {
			p := c.Processes[i]
			if p.Elsewhere == "" {
				continue
			}
			for _, g := range m.groups {
				if g.root != "" && below(p.Elsewhere, g.root) {
					p.Elsewhere = ""
					g.know([]drift.Process{p})
				}
			}
		}
	}
}

// add follows containers. One whose cgroup lies in another's takes it from that.
func (m *Members) add(fresh []*member) {
	for _, g := range fresh {
		m.groups = append(m.groups, g)
		m.byID[g.id], m.roots[g.directory()] = g, g
	}
	if m.look.foreign {
		return
	}
	for _, g := range fresh {
		for _, outer := range m.groups {
			if outer != g && outer.hierarchy == g.hierarchy && below(g.root, outer.root) && len(outer.dirs) > 1 {
				m.cede(outer, g.root)
			}
		}
		m.attach(g)
		budget := m.text
		m.enter(g, nil, g.root, &budget)
		m.settle(g, &budget)
	}
}

// cede takes the cgroups at and below root from a container.
func (m *Members) cede(g *member, root string) {
	g.dirs = slices.DeleteFunc(g.dirs, func(d *listing) bool {
		if !below(d.path, root) {
			return false
		}
		m.shut(d)
		g.stale = true
		return true
	})
}

// drop stops following a container; the one around it, if any, gets its cgroups.
func (m *Members) drop(g *member) {
	m.detach(g)
	for _, d := range g.dirs {
		m.shut(d)
	}
	g.dirs = nil
	m.groups = slices.DeleteFunc(m.groups, func(other *member) bool { return other == g })
	delete(m.byID, g.id)
	if m.roots[g.directory()] == g {
		delete(m.roots, g.directory())
	}
	for _, outer := range m.groups {
		if outer.hierarchy != g.hierarchy || !below(g.root, outer.root) {
			continue
		}
		for _, d := range outer.dirs {
			d.dirty = d.dirty || d.path == path.Dir(g.root)
		}
	}
}

// limits says what is not seen.
func (m *Members) limits(lost, scattered []string) []drift.Limit {
	const sweeps = "; a sweep sees them"
	var list []drift.Limit
	several := func(ids []string, why string) { // seen, by a weaker means
		if len(ids) > 0 {
			list = append(list, drift.Limit{
				What: fmt.Sprintf("processes that %d containers start between two sweeps, container %s for one", len(ids), printable(ids[0])), Why: why,
			})
		}
	}
	several(lost, "no cgroup that is theirs alone was found, where their spec says or a sweep found it"+sweeps)
	several(scattered, "they have no cgroup of their own"+sweeps)
	if m.asked != nil {
		list = append(list, m.asked.limit(m.tree)...)
		return list
	}
	var byPath []string
	for _, g := range m.groups {
		if slices.ContainsFunc(g.dirs, func(d *listing) bool { return d.fd < 0 }) {
			byPath = append(byPath, g.id)
		}
		if g.cut {
			list = append(list, drift.Limit{
				What: "some processes that container " + printable(g.id) + " starts between two sweeps",
				Why:  fmt.Sprintf("its cgroup holds more than %d others or is deeper than %d levels", maxInContainer, maxDepth) + sweeps,
			})
		}
		if g.limit != "" {
			list = append(list, drift.Limit{What: "processes that container " + printable(g.id) + " starts between two sweeps", Why: g.limit + sweeps})
			g.limit = ""
		}
	}
	several(byPath, fmt.Sprintf("some of their cgroups are opened anew for each look, at several times the cost, because they have more than %d, or because %d files are open already, of %d that half the limit of open files (RLIMIT_NOFILE) allows",
		maxTurn, m.descriptors, m.most))
	if m.late {
		list = append(list, drift.Limit{
			What: "some containers at each look", Why: fmt.Sprintf("one look reads %d KiB of lists at most, and there are more: they take turns", m.text>>10),
		})
		m.late = false
	}
	return list
}

// Attend has the next call of Changes read the lists of a container, whatever its pulse
// tells: somebody said that a process came.
func (m *Members) Attend(containerID string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if g := m.byID[containerID]; g != nil {
		g.steady = false
	}
}

// Changes tells what came and went in each container since the last call: nil, and
// without an allocation, when nothing did. A process that came and went between two
// calls is never seen.
//
// Each call does a bounded amount of work: a long list is read on from where the
// last call stopped, and what appeared beyond 512 processes of one container is
// told by the next calls, as [Change.Behind] says.
func (m *Members) Changes(ctx context.Context) ([]Change, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("looking at cgroups: %w", err)
	}
	if err := m.pay(); err != nil {
		return nil, err
	}
	if m.asked != nil {
		return m.ask()
	}
	var changes []Change
	var over []*member
	m.round++
	budget, at := m.text, 0
	for ; at < len(m.groups) && budget > 0; at++ {
		g := m.groups[(m.start+at)%len(m.groups)]
		if m.still(g) {
			continue
		}
		changed, ended := m.pass(g, &budget)
		if !changed && !ended && !g.stale {
			g.listedInFull()
			continue
		}
		g.steady = false
		change := m.differ(g, ended, &budget)
		if change.Ended {
			over = append(over, g)
		}
		if change.Ended || len(change.Appeared)+len(change.Gone)+change.Missed > 0 {
			changes = append(changes, change)
		}
	}
	if at < len(m.groups) {
		m.late = true
		m.start = (m.start + at) % len(m.groups)
	}
	for _, g := range over {
		m.drop(g)
		m.ended[g.id] = true
	}
	return changes, nil
}

// differ compares what a container's cgroups list with what was told of it.
func (m *Members) differ(g *member, ended bool, budget *int) Change {
	list := m.listed(g)
	if !ended && len(g.dirs) > 1 && !subset(g.known, list) {
		// Whoever moves from one cgroup to another may be in neither list.
		_, ended = m.pass(g, budget)
		list = m.listed(g)
	}
	if ended {
		return Change{ContainerID: g.id, Gone: g.gone(g.known), Ended: true, Missed: len(g.held)}
	}
	return g.take(list, m.tellable(g))
}

// take makes list, which is in order, what is known of a container, as far as one
// call may tell.
func (g *member) take(list []int, most int) Change {
	c := Change{ContainerID: g.id}
	var fresh []int
	for i, j := 0, 0; i < len(g.known) || j < len(list); {
		switch {
		case j == len(list) || i < len(g.known) && g.known[i] < list[j]:
			c.Gone = append(c.Gone, g.known[i])
			i++
		case i == len(g.known) || list[j] < g.known[i]:
			fresh = append(fresh, list[j])
			j++
		default:
			i++
			j++
		}
	}
	queue := g.held[:0]
	for _, pid := range g.held {
		if has(fresh, pid) {
			queue = append(queue, pid)
		} else if !has(list, pid) {
			c.Missed++
		}
	}
	c.Appeared, g.held = fresh, nil
	if len(fresh) > most {
		waiting := make(map[int]bool, len(queue))
		for _, pid := range queue {
			waiting[pid] = true
		}
		for _, pid := range fresh {
			if !waiting[pid] {
				queue = append(queue, pid)
			}
		}
		c.Appeared, g.held = queue[:most:most], queue[most:]
		c.Behind = len(g.held)
	}
	g.stale = len(g.held) > 0
	c.Gone = g.gone(c.Gone)
	if len(c.Gone)+len(c.Appeared) > 0 {
		left := slices.DeleteFunc(g.known, func(pid int) bool { return has(c.Gone, pid) })
		g.known = append(left, c.Appeared...)
		slices.Sort(g.known)
	}
	return c
}

// gone adds to those that are gone, in order, those that Read found to be so.
func (g *member) gone(pids []int) []int {
	if len(g.left) > 0 {
		pids = append(pids, g.left...)
		slices.Sort(pids)
		pids, g.left = slices.Compact(pids), nil
	}
	return pids
}

func has(sorted []int, pid int) bool { _, ok := slices.BinarySearch(sorted, pid); return ok }

// subset tells whether all of a are in b; both are in order.
func subset(a, b []int) bool {
	j := 0
	for _, pid := range a {
		for j < len(b) && b[j] < pid {
			j++
		}
		if j == len(b) || b[j] != pid {
			return false
		}
	}
	return true
}

// Read reads processes that appeared in a container, as a sweep does: each as one
// process, which was in the container before it was read and after. Its threads are
// not read. Who has ended or left meanwhile is counted as vanished, is gone at the next
// call of Changes, and appears again should he be back. A container's new processes are read as long as its part of
// the processor time lasts, those first whose parent is outside the container; the others
// appear again at a later call of Changes. An error is about those that could not be read, and comes
// with all others; they are not told again, a sweep says so too.
func (m *Members) Read(ctx context.Context, containerID string, pids []int) ([]drift.Process, int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	g := m.byID[containerID]
	if g == nil {
		return nil, len(pids), nil
	}
	runtime.LockOSThread() // whose time is measured
	defer runtime.UnlockOSThread()
	m.reader.lap = m.fs.laps()
	l, err := m.fs.freshLook(m.reader, m.look)
	if err != nil {
		return nil, 0, err
	}
	before, err := m.within(g)
	if err != nil {
		return nil, 0, err
	}
	var read []drift.Process
	var failures []failure
	queue := queue{pids: pids}
	for {
		if ctx.Err() != nil {
			return nil, 0, fmt.Errorf("container %s: %w", containerID, ctx.Err())
		}
		pid, ok := m.next(g, &queue)
		if !ok {
			break
		}
		if !before(pid) {
			continue
		}
		p, _, err := m.reader.explained(&l, &g.container, pid)
		m.owe(g, l.uptime, m.reader.spent(pid))
		switch {
		case errors.Is(err, errSkip): // there, and nothing to be read of it
		case err != nil:
			failures = append(failures, failure{pid, err})
		default:
			read = append(read, p)
		}
	}
	after, err := m.within(g)
	if err != nil {
		return nil, 0, err
	}
	still := make(map[int]bool, len(pids))
	for _, pid := range queue.pids {
		still[pid] = m.asked != nil || after(pid) // the next call of Changes asks those that wait
	}
	for _, pid := range pids {
		if _, waits := still[pid]; !waits {
			still[pid] = after(pid)
		}
	}
	read = slices.DeleteFunc(read, func(p drift.Process) bool { return !still[p.PID] })
	failures = slices.DeleteFunc(failures, func(f failure) bool {
		if !still[f.pid] || !errors.Is(f.err, ErrVanished) {
			return !still[f.pid]
		}
		// One that was not there, and is, was hidden until now.
		p, _, err := m.reader.explained(&l, &g.container, f.pid)
		m.owe(g, l.uptime, m.reader.spent(f.pid))
		if err == nil {
			read = append(read, p)
		}
		return err == nil
	})
	gone := func(pid int) bool { return !still[pid] }
	if slices.ContainsFunc(pids, gone) {
		g.known = slices.DeleteFunc(g.known, func(pid int) bool {
			left := gone(pid) && slices.Contains(pids, pid)
			if left {
				g.left = append(g.left, pid)
			}
			return left
		})
		g.stale = true
		m.forget(pids, gone)
	}
	held := m.hold(g, queue.pids, still)
	vanished := len(pids) - len(read) - len(failures) - held
	if len(failures) == 0 {
		return read, vanished, nil
	}
	first := failures[0]
	if errors.Is(first.err, ErrVanished) {
		first.err = fmt.Errorf("its cgroup lists it and /proc does not show it, as with hidepid: %w", ErrUnreadable)
	}
	return read, vanished, fmt.Errorf("container %s: %d of %d processes could not be read, process %d for one: %w",
		containerID, len(failures), len(pids), first.pid, first.err)
}

// freshLook is a look with the clock of now.
func (fs *FS) freshLook(r *reader, l look) (look, error) {
	text, err := r.file(r.proc, "uptime")
	if err != nil {
		return look{}, fmt.Errorf("reading %s/uptime: %w", fs.proc, err)
	}
	if l.uptime, err = parseUptime(text); err != nil {
		return look{}, locate(err, fs.proc+"/uptime")
	}
	if births := fs.births.Load(); births != nil {
		l.births = *births
	}
	return l, nil
}

// origins returns what tells the followed containers apart, until others are.
func (m *Members) origins() *origins {
	where := &sweep{tree: m.tree, main: m.mainHierarchy()}
	o := &origins{
		cgroupOf: where.cgroupKnown,
		containerOf: func(cgroup string) (string, bool) {
			for dir := cgroup; dir != "/" && dir != "."; dir = path.Dir(dir) {
				if g := m.roots[where.main.at(dir)]; g != nil && !g.alone {
					return g.id, true
				}
			}
			_, _, named := outermostContainer(cgroup)
			return "", named
		},
	}
	for _, g := range m.groups {
		o.containers = append(o.containers, g.container)
	}
	return o
}

// mainHierarchy is the one in which containers are followed.
func (m *Members) mainHierarchy() hierarchy {
	if len(m.groups) > 0 {
		return m.groups[0].hierarchy
	}
	return m.tree.hierarchies[0]
}

// within returns what tells whether a process is in a container now.
func (m *Members) within(g *member) (func(pid int) bool, error) {
	if m.asked != nil {
		return func(pid int) bool { return m.owner(m.asked.cgroupOf(m.reader, pid)) == g }, nil
	}
	var list []int
	var failed error
	m.reader.threaded = 0
	_, err := m.reader.walk(m.tree, g.hierarchy, g.root, maxInContainer, func(dir string) bool {
		if other := m.roots[g.hierarchy.at(dir)]; other != nil && other != g {
			return false
		}
		var err error
		if list, _, err = m.reader.members(m.tree, g.hierarchy, dir, list); err != nil && failed == nil {
			failed = err
		}
		return !g.alone
	})
	if err = errors.Join(failed, err); err != nil {
		return nil, fmt.Errorf("container %s: %w", g.id, err)
	}
	slices.Sort(list)
	return func(pid int) bool { return has(list, pid) }, nil
}
