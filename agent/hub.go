package agent

import (
	"sync"
	"sync/atomic"
)

const (
	keptChanges = 4096 // for watchers that come back
	queueLength = 1024 // of changes that one watcher has not taken yet
)

// hub publishes views and changes to any number of watchers, and never waits for
// one of them. It is a [Feed].
type hub struct {
	view atomic.Pointer[View]

	mu       sync.Mutex
	kept     []Change // the newest, oldest first, of one epoch
	watchers map[*subscription]bool
}

func newHub() *hub { return &hub{watchers: make(map[*subscription]bool)} }

// View implements [Feed].
func (h *hub) View() (View, bool) {
	view := h.view.Load()
	if view == nil {
		return View{}, false
	}
	return *view, true
}

// publish hands out the next view with the changes that led to it.
func (h *hub) publish(view View, changes []Change) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.view.Store(&view)
	h.kept = append(h.kept, changes...)
	if excess := len(h.kept) - keptChanges; excess > 0 {
		h.kept = append([]Change(nil), h.kept[excess:]...)
	}
	for watcher := range h.watchers {
		watcher.offer(changes)
	}
}

// Watch implements [Feed].
func (h *hub) Watch(after Position) Subscription {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := &subscription{hub: h, queue: make(chan Change, queueLength)}
	view := h.view.Load()
	missed, whole := h.since(after, view)
	if whole || len(missed) > queueLength/2 {
		missed = nil
		s.snapshot = view // nil before there is one: the first changes then tell all
	}
	h.watchers[s] = true
	s.offer(missed)
	return s
}

// since returns the changes after the position; false when they are not all kept,
// so that a whole view is needed.
func (h *hub) since(after Position, view *View) (missed []Change, whole bool) {
	if view == nil || after.BootID != view.Position.BootID || after.Epoch != view.Position.Epoch || after.Sequence > view.Position.Sequence {
		return nil, true
	}
	for i, change := range h.kept {
		if change.Position.Sequence == after.Sequence+1 {
			return h.kept[i:], false
		}
	}
	return nil, after.Sequence != view.Position.Sequence
}

// subscription is one watcher of a hub.
type subscription struct {
	hub      *hub
	snapshot *View
	queue    chan Change
	ended    bool // under hub.mu
	err      error
}

// offer puts changes into the queue, or ends the subscription when they do not
// fit. The hub is locked.
func (s *subscription) offer(changes []Change) {
	if s.ended {
		return
	}
	if len(changes) > cap(s.queue)-len(s.queue) {
		s.end(ErrSlow)
		return
	}
	for _, change := range changes {
		s.queue <- change
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
	if s.snapshot == nil {
		return View{}, false
	}
	return *s.snapshot, true
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
