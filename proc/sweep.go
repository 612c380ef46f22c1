package proc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

// Sweep reads every process of the given containers and looks for containers
// that were not given. It goes
//
//   - from each container to its cgroup: where its spec says, else by the name of
//     the directory, else by its first process;
//   - from the cgroup, and all cgroups below, to the pids;
//   - from each pid to the process, and for the processes that are left over to
//     whether they live in a container nobody gave;
//   - back to the cgroups of those that no sweep had read before: a process that is
//     no longer listed there has ended or moved, and its pid may mean another, so what
//     was read of it is dropped.
//
// Containers keep their order; those that were not given come after them. A container
// that is given with the processes that the last sweep told of it keeps them where none
// of them ran since; give it without or afresh, and each is read. Each is read within the
// time that [Options] allow: what is not keeps what the last sweep told of it, and is
// told in the container's [drift.Overdue].
func (fs *FS) Sweep(ctx context.Context, containers []drift.Container) (drift.Sweep, error) {
	dir, err := openDirectory(fs.proc)
	if err != nil {
		return drift.Sweep{}, err
	}
	defer unix.Close(dir)
	s := &sweep{ctx: ctx, turn: fs.sweeps.Add(1) - 1, budget: fs.options.Threads, withThreads: !fs.options.LeadersOnly,
		time: fs.options.Time, laps: fs.laps, held: fs.held}
	for range cmp.Or(fs.options.Readers, runtime.GOMAXPROCS(0)) {
		s.readers = append(s.readers, newReader(dir))
	}
	if s.look, err = fs.look(s.readers[0]); err != nil {
		return drift.Sweep{}, err
	}
	if births := fs.births.Load(); births != nil {
		s.look.births = *births
	} else if s.time > 0 {
		s.time = max(s.time, fs.options.FirstTime)
	}
	if rests := fs.rests.Load(); rests != nil {
		s.rested = *rests
	}
	if accounts := fs.accounts.Load(); accounts != nil {
		s.accounts = *accounts
	}
	if s.held == nil && onProcfs(dir) && !s.look.foreign {
		s.held = heldBy
	}
	for _, c := range containers {
		before, afresh := c.Processes, c.Afresh
		c.Processes, c.Afresh, c.Overdue = nil, false, nil
		s.groups = append(s.groups, &group{container: c, before: before, afresh: afresh, given: true, silent: c.Observation == drift.UnsupportedRuntime})
	}
	if s.tree, err = openTree(fs.cgroup, s.readers[0].cgroupMounts(fs.cgroup), s.readers[0].hierarchies()); err != nil {
		return drift.Sweep{}, err
	}
	defer s.tree.close()
	s.look.origins, s.look.cgroupOf = s.origins(), s.cgroupKnown

	s.locate()
	s.explore()
	steps := []func() error{s.gather, s.adopt, s.read, s.verify}
	if s.withThreads {
		steps = append(steps, s.readThreads)
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return drift.Sweep{}, fmt.Errorf("sweep: %w", err)
		}
	}
	if onProcfs(dir) {
		slices.SortFunc(s.births, func(a, b birth) int { return a.pid - b.pid })
		fs.births.Store(&s.births)
	}
	rests := s.rests()
	fs.rests.Store(&rests)
	accounts := s.settleAccounts()
	fs.accounts.Store(&accounts)
	out := s.result()
	fs.places.Store(&s.places)
	return out, nil
}

// sweep is one sweep under way.
type sweep struct {
	ctx     context.Context
	look    look
	tree    *tree
	main    hierarchy // where containers that were not given are looked for
	turn    uint32
	budget  int
	readers []*reader
	// withThreads: threads are read, or counted as skipped.
	withThreads bool
	time        time.Duration // for reading processes, and half as much again for threads; no bound where it is 0
	laps        func() lap
	held        func(pid int) (capdecode.Sets, bool) // nil where nobody can be asked
	groups      []*group                             // the given ones first
	others      *group                               // the processes that no group claims
	all         []int                                // every process of the node
	asked       map[string][]int                     // them by the cgroups that they told, where lists of cgroups hold other numbers
	claims      map[int]*group                       // by pid

	findRoot      sync.Once
	namespaceRoot string      // of the reader's cgroup namespace
	unrooted      atomic.Bool // it could not be found

	rested   map[string]rest    // what the last sweep left, by container
	accounts map[string]account // likewise, by group
	births   births             // of the processes that were read, for the next sweep
	places   map[string]place   // of the containers, by their id, for who follows them
	threads  drift.ThreadCoverage
	limits   []drift.Limit
}

