package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	events "github.com/containerd/containerd/api/services/events/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// EventKind says what an [Event] is about.
type EventKind string

// What a runtime tells of containers, and what is to be known of its telling.
const (
	ContainerCreated EventKind = "container_created"
	Started          EventKind = "started"
	ExecStarted      EventKind = "exec_started" // one more process; containerd alone tells
	Exited           EventKind = "exited"       // the first process, or that of an exec
	Deleted          EventKind = "deleted"      // the container or its task

	// Connected: the runtime is being listened to. What it did before is not told,
	// so whoever needs to know looks himself. It comes first, and after each Blind.
	Connected EventKind = "reconnected"
	// Blind: nothing is told until the next Connected. Why says why.
	Blind EventKind = "blind"
	// Silent: this runtime tells nothing, as configured or at all; Why says so. It is
	// asked again from time to time.
	Silent EventKind = "silent"
	// Overflow: Lost events came faster than they were taken and are not told.
	Overflow EventKind = "overflow"
)

// Event is a hint that something happened to a container. It says when to look, not
// what there is: events get lost when a runtime restarts, come late when it is busy,
// and say nothing of what goes past the runtime (`runc exec`, a process that joins
// from the host). Ids and pids are the runtime's word.
type Event struct {
	Kind        EventKind
	Namespace   string // containerd's: k8s.io for pods, moby for Docker; empty on CRI-O
	ContainerID string // of a pod's sandbox too
	ExecID      string // of exec_started, and of exited for an exec
	PID         int    // in the runtime's pid namespace; 0 when not told
	Why         string // of blind and silent
	Lost        int    // of overflow
}

const (
	// maxPending is how many events wait for whoever takes them.
	maxPending = 1024
	// silentFor is how long a runtime that tells nothing is left alone: its
	// configuration may change.
	silentFor = time.Minute
	// settled is how long a stream of CRI-O's is open before it counts as one.
	settled = time.Second
	// The waits between attempts when streams break at once.
	firstWait, lastWait = 100 * time.Millisecond, 3 * time.Second
)

// topics are the events of containerd that matter; docs/ops.md and api/events.
var topics = []string{"/containers/create", "/containers/delete", "/tasks/start", "/tasks/exec-started", "/tasks/exit", "/tasks/delete"}

