package cri_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types/task"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/cri"
	"github.com/capdrift/capdrift/cri/fake"
	"github.com/capdrift/capdrift/drift"
)

// TestNoTwoContainersShareAnID: ids are unique within a namespace of containerd alone,
// and whoever has its socket chooses them.
func TestNoTwoContainersShareAnID(t *testing.T) {
	node := one(t, "default")
	id := node.Containers[0].Status.GetId()
	spec := func(capability string) string {
		return `{"process":{"capabilities":{"bounding":["` + capability + `"]}},"linux":{"cgroupsPath":"/kubepods/` + id + `"}}`
	}
	for _, namespace := range []string{"evil", "moby"} {
		node.Tasks[namespace] = []*fake.Task{{ID: id, PID: 7, Status: task.Status_RUNNING, Runtime: "io.containerd.runc.v2", Spec: spec("CAP_SYS_ADMIN")}}
	}
	_, client := serve(t, node)
	for range 2 { // what is kept is not mixed up either
		got := inventory(t, client).Containers
		if len(got) != 3 || got[0].ID != id || got[1].ID != "evil/"+id || got[2].ID != "moby/"+id {
			t.Fatalf("%+v", got)
		}
		for i, c := range got {
			if strange := i > 0; *c.Managed == strange || (c.RuntimeID == id) != strange || (c.Declared.OCI.Bounding.Hex() == "0000000000200000") != strange || c.Observation != drift.Observed {
				t.Errorf("%+v, %+v", c, c.Declared.OCI)
			}
		}
	}
}

// TestIDsThatAreNone: whatever a runtime calls a container, it is there, and its id is
// short and one word that nobody else has.
func TestIDsThatAreNone(t *testing.T) {
	long := strings.Repeat("x", 4096)
	ids := []string{"", "plain", "plain", "moby/plain", "../../etc", long + "1", long + "2", "a\x1b[31m", "plain#2", ".", "-x"}
	node := one(t, "default")
	first := node.Containers[0]
	node.Containers = nil
	for _, id := range ids {
		status := proto.CloneOf(first.Status)
		status.Id = id
		node.Containers = append(node.Containers, &fake.Container{SandboxID: first.SandboxID, Status: status, Info: first.Info})
	}
	node.Sandboxes[0].Status.Id, node.Sandboxes[0].Info = "plain", paused
	node.Tasks["moby"] = []*fake.Task{{ID: "plain", PID: 7, Status: task.Status_RUNNING}}
	_, client := serve(t, node)
	got := inventory(t, client).Containers
	seen := map[string]bool{}
	for _, c := range got {
		if seen[c.ID] || c.ID == "" || len(c.ID) > 400 || strings.ContainsAny(c.ID, "\x1b\n") || strings.Contains(c.ID, "/") && c.ID != "moby/plain" && c.ID[0] != '(' {
			t.Errorf("id %q", c.ID)
		}
		seen[c.ID] = true
	}
	if len(got) != len(ids)+2 || !seen["plain#3"] || !seen["plain"] || !seen["moby/plain"] {
		t.Errorf("%d containers, ids %v", len(got), seen)
	}
}

// paused is what containerd tells of a sandbox with a process of its own.
const paused = `{"pid":41,"runtimeType":"io.containerd.runc.v2","runtimeSpec":{"process":{},"linux":{"cgroupsPath":"/kubepods/s"}}}`