// group is the processes of one container, or of one cgroup that looks like one.
type group struct {
	container   drift.Container
	before      []drift.Process // that it was given with
	byPID       map[int]*drift.Process
	afresh      bool // all are to be read, whoever ran
	given       bool
	silent      bool // its processes are not to be read
	alone       bool // the cgroups below its own are not its
	scattered   bool // some processes of a cgroup, not all of it
	guess       bool // it is a container's only if a given one is found to be it
	unknown     bool // some of its processes were not read by an earlier sweep
	hierarchy   hierarchy
	root        string // "" when no cgroup was found
	used        string // the processor time of its cgroup, before its processes were listed
	threads     string // likewise, when all their threads were read last
	unread      bool   // some threads were not
	lateThreads int    // that were not for want of time
	resting     bool   // none of them ran since they were read
	pids        []int
	readings    []reading // what there is to be read
	share       share
	cost        time.Duration  // of reading its processes
	overdue     *drift.Overdue // nil where all were read
	decoys      []string       // cgroups below that are named like a given container
	processes   []drift.Process
	failures    []failure
	vanished    int
	placed      map[int]bool // processes that need an explanation, and were the group's when they were read
	problems    []string     // why not everything was seen, but for failures
}

// runtimeID returns the id that the container's cgroup is named after.
func (g *group) runtimeID() string { return cmp.Or(g.container.RuntimeID, g.container.ID) }

// failure is a process that could not be read.
type failure struct {
	pid int
	err error
}

// parallel calls work for 0 … n-1, each worker with a reader of its own, and
// waits for all of them.
func (s *sweep) parallel(n int, work func(r *reader, i int)) error {
	var next atomic.Int64
	var workers sync.WaitGroup
	for _, r := range s.readers[:min(len(s.readers), n)] {
		workers.Go(func() {
			runtime.LockOSThread() // whose time is measured
			defer runtime.UnlockOSThread()
			r.lap = s.laps()
			for i := int(next.Add(1)) - 1; i < n && s.ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				work(r, i)
			}
		})
	}
	workers.Wait()
	return s.ctx.Err()
}

// locate finds the cgroups that the containers' specs name.
func (s *sweep) locate() {
	best := len(s.tree.hierarchies)
	taken := make(map[string]string) // cgroup directory: container
	for _, g := range s.groups {
		for at, h := range s.tree.hierarchies {
			for _, p := range specPaths(g.container.CgroupPath) {
				if g.root == "" && s.tree.exists(h.at(p)) {
					g.hierarchy, g.root = h, p
					best = min(best, at)
				}
			}
		}
		if g.root == "" {
			continue
		}
		dir := g.hierarchy.at(g.root)
		if first, ok := taken[dir]; ok {
			g.problems = append(g.problems, fmt.Sprintf("its spec names the cgroup %s, and so does that of container %s", printable(g.root), printable(first)))
			g.root = ""
		} else {
			taken[dir] = g.container.ID
		}
	}
	if best < len(s.tree.hierarchies) {
		s.main = s.tree.hierarchies[best]
	} else {
		s.main = s.livelyHierarchy()
	}
}

// livelyHierarchy returns the first hierarchy that holds anything like a container.
func (s *sweep) livelyHierarchy() hierarchy {
	for _, h := range s.tree.hierarchies {
		found := false
		_, _ = s.readers[0].walk(s.tree, h, "/", maxDirectories, func(dir string) bool {
			_, ok := containerName(path.Base(dir))
			found = found || ok || kubernetes(path.Base(dir)) || s.named(dir) != nil
			return !found
		})
		if found {
			return h
		}
	}
	return s.tree.hierarchies[0]
}