// Events listens to the runtime until the context ends or the client is closed, which
// closes the channel. It reconnects by itself when the runtime restarts.
//
// On containerd it is containerd's own event service, in all namespaces, each listener
// with a queue of his own. It is never the CRI's GetContainerEvents there, which before
// containerd 2.0 takes the events away from the kubelet (pkg/cri/server/
// container_events.go: one channel for all listeners). On CRI-O that is what there is,
// where enable_pod_events is set. Other runtimes tell nothing.
//
// The runtime never waits for whoever reads the channel: events are taken from it at
// once and wait in a bounded queue, in which what is told twice is there once and the
// events of a deleted container give way to its deletion. What does not fit is counted,
// in band. A runtime that hangs is not noticed here: it tells nothing, as it does when
// nothing happens.
func (c *Client) Events(ctx context.Context) <-chan Event {
	ctx, cancel := context.WithCancel(ctx)
	q := &queue{ready: make(chan struct{}, 1)}
	out := make(chan Event)
	go func() {
		defer cancel() // the client was closed
		c.listen(ctx, q)
	}()
	go func() {
		defer close(out)
		for {
			event, ok := q.take()
			if !ok {
				select {
				case <-q.ready:
					continue
				case <-ctx.Done():
					return
				}
			}
			select {
			case out <- event:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// errSilent is why a runtime tells no events.
var errSilent = errors.New("the runtime tells no events")

// listen subscribes again and again.
func (c *Client) listen(ctx context.Context, q *queue) {
	connected, stop := context.WithCancel(ctx)
	defer stop()
	go c.keepConnected(connected)
	wait := firstWait
	for ctx.Err() == nil {
		err := c.subscribe(ctx, q, func() { wait = firstWait })
		if ctx.Err() != nil || c.conn.GetState() == connectivity.Shutdown {
			return
		}
		pause := wait
		if errors.Is(err, errSilent) {
			pause = silentFor
			q.state(Event{Kind: Silent, Why: err.Error()})
		} else {
			q.state(Event{Kind: Blind, Why: err.Error()})
		}
		wait = min(2*wait, lastWait)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// keepConnected has the connection made again as soon as it is idle. A stream that
// waits for it, because the runtime went away as it was opened, does not see to that.
func (c *Client) keepConnected(ctx context.Context) {
	for state := c.conn.GetState(); state != connectivity.Shutdown; state = c.conn.GetState() {
		if state == connectivity.Idle {
			c.conn.Connect()
		}
		if !c.conn.WaitForStateChange(ctx, state) {
			return
		}
	}
}

// subscribe listens to one stream until it breaks.
func (c *Client) subscribe(ctx context.Context, q *queue, heard func()) error {
	runtime, err := c.version(ctx)
	if err != nil {
		return err
	}
	switch runtime.Name {
	case "containerd":
		return c.subscribeContainerd(ctx, q, heard)
	case "cri-o":
		return c.subscribeCRI(ctx, q, heard)
	}
	return fmt.Errorf("%s: %w: %.100q has no events of the kinds that matter here", c.path, errSilent, runtime.Name)
}

func (c *Client) subscribeContainerd(ctx context.Context, q *queue, heard func()) error {
	filters := make([]string, len(topics))
	for i, topic := range topics {
		filters[i] = fmt.Sprintf("topic==%q", topic) // one that fits is enough
	}
	// Without a namespace in its header it is told of all of them.
	stream, err := events.NewEventsClient(c.conn).Subscribe(ctx, &events.SubscribeRequest{Filters: filters}, grpc.WaitForReady(true))
	if err != nil {
		return c.broken("events.Subscribe", err)
	}
	c.starts.hear(true)
	defer c.starts.hear(false)
	q.state(Event{Kind: Connected})
	for {
		envelope, err := stream.Recv()
		if err != nil {
			return c.broken("events.Subscribe", err)
		}
		heard()
		if event, ok := decodeEvent(envelope.GetEvent()); ok {
			event.Namespace = clip(envelope.GetNamespace())
			if event.Namespace == criNamespace {
				c.starts.tell(event)
			}
			q.put(event)
		}
	}
}

// decodeEvent reads an event of containerd; false when it is none that matters. The
// name of its type stands alone or, as elsewhere in protobuf, after a slash.
func decodeEvent(packed *anypb.Any) (Event, bool) {
	name := packed.GetTypeUrl()
	name = strings.TrimPrefix(name[strings.LastIndexByte(name, '/')+1:], "containerd.events.")
	into := func(m proto.Message) bool { return proto.Unmarshal(packed.GetValue(), m) == nil }
	event := Event{}
	ok := false
	switch name {
	case "ContainerCreate":
		var e eventsapi.ContainerCreate
		ok = into(&e)
		event = Event{Kind: ContainerCreated, ContainerID: e.GetID()}
	case "ContainerDelete":
		var e eventsapi.ContainerDelete
		ok = into(&e)
		event = Event{Kind: Deleted, ContainerID: e.GetID()}
	case "TaskStart":
		var e eventsapi.TaskStart
		ok = into(&e)
		event = Event{Kind: Started, ContainerID: e.GetContainerID(), PID: int(e.GetPid())}
	case "TaskExecStarted":
		var e eventsapi.TaskExecStarted
		ok = into(&e)
		event = Event{Kind: ExecStarted, ContainerID: e.GetContainerID(), ExecID: e.GetExecID(), PID: int(e.GetPid())}
	case "TaskExit":
		var e eventsapi.TaskExit
		ok = into(&e)
		event = Event{Kind: Exited, ContainerID: e.GetContainerID(), ExecID: e.GetID(), PID: int(e.GetPid())}
		if event.ExecID == event.ContainerID { // as the first process is called
			event.ExecID = ""
		}
	case "TaskDelete":
		var e eventsapi.TaskDelete
		// The end of an exec, when it is cleared away, is told as an exit before.
		ok = into(&e) && (e.GetID() == "" || e.GetID() == e.GetContainerID())
		event = Event{Kind: Deleted, ContainerID: e.GetContainerID()}
	}
	event.ContainerID, event.ExecID = clip(event.ContainerID), clip(event.ExecID)
	return event, ok && event.ContainerID != ""
}

func (c *Client) subscribeCRI(ctx context.Context, q *queue, heard func()) error {
	stream, err := c.cri.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return c.broken("GetContainerEvents", err)
	}
	// Nothing comes before the first event, not even a header.
	var connected atomic.Bool
	say := sync.OnceFunc(func() { connected.Store(true); q.state(Event{Kind: Connected}) })
	timer := time.AfterFunc(settled, say)
	defer timer.Stop()
	for {
		answer, err := stream.Recv()
		switch {
		// CRI-O ends the stream at once, and without an error, unless it is configured.
		case errors.Is(err, io.EOF) && !connected.Load():
			return fmt.Errorf("%s: %w: enable_pod_events is not set in its configuration", c.path, errSilent)
		case err != nil:
			return c.broken("GetContainerEvents", err)
		}
		heard()
		say()
		kind, ok := map[runtimeapi.ContainerEventType]EventKind{
			runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT: ContainerCreated,
			runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT: Started,
			runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT: Exited,
			runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT: Deleted,
		}[answer.GetContainerEventType()]
		if ok && answer.GetContainerId() != "" {
			q.put(Event{Kind: kind, ContainerID: clip(answer.GetContainerId())})
		}
	}
}

// broken says why a stream ended.
func (c *Client) broken(name string, err error) error {
	switch s := status.Convert(err); {
	case errors.Is(err, io.EOF):
		return fmt.Errorf("%s: %s: the runtime ended the stream", c.path, name)
	case s.Code() == codes.Unimplemented:
		return fmt.Errorf("%s: %s: %w: %w", c.path, name, errSilent, errUnimplemented)
	default:
		return fmt.Errorf("%s: %s: %v: %.200q", c.path, name, s.Code(), s.Message())
	}
}

// queue is what waits between a runtime that must not wait and a reader who may be
// slow.
type queue struct {
	ready chan struct{} // holds something when there is something

	mu      sync.Mutex
	events  []Event
	pending map[Event]bool // those of them that something happened
	last    Event          // the last state that was added
}

// put adds an event unless it is there already, counts it when there is no room.
func (q *queue) put(e Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	defer q.wake()
	if e.Kind == Deleted {
		q.supersede(e)
	}
	if q.pending[e] {
		return
	}
	if n := len(q.events); n >= maxPending {
		if last := &q.events[n-1]; last.Kind == Overflow {
			last.Lost++
			return
		}
		q.events = append(q.events, Event{Kind: Overflow, Lost: 1})
		return
	}
	if q.pending == nil {
		q.pending = make(map[Event]bool)
	}
	q.events, q.pending[e] = append(q.events, e), true
}

// supersede lets go of what waits about a container that is deleted now.
func (q *queue) supersede(deleted Event) {
	q.events = slices.DeleteFunc(q.events, func(e Event) bool {
		if e.ContainerID != deleted.ContainerID || e.Namespace != deleted.Namespace {
			return false
		}
		delete(q.pending, e)
		return true
	})
}

// state adds what is to be known of the telling itself, unless it was told last. What
// waits before it gives way when there is no room: after it one has to look anyway.
func (q *queue) state(e Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if e == q.last {
		return
	}
	defer q.wake()
	q.last = e
	if len(q.events) >= maxPending {
		lost := len(q.pending)
		for _, waiting := range q.events {
			lost += waiting.Lost
		}
		clear(q.pending)
		q.events = append(q.events[:0], Event{Kind: Overflow, Lost: lost})
	}
	q.events = append(q.events, e)
}

func (q *queue) wake() {
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

func (q *queue) take() (Event, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.events) == 0 {
		return Event{}, false
	}
	e := q.events[0]
	q.events = q.events[1:]
	delete(q.pending, e)
	return e, true
}