// TestEndedContainers: what was declared for a container is known after it ended.
func TestEndedContainers(t *testing.T) {
	ended := func() *fake.Node {
		node := one(t, "default")
		node.Sandboxes[0].Info = paused
		return node
	}
	end := func(n *fake.Node) {
		n.Containers[0].Status.State = runtimeapi.ContainerState_CONTAINER_EXITED
		n.Sandboxes[0].Status.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	}
	check := func(t *testing.T, got drift.Inventory) {
		t.Helper()
		if len(got.Containers) != 0 || len(got.Ended) != 2 || len(got.Limits) != 0 {
			t.Fatalf("%+v", got)
		}
		for _, c := range got.Ended {
			if !c.Ended || c.InitPID != 0 || !*c.Managed || c.Pod == nil || c.Pod.Name != "default" || c.ID == "" {
				t.Errorf("%+v", c)
			}
			if !c.Sandbox && (c.Observation != drift.Observed || c.Declared.OCI.Bounding.Hex() != "00000000a80425fb" || c.Declared.CRI == nil || c.CgroupPath == "") {
				t.Errorf("%+v", c)
			}
		}
	}
	t.Run("that ran while we looked are not asked for", func(t *testing.T) {
		server, client := serve(t, ended())
		inventory(t, client)
		server.Update(end)
		server.Update(func(n *fake.Node) { n.Before = fake.Fail(codes.Internal, "no", "ContainerStatus", "PodSandboxStatus") })
		check(t, inventory(t, client))
		check(t, inventory(t, client))
	})
	t.Run("that ended before are asked for once", func(t *testing.T) {
		server, client := serve(t, ended())
		server.Update(end)
		check(t, inventory(t, client))
		check(t, inventory(t, client))
		if n := server.Count("ContainerStatus") + server.Count("PodSandboxStatus"); n != 2 {
			t.Errorf("%d statuses, want 2", n)
		}
		server.Update(func(n *fake.Node) { n.Containers, n.Sandboxes = nil, nil })
		if got := inventory(t, client); len(got.Ended) != 0 {
			t.Errorf("after they were removed: %+v", got.Ended)
		}
	})
	t.Run("that fail are asked for once too, and hide nobody", func(t *testing.T) {
		server, client := serve(t, ended())
		server.Update(end)
		server.Update(func(n *fake.Node) { n.Containers[0].Info = "{" })
		for range 3 {
			got := inventory(t, client).Ended
			at := slices.IndexFunc(got, func(c drift.Container) bool { return !c.Sandbox })
			if len(got) != 2 || got[at].Observation != drift.Partial || !got[at].Undeclared || !strings.Contains(got[at].Reason, "is not JSON") {
				t.Errorf("%+v", got)
			}
		}
		if n := server.Count("ContainerStatus"); n != 1 {
			t.Errorf("%d statuses, want 1", n)
		}
	})
	t.Run("for whom there was no time are asked for later", func(t *testing.T) {
		server, client := serve(t, ended())
		server.Update(end)
		server.Update(func(n *fake.Node) { n.Before = fake.Hang("ContainerStatus") })
		client2 := connect(t, server.Endpoint, patience)
		if got := inventory(t, client2); len(got.Ended) != 2 {
			t.Errorf("%+v", got.Ended)
		}
		server.Update(func(n *fake.Node) { n.Before = nil })
		check(t, inventory(t, client))
	})
}

// TestManyEndedContainers: the newest are told of, and a pod pushes out its own.
func TestManyEndedContainers(t *testing.T) {
	node := one(t, "default")
	of := func(pod string, n int, at time.Time) {
		node.Sandboxes = append(node.Sandboxes, &fake.Sandbox{Status: &runtimeapi.PodSandboxStatus{
			Id: pod, State: runtimeapi.PodSandboxState_SANDBOX_READY, CreatedAt: at.UnixNano(), Metadata: &runtimeapi.PodSandboxMetadata{Name: pod},
		}, Info: `{"runtimeSpec":{}}`})
		for i := range n {
			node.Containers = append(node.Containers, &fake.Container{SandboxID: pod, Status: &runtimeapi.ContainerStatus{
				Id: fmt.Sprintf("%s-%d", pod, i), State: runtimeapi.ContainerState_CONTAINER_EXITED, Metadata: &runtimeapi.ContainerMetadata{Name: pod},
			}})
		}
	}
	day := time.Unix(1_000_000_000, 0)
	of("quiet", 3, day)
	of("old", 200, day.Add(time.Hour))
	of("noisy", 2000, day.Add(2*time.Hour))
	_, client := serve(t, node)
	got := inventory(t, client)
	count := map[string]int{}
	for _, c := range got.Ended {
		count[c.Pod.Name]++
	}
	if len(got.Ended) != 512 || count["quiet"] != 3 || count["old"] != 16 || count["noisy"] != 493 || len(got.Limits) != 0 {
		t.Errorf("%v, limits %v", count, got.Limits)
	}
}