// explore walks the whole tree but for the parts that are known, and makes a
// group of each cgroup that looks like a container's or lies among pods.
func (s *sweep) explore() {
	known := make(map[string]bool)
	for _, g := range s.groups {
		if g.root != "" && g.hierarchy == s.main {
			known[g.root] = true
		}
	}
	cut, err := s.readers[0].walk(s.tree, s.main, "/", maxDirectories, func(dir string) bool {
		if known[dir] || s.ctx.Err() != nil {
			return false
		}
		g := &group{hierarchy: s.main, root: dir}
		g.container.Origin = "cgroup " + printable(dir)
		base := path.Base(dir)
		var container bool
		g.container.ID, container = containerName(base)
		switch {
		case container, s.named(dir) != nil:
			g.guess = !container
			s.groups = append(s.groups, g)
			return false
		case amongPods(dir) && !monitorName(base):
			g.alone = true
			s.groups = append(s.groups, g)
		}
		return true
	})
	if cut {
		s.blind(drift.GapCgroups, "cgroups", fmt.Sprintf("the tree below %s is larger or deeper than %d directories and %d levels", s.tree.root, maxDirectories, maxDepth))
	}
	if err != nil {
		s.blind(drift.GapCgroups, "cgroups", err.Error())
	}
}

func amongPods(dir string) bool {
	for component := range strings.SplitSeq(dir, "/") {
		if kubernetes(component) {
			return true
		}
	}
	return false
}

// named returns the given container without a known cgroup that a directory is
// named after, nil if there is none.
func (s *sweep) named(dir string) *group {
	for _, g := range s.groups {
		if g.given && g.root == "" && nameCarries(path.Base(dir), g.runtimeID()) {
			return g
		}
	}
	return nil
}

func (s *sweep) blind(code drift.GapCode, what, why string) {
	s.limits = append(s.limits, drift.Limit{What: what, Why: why, Blind: true, Code: code})
}

// gather lists the processes of every group, and all processes of the node.
func (s *sweep) gather() error {
	var err error
	if s.all, err = s.readers[0].allPIDs(); err != nil {
		return err
	}
	if s.look.foreign {
		if err := s.ask(); err != nil {
			return err
		}
	}
	return s.parallel(len(s.groups), func(r *reader, i int) {
		g := s.groups[i]
		g.used = s.used(r, g)
		g.pids, g.decoys, g.problems = s.list(r, g)
	})
}

// ask has each process of the node tell its cgroup.
func (s *sweep) ask() error {
	cgroups := make([]string, len(s.all))
	err := s.parallel(len(s.all), func(r *reader, i int) { cgroups[i] = s.cgroupOf(r, s.all[i]) })
	s.asked = make(map[string][]int)
	for i, cgroup := range cgroups {
		s.asked[cgroup] = append(s.asked[cgroup], s.all[i])
	}
	return err
}

// has reports whether a cgroup is one of the group's.
func (g *group) has(cgroup string) bool {
	if g.alone || g.scattered {
		return cgroup == g.root
	}
	return below(cgroup, g.root)
}

// list returns the pids in a group's cgroups in their order, the cgroups below
// that are named like given containers whose cgroup is not known, and why there
// may be more.
func (s *sweep) list(r *reader, g *group) (pids []int, decoys, problems []string) {
	if g.root == "" {
		return nil, nil, g.problems
	}
	zeros := 0
	r.threaded = 0
	cut, err := r.walk(s.tree, g.hierarchy, g.root, maxInContainer, func(dir string) bool {
		if dir != g.root && s.named(dir) != nil {
			decoys = append(decoys, dir)
		}
		if s.look.foreign {
			return !g.alone
		}
		var n int
		var err error
		if pids, n, err = r.members(s.tree, g.hierarchy, dir, pids); err != nil && len(problems) == 0 {
			problems = append(problems, err.Error())
		}
		zeros += n
		return !g.alone
	})
	for cgroup, told := range s.asked {
		if g.has(cgroup) {
			pids = append(pids, told...)
		}
	}
	if cut {
		problems = append(problems, fmt.Sprintf("its cgroup holds more than %d others or is deeper than %d levels", maxInContainer, maxDepth))
	}
	if err != nil {
		problems = append(problems, err.Error())
	}
	if zeros > 0 {
		problems = append(problems, fmt.Sprintf("%d of its processes have no number in this pid namespace; run in the node's (hostPID: true)", zeros))
	}
	slices.Sort(pids)
	return slices.Compact(pids), decoys, problems
}

