package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/capdrift/capdrift/drift"
)

// Cadence is how often the loop looks, each kind of look as often as it is cheap.
type Cadence struct {
	Membership time.Duration // which processes are in the known containers
	Sweep      time.Duration // every process that may have run, and containers that nobody named
	Threads    time.Duration // the threads of processes that have more than one
	List       time.Duration // which containers there are
	Confirm    time.Duration // from a suspicion to the second look at it
}

// DefaultCadence costs a node of 200 containers and 5,000 processes some
// one percent of a core; docs/agent.md has the numbers.
func DefaultCadence() Cadence {
	return Cadence{
		Membership: 250 * time.Millisecond, Sweep: 15 * time.Second, Threads: time.Minute, List: 10 * time.Second,
		Confirm: 250 * time.Millisecond,
	}
}

// Members tells which processes come and go, cheaper than a sweep.
type Members interface {
	// Follow says which containers are known, with the processes that are known of
	// them; limits tell which cannot be followed.
	Follow(containers []drift.Container) []drift.Limit
	// Attend says that something happened in a container, which the next call of
	// Changes is to see.
	Attend(containerID string)
	Changes(ctx context.Context) ([]drift.MembershipChange, error)
	// Read reads processes of a container; those that have ended are left out. An
	// error is about those that could not be read, and comes with all others.
	Read(ctx context.Context, containerID string, pids []int) ([]drift.Process, error)
}

// Journal keeps what happened. An error is shown, and ends nothing.
type Journal interface {
	// Record writes the changes down, and which findings are open after them.
	Record(changes []Change, open []drift.Finding) error
}

// Loop keeps the truth of one node current. Its parts are handed in; [Loop.Run]
// runs it, and it is a [Feed] for any number of watchers.
type Loop struct {
	Host    Host
	Threads Host // the same node, with every process's threads; nil where Host reads them
	Members Members
	Runtime Runtime
	Events  <-chan drift.RuntimeEvent // hints that say when to look sooner; nil for none
	Journal Journal                   // nil for none
	Given   drift.Given
	Policy  PolicyUpdate // to begin with; see [Loop.Enforce]
	Cadence Cadence
	Epoch   string // of this run
	// Open are the findings that were open when the agent ended last, and BootID the
	// boot of the node at that time.
	Open   []drift.Finding
	BootID string
	// Former are containers that findings of Open are about, as they were declared: what
	// is left in the cgroup of one that ended meanwhile is held against it.
	Former []drift.Container
	Now    func() time.Time
	// Used returns the processor time that the agent has used. Work that others can cause is
	// spaced by what it cost; nil is by how long it took.
	Used func() time.Duration
	// After returns a channel that is sent to once, when the duration has passed.
	After func(time.Duration) <-chan time.Time

	hub      *hub
	state    state
	scans    chan chan View
	settings chan settings
	orders   chan func() []Change
}

// settings are what can be changed while the loop runs.
type settings struct {
	Cadence
	drift.Given
}

// state is what the loop knows. Only the goroutine of Run touches it.
type state struct {
	node         drift.Node
	nodeLimits   []drift.Limit
	runtime      *drift.Runtime
	listed       []drift.Container // as the runtime told last
	named        map[string]bool   // containers that it told of, whatever has become of them
	ended        []drift.Container // that ran once, and in whose cgroups processes may be left
	askedAt      time.Time         // when it was asked for that
	starting     []string
	listLimits   []drift.Limit
	failure      error // of the last list
	hearing      hearing
	containers   map[string]*drift.Container
	told         map[string]announced // as watchers know them
	met          map[string]time.Time // containers that watchers are not told of before they have a name
	unread       map[string]error     // of containers, why processes could not be read one by one
	sweep        drift.Sweep          // the last one's counts and limits
	threadsAt    time.Time            // when threads were read last
	wholeAt      time.Time            // when everybody was, also who was at rest; zero where it is due
	threadLooks  int                  // how often they were
	missed       int                  // processes that nobody could read, since the last sweep
	follow       []drift.Limit
	expectations drift.Expectations
	ledger       *ledger
	rules        rules
	rereads      rereads
	sequence     uint64
	early        []Change // not published yet: the node was not looked at
	takenAt      time.Time
	took         time.Duration
	components   map[string]Component
}

