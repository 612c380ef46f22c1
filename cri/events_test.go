package cri_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types/task"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/cri"
	"github.com/capdrift/capdrift/cri/fake"
	"github.com/capdrift/capdrift/drift"
)

// next takes one event; a test that waits for ever ends by its deadline.
func next(t *testing.T, events <-chan cri.Event) cri.Event {
	t.Helper()
	e, ok := <-events
	if !ok {
		t.Fatal("the channel was closed")
	}
	return e
}

func want(t *testing.T, events <-chan cri.Event, expected cri.Event) {
	t.Helper()
	if got := next(t, events); got != expected {
		t.Errorf("%+v, want %+v", got, expected)
	}
}

// listening returns the events of a fake that is being listened to.
func listening(t *testing.T, server *fake.Server, client *cri.Client) <-chan cri.Event {
	t.Helper()
	events := client.Events(t.Context())
	want(t, events, cri.Event{Kind: cri.Connected})
	listeners(t, server, 1)
	return events
}

func listeners(t *testing.T, server *fake.Server, n int) {
	t.Helper()
	for server.Listeners() != n {
		if t.Context().Err() != nil {
			t.Fatalf("%d listeners, want %d", server.Listeners(), n)
		}
	}
}

func TestEventsOfContainerd(t *testing.T) {
	server, client := serve(t, one(t, "default"))
	events := listening(t, server, client)
	for _, row := range []struct {
		what, namespace, topic string
		event                  proto.Message
		want                   cri.Event // its namespace is the row's
	}{
		{"a container is made", "k8s.io", "/containers/create", &eventsapi.ContainerCreate{ID: "c"}, cri.Event{Kind: cri.ContainerCreated, ContainerID: "c"}},
		{"it starts", "k8s.io", "/tasks/start", &eventsapi.TaskStart{ContainerID: "c", Pid: 7}, cri.Event{Kind: cri.Started, ContainerID: "c", PID: 7}},
		{"an exec", "k8s.io", "/tasks/exec-started", &eventsapi.TaskExecStarted{ContainerID: "c", ExecID: "e", Pid: 8}, cri.Event{Kind: cri.ExecStarted, ContainerID: "c", ExecID: "e", PID: 8}},
		{"the exec ends", "k8s.io", "/tasks/exit", &eventsapi.TaskExit{ContainerID: "c", ID: "e", Pid: 8}, cri.Event{Kind: cri.Exited, ContainerID: "c", ExecID: "e", PID: 8}},
		{"and is cleared away, which is nobody's matter", "k8s.io", "/tasks/delete", &eventsapi.TaskDelete{ContainerID: "c", ID: "e", Pid: 8}, cri.Event{}},
		{"an event that nobody asked for", "k8s.io", "/tasks/oom", &eventsapi.TaskOOM{ContainerID: "c"}, cri.Event{}},
		{"another message under a known topic", "k8s.io", "/tasks/start", &eventsapi.TaskOOM{ContainerID: "c"}, cri.Event{}},
		{"an event about nobody", "k8s.io", "/tasks/start", &eventsapi.TaskStart{Pid: 9}, cri.Event{}},
		{"the first process ends", "k8s.io", "/tasks/exit", &eventsapi.TaskExit{ContainerID: "c", ID: "c", Pid: 7}, cri.Event{Kind: cri.Exited, ContainerID: "c", PID: 7}},
		{"the task goes", "k8s.io", "/tasks/delete", &eventsapi.TaskDelete{ContainerID: "c", Pid: 7}, cri.Event{Kind: cri.Deleted, ContainerID: "c"}},
		{"the container goes", "k8s.io", "/containers/delete", &eventsapi.ContainerDelete{ID: "c"}, cri.Event{Kind: cri.Deleted, ContainerID: "c"}},
		{"one of Docker's", "moby", "/tasks/start", &eventsapi.TaskStart{ContainerID: "d", Pid: 9}, cri.Event{Kind: cri.Started, ContainerID: "d", PID: 9}},
	} {
		server.Emit(row.namespace, row.topic, row.event)
		if row.want != (cri.Event{}) { // else the next one comes in its place
			row.want.Namespace = row.namespace
			want(t, events, row.want)
		}
	}
	if server.Count("GetContainerEvents") != 0 || server.Count("events.Subscribe") != 1 {
		t.Errorf("called %q", server.Calls())
	}
}

func TestEventsOfCRIO(t *testing.T) {
	node := load(t, "cri-o-1.37.0")
	node.PodEvents = true
	server, client := serve(t, node)
	events := client.Events(t.Context())
	listeners(t, server, 1)
	for kind, expected := range map[runtimeapi.ContainerEventType]cri.EventKind{
		runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT: cri.ContainerCreated,
		runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT: cri.Started,
		runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT: cri.Exited,
		runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT: cri.Deleted,
	} {
		server.EmitPod(&runtimeapi.ContainerEventResponse{ContainerId: "c", ContainerEventType: kind})
		got := next(t, events)
		if got.Kind == cri.Connected { // with the first one
			got = next(t, events)
		}
		if got != (cri.Event{Kind: expected, ContainerID: "c"}) {
			t.Errorf("%+v, want %s", got, expected)
		}
	}
	// Not the end that a runtime has which is not configured to tell.
	server.Break(nil)
	if e := next(t, events); e.Kind != cri.Blind || !strings.Contains(e.Why, "ended the stream") {
		t.Errorf("%+v", e)
	}
}