// adopt finds the cgroups of containers that are not where their spec says, and
// settles which group each pid belongs to.
func (s *sweep) adopt() error {
	runtime.LockOSThread() // as in parallel
	defer runtime.UnlockOSThread()
	r := s.readers[0]
	r.lap = s.laps()
	for _, g := range slices.Clone(s.groups) { // groups leave the list on the way
		if !g.given || g.root != "" || len(g.problems) > 0 {
			continue
		}
		found := s.candidate(g)
		if found == nil {
			found = s.ofInit(r, g)
		}
		if found == nil {
			g.problems = append(g.problems, fmt.Sprintf("no cgroup of it was found below %s: neither %q, which its spec names, nor one named after it", s.tree.root, g.container.CgroupPath))
			continue
		}
		g.hierarchy, g.root, g.pids, g.problems = found.hierarchy, found.root, found.pids, found.problems
		s.groups = slices.DeleteFunc(s.groups, func(other *group) bool { return other == found })
	}
	s.groups = slices.DeleteFunc(s.groups, func(g *group) bool { return g.guess })
	s.claims = make(map[int]*group, len(s.all))
	for _, g := range s.groups {
		for _, pid := range g.pids {
			s.claims[pid] = s.owner(r, pid, s.claims[pid], g)
		}
	}
	s.settled(s.rested)
	return s.ctx.Err()
}

// candidate returns the group that a container's own cgroup was found as by its
// name. Containers can name directories below their own cgroup as they like: the
// one that holds the first process is it, else the one that lies in no other
// container and is nearest to the root.
func (s *sweep) candidate(g *group) *group {
	var candidates []*group
	for _, other := range s.groups {
		if !other.given && !other.alone && nameCarries(path.Base(other.root), g.runtimeID()) {
			candidates = append(candidates, other)
		}
	}
	for _, other := range s.groups {
		for _, dir := range other.decoys {
			if nameCarries(path.Base(dir), g.runtimeID()) {
				inner := &group{hierarchy: other.hierarchy, root: dir}
				if inner.pids, _, inner.problems = s.list(s.readers[0], inner); slices.Contains(inner.pids, g.container.InitPID) {
					return inner
				}
			}
		}
	}
	slices.SortFunc(candidates, func(a, b *group) int {
		return cmp.Or(strings.Count(a.root, "/")-strings.Count(b.root, "/"), strings.Compare(a.root, b.root))
	})
	for _, c := range candidates {
		if slices.Contains(c.pids, g.container.InitPID) {
			return c
		}
	}
	if len(candidates) > 0 && !candidates[0].guess {
		return candidates[0]
	}
	return nil
}

// ofInit returns the cgroup that a container's first process is in, as a group,
// when it can be no other's: the runtime may tell a pid that was reused.
func (s *sweep) ofInit(r *reader, g *group) *group {
	status, err := r.statusOf(strconv.Itoa(g.container.InitPID))
	if err != nil || status.ended() || status.Depth < 2 {
		return nil
	}
	root := s.cgroupOf(r, g.container.InitPID)
	// systemd in a container moves itself to init.scope, crun to container.
	if base := path.Base(root); base == "init.scope" || base == "container" {
		root = path.Dir(root)
	}
	if _, id, named := outermostContainer(root); named && id != g.runtimeID() || root == "/" || kubernetes(path.Base(root)) {
		return nil
	}
	for _, other := range s.groups {
		if other.given && other.root != "" && (below(other.root, root) || below(root, other.root)) {
			return nil
		}
	}
	found := &group{hierarchy: s.main, root: root}
	found.pids, _, found.problems = s.list(r, found)
	return found
}

// cgroupOf returns the cgroup that /proc/PID/cgroup tells for the main hierarchy,
// the root if it tells none.
func (s *sweep) cgroupOf(r *reader, pid int) string {
	cgroup, _ := s.cgroupKnown(r, pid)
	return cgroup
}

// cgroupKnown is cgroupOf, and false where the file tells none.
func (s *sweep) cgroupKnown(r *reader, pid int) (string, bool) {
	s.findRoot.Do(func() { s.namespaceRoot = s.cgroupNamespaceRoot(r) })
	told, ok := s.told(r, strconv.Itoa(pid))
	cgroup := path.Join(s.namespaceRoot, told)
	// A container may give a directory a name that ends like this.
	if left, cut := strings.CutSuffix(cgroup, deletedSuffix); cut && s.main.field == "" && !s.tree.exists(s.main.at(cgroup)) {
		cgroup = left
	}
	return cgroup, ok && !s.unrooted.Load()
}