// NewLoop makes a loop of its parts ready to [Loop.Run].
func NewLoop(l Loop) *Loop {
	l.hub, l.scans, l.settings, l.orders = newHub(View{Sweep: l.Cadence.Sweep}), make(chan chan View), make(chan settings), make(chan func() []Change)
	l.state = state{
		containers: make(map[string]*drift.Container), components: make(map[string]Component), told: make(map[string]announced), met: make(map[string]time.Time),
		unread: make(map[string]error), ended: ended(l.Former), ledger: newLedger(l.Cadence.Confirm, l.Open, l.Now()),
	}
	return &l
}

// View implements [Feed].
func (l *Loop) View() (View, bool) { return l.hub.View() }

// Watch implements [Feed].
func (l *Loop) Watch(after Position) Subscription { return l.hub.Watch(after) }

// Scan looks at everything now and returns the view that came of it.
func (l *Loop) Scan(ctx context.Context) (View, error) {
	reply := make(chan View, 1)
	select {
	case l.scans <- reply:
	case <-ctx.Done():
		return View{}, ctx.Err()
	}
	select {
	case view := <-reply:
		return view, nil
	case <-ctx.Done():
		return View{}, ctx.Err()
	}
}

// Configure changes how often the loop looks, and what is stated of the runtime.
// It returns when the loop has taken it, or with the context's error.
func (l *Loop) Configure(ctx context.Context, cadence Cadence, given drift.Given) error {
	select {
	case l.settings <- settings{cadence, given}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// listing is the answer of a runtime, or why there was none.
type listing struct {
	drift.Inventory
	asked time.Time
	err   error
}

// Events come as fast as whoever starts containers and processes likes. What they
// cause waits a little, so that one look answers all that came meanwhile, and as long
// as it takes to be a tenth of the time: hints never cost more than that of a core. What
// counts is processor time: on a node that is busy the agent waits, and costs nothing.
const (
	soonerList       = 100 * time.Millisecond
	soonerMembership = 5 * time.Millisecond
	restPerWork      = 9
)

// wholeLook is of how many looks at threads one reads everybody, whatever is known.
const wholeLook = 10

// pace spaces work that others can ask for at any time.
type pace struct {
	least time.Duration
	rest  time.Time // until then
}

// did enters that work has ended, and what it cost.
func (p *pace) did(ended time.Time, cost time.Duration) { p.rest = ended.Add(restPerWork * cost) }

// in returns how long the work is to wait.
func (p *pace) in(now time.Time) time.Duration { return max(p.least, p.rest.Sub(now)) }

// Run looks until the context ends. It returns an error only where the node itself
// cannot be read; a runtime that does not answer is said in every view, and looked
// for again.
func (l *Loop) Run(ctx context.Context) error {
	node, limits, err := l.Host.Node()
	if err != nil {
		return fmt.Errorf("reading the node: %w", err)
	}
	l.state.node, l.state.nodeLimits = node, limits
	l.closeFormerBoot()
	if changes := l.enforce(l.Policy); len(changes) > 0 {
		l.publish(changes)
	}

	// A runtime may hang: it is asked beside the loop, one question at a time.
	listings, asking := make(chan listing, 1), false
	var beforeList time.Duration
	list := func() {
		if !asking {
			asking, beforeList = true, l.stamp()
			go func(asked time.Time) {
				inventory, err := l.Runtime.Inventory(ctx)
				listings <- listing{inventory, asked, err}
			}(l.Now())
		}
	}
	list()
	// What is asked for while a question is under way needs another one: the answer
	// to the first may be older.
	again := false
	var waiting, queued []chan View // scans that wait for this listing, and for the next
	membership, sweep, listAt := l.After(l.Cadence.Membership), l.After(l.Cadence.Sweep), l.After(l.Cadence.List)
	var hintedList, hintedMembership, confirm <-chan time.Time
	lists, memberships := pace{least: soonerList}, pace{least: soonerMembership}
	second := false // the next sweep is the second look at something
	confirming := false
	for {
		if at, waits := l.state.rereads.next(); waits && confirm == nil {
			confirm = l.After(at.Sub(l.Now()))
		}
		select {
		case <-ctx.Done():
			return nil
		case answer := <-listings:
			asking = false
			if len(waiting) > 0 {
				l.state.wholeAt = time.Time{} // who asks for a look gets a whole one
			}
			if changed := l.inventory(answer); changed || confirming || len(waiting) > 0 {
				l.look(ctx, len(waiting) > 0)
			}
			lists.did(l.Now(), l.since(beforeList))
			for _, reply := range waiting {
				view, _ := l.View()
				reply <- view
			}
			waiting, queued, confirming = queued, nil, false
			if again {
				again = false
				list()
			}
		case <-membership:
			l.membership(ctx)
			membership = l.After(l.Cadence.Membership)
		case <-hintedMembership:
			began := l.stamp()
			l.membership(ctx)
			memberships.did(l.Now(), l.since(began))
			hintedMembership = nil
		case <-confirm:
			confirm = nil
			if changes := l.again(ctx); len(changes) > 0 {
				l.publish(changes)
			}
		case <-sweep:
			if second {
				confirming, again = true, again || asking
				list() // what is suspected may have ended since the runtime was asked
			} else {
				l.look(ctx, false)
			}
			var in time.Duration
			in, second = l.nextSweep(second)
			sweep = l.After(in)
		case <-listAt:
			list()
			listAt = l.After(l.Cadence.List)
		case event, more := <-l.Events:
			switch {
			case !more:
				l.Events = nil // there will be none; the cadences are the truth
			case event.Kind == drift.EventSilent:
				l.hear(event) // the cadences are the truth all the same
			case event.Kind == drift.EventExecStarted:
				l.Members.Attend(event.ContainerID)
				if hintedMembership == nil {
					hintedMembership = l.After(memberships.in(l.Now()))
				}
			default:
				l.hear(event)
				if hintedList == nil {
					hintedList = l.After(lists.in(l.Now()))
				}
			}
		case <-hintedList:
			hintedList, again = nil, again || asking
			list()
		case changed := <-l.settings:
			l.Cadence, l.Given, l.state.ledger.confirm = changed.Cadence, changed.Given, changed.Confirm
			membership, sweep, listAt = l.After(l.Cadence.Membership), l.After(l.Cadence.Sweep), l.After(l.Cadence.List)
		case order := <-l.orders:
			l.publish(order())
		case reply := <-l.scans:
			if asking {
				queued, again = append(queued, reply), true
			} else {
				waiting = append(waiting, reply)
				list()
			}
		}
	}
}

// stamp and since measure what work costs.
func (l *Loop) stamp() time.Duration {
	if l.Used != nil {
		return l.Used()
	}
	return time.Duration(l.Now().UnixNano())
}

func (l *Loop) since(stamp time.Duration) time.Duration { return l.stamp() - stamp }

// nextSweep is the time to the next sweep: the confirming time where something is
// suspected that only a sweep shows, such as a thread or a container that nobody named,
// and this is not the second look already.
func (l *Loop) nextSweep(second bool) (in time.Duration, isSecond bool) {
	waits := l.state.rules.unread()
	for _, suspect := range l.state.ledger.pending() {
		// Reading its process again should have told by now, and could not.
		late := l.Now().Sub(suspect.since) > l.Cadence.Confirm
		waits = waits || late || suspect.Kind == drift.UnknownOrigin || !l.state.rereadable(suspect.Finding)
	}
	if waits && !second {
		l.state.wholeAt = time.Time{} // perhaps it is about a thread
		return l.Cadence.Confirm, true
	}
	if in := l.introduced(); in > 0 {
		return min(in, l.Cadence.Sweep), true
	}
	return l.Cadence.Sweep, false
}

// introduced is the time until the runtime is to be asked for the container that nobody has
// named for longest; 0 where it was asked, and where there is none.
func (l *Loop) introduced() (in time.Duration) {
	for _, suspect := range l.state.ledger.pending() {
		if suspect.Kind == drift.UnmanagedContainer {
			if left := introduction - l.Now().Sub(suspect.since); left > 0 && (in == 0 || left < in) {
				in = left
			}
		}
	}
	return in
}

// closeFormerBoot resolves what was open when the node went down.
func (l *Loop) closeFormerBoot() {
	if l.BootID != l.state.node.BootID {
		l.publish(l.state.ledger.end(l.Now(), ResolvedBoot, func(drift.Finding) bool { return true }))
	}
}

// inventory enters what the runtime told, and tells whether the node is to be
// looked at for it: where nothing changed, the next sweep is soon enough.
func (l *Loop) inventory(answer listing) bool {
	s := &l.state
	changes := l.component("runtime", answer.err)
	changed := len(changes) > 0 || s.takenAt.IsZero()
	if s.failure = answer.err; answer.err == nil {
		changed = changed || !sameInventory(s, answer.Inventory)
		if s.runtime == nil || s.runtime.Name != answer.Runtime.Name || s.runtime.Version != answer.Runtime.Version {
			l.markAll() // rules may ask for it
		}
		s.ended, s.named = s.nowEnded(answer.Inventory), named(answer.Inventory)
		s.runtime, s.listed, s.starting, s.listLimits = &answer.Runtime, answer.Containers, answer.Starting, answer.Limits
		s.askedAt = answer.asked
	}
	l.publish(changes)
	return changed
}

// sameInventory tells whether the runtime told what it told before.
func sameInventory(s *state, told drift.Inventory) bool {
	return s.runtime != nil && reflect.DeepEqual(*s.runtime, told.Runtime) && slices.Equal(s.starting, told.Starting) &&
		slices.Equal(s.listLimits, told.Limits) && slices.EqualFunc(s.listed, told.Containers, func(a, b drift.Container) bool {
		return a.ID == b.ID && a.InitPID == b.InitPID && a.CgroupPath == b.CgroupPath && a.Declared == b.Declared &&
			a.Observation == b.Observation && a.Reason == b.Reason
	})
}

// look sweeps the node and enters what it shows: the containers that are there,
// and every finding about them. All of it is judged at once where somebody waits for it.
func (l *Loop) look(ctx context.Context, awaited bool) {
	s := &l.state
	started := l.Now()
	whole := started.Sub(s.wholeAt) >= wholeLook*l.Cadence.Threads
	host, threads := l.Host, l.Threads == nil
	if l.Threads != nil && (whole || started.Sub(s.threadsAt) >= l.Cadence.Threads) {
		host, threads = l.Threads, true
	}
	given := slices.Concat(s.listed, s.ended)
	for i := range given {
		if before := s.containers[given[i].ID]; before != nil {
			// It keeps them where it was at rest, and those that there is no time to read.
			given[i].Processes, given[i].Afresh = before.Processes, whole
		}
	}
	sweep, err := host.Sweep(ctx, given)
	if ctx.Err() != nil {
		return
	}
	// What of the node can be seen may change: a /proc that is mounted anew may hide pid 1,
	// or show it again.
	node, limits, nodeErr := l.Host.Node()
	err = errors.Join(err, nodeErr)
	changes := l.component("proc", err)
	if err != nil {
		l.publish(changes)
		return
	}
	if whole {
		s.wholeAt = started
	}
	if threads {
		s.threadsAt = started
	}
	judgeAll := !sameNode(s.node, node)
	s.node, s.nodeLimits = node, limits
	if sweep.Processes.Unreadable == 0 {
		clear(s.unread) // what could not be read once now was
	}
	changes = append(changes, l.component("time", overdue(sweep.Containers))...)
	if threads {
		s.threadLooks++
		judgeAll = judgeAll || (sweep.Threads.Skipped == 0) != (s.sweep.Threads.Skipped == 0)
	} else {
		sweep.Threads = s.sweep.Threads
		for i := range sweep.Containers {
			if before := s.containers[sweep.Containers[i].ID]; before != nil {
				keepThreads(before.Processes, sweep.Containers[i].Processes)
			}
		}
	}
	sweep.Containers = s.living(sweep.Containers)
	s.follow = l.Members.Follow(sweep.Containers)
	s.sweep, s.missed = sweep, 0
	s.sweep.Containers = nil
	before := maps.Clone(s.containers)
	changes = append(changes, l.enter(sweep.Containers)...)
	changes = append(changes, l.readable()...)
	seen := l.judge(threads)
	s.takenAt, s.took = started, l.Now().Sub(started)
	seen.at, seen.asked = l.Now(), s.askedAt
	seen.read = func(f drift.Finding) bool { return !s.stale(f) && s.readAnew(f, before[s.holder(f)], whole) }
	seen.over = func(f drift.Finding) string { return s.over(f, threads && sweep.Threads.Skipped == 0) }
	changes = append(changes, s.ledger.take(seen)...)
	l.rereadSuspects()
	l.rereadStages()
	if s.rules.policy != nil {
		changes = append(changes, l.accept()...)
	}
	if judgeAll {
		l.markAll()
	}
	for _, change := range changes {
		if change.Kind == FindingOpened && change.Finding.Kind == drift.UnmanagedContainer {
			s.rules.mark(change.Finding.ContainerID) // now it is known what it is
		}
	}
	ruled, _ := l.rule(awaited)
	l.publish(append(changes, ruled...))
	// All that was known before is garbage at once, and there is no use for its memory
	// until the next look.
	debug.FreeOSMemory()
}

// overdue is the error of a look that had no time to read all processes, nil where it
// had. It has no numbers, so that it is the same as long as the containers are.
func overdue(containers []drift.Container) error {
	const most = 3 // are named
	var labels []string
	n := 0
	for i := range containers {
		if containers[i].Overdue == nil {
			continue
		}
		if n++; n <= most {
			labels = append(labels, containers[i].Label())
		}
	}
	switch {
	case n == 0:
		return nil
	case n > most:
		labels = append(labels, "others")
	}
	return fmt.Errorf("there was no time to read all processes of %s, which cost too much to read", strings.Join(labels, ", "))
}

// stale reports whether what a finding says of a process was read by an earlier look.
func (s *state) stale(f drift.Finding) bool {
	c := s.containers[f.ContainerID]
	return c != nil && f.PID != 0 && f.TID == 0 && c.Stale(f.PID)
}

// keepThreads gives processes the threads that an earlier look read of them. Those of a
// runtime's stage are left out: the program that it executed has none of them, and they
// hold everything.
func keepThreads(before, now []drift.Process) {
	type identity struct {
		pid   int
		start uint64
	}
	known := make(map[identity]*drift.Process)
	for i := range before {
		if p := &before[i]; p.Observation != drift.Starting && (p.ThreadsRead || len(p.Threads) > 0) {
			known[identity{p.PID, p.StartTime}] = p
		}
	}
	for i := range now {
		if p := known[identity{now[i].PID, now[i].StartTime}]; p != nil {
			now[i].Threads, now[i].ThreadsRead = p.Threads, p.ThreadsRead
		}
	}
}

// enter replaces the containers by those that a sweep saw.
func (l *Loop) enter(seen []drift.Container) (changes []Change) {
	s := &l.state
	now := l.Now()
	present := make(map[string]bool, len(seen))
	for i := range seen {
		c := seen[i]
		before, known := s.containers[c.ID]
		if known {
			drift.Remember(before.Processes, c.Processes)
		}
		drift.Settle(s.node, s.runtime, &c)
		drift.Admit(&c, s.starting)
		if s.runtime == nil {
			c.Managed = nil // nobody could say whether a pod explains it
		}
		present[c.ID] = true
		s.containers[c.ID] = &c
		switch told, wasTold := s.told[c.ID]; {
		case !wasTold && s.nameless(&c, now):
		case !wasTold:
			delete(s.met, c.ID)
			s.told[c.ID] = announce(&c, now)
			changes = append(changes, Change{At: now, Kind: ContainerAdded, Container: &c})
		case told.outdated(&c, now):
			s.told[c.ID] = announce(&c, now)
			changes = append(changes, Change{At: now, Kind: ContainerChanged, Container: &c})
		}
		if !known || s.rules.suspected(c.ID) || !sameToRules(before, &c) {
			s.rules.mark(c.ID)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(s.containers)) {
		if !present[id] {
			changes = append(changes, Change{At: now, Kind: ContainerRemoved, Container: s.containers[id]})
			delete(s.containers, id)
			delete(s.told, id)
			delete(s.met, id)
			delete(s.unread, id)
			s.rules.forget(id)
			if s.named[id] {
				s.ledger.acquit(id)
			}
			changes = append(changes, s.ledger.end(now, ResolvedEnded, func(f drift.Finding) bool { return f.ContainerID == id })...)
		}
	}
	return changes
}

// nameless reports whether a new container has no name yet, and may get one: a sweep sees it
// before the runtime was asked again, which is a moment for what the runtime starts.
func (s *state) nameless(c *drift.Container, now time.Time) bool {
	if c.Managed == nil || *c.Managed || c.Name != "" {
		return false
	}
	met, known := s.met[c.ID]
	if !known {
		met = now
		s.met[c.ID] = met
	}
	return s.askedAt.Sub(met) < introduction
}

// announced is what watchers were told of a container last.
type announced struct {
	head drift.Container // without its processes
	n    int             // how many they were
	at   time.Time
}

func announce(c *drift.Container, at time.Time) announced {
	head := *c
	head.Processes = nil
	return announced{head, len(c.Processes), at}
}

// outdated reports whether watchers are to be told anew. What changes as often as processes
// come and go is told only so often.
func (a announced) outdated(c *drift.Container, at time.Time) bool {
	if a.head.Observation != c.Observation || a.head.InitPID != c.InitPID || a.head.Declared != c.Declared || a.head.Ended != c.Ended || !same(a.head.Managed, c.Managed) {
		return true
	}
	return (a.head.Reason != c.Reason || a.n != len(c.Processes)) && at.Sub(a.at) >= damping
}

// sorted returns the containers in the order of a report.
func (s *state) sorted() []drift.Container {
	list := make([]drift.Container, 0, len(s.containers))
	for _, c := range s.containers {
		list = append(list, *c)
	}
	slices.SortFunc(list, func(a, b drift.Container) int {
		if by := strings.Compare(podKey(a), podKey(b)); by != 0 {
			return by
		}
		return strings.Compare(a.Name+"\x00"+a.ID, b.Name+"\x00"+b.ID)
	})
	return list
}

func podKey(c drift.Container) string {
	if c.Pod == nil {
		return "\xff" // after all pods
	}
	return c.Pod.Namespace + "\x00" + c.Pod.Name
}

// component enters how a part fares, and says so when that changed.
func (l *Loop) component(name string, err error) []Change {
	why := ""
	if err != nil {
		why = err.Error()
	}
	before, known := l.state.components[name]
	if known && before.OK == (err == nil) && before.Why == why {
		return nil
	}
	now := Component{Name: name, OK: err == nil, Why: why, Since: l.Now()}
	l.state.components[name] = now
	if !known && err == nil {
		return nil
	}
	return []Change{{At: now.Since, Kind: StatusChanged, Component: &now}}
}

// publish numbers the changes, writes them down, and hands out the view after them.
func (l *Loop) publish(changes []Change) {
	s := &l.state
	for i := range changes {
		s.sequence++
		changes[i].Position = Position{s.node.BootID, l.Epoch, s.sequence}
		if f := changes[i].Finding; f != nil && changes[i].Kind != FindingResolved && f.Severity > drift.Info {
			changes[i].About = s.containers[f.ContainerID]
		}
	}
	open := s.ledger.findings()
	// A journal that fails is asked again although nothing happens: else a quiet node
	// would not hear that it is well again.
	if l.Journal != nil && (len(changes) > 0 || !s.components["journal"].OK) {
		failed := l.component("journal", l.Journal.Record(changes, open))
		for i := range failed { // not written down itself
			s.sequence++
			failed[i].Position = Position{s.node.BootID, l.Epoch, s.sequence}
		}
		changes = append(changes, failed...)
	}
	if s.early = append(s.early, changes...); s.takenAt.IsZero() {
		return // there is nothing to be viewed yet
	}
	l.hub.publish(l.view(open), s.early)
	s.early = nil
}

func (l *Loop) view(open []drift.Finding) View {
	s := &l.state
	containers := s.sorted()
	report := drift.Report{
		Schema: drift.Schema, Node: s.node, Runtime: s.runtime, TakenAt: s.takenAt.UTC(), DurationMs: s.took.Milliseconds(),
		Containers: containers, Findings: open, Expectations: s.expectations,
		Coverage: drift.Coverage{
			Processes: s.sweep.Processes, Threads: s.sweep.Threads,
			Limits: slices.Concat(s.nodeLimits, s.listLimits, s.follow, s.sweep.Limits, s.expectations.Limits(),
				drift.Limits(s.node, containers), s.ledger.transients.limits(), s.hearing.limits(l.Now(), l.Cadence.List)),
		},
	}
	if s.failure != nil {
		report.Coverage.Limits = append(report.Coverage.Limits, drift.Limit{
			What: "what was declared for containers since the runtime answered last", Why: s.failure.Error(), Blind: true, Code: drift.GapRuntimeSilent,
		})
	}
	if look, known := s.components["proc"]; known && !look.OK {
		report.Coverage.Limits = append(report.Coverage.Limits, drift.Limit{
			What: "what changed since " + report.TakenAt.Format(time.RFC3339), Why: "looking at the node fails: " + look.Why, Blind: true, Code: drift.GapStale,
		})
	}
	if s.missed > 0 {
		report.Coverage.Limits = append(report.Coverage.Limits, drift.Limit{
			What: fmt.Sprintf("%d processes", s.missed), Why: "they appeared and ended faster than they could be read", Blind: true, Code: drift.GapMissed,
		})
	}
	report.Cover()
	view := View{
		Position: Position{s.node.BootID, l.Epoch, s.sequence}, Report: report, Policy: s.rules.status(open, l.Now()),
		Unconfirmed: maps.Clone(s.ledger.transients.counts), Sweep: l.Cadence.Sweep,
	}
	for _, name := range slices.Sorted(maps.Keys(s.components)) {
		view.Status = append(view.Status, s.components[name])
	}
	return view
}