// TestWhatIsBeingMade: a sandbox is in no list until it runs, and a hook of its runtime
// may take long. containerd tells of it when it is made and when it started.
func TestWhatIsBeingMade(t *testing.T) {
	node := one(t, "default")
	created := &fake.Container{SandboxID: "x", Status: &runtimeapi.ContainerStatus{Id: "created", State: runtimeapi.ContainerState_CONTAINER_CREATED}}
	failed := &fake.Container{SandboxID: "x", Status: &runtimeapi.ContainerStatus{Id: "failed", State: runtimeapi.ContainerState_CONTAINER_EXITED}}
	node.Containers = append(node.Containers, created, failed)
	node.Sandboxes = append(node.Sandboxes, &fake.Sandbox{Status: &runtimeapi.PodSandboxStatus{Id: "sandbox", State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}})
	running := node.Containers[0].Status.GetId()
	server, client := serve(t, node)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events := client.Events(ctx)
	for e := range events {
		if e.Kind == cri.Connected {
			break
		}
	}
	tell := func(topic string, event proto.Message) {
		server.Emit("k8s.io", topic, event)
		<-events
	}
	starting := func(want ...string) {
		t.Helper()
		got := inventory(t, client)
		if !slices.Equal(got.Starting, want) {
			t.Errorf("starting %q, want %q", got.Starting, want)
		}
		for _, c := range got.Ended {
			if slices.Contains(want, c.ID) {
				t.Errorf("%s is starting, and ended", c.ID)
			}
		}
	}
	starting("created")
	tell("/containers/create", &eventsapi.ContainerCreate{ID: "sandbox"})
	tell("/containers/create", &eventsapi.ContainerCreate{ID: "other"})
	tell("/containers/create", &eventsapi.ContainerCreate{ID: "failed"}) // to start, which is no event
	tell("/containers/create", &eventsapi.ContainerCreate{ID: "created"})
	tell("/containers/create", &eventsapi.ContainerCreate{ID: running})
	server.Emit("moby", "/containers/create", &eventsapi.ContainerCreate{ID: "docker"})
	<-events
	starting("created", "other", "sandbox")
	tell("/tasks/start", &eventsapi.TaskStart{ContainerID: "sandbox", Pid: 7})
	tell("/tasks/exit", &eventsapi.TaskExit{ContainerID: "other", ID: "an-exec"})
	starting("created", "other")
	tell("/containers/delete", &eventsapi.ContainerDelete{ID: "other"})
	starting("created")
	tell("/containers/create", &eventsapi.ContainerCreate{ID: "lost"})
	server.Break(nil)
	for e := range events {
		if e.Kind == cri.Connected {
			break
		}
	}
	starting("created")
}