// cgroupTold returns the path as the file tells it, "/" where it tells none.
func (s *sweep) cgroupTold(r *reader, process string) string {
	cgroup, _ := s.told(r, process)
	return cgroup
}

// told returns the path as the file tells it, which is relative to the root of the
// reader's cgroup namespace; cgroup_namespaces(7). On v1 the kernel tells the root of a
// thread that has ended (kernel/cgroup/cgroup.c proc_cgroup_show, PF_EXITING): where that is
// a process's leader, another thread tells.
func (s *sweep) told(r *reader, process string) (string, bool) {
	cgroup, ok := s.toldIn(r, process)
	if ok && cgroup == "/" && s.main.field != "" {
		if thread := r.survivor(process); thread != "" {
			return s.toldIn(r, thread)
		}
	}
	return cgroup, ok
}

func (s *sweep) toldIn(r *reader, dir string) (string, bool) {
	text, err := r.file(r.proc, dir+"/cgroup")
	if err == nil {
		if cgroup, ok := parseCgroup(text, s.main.field); ok {
			return s.main.inside(cgroup), true
		}
	}
	return "/", false
}

// cgroupNamespaceRoot returns which cgroup of the tree is the root of the reader's
// cgroup namespace: "/" but in a container with one of its own. Such a reader sees
// pid 1, and all else outside, at "/../..", and itself at "/"; where in the tree
// that is, only the tree tells, by the cgroup that lists the reader.
func (s *sweep) cgroupNamespaceRoot(r *reader) string {
	// Where pid 1 is hidden, whether there is such a namespace is not known: then the
	// tree tells that too.
	if !r.hides() && !strings.HasPrefix(s.cgroupTold(r, "1")+"/", "/../") {
		return "/"
	}
	own, me := "", os.Getpid() // cgroup.procs speaks of the reader's own pid namespace
	_, err := r.walk(s.tree, s.main, "/", maxDirectories, func(dir string) bool {
		if own == "" {
			if pids, _, err := r.members(s.tree, s.main, dir, nil); err == nil && slices.Contains(pids, me) {
				own = dir
			}
		}
		return own == ""
	})
	root, found := strings.CutSuffix(own, strings.TrimSuffix(s.cgroupTold(r, "self"), "/"))
	if err != nil || own == "" || !found {
		s.unrooted.Store(true)
		return "/"
	}
	return path.Join("/", root)
}

// owner decides between two groups that list the same pid. Where one's cgroup
// lies in the other's it is the inner one; else the process has moved, or has
// threads in both as v1 allows, and its leader's cgroup decides.
func (s *sweep) owner(r *reader, pid int, a, b *group) *group {
	switch {
	case a == nil:
		return b
	case below(b.root, a.root):
		return b
	case below(a.root, b.root):
		return a
	}
	if below(s.cgroupOf(r, pid), b.root) {
		return b
	}
	return a
}

// read reads the processes of all groups, and looks among all others for those
// that live in pid namespaces of their own, as only containers and sandboxes do.
func (s *sweep) read() error {
	readings := make([]reading, 0, len(s.all))
	s.others = new(group)
	groups := append(slices.Clone(s.groups), s.others)
	ends := make([]int, 0, len(groups)) // in readings, of each group's
	for _, g := range s.groups {
		for _, pid := range g.pids {
			if s.claims[pid] == g && !g.silent && !g.resting {
				readings = append(readings, reading{pid: pid, group: g})
			}
		}
		ends = append(ends, len(readings))
	}
	for _, pid := range s.all {
		if s.claims[pid] == nil {
			readings = append(readings, reading{pid: pid, group: s.others})
		}
	}
	ends = append(ends, len(readings))
	start := 0
	for at, g := range groups {
		g.readings = readings[start:ends[at]]
		start = ends[at]
		if g == s.others {
			break
		}
		// An array for each, which is all that who keeps a container of this sweep keeps.
		g.processes = make([]drift.Process, len(g.readings))
		for i := range g.processes {
			g.readings[i].process = &g.processes[i]
		}
	}
	if err := s.readInTime(groups); err != nil {
		return err
	}
	s.readNewcomers(readings)
	s.births = make(births, 0, len(s.claims))
	for _, g := range s.groups {
		if g.resting {
			s.keep(g)
			continue
		}
		g.processes = g.processes[:0] // what was read closes ranks where it lies
		for i := range g.readings {
			if o := &g.readings[i]; o.done {
				s.take(g, o)
			} else {
				s.late(g, o.pid)
			}
		}
	}
	unknown := 0
	for i := range s.others.readings {
		switch o := &s.others.readings[i]; {
		case !o.done:
			s.late(s.others, o.pid)
		case o.process != nil:
			if o.owner == nil {
				o.owner = s.home(o.cgroup)
			}
			s.take(o.owner, o)
		case o.err != nil && !o.vanished():
			unknown++
		}
	}
	s.giveBack()
	s.takeChildren(s.others.readings)
	if unknown > 0 {
		s.blind(drift.GapUnplaced, fmt.Sprintf("%d processes in no known container", unknown), "they could not be read, so whether they are in a container is not known")
	}
	return nil
}