func TestEventsOfThoseWhoTellNone(t *testing.T) {
	old := one(t, "default")
	old.Before = fake.Fail(codes.Unimplemented, "unknown service containerd.services.events.v1.Events", "events.Subscribe")
	for why, node := range map[string]*fake.Node{
		"enable_pod_events":        load(t, "cri-o-1.37.0"),
		`"docker" has no events`:   {Name: "docker"},
		"does not serve this call": old,
	} {
		_, client := serve(t, node)
		events := client.Events(t.Context())
		e := next(t, events)
		if e.Kind == cri.Connected {
			e = next(t, events)
		}
		if e.Kind != cri.Silent || !strings.Contains(e.Why, why) {
			t.Errorf("%+v, want %s", e, why)
		}
	}
}

func TestEventsSurviveARestart(t *testing.T) {
	server, client := serve(t, one(t, "default"))
	events := listening(t, server, client)
	server.Break(status.Error(codes.Unavailable, "shutting \x1b[31mdown"))
	if e := next(t, events); e.Kind != cri.Blind || !strings.Contains(e.Why, `shutting \x1b`) {
		t.Errorf("%+v", e)
	}
	want(t, events, cri.Event{Kind: cri.Connected})
	server.Stop()
	if e := next(t, events); e.Kind != cri.Blind {
		t.Errorf("%+v", e)
	}
	again, err := fake.Start(one(t, "default"), server.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(again.Stop)
	for e := next(t, events); e.Kind != cri.Connected; e = next(t, events) {
		if e.Kind != cri.Blind { // why may change on the way
			t.Errorf("%+v", e)
		}
	}
	listeners(t, again, 1)
	again.Emit("k8s.io", "/tasks/start", &eventsapi.TaskStart{ContainerID: "c", Pid: 7})
	want(t, events, cri.Event{Kind: cri.Started, Namespace: "k8s.io", ContainerID: "c", PID: 7})
}

// TestEventsFlood has a runtime tell more than anybody takes: it is not held up, what
// did not fit is counted, and what comes after is told.
func TestEventsFlood(t *testing.T) {
	server, client := serve(t, one(t, "default"))
	events := listening(t, server, client)
	const many = 50000
	for pid := range many {
		server.Emit("k8s.io", "/tasks/exec-started", &eventsapi.TaskExecStarted{ContainerID: "c", Pid: uint32(1 + pid)})
	}
	told, lost := 0, 0
	for told+lost < many {
		switch e := next(t, events); e.Kind {
		case cri.ExecStarted:
			told++
		case cri.Overflow:
			lost += e.Lost
		default:
			t.Fatalf("%+v", e)
		}
	}
	if told+lost != many || told < 1024 || lost == 0 {
		t.Errorf("%d told, %d lost of %d", told, lost, many)
	}
	server.Emit("k8s.io", "/tasks/start", &eventsapi.TaskStart{ContainerID: "after"})
	if e := next(t, events); e.ContainerID != "after" {
		t.Errorf("%+v", e)
	}
}

func TestEventsEnd(t *testing.T) {
	server, client := serve(t, one(t, "default"))
	ctx, cancel := context.WithCancel(t.Context())
	events := client.Events(ctx)
	want(t, events, cri.Event{Kind: cri.Connected})
	cancel()
	for range events {
		t.Error("an event after the end")
	}
	listeners(t, server, 0)
	// Also when the client is closed.
	other, err := cri.Connect(t.Context(), cri.Options{Endpoint: server.Endpoint, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	events = other.Events(t.Context())
	want(t, events, cri.Event{Kind: cri.Connected})
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	for e := range events {
		t.Errorf("%+v", e)
	}
}

// TestTasksAreListedWhenSomethingStarted, and at every sixth time; and always where no
// events are heard.
func TestTasksAreListedWhenSomethingStarted(t *testing.T) {
	server, client := serve(t, one(t, "default"))
	server.Update(func(n *fake.Node) { n.Tasks["k8s.io"] = nil })
	lists := func(times int) int {
		before := server.Count("tasks.List")
		for range times {
			inventory(t, client)
		}
		return server.Count("tasks.List") - before
	}
	if n := lists(3); n != 3 {
		t.Errorf("%d lists of 3 while no events are heard", n)
	}
	events := listening(t, server, client)
	if n := lists(12); n != 2 {
		t.Errorf("%d lists of 12 while nothing starts, want 2", n)
	}
	server.Emit("k8s.io", "/tasks/start", &eventsapi.TaskStart{ContainerID: "stranger", Pid: 7})
	next(t, events)
	server.Update(func(n *fake.Node) {
		n.Tasks["k8s.io"] = append(n.Tasks["k8s.io"], &fake.Task{ID: "stranger", PID: 7, Status: task.Status_RUNNING})
	})
	for range 3 { // and it is in each inventory
		if got := inventory(t, client); !slices.ContainsFunc(got.Containers, func(c drift.Container) bool { return c.ID == "stranger" }) {
			t.Errorf("the stranger is not among %d containers", len(got.Containers))
		}
	}
}