// TestHandlers: how a runtime is configured to run each runtime class.
func TestHandlers(t *testing.T) {
	const containerd = `{"stateDir":"/run/x","containerd":{"defaultRuntimeName":"runc","runtimes":{` +
		`"runc":{"runtimeType":"io.containerd.runc.v2","baseRuntimeSpec":"/etc/base.json","options":{"BinaryName":"","SystemdCgroup":true}},` +
		`"nvidia":{"options":{"BinaryName":"/usr/bin/nvidia-container-runtime"}},"odd":{"options":["x"]},"none":{"options":null}}}}`
	const crio = `{"crio":{"DefaultRuntime":"crun","Conmon":"/usr/bin/conmon-old","Runtimes":{"crun":{"RuntimePath":"/usr/bin/crun","MonitorPath":"","MonitorExecCgroup":""}}}}`
	for what, row := range map[string]struct {
		name, config, standard string
		want                   map[string]drift.Handler
	}{
		"containerd's": {"containerd", containerd, "runc", map[string]drift.Handler{
			"runc": {BaseSpec: "/etc/base.json", Type: "io.containerd.runc.v2"}, "nvidia": {Binary: "/usr/bin/nvidia-container-runtime"}, "odd": {}, "none": {},
		}},
		"CRI-O's without a monitor of the handler's own": {"cri-o", crio, "crun", map[string]drift.Handler{
			"crun": {Binary: "/usr/bin/crun", Monitor: "/usr/bin/conmon-old"},
		}},
		"the same as JSON in a text":      {"cri-o", fmt.Sprintf("%q", crio), "crun", map[string]drift.Handler{"crun": {Binary: "/usr/bin/crun", Monitor: "/usr/bin/conmon-old"}}},
		"an older CRI-O's":                {"cri-o", `{"sandboxImage":"pause"}`, "", map[string]drift.Handler{}},
		"of another form":                 {"cri-o", `{"crio":{"Runtimes":["runc"]}}`, "", nil},
		"half a text":                     {"cri-o", `"{`, "", nil},
		"of a runtime that tells nothing": {"docker", "", "", nil},
		"containerd's, told by CRI-O":     {"cri-o", containerd, "", map[string]drift.Handler{}},
	} {
		t.Run(what, func(t *testing.T) {
			node := one(t, "default")
			node.Name, node.Config = row.name, row.config
			_, client := serve(t, node)
			if got := inventory(t, client).Runtime; got.DefaultHandler != row.standard || len(got.Handlers) != len(row.want) || fmt.Sprint(got.Handlers) != fmt.Sprint(row.want) {
				t.Errorf("%q %+v, want %+v", got.DefaultHandler, got.Handlers, row.want)
			}
		})
	}
	t.Run("CRI-O's as it was recorded", func(t *testing.T) {
		_, client := serve(t, load(t, "cri-o-1.37.0"))
		runc := drift.Handler{Binary: "/usr/libexec/crio/runc", Type: "oci", Monitor: "/usr/bin/conmon"}
		monitored := runc
		monitored.MonitorInContainer = true
		want := map[string]drift.Handler{
			"runc": runc, "crun": {Binary: "/usr/libexec/crio/crun", Type: "oci", Monitor: "/usr/bin/conmon"},
			"secure": {Binary: "/usr/libexec/crio/runsc-w", Type: "oci", Monitor: "/usr/bin/conmon"}, "monitored": monitored,
		}
		if got := inventory(t, client).Runtime; got.DefaultHandler != "runc" || fmt.Sprint(got.Handlers) != fmt.Sprint(want) {
			t.Errorf("%q %+v", got.DefaultHandler, got.Handlers)
		}
		if told := inventory(t, client).Runtime.Told; told.Default == nil || *told.Default != 0x5fb || told.Inheritable == nil || *told.Inheritable {
			t.Errorf("it tells %+v", told)
		}
	})
}

// TestWhatCRIOTellsOfItself: no default is told where none is, or where one of its names
// is not known here; an empty list is a setting.
func TestWhatCRIOTellsOfItself(t *testing.T) {
	for what, row := range map[string]struct{ config, want string }{
		"a list":                        {`{"DefaultCapabilities":["CAP_CHOWN","net_raw"],"AddInheritableCapabilities":true}`, "cap_chown,cap_net_raw true"},
		"an empty list":                 {`{"DefaultCapabilities":[],"AddInheritableCapabilities":false}`, " false"},
		"a name that is not known here": {`{"DefaultCapabilities":["CHOWN","NOVEL"],"AddInheritableCapabilities":true}`, "nothing"},
		"no list":                       {`{"DefaultCapabilities":null,"AddInheritableCapabilities":true}`, "nothing"},
		"another form":                  {`{"DefaultCapabilities":"CHOWN"}`, "nothing"},
	} {
		t.Run(what, func(t *testing.T) {
			node := one(t, "default")
			node.Name, node.Config = "cri-o", `{"crio":`+row.config+`}`
			_, client := serve(t, node)
			got := "nothing"
			if told := inventory(t, client).Runtime.Told; told.Default != nil {
				got = fmt.Sprintf("%s %t", *told.Default, *told.Inheritable)
			}
			if got != row.want {
				t.Errorf("tells %q, want %q", got, row.want)
			}
		})
	}
}