// take puts what was read of a process into its group.
func (s *sweep) take(g *group, o *reading) {
	switch {
	case g.silent, errors.Is(o.err, errSkip):
	case o.err != nil:
		g.failures = append(g.failures, failure{o.pid, o.err})
	default:
		g.processes = append(g.processes, *o.process)
		g.unknown = g.unknown || !o.born.known
		if o.placed && s.look.needsOrigin(&g.container, o.process) {
			if g.placed == nil {
				g.placed = make(map[int]bool)
			}
			g.placed[o.pid] = true
		}
		born := o.born
		born.known, born.cgroup = true, ""
		s.births = append(s.births, born)
	}
}

// lister returns the innermost group whose cgroups include the given one, nil if
// there is none.
func (s *sweep) lister(cgroup string) (inner *group) {
	for _, g := range s.groups {
		if g.root != "" && g.has(cgroup) && (inner == nil || len(g.root) > len(inner.root)) {
			inner = g
		}
	}
	return inner
}

// home returns the group that a stray belongs to by its cgroup: one that it was
// born or moved into after its pids were listed, else a new one.
func (s *sweep) home(cgroup string) *group {
	if g := s.lister(cgroup); g != nil {
		return g
	}
	g := &group{hierarchy: s.main, root: cgroup, alone: true, scattered: true}
	if dir, id, ok := outermostContainer(cgroup); ok {
		g.root, g.alone, g.scattered, g.container.ID = dir, false, false, id
		g.container.Origin = "cgroup " + printable(dir)
	} else {
		g.container.Origin = "pid namespace of its own, cgroup " + printable(cgroup)
	}
	s.groups = append(s.groups, g)
	return g
}

// verify drops what was read of processes that their cgroup no longer lists, but for those that
// hold too much and were in it when they were read: that is true, though they ended.
// Those that moved meanwhile are read where their mounts say that they belong.
func (s *sweep) verify() error {
	left := make([][]drift.Process, len(s.groups))
	err := s.parallel(len(s.groups), func(r *reader, i int) {
		g := s.groups[i]
		if g.scattered || g.silent || !g.unknown && len(g.failures) == 0 {
			return
		}
		still := func(pid int) bool { return g.has(s.cgroupOf(r, pid)) }
		if !s.look.foreign {
			listed, _, problems := s.list(r, g)
			if len(problems) > 0 {
				if len(g.problems) == 0 {
					g.problems = problems
				}
				return // who is missing in half a list may be in the other half
			}
			still = func(pid int) bool { return has(listed, pid) }
		}
		before := len(g.processes) + len(g.failures)
		g.processes = slices.DeleteFunc(g.processes, func(p drift.Process) bool {
			gone := p.Elsewhere == "" && !g.placed[p.PID] && !still(p.PID)
			if gone {
				left[i] = append(left[i], p)
			}
			return gone
		})
		g.failures = slices.DeleteFunc(g.failures, func(f failure) bool { return !still(f.pid) })
		g.vanished = before - len(g.processes) - len(g.failures)
	})
	if err == nil {
		s.takeMoved(left)
	}
	return err
}

