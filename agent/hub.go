package agent

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/capdrift/capdrift/drift"
)

const (
	keptChanges = 4096 // for watchers that come back
	queueLength = 1024 // of changes that one watcher has not taken yet
	// maxWeight bounds what a queue holds: some 10 MB. A container can have as many
	// processes as it likes, and change as often.
	maxWeight = 1 << 15
)

// weight is how much a change holds, in processes.
func weight(change Change) int {
	if change.Container == nil {
		return 1
	}
	return 1 + len(change.Container.Processes)
}

// hub publishes views and changes to any number of watchers, and never waits for
// one of them. It is a [Feed].
type hub struct {
	view  atomic.Pointer[View]
	first View // what is told before there is one

	mu       sync.Mutex
	kept     []Change // the newest, oldest first, of one epoch; containers without their processes
	forgot   uint64   // the sequence of the newest change that is not kept, and that none replaces
	watchers map[*subscription]bool
}

func newHub(first View) *hub { return &hub{first: first, watchers: make(map[*subscription]bool)} }

// View implements [Feed].
func (h *hub) View() (View, bool) {
	view := h.view.Load()
	if view == nil {
		return h.first, false
	}
	return *view, true
}

// publish hands out the next view with the changes that led to it.
func (h *hub) publish(view View, changes []Change) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.view.Store(&view)
	for _, change := range changes {
		h.kept = append(h.kept, bare(change))
	}
	if len(h.kept) > keptChanges {
		h.kept = newest(h.kept)
	}
	if excess := len(h.kept) - keptChanges*3/4; len(h.kept) > keptChanges {
		h.forgot = h.kept[excess-1].Position.Sequence
		h.kept = append([]Change(nil), h.kept[excess:]...)
	}
	for watcher := range h.watchers {
		watcher.offer(changes)
	}
}

// newest returns changes without those that a later one makes needless: of a container or
// a finding that changed many times the last time tells, so that one that changes often
// does not make the hub forget all others. What was opened, added or ended stays.
func newest(kept []Change) []Change {
	seen := make(map[string]bool)
	list := make([]Change, 0, len(kept))
	for _, change := range slices.Backward(kept) {
		key := ""
		switch change.Kind {
		case ContainerChanged:
			key = "container\x00" + change.Container.ID
		case FindingUpdated:
			key = "finding\x00" + change.Finding.ID
		case StatusChanged:
			if key = "coverage"; change.Component != nil {
				key = "component\x00" + change.Component.Name
			}
		}
		if key == "" || !seen[key] {
			list = append(list, change)
		}
		seen[key] = true
	}
	slices.Reverse(list)
	return list
}

// bare returns a change without the processes of its container, which would be kept as
// long as it is.
func bare(change Change) Change {
	change.About = nil
	if change.Container != nil {
		container := *change.Container
		container.Processes = nil
		change.Container = &container
	}
	return change
}

// whole returns kept changes with the containers as the view has them now.
func whole(kept []Change, view *View) []Change {
	now := make(map[string]*drift.Container, len(view.Report.Containers))
	for i := range view.Report.Containers {
		now[view.Report.Containers[i].ID] = &view.Report.Containers[i]
	}
	changes := slices.Clone(kept)
	for i, change := range changes {
		if change.Container != nil && now[change.Container.ID] != nil && change.Kind != ContainerRemoved {
			changes[i].Container = now[change.Container.ID]
		}
	}
	return changes
}

// Watch implements [Feed].
func (h *hub) Watch(after Position) Subscription {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := &subscription{hub: h, queue: make(chan Change, queueLength)}
	view := h.view.Load()
	missed, all := h.since(after, view)
	held := 0
	for _, change := range missed {
		held += weight(change)
	}
	if all || len(missed) > queueLength/2 || held > maxWeight/2 {
		missed = nil
		s.snapshot = view // nil before there is one: the first changes then tell all
	}
	h.watchers[s] = true
	s.offer(missed)
	return s
}

// since returns the changes after the position, but for those that later ones make
// needless; all is true when they are not kept, so that a whole view is needed.
func (h *hub) since(after Position, view *View) (missed []Change, all bool) {
	if view == nil || after.BootID != view.Position.BootID || after.Epoch != view.Position.Epoch || after.Sequence > view.Position.Sequence {
		return nil, true
	}
	if after.Sequence < h.forgot {
		return nil, true
	}
	at := slices.IndexFunc(h.kept, func(change Change) bool { return change.Position.Sequence > after.Sequence })
	if at < 0 {
		return nil, false
	}
	return whole(h.kept[at:], view), false
}

// subscription is one watcher of a hub.
type subscription struct {
	hub      *hub
	snapshot *View
	queue    chan Change
	weights  []int // of what was put into the queue and may be in it still, under hub.mu
	ended    bool  // under hub.mu
	err      error
}

// offer puts changes into the queue, or ends the subscription when they do not
// fit. The hub is locked.
func (s *subscription) offer(changes []Change) {
	if s.ended {
		return
	}
	s.weights = s.weights[len(s.weights)-len(s.queue):]
	held := 0
	for _, each := range s.weights {
		held += each
	}
	for _, change := range changes {
		more := weight(change)
		// One that is too heavy by itself comes through where there is no other.
		if len(s.queue) == cap(s.queue) || held > 0 && held+more > maxWeight {
			s.end(ErrSlow)
			return
		}
		s.queue <- change
		s.weights, held = append(s.weights, more), held+more
	}
}

func (s *subscription) end(err error) {
	if !s.ended {
		s.ended, s.err = true, err
		delete(s.hub.watchers, s)
		close(s.queue)
	}
}

// Snapshot implements [Subscription].
func (s *subscription) Snapshot() (View, bool) {
	view := s.snapshot
	if view == nil {
		return View{}, false
	}
	s.snapshot = nil // or a watcher of many days would keep the node as it was
	return *view, true
}

// Changes implements [Subscription].
func (s *subscription) Changes() <-chan Change { return s.queue }

// Err implements [Subscription].
func (s *subscription) Err() error {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	return s.err
}

// Close implements [Subscription].
func (s *subscription) Close() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	s.end(nil)
}