// TestGuestsOfCRIO: what a handler calls decides whether its containers run on this
// kernel, and its name only where that is not told.
func TestGuestsOfCRIO(t *testing.T) {
	for handler, row := range map[string]struct{ config, why string }{
		"secure":        {`{"RuntimePath":"/usr/libexec/crio/runsc-w","RuntimeType":"oci"}`, `it runs in gVisor (OCI runtime "/usr/libexec/crio/runsc-w")`},
		"kata-fake":     {`{"RuntimePath":"/usr/libexec/crio/runc","RuntimeType":"oci"}`, ""},
		"strong":        {`{"RuntimePath":"/usr/bin/containerd-shim-kata-v2","RuntimeType":"vm"}`, `it runs in Kata Containers (OCI runtime "/usr/bin/containerd-shim-kata-v2")`},
		"stronger":      {`{"RuntimePath":"/usr/bin/shim","RuntimeType":"vm"}`, `it runs in a virtual machine (runtime_type "vm")`},
		"gvisor-shaped": {`{"RuntimePath":"/opt/gvisor/bin/crun","RuntimeType":"pod"}`, ""},
		"runsc":         {`{"RuntimePath":"","RuntimeType":"oci"}`, `it runs in gVisor (OCI runtime "runsc")`},
		"kata":          {``, `it runs in Kata Containers (runtime class "kata")`},
		"plain":         {``, ""},
	} {
		t.Run(handler, func(t *testing.T) {
			node := load(t, "cri-o-1.37.0")
			node.Containers, node.Sandboxes = node.Containers[:1], node.Sandboxes[:1]
			node.Sandboxes[0].RuntimeHandler, node.Config = handler, ""
			if row.config != "" {
				node.Config = fmt.Sprintf(`{"crio":{"DefaultRuntime":"runc","Runtimes":{%q:%s,"runc":{"RuntimePath":"/bin/runc","RuntimeType":"oci"}}}}`, handler, row.config)
			}
			_, client := serve(t, node)
			for _, c := range inventory(t, client).Containers {
				if (c.Observation == drift.UnsupportedRuntime) != (row.why != "") || row.why != "" && c.Reason != row.why {
					t.Errorf("%s: %s %q, want %q", c.Name, c.Observation, c.Reason, row.why)
				}
			}
		})
	}
	t.Run("a pod that names no handler has the default one", func(t *testing.T) {
		node := load(t, "cri-o-1.37.0")
		node.Config = `{"crio":{"DefaultRuntime":"usual","Runtimes":{"usual":{"RuntimePath":"/bin/runsc","RuntimeType":"oci"}}}}`
		_, client := serve(t, node)
		if c := inventory(t, client).Containers[0]; c.RuntimeHandler == "" && c.Observation != drift.UnsupportedRuntime {
			t.Errorf("%s %q", c.Observation, c.Reason)
		}
	})
}

// TestAStateThatTheRuntimeDoesNotKnow: such a container is not being started. It is held
// against what was declared for it, and what it does is not known in whole.
func TestAStateThatTheRuntimeDoesNotKnow(t *testing.T) {
	node := one(t, "default")
	node.Containers[0].Status.State = runtimeapi.ContainerState_CONTAINER_UNKNOWN
	server, client := serve(t, node)
	got := inventory(t, client)
	at := slices.IndexFunc(got.Containers, func(c drift.Container) bool { return !c.Sandbox })
	if len(got.Starting) != 0 || at < 0 {
		t.Fatalf("starting %q, containers %+v", got.Starting, got.Containers)
	}
	if c := got.Containers[at]; c.Observation != drift.Partial || c.Reason != "the runtime does not know whether it runs" || c.Declared.OCI == nil || c.Ended {
		t.Errorf("%+v", c)
	}
	server.Update(func(n *fake.Node) { n.Containers[0].Status.State = runtimeapi.ContainerState_CONTAINER_RUNNING })
	if c := inventory(t, client).Containers[at]; c.Observation != drift.Observed || c.Made.IsZero() {
		t.Errorf("once it knows: %+v", c)
	}
}