// readThreads shares the budget of threads out: a process with many leaves
// nobody with less than an equal share. Time is shared among containers first, and then
// among the processes of each.
func (s *sweep) readThreads() error {
	type job struct {
		g *group
		p *drift.Process
		n int

		read, skipped int
		err           error
	}
	var jobs []job
	threads := make(map[*group]int) // to be read
	for _, g := range s.groups {
		for i := range g.processes {
			switch p := &g.processes[i]; {
			case p.ThreadCount <= 1:
			case g.resting:
				s.threads.Observed += p.ThreadCount - 1
			default:
				jobs = append(jobs, job{g: g, p: p, n: s.budget})
				threads[g] += p.ThreadCount - 1
			}
		}
	}
	slices.SortStableFunc(jobs, func(a, b job) int { return a.p.ThreadCount - b.p.ThreadCount })
	if s.budget > 0 {
		for i, left := 0, s.budget; i < len(jobs); i++ {
			jobs[i].n = left / (len(jobs) - i)
			left -= min(jobs[i].n, jobs[i].p.ThreadCount-1)
		}
	}
	slices.SortStableFunc(jobs, func(a, b job) int { return threads[a.g] - threads[b.g] })
	for g := range threads {
		g.share = share{}
	}
	for i := range jobs {
		jobs[i].g.share.pending++
	}
	b := newBudget(s.time/2*3, len(threads))
	err := s.parallel(len(jobs), func(r *reader, i int) {
		j := &jobs[i]
		left, pending := b.open(&j.g.share)
		var cost time.Duration
		if left > 0 {
			j.read, j.skipped, cost, j.err = r.threadsExplained(&s.look, &j.g.container, j.p, j.n, s.turn, left/time.Duration(pending))
		} else {
			j.skipped = j.p.ThreadCount - 1
		}
		b.charge(&j.g.share, cost, 1)
	})
	if err != nil {
		return err
	}
	for _, j := range jobs {
		s.threads.Observed += j.read
		s.threads.Skipped += j.skipped
		j.g.unread = j.g.unread || j.skipped > 0 || j.err != nil
		if j.err != nil && !errors.Is(j.err, ErrVanished) {
			j.g.problems = append(j.g.problems, fmt.Sprintf("threads of process %d: %v", j.p.PID, j.err))
		}
		if fits := j.p.ThreadCount - 1; j.n < 0 || j.n >= fits {
			j.g.lateThreads += j.skipped
		} else {
			j.g.lateThreads += max(0, j.skipped-(fits-j.n))
		}
	}
	if s.threads.Skipped > 0 {
		s.blind(drift.GapThreads, fmt.Sprintf("%d threads beside their leaders", s.threads.Skipped), fmt.Sprintf("one sweep reads %d threads at most; --threads=always reads all", s.budget))
	}
	return nil
}

// result puts the groups into containers.
func (s *sweep) result() drift.Sweep {
	out := drift.Sweep{Threads: s.threads}
	given := make(map[string]bool)
	for _, g := range s.groups {
		given[g.container.ID] = given[g.container.ID] || g.given
	}
	strangers := slices.DeleteFunc(slices.Clone(s.groups), func(g *group) bool {
		return g.given || len(g.processes)+len(g.failures)+len(g.problems) == 0
	})
	slices.SortStableFunc(strangers, func(a, b *group) int { return strings.Compare(a.root, b.root) })
	for _, g := range strangers {
		// A path is as unique as an id, which two directories may carry.
		if id := g.container.ID; id == "" || given[id] {
			g.container.ID = printable(g.root)
		}
		given[g.container.ID] = true
		g.container.Managed = new(false)
		g.container.Pod = s.podOf(g)
		g.container.MayHaveJoined = s.mayHaveJoined(g)
	}
	s.places = make(map[string]place, len(s.groups))
	out.Containers = make([]drift.Container, 0, len(s.groups))
	groups := slices.Concat(slices.DeleteFunc(s.groups, func(g *group) bool { return !g.given }), strangers)
	for _, g := range groups {
		s.judge(g)
		s.places[g.container.ID] = place{hierarchy: g.hierarchy, root: g.root, alone: g.alone, scattered: g.scattered}
		out.Containers = append(out.Containers, g.container)
		out.Processes.Observed += len(g.processes)
		out.Processes.Vanished += g.vanished
		if !g.silent {
			out.Processes.Unreadable += len(g.failures)
		}
	}
	s.nameOverdue(groups)
	s.unidentified(out.Containers)
	if s.unrooted.Load() {
		s.blind(drift.GapCgroups, "where in the tree some cgroups are", "this program runs in a cgroup namespace, and its own cgroup was not found below "+s.tree.root)
	}
	out.Limits = s.limits
	return out
}

