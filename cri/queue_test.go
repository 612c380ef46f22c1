package cri

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/anypb"
)

func drain(q *queue) (all []Event) {
	for e, ok := q.take(); ok; e, ok = q.take() {
		all = append(all, e)
	}
	return all
}

func TestQueue(t *testing.T) {
	started := func(id string) Event { return Event{Kind: Started, ContainerID: id} }
	deleted := func(id string) Event { return Event{Kind: Deleted, ContainerID: id} }
	elsewhere := Event{Kind: Started, Namespace: "moby", ContainerID: "a"}
	connected, blind := Event{Kind: Connected}, Event{Kind: Blind, Why: "why"}
	for what, row := range map[string]struct{ in, out []Event }{
		"in their order":                  {[]Event{started("b"), started("a")}, []Event{started("b"), started("a")}},
		"twice is once":                   {[]Event{started("a"), started("b"), started("a")}, []Event{started("a"), started("b")}},
		"deletion stands for all before":  {[]Event{started("a"), started("b"), elsewhere, deleted("a")}, []Event{started("b"), elsewhere, deleted("a")}},
		"and for itself":                  {[]Event{deleted("a"), deleted("a")}, []Event{deleted("a")}},
		"not for what comes after":        {[]Event{deleted("a"), started("a")}, []Event{deleted("a"), started("a")}},
		"a state is told when it changes": {[]Event{connected, blind, blind, connected}, []Event{connected, blind, connected}},
	} {
		q := &queue{ready: make(chan struct{}, 1)}
		for _, e := range row.in {
			if e.ContainerID == "" {
				q.state(e)
			} else {
				q.put(e)
			}
		}
		if got := drain(q); !slices.Equal(got, row.out) {
			t.Errorf("%s: %+v, want %+v", what, got, row.out)
		}
		if len(q.pending) > 0 {
			t.Errorf("%s: %d events are taken for waiting", what, len(q.pending))
		}
	}
}

func TestQueueIsBounded(t *testing.T) {
	q := &queue{ready: make(chan struct{}, 1)}
	flood := func(n int) {
		for range n {
			q.put(Event{Kind: ExecStarted, ContainerID: "a", PID: counter.next()})
		}
	}
	flood(maxPending + 10)
	got := drain(q)
	if len(got) != maxPending+1 || got[maxPending] != (Event{Kind: Overflow, Lost: 10}) {
		t.Errorf("%d events, the last of them %+v", len(got), got[len(got)-1])
	}
	// One place became free: there is room for no more than that.
	flood(maxPending + 10)
	if first, ok := q.take(); !ok || first.Kind != ExecStarted {
		t.Errorf("%+v", first)
	}
	flood(5)
	if got = drain(q); len(got) != maxPending || got[maxPending-1].Lost != 15 {
		t.Errorf("%d events, the last of them %+v", len(got), got[len(got)-1])
	}
	// After a state, what waited would be old.
	flood(maxPending + 10)
	for range 100 {
		q.state(Event{Kind: Blind})
		q.state(Event{Kind: Connected})
	}
	if got = drain(q); got[0] != (Event{Kind: Overflow, Lost: maxPending + 10}) || len(got) != 201 || len(q.pending) != 0 {
		t.Errorf("%d events, the first of them %+v", len(got), got[0])
	}
}

// counter makes pids that differ.
var counter count

type count int

func (c *count) next() int { *c++; return int(*c) }

func FuzzDecodeEvent(f *testing.F) {
	f.Add("containerd.events.TaskStart", []byte("\x0a\x01c\x10\x07"))
	f.Add("type.googleapis.com/containerd.events.TaskExit", []byte("\x0a\x01c\x12\x01c\x18\x07"))
	f.Add("containerd.events.TaskDelete", []byte("\x0a\x01c\x2a\x01e"))
	f.Fuzz(func(t *testing.T, name string, value []byte) {
		e, ok := decodeEvent(&anypb.Any{TypeUrl: name, Value: value})
		if ok && (e.ContainerID == "" || e.Kind == "" || len(e.ContainerID) > 300 || len(e.ExecID) > 300 || e.PID < 0 || !strings.Contains(name, "Task") && !strings.Contains(name, "Container")) {
			t.Errorf("%+v", e)
		}
	})
}