// unidentified says whose user namespace has an inode that may not be read although
// this reader has CAP_SYS_PTRACE: a security module may refuse it all the same, as
// AppArmor does to one confined by a container's profile, for all that is not
// (security/apparmor/lsm.c apparmor_ptrace_access_check).
func (s *sweep) unidentified(containers []drift.Container) {
	if !s.look.inodes || s.readers[0].inode("self/ns/user") == 0 { // then the kernel has none
		return
	}
	n := 0
	for _, c := range containers {
		for i := range c.Processes {
			if c.Processes[i].UserNamespace.Inode == 0 {
				n++
			}
		}
	}
	if n > 0 {
		s.limits = append(s.limits, drift.Limit{
			What: fmt.Sprintf("the identity of the user namespaces of %d processes", n),
			Why:  "their /ns/user may not be read although CAP_SYS_PTRACE is held, so they are judged by their maps; a security module refuses it, such as AppArmor where it confines this program: run it unconfined",
		})
	}
}

// judge says how much of a container was seen.
func (s *sweep) judge(g *group) {
	c := &g.container
	slices.SortFunc(g.processes, func(a, b drift.Process) int { return a.PID - b.PID })
	if c.Processes = g.processes; c.Processes == nil {
		c.Processes = []drift.Process{}
	}
	if g.silent {
		return
	}
	if len(g.failures) > 0 {
		first := g.failures[0]
		if errors.Is(first.err, ErrVanished) {
			// It did not end: the cgroup still lists it.
			first.err = fmt.Errorf("its cgroup lists it and /proc does not show it, as with hidepid: %w", ErrUnreadable)
		}
		g.problems = append(g.problems, fmt.Sprintf("%d of its %d processes could not be read, process %d for one: %v",
			len(g.failures), len(g.failures)+len(g.processes), first.pid, first.err))
	}
	if c.Overdue = g.overdue; g.overdue != nil && g.overdue.Unread > 0 {
		g.problems = append(g.problems, g.overdue.String())
	}
	if s.look.foreign && s.look.hides {
		g.problems = append(g.problems, "some of its processes may be hidden in /proc, as with hidepid, and in this pid namespace cgroup.procs does not tell of them; run in the node's (hostPID: true)")
	}
	if g.root != "" && g.given {
		if lost := s.lostInit(g); lost != "" {
			g.problems = append(g.problems, lost)
		}
	}
	seen := drift.Observed
	switch {
	case len(g.problems) > 0 && len(g.processes) == 0:
		seen = drift.Unreadable
	case len(g.problems) > 0:
		seen = drift.Partial
	}
	switch c.Observation {
	case drift.Unreadable:
	case drift.Partial:
		if seen == drift.Unreadable {
			c.Observation = seen
		}
	default:
		c.Observation = seen
	}
	if c.Reason != "" {
		g.problems = slices.Insert(g.problems, 0, c.Reason)
	}
	c.Reason = strings.Join(g.problems, "; ")
}

// lostInit explains why a container's first process is not among those that were
// read though it lives.
func (s *sweep) lostInit(g *group) string {
	pid := g.container.InitPID
	among := func(p drift.Process) bool { return p.PID == pid }
	if pid == 0 || g.overdue != nil && slices.Contains(g.overdue.PIDs, pid) || slices.ContainsFunc(g.processes, among) || slices.ContainsFunc(g.failures, func(f failure) bool { return f.pid == pid }) {
		return ""
	}
	r := s.readers[0]
	status, err := r.statusOf(strconv.Itoa(pid))
	if err != nil || status.ended() || status.kernel() {
		return ""
	}
	return fmt.Sprintf("its first process %d is not in its cgroup %s but in %s", pid, printable(g.root), printable(s.cgroupOf(r, pid)))
}

// printable quotes a path that a container named and a terminal should not see.
func printable(path string) string {
	if quoted := strconv.QuoteToASCII(path); quoted[1:len(quoted)-1] != path {
		return quoted
	}
	return path
}
