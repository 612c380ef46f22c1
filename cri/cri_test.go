package cri_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/task"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/cri"
	"github.com/capdrift/capdrift/cri/fake"
	"github.com/capdrift/capdrift/drift"
)

// TestMain fails when a test leaves a goroutine of a client or a fake behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func captures(runtime string) string { return filepath.Join("..", "testdata", "captures", runtime) }

func load(t testing.TB, runtime string) *fake.Node {
	t.Helper()
	node, err := fake.Load(captures(runtime))
	if err != nil {
		t.Fatal(err)
	}
	return node
}

// one is a containerd node with a single pod.
func one(t testing.TB, capture string) *fake.Node {
	t.Helper()
	node := load(t, "containerd-2.4.2")
	node.Containers = slices.DeleteFunc(node.Containers, func(c *fake.Container) bool { return c.Status.GetMetadata().GetName() != capture })
	node.Sandboxes = slices.DeleteFunc(node.Sandboxes, func(s *fake.Sandbox) bool { return s.Status.GetMetadata().GetName() != capture })
	node.Tasks = map[string][]*fake.Task{}
	if len(node.Containers) != 1 || len(node.Sandboxes) != 1 {
		t.Fatalf("no capture is named %s", capture)
	}
	return node
}

func connect(t testing.TB, endpoint string, timeout time.Duration) *cri.Client {
	t.Helper()
	client, err := cri.Connect(t.Context(), cri.Options{Endpoint: endpoint, Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	return client
}

func inventory(t testing.TB, client *cri.Client) drift.Inventory {
	t.Helper()
	got, err := client.Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func serve(t testing.TB, node *fake.Node) (*fake.Server, *cri.Client) {
	t.Helper()
	server := fake.Serve(t, node)
	return server, connect(t, server.Endpoint, time.Minute)
}

// named finds a container by its name.
func named(t testing.TB, in drift.Inventory, name string) drift.Container {
	t.Helper()
	i := slices.IndexFunc(in.Containers, func(c drift.Container) bool { return c.Name == name })
	if i < 0 {
		t.Fatalf("no container is named %s", name)
	}
	return in.Containers[i]
}

func TestCaptures(t *testing.T) {
	type row struct {
		bounding   string // and effective and permitted: runtimes keep the three alike
		uid        uint32
		nnp        bool
		userns     bool
		privileged bool
		add, drop  string
		unknown    string
	}
	const held = "000001fffeffffff" // all that the capturing runtime held
	image := map[string]string{     // to containerd it was imported, and has no digest of a registry
		"containerd-2.4.2": "registry.k8s.io/pause:3.10",
		"cri-o-1.37.0":     "registry.k8s.io/pause:3.10@sha256:37a97dbd53999c220b7d343942eb2acbe0acd2af7f356b4843e80aec1e6bc7d7",
	}
	for runtime, rows := range map[string]map[string]row{
		"containerd-2.4.2": {
			"default":            {bounding: "00000000a80425fb"},
			"drop-all":           {bounding: "0000000000000000", drop: "ALL"},
			"drop-net-raw":       {bounding: "00000000a80405fb", drop: "NET_RAW"},
			"add-net-admin":      {bounding: "00000000a80435fb", add: "NET_ADMIN"},
			"add-all":            {bounding: held, add: "ALL"},
			"add-all-drop-chown": {bounding: "000001fffefffffe", add: "ALL", drop: "CHOWN"},
			"add-all-drop-all":   {bounding: "0000000000000000", add: "ALL", drop: "ALL"},
			"add-and-drop-same":  {bounding: "00000000a80425fb", add: "NET_ADMIN", drop: "NET_ADMIN"},
			"restricted":         {bounding: "0000000000000400", add: "NET_BIND_SERVICE", drop: "ALL", uid: 1000, nnp: true},
			"nonroot":            {bounding: "00000000a80425fb", uid: 1000},
			"runasuser0":         {bounding: "00000000a80425fb"},
			"lower-case":         {bounding: "0000000000001000", add: "net_admin", drop: "all"},
			"cap-prefix-add":     {bounding: "00000000a80425fb", add: "CAP_SYS_ADMIN", unknown: "CAP_CAP_SYS_ADMIN"},
			"cap-prefix-drop":    {bounding: "00000000a80425fb", drop: "CAP_NET_RAW"}, // which is still there: bit 13
			"unknown-name":       {bounding: "00000000a80425fb", add: "BOGUS", unknown: "CAP_BOGUS"},
			"privileged":         {bounding: held, privileged: true},
			"privileged-nonroot": {bounding: held, privileged: true, uid: 1000},
			"userns":             {bounding: "00000000a80425fb", userns: true},
			"userns-nonroot":     {bounding: "00000000a80425fb", userns: true, uid: 1000},
			"ambient-requested":  {bounding: "0000000000000400", add: "NET_BIND_SERVICE", drop: "ALL", uid: 1000},
		},
		"cri-o-1.37.0": { // which refused to make five of them
			"default":           {bounding: "00000000000005fb"},
			"drop-all":          {bounding: "0000000000000000"},
			"drop-net-raw":      {bounding: "00000000000005fb"},
			"add-net-admin":     {bounding: "00000000000015fb"},
			"add-all-drop-all":  {bounding: "0000000000000000"},
			"add-and-drop-same": {bounding: "00000000000005fb"},
			"restricted":        {bounding: "0000000000000400", uid: 1000, nnp: true},
			"nonroot":           {bounding: "00000000000005fb", uid: 1000},
			"runasuser0":        {bounding: "00000000000005fb"},
			"lower-case":        {bounding: "0000000000001000"},
			"cap-prefix-add":    {bounding: "00000000002005fb"},
			"cap-prefix-drop":   {bounding: "00000000000005fb"},
			"userns":            {bounding: "00000000000005fb", userns: true},
			"userns-nonroot":    {bounding: "00000000000005fb", userns: true, uid: 1000},
			"ambient-requested": {bounding: "0000000000000400", uid: 1000},
		},
	} {
		t.Run(runtime, func(t *testing.T) {
			server, client := serve(t, load(t, runtime))
			got := inventory(t, client)
			if len(got.Containers) != len(rows) || len(got.Limits) != 0 {
				t.Errorf("%d containers and limits %v, want %d and none", len(got.Containers), got.Limits, len(rows))
			}
			name, version, _ := strings.Cut(strings.Replace(runtime, "cri-o", "crio", 1), "-")
			if got.Runtime.Endpoint != server.Endpoint || strings.Replace(got.Runtime.Name, "cri-o", "crio", 1) != name || strings.TrimPrefix(got.Runtime.Version, "v") != version {
				t.Errorf("runtime = %+v", got.Runtime)
			}
			for name, want := range rows {
				c := named(t, got, name)
				if c.Managed == nil || !*c.Managed || c.Sandbox || c.Observation != drift.Observed || c.Reason != "" || len(c.ID) != 64 ||
					c.InitPID == 0 || c.Image != image[runtime] || !strings.Contains(c.CgroupPath, c.ID) {
					t.Errorf("%s: %+v", name, c)
				}
				if c.Pod == nil || *c.Pod != (drift.Pod{Namespace: "default", Name: name, UID: "uid-" + name}) {
					t.Errorf("%s: pod = %+v", name, c.Pod)
				}
				oci := c.Declared.OCI
				if oci == nil {
					t.Errorf("%s: no OCI layer", name)
					continue
				}
				if oci.Bounding.Hex() != want.bounding || oci.Effective != oci.Bounding || oci.Permitted != oci.Bounding || oci.Inheritable != 0 || oci.Ambient != 0 {
					t.Errorf("%s: sets = %+v, want %s", name, oci.Sets, want.bounding)
				}
				if oci.UID != want.uid || oci.NoNewPrivileges != want.nnp || oci.UserNamespace != want.userns || oci.UnknownNames == nil || strings.Join(oci.UnknownNames, " ") != want.unknown {
					t.Errorf("%s: OCI = %+v", name, oci)
				}
				if mapped := slices.Equal(oci.UIDMap, []drift.IDRange{{Inside: 0, Outside: 100000, Length: 65536}}); mapped != want.userns || !want.userns && oci.UIDMap != nil {
					t.Errorf("%s: uid map = %v", name, oci.UIDMap)
				}
				declared := c.Declared.CRI
				if strings.HasPrefix(runtime, "cri-o") {
					if declared != nil {
						t.Errorf("%s: CRI-O told a CRI config: %+v", name, declared)
					}
					// It tells this much of one; what it refused to start here is not among them.
					if c.Declared.Privileged == nil || *c.Declared.Privileged != want.privileged {
						t.Errorf("%s: privileged is %v", name, c.Declared.Privileged)
					}
				} else if c.Declared.Privileged != nil {
					t.Errorf("%s: containerd told twice whether it is privileged", name)
				} else if declared == nil || declared.Add == nil || declared.Drop == nil || strings.Join(declared.Add, " ") != want.add ||
					strings.Join(declared.Drop, " ") != want.drop || declared.Privileged != want.privileged || declared.NoNewPrivileges != want.nnp {
					t.Errorf("%s: CRI = %+v", name, declared)
				}
			}
		})
	}
}

// TestOnlyReads holds the promise that nothing on the node is changed, on a node
// where everything there is to ask is asked.
func TestOnlyReads(t *testing.T) {
	node := load(t, "containerd-2.4.2")
	node.Tasks["moby"] = []*fake.Task{{ID: "web", PID: 7, Status: task.Status_RUNNING, Spec: `{"process":{}}`}}
	node.Tasks["k8s.io"] = append(node.Tasks["k8s.io"], &fake.Task{ID: "mine", PID: 8, Status: task.Status_RUNNING})
	node.Containers[0].Info = "{" // so that it is looked for elsewhere
	server, client := serve(t, node)
	inventory(t, client)
	inventory(t, client)
	allowed := []string{"ContainerStatus", "ListContainers", "ListPodSandbox", "PodSandboxStatus", "Status", "Version", "containers.Get", "namespaces.List", "tasks.Get", "tasks.List"}
	called := server.Calls()
	slices.Sort(called)
	if called = slices.Compact(called); !slices.Equal(called, allowed) {
		t.Errorf("called %q, want %q", called, allowed)
	}
}

func TestStatusIsAskedOncePerContainer(t *testing.T) {
	server, client := serve(t, load(t, "cri-o-1.37.0"))
	all := len(inventory(t, client).Containers)
	second := inventory(t, client)
	if n := server.Count("ContainerStatus"); n != all || len(second.Containers) != all {
		t.Errorf("two inventories of %d containers asked for %d statuses and found %d", all, n, len(second.Containers))
	}
	var removed *fake.Container
	server.Update(func(n *fake.Node) { removed, n.Containers = n.Containers[0], n.Containers[1:] })
	if got := inventory(t, client); len(got.Containers) != all-1 {
		t.Errorf("%d containers after one went, want %d", len(got.Containers), all-1)
	}
	server.Update(func(n *fake.Node) { n.Containers = append(n.Containers, removed) })
	if inventory(t, client); server.Count("ContainerStatus") != all+1 {
		t.Errorf("%d statuses, want %d: what is known of a container goes with it", server.Count("ContainerStatus"), all+1)
	}
}

func TestAFailureIsAskedAgainAndHidesNobody(t *testing.T) {
	node := one(t, "default")
	other := one(t, "restricted")
	node.Containers, node.Sandboxes = append(node.Containers, other.Containers...), append(node.Sandboxes, other.Sandboxes...)
	info := node.Containers[0].Info
	node.Containers[0].Info = "not JSON"
	server, client := serve(t, node)
	got := inventory(t, client)
	if c := named(t, got, "default"); c.Observation != drift.Unreadable || c.Declared != (drift.Declared{}) || !strings.HasPrefix(c.Reason, "the verbose status is not JSON (at byte 1)") || !c.Undeclared || c.Pod == nil {
		t.Errorf("%+v", c)
	}
	if c := named(t, got, "restricted"); c.Observation != drift.Observed {
		t.Errorf("%+v", c)
	}
	server.Update(func(n *fake.Node) { n.Containers[0].Info = info })
	if c := named(t, inventory(t, client), "default"); c.Observation != drift.Observed || c.Reason != "" {
		t.Errorf("after it recovered: %+v", c)
	}
	if n := server.Count("ContainerStatus"); n != 4 {
		t.Errorf("%d statuses, want 4: one of two failed once, and was asked in few words whether it runs", n)
	}
}

func TestVanishedContainersAreLeftOut(t *testing.T) {
	for what, before := range map[string]func(*fake.Server) func(context.Context, string) error{
		"removed after the list": func(s *fake.Server) func(context.Context, string) error {
			return func(_ context.Context, method string) error {
				if method == "ContainerStatus" {
					s.Update(func(n *fake.Node) { n.Containers = nil })
				}
				return nil
			}
		},
		"ended after the list": func(s *fake.Server) func(context.Context, string) error {
			return func(_ context.Context, method string) error {
				if method == "ContainerStatus" {
					s.Update(func(n *fake.Node) { n.Containers[0].Status.State = runtimeapi.ContainerState_CONTAINER_EXITED })
				}
				return nil
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			server, client := serve(t, one(t, "default"))
			server.Update(func(n *fake.Node) { n.Before = before(server) })
			if got := inventory(t, client); len(got.Containers) != 0 || len(got.Limits) != 0 {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestPodComesFromTheLabelsWithoutASandbox(t *testing.T) {
	node := one(t, "default")
	node.Sandboxes = nil
	node.Containers[0].Status.Image.UserSpecifiedImage = "example.com/web:1"
	_, client := serve(t, node)
	c := named(t, inventory(t, client), "default")
	if c.Pod == nil || *c.Pod != (drift.Pod{Namespace: "default", Name: "default", UID: "uid-default"}) || c.Image != "example.com/web:1" {
		t.Errorf("pod %+v, image %s", c.Pod, c.Image)
	}
}

func TestSandboxes(t *testing.T) {
	const spec = `{"process":{"capabilities":{"bounding":["CAP_KILL"]},"noNewPrivileges":true,"user":{"uid":65535}},"linux":{"cgroupsPath":"/kubepods/pod1/s"}}`
	for what, row := range map[string]struct {
		info   string
		state  runtimeapi.PodSandboxState
		exists bool
		want   drift.Observation
	}{
		"containerd's pause":                        {info: `{"pid":42,"image":"pause:3","runtimeType":"io.containerd.runc.v2","config":{"linux":{}},"runtimeSpec":` + spec + `}`, exists: true, want: drift.Observed},
		"CRI-O's, spoofed":                          {info: `{"runtimeSpec":` + spec + `}`},
		"containerd's, with a dead shim":            {info: `{"pid":42,"config":{}}`, exists: true, want: drift.Partial},
		"cri-dockerd's, which tells nothing":        {exists: true, want: drift.Partial},
		"one whose pause has ended":                 {info: `{"pid":42,"runtimeSpec":` + spec + `}`, state: runtimeapi.PodSandboxState_SANDBOX_NOTREADY},
		"one that lies":                             {info: `[]`, exists: true, want: drift.Unreadable},
		"one with a spec that describes no process": {info: `{"pid":42,"runtimeSpec":{}}`, exists: true, want: drift.Partial},
	} {
		t.Run(what, func(t *testing.T) {
			node := one(t, "default")
			node.Containers = nil
			node.Sandboxes[0].Info, node.Sandboxes[0].Status.State = row.info, row.state
			_, client := serve(t, node)
			got := inventory(t, client)
			if len(got.Containers) != 0 != row.exists {
				t.Fatalf("containers = %+v", got.Containers)
			}
			if !row.exists {
				return
			}
			c := got.Containers[0]
			if c.Observation != row.want || c.Observation != drift.Observed && c.Reason == "" || !c.Sandbox || c.Name != "pause" || !*c.Managed || c.Pod.Name != "default" || c.Declared.CRI != nil {
				t.Errorf("%+v", c)
			}
			if row.want != drift.Observed {
				if c.Declared.OCI != nil {
					t.Errorf("OCI = %+v", c.Declared.OCI)
				}
				return
			}
			if oci := c.Declared.OCI; c.InitPID != 42 || c.Image != "docker.io/library/pause:3" || oci.Bounding.Len() != 1 || !oci.NoNewPrivileges || oci.UID != 65535 || c.CgroupPath != "/kubepods/pod1/s" {
				t.Errorf("%+v, OCI %+v", c, oci)
			}
		})
	}
}

func TestUnsupportedRuntimes(t *testing.T) {
	for _, row := range []struct{ handler, shim, options, why string }{
		{"", "io.containerd.runc.v2", `{"binary_name":"/usr/bin/nvidia-container-runtime"}`, ""},
		{"kata-like-name", "io.containerd.runc.v2", "null", ""}, // what the runtime says of its shim decides
		{"", "", "null", ""},
		{"gvisor", "io.containerd.runsc.v1", `{"ConfigPath":"/etc/runsc.toml"}`, `it runs in gVisor (shim "io.containerd.runsc.v1")`},
		{"kata-qemu", "io.containerd.kata-qemu.v2", "7", `it runs in Kata Containers (shim "io.containerd.kata-qemu.v2")`},
		{"", "io.containerd.wasmtime.v1", "null", `it runs in WebAssembly (shim "io.containerd.wasmtime.v1")`},
		{"", "io.containerd.runc.v2", `{"binary_name":"/opt/kata/bin/krun"}`, `it runs in a virtual machine (OCI runtime "/opt/kata/bin/krun")`},
		{"", "io.containerd.novel.v1", "null", `its shim "io.containerd.novel.v1" is not known to run containers on this kernel`},
		{"kata", "", "null", `it runs in Kata Containers (runtime class "kata")`}, // as CRI-O would have it
	} {
		node := one(t, "default")
		node.Sandboxes[0].RuntimeHandler = row.handler
		node.Containers[0].Info = fmt.Sprintf(`{"pid":5,"runtimeType":%q,"runtimeOptions":%s,"runtimeSpec":{"process":{"capabilities":{"bounding":["CAP_KILL"]}}}}`, row.shim, row.options)
		_, client := serve(t, node)
		c := named(t, inventory(t, client), "default")
		want := drift.UnsupportedRuntime
		if row.why == "" {
			want = drift.Observed
		}
		if c.Observation != want || c.Reason != row.why || c.RuntimeHandler != row.handler || c.Declared.OCI == nil {
			t.Errorf("%+v: %s %q", row, c.Observation, c.Reason)
		}
	}
}

// TestHandlerOfCRIO: CRI-O tells a pod's handler in an annotation of the
// sandbox's spec alone, where the pod's author writes too.
func TestHandlerOfCRIO(t *testing.T) {
	for what, row := range map[string]struct {
		pod  map[string]string
		want drift.Observation
	}{
		"CRI-O's own word":      {nil, drift.UnsupportedRuntime},
		"the pod's author's":    {map[string]string{"io.kubernetes.cri-o.RuntimeHandler": "kata"}, drift.Observed},
		"the same, in disguise": {map[string]string{"IO.Kubernetes.CRI-O.runtimehandler": "kata"}, drift.Observed},
	} {
		node := load(t, "cri-o-1.37.0")
		node.Containers, node.Sandboxes = node.Containers[:1], node.Sandboxes[:1]
		node.Sandboxes[0].Info = `{"runtimeSpec":{"annotations":{"io.kubernetes.cri-o.RuntimeHandler":"kata"}}}`
		node.Sandboxes[0].Status.Annotations = row.pod
		_, client := serve(t, node)
		if c := inventory(t, client).Containers[0]; c.Observation != row.want || (c.RuntimeHandler == "kata") != (row.want == drift.UnsupportedRuntime) {
			t.Errorf("%s: %+v", what, c)
		}
	}
}

func TestContainersBesideTheCRI(t *testing.T) {
	node := one(t, "default")
	id := node.Containers[0].Status.GetId()
	exited := &fake.Container{SandboxID: "x", Status: &runtimeapi.ContainerStatus{Id: "ended", State: runtimeapi.ContainerState_CONTAINER_EXITED}}
	created := &fake.Container{SandboxID: "x", Status: &runtimeapi.ContainerStatus{Id: "created", State: runtimeapi.ContainerState_CONTAINER_CREATED}}
	node.Containers = append(node.Containers, exited, created)
	const spec = `{"process":{"user":{"uid":5},"env":["TOKEN=x"],"capabilities":{"bounding":["CAP_SYS_ADMIN"],"permitted":["CAP_NOVEL"]}},"linux":{"cgroupsPath":"/docker/web"}}`
	running := task.Status_RUNNING
	node.Tasks = map[string][]*fake.Task{
		"k8s.io": {
			{ID: id, PID: 1, Status: running}, {ID: node.Sandboxes[0].Status.GetId(), PID: 2, Status: running},
			{ID: "ended", PID: 3, Status: running}, {ID: "created", PID: 4, Status: running},
			{ID: "intruder", PID: 5, Status: running, Spec: spec, Runtime: "io.containerd.runc.v2"},
		},
		"moby": {
			{ID: "web", PID: 6, Status: task.Status_PAUSED, Spec: spec, Runtime: "io.containerd.runc.v2"},
			{ID: "stopped", Status: task.Status_STOPPED, Spec: spec}, {ID: "new", PID: 7, Status: task.Status_CREATED, Spec: spec},
		},
		"default": {
			{ID: "n1", PID: 8, Status: running, Spec: "{", Labels: map[string]string{"nerdctl/name": "db"}, Image: "docker.io/library/db:1", Runtime: "io.containerd.runc.v2"},
			{ID: "n2", PID: 9, Status: running, Runtime: "io.containerd.runc.v2"},
			{ID: "n3", PID: 10, Status: running, Spec: spec, Runtime: "io.containerd.kata.v2"},
		},
		"empty": nil,
	}
	server, client := serve(t, node)
	got := inventory(t, client)
	var seen []string
	for _, c := range got.Containers {
		if *c.Managed {
			continue
		}
		seen = append(seen, fmt.Sprintf("%s %s pid %d %s (%s)", c.Name, c.Origin, c.InitPID, c.Observation, c.Image))
		if c.Pod != nil || c.Declared.CRI != nil || (c.Observation == drift.Observed) != (c.Reason == "") {
			t.Errorf("%+v", c)
		}
	}
	if want := []string{
		"db containerd namespace default pid 8 unreadable (docker.io/library/db:1)",
		"intruder containerd namespace k8s.io pid 5 observed ()",
		"n2 containerd namespace default pid 9 partial ()",
		"n3 containerd namespace default pid 10 unsupported_runtime ()",
		"web containerd namespace moby pid 6 observed ()",
	}; !slices.Equal(seen, want) {
		t.Errorf("unmanaged:\n%s\nwant\n%s", strings.Join(seen, "\n"), strings.Join(want, "\n"))
	}
	if !slices.Equal(got.Starting, []string{"created"}) {
		t.Errorf("starting: %q", got.Starting)
	}
	web := named(t, got, "web")
	if oci := web.Declared.OCI; web.CgroupPath != "/docker/web" || oci.Bounding.Hex() != "0000000000200000" || oci.UID != 5 || !slices.Equal(oci.UnknownNames, []string{"CAP_NOVEL"}) {
		t.Errorf("%+v, OCI %+v", web, oci)
	}
	gets := server.Count("containers.Get")
	inventory(t, client)
	if n := server.Count("containers.Get") - gets; n != 1 {
		t.Errorf("%d containers were asked for again, want the one that was unreadable", n)
	}
	server.Update(func(n *fake.Node) { n.Tasks["moby"][0].PID = 66 })
	gets = server.Count("containers.Get") // the unreadable one is left alone this time
	if c := named(t, inventory(t, client), "web"); c.InitPID != 66 || server.Count("containers.Get")-gets != 1 {
		t.Errorf("a container started again is asked for again: %+v", c)
	}
}

// TestAPodThatStartsMeanwhileIsNotUnmanaged: its task is there, the CRI list was
// taken before.
func TestAPodThatStartsMeanwhileIsNotUnmanaged(t *testing.T) {
	node := one(t, "default")
	late := one(t, "restricted")
	server, client := serve(t, node)
	server.Update(func(n *fake.Node) {
		n.Tasks["k8s.io"] = nil
		n.Before = func(_ context.Context, method string) error {
			if method == "tasks.List" {
				server.Update(func(n *fake.Node) {
					n.Containers, n.Sandboxes = append(n.Containers, late.Containers...), append(n.Sandboxes, late.Sandboxes...)
					n.Tasks["k8s.io"] = []*fake.Task{
						{ID: late.Containers[0].Status.GetId(), Status: task.Status_RUNNING}, {ID: late.Sandboxes[0].Status.GetId(), Status: task.Status_RUNNING},
					}
					n.Before = nil
				})
			}
			return nil
		}
	})
	if got := inventory(t, client); len(got.Containers) != 1 || len(got.Limits) != 0 {
		t.Errorf("%+v", got)
	}
	if got := inventory(t, client); len(got.Containers) != 2 || !*named(t, got, "restricted").Managed {
		t.Errorf("%+v", got)
	}
}

func TestContainerdThatTellsOnlyItsCRI(t *testing.T) {
	for what, row := range map[string]struct {
		before func(context.Context, string) error
		limit  string
	}{
		"its API is not served":        {nil, "containers in containerd that belong to no pod"},
		"its namespaces are denied":    {fake.Fail(codes.PermissionDenied, "no", "namespaces.List"), "containers in containerd that belong to no pod"},
		"the tasks of one are denied":  {fake.Fail(codes.PermissionDenied, "no", "tasks.List"), "containers in containerd's namespace moby"},
		"a container of it is refused": {fake.Fail(codes.Internal, "no", "containers.Get"), ""},
	} {
		t.Run(what, func(t *testing.T) {
			node := one(t, "default")
			node.Before = row.before
			if node.Tasks["moby"] = []*fake.Task{{ID: "web", PID: 6, Status: task.Status_RUNNING}}; row.before == nil {
				node.Tasks = nil
			}
			_, client := serve(t, node)
			got := inventory(t, client)
			if row.limit == "" {
				if c := named(t, got, "web"); c.Observation != drift.Unreadable || !strings.Contains(c.Reason, `Internal: "no"`) {
					t.Errorf("%+v", c)
				}
				return
			}
			if len(got.Limits) != 1 || !got.Limits[0].Blind || got.Limits[0].What != row.limit || got.Limits[0].Why == "" || len(got.Containers) != 1 {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestConnectErrors(t *testing.T) {
	denied := fake.Serve(t, one(t, "default"))
	if err := os.Chmod(denied.Path, 0); err != nil {
		t.Fatal(err)
	}
	old := one(t, "default")
	old.APIVersion = "v1alpha2"
	next := one(t, "default")
	next.APIVersion = "v2\x1b[31m"
	hangs := one(t, "default")
	hangs.Before = fake.Hang("Version")
	for what, row := range map[string]struct {
		endpoint string
		is       error
		says     string
	}{
		"a URL of another kind":         {"tcp://127.0.0.1:1", cri.ErrEndpoint, `endpoint "tcp://127.0.0.1:1": want unix:///path`},
		"a relative path":               {"run/containerd.sock", cri.ErrEndpoint, "absolute path"},
		"a relative unix URL":           {"unix://run/containerd.sock", cri.ErrEndpoint, "absolute path"},
		"no socket":                     {"unix:///nowhere/containerd.sock", fs.ErrNotExist, "cannot open /nowhere/containerd.sock: no such file or directory; start the runtime, or name another socket with --cri-endpoint"},
		"a bare path without a socket":  {"/nowhere/containerd.sock", fs.ErrNotExist, "/nowhere/containerd.sock"},
		"nobody listens":                {fake.Refusing(t), syscall.ECONNREFUSED, "connection refused; nobody listens there"},
		"it is silent":                  {fake.Silent(t), context.DeadlineExceeded, "no answer within"},
		"it hangs":                      {fake.Serve(t, hangs).Endpoint, context.DeadlineExceeded, "Version: no answer within"},
		"it serves v1alpha2 only":       {fake.Serve(t, old).Endpoint, cri.ErrNotCRIv1, "does not serve CRI v1: capdrift needs containerd 1.6, CRI-O 1.20"},
		"it serves a version to come":   {fake.Serve(t, next).Endpoint, cri.ErrNotCRIv1, `it says version "v2\x1b[31m"`},
		"it may not be opened":          {denied.Endpoint, fs.ErrPermission, "permission denied; run as root, or name another socket with --cri-endpoint"},
		"its path is too long to exist": {"/" + strings.Repeat("x", 200), nil, "cannot open /xxx"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			if errors.Is(row.is, fs.ErrPermission) && os.Geteuid() == 0 {
				asNobody(t)
			}
			client, err := cri.Connect(t.Context(), cri.Options{Endpoint: row.endpoint, Timeout: patience})
			if client != nil || err == nil || row.is != nil && !errors.Is(err, row.is) || !strings.Contains(err.Error(), row.says) || strings.ContainsAny(err.Error(), "\n\x1b") {
				t.Errorf("client %v, error %v", client, err)
			}
		})
	}
}

// asNobody gives this thread alone an effective uid that a socket's mode counts
// for. The thread is not used again: the goroutine ends without unlocking it.
func asNobody(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), 65534, ^uintptr(0)); errno != 0 {
		if os.Geteuid() == 0 {
			t.Fatal(errno)
		}
		t.Skipf("cannot give up root: %v", errno)
	}
}

func TestFindsTheRuntime(t *testing.T) {
	start := func(t *testing.T, root, place string, node *fake.Node) *fake.Server {
		t.Helper()
		server, err := fake.Start(node, filepath.Join(root, place))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(server.Stop)
		return server
	}
	find := func(t *testing.T, root string) (*cri.Client, error) {
		t.Helper()
		client, err := cri.Connect(t.Context(), cri.Options{Root: root})
		if client != nil {
			t.Cleanup(func() { _ = client.Close() })
		}
		return client, err
	}
	const containerd, crio, k3s = "/run/containerd/containerd.sock", "/run/crio/crio.sock", "/run/k3s/containerd/containerd.sock"

	t.Run("none", func(t *testing.T) {
		_, err := find(t, t.TempDir())
		if !errors.Is(err, cri.ErrNoRuntime) {
			t.Fatal(err)
		}
		for _, place := range []string{containerd, crio, "/run/cri-dockerd.sock", k3s, "/run/k0s/containerd.sock", "/var/snap/microk8s/common/run/containerd.sock", "--cri-endpoint"} {
			if !strings.Contains(err.Error(), place) {
				t.Errorf("%v: does not name %s", err, place)
			}
		}
	})
	t.Run("the only one", func(t *testing.T) {
		root := shortDir(t)
		server := start(t, root, crio, load(t, "cri-o-1.37.0"))
		client, err := find(t, root)
		if err != nil {
			t.Fatal(err)
		}
		if got := inventory(t, client); got.Runtime.Endpoint != server.Endpoint || len(got.Limits) != 0 {
			t.Errorf("%+v %v", got.Runtime, got.Limits)
		}
	})
	t.Run("the first of several places that are named", func(t *testing.T) {
		root := shortDir(t)
		server := start(t, root, crio, load(t, "cri-o-1.37.0"))
		start(t, root, containerd, one(t, "default")) // in none of the places
		client, err := cri.Connect(t.Context(), cri.Options{Root: "/nowhere", Places: []string{filepath.Join(root, k3s), filepath.Join(root, crio)}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = client.Close() })
		if got := inventory(t, client); got.Runtime.Endpoint != server.Endpoint || len(got.Limits) != 0 {
			t.Errorf("%+v %v", got.Runtime, got.Limits)
		}
		if _, err := cri.Connect(t.Context(), cri.Options{Places: []string{"/nowhere/a.sock", "/nowhere/b.sock"}}); !errors.Is(err, cri.ErrNoRuntime) || !strings.HasSuffix(err.Error(), "looked for /nowhere/a.sock, /nowhere/b.sock") {
			t.Error(err)
		}
	})
	t.Run("k3s beside Docker's containerd, which has no CRI, and an idle CRI-O", func(t *testing.T) {
		root := shortDir(t)
		docker := one(t, "default")
		docker.APIVersion = "v1alpha2"
		start(t, root, containerd, docker)
		start(t, root, crio, load(t, "cri-o-1.37.0"))
		start(t, root, k3s, one(t, "default"))
		client, err := find(t, root)
		if err != nil {
			t.Fatal(err)
		}
		got := inventory(t, client)
		if got.Runtime.Name != "cri-o" || len(got.Limits) != 2 || !got.Limits[0].Blind || !strings.HasSuffix(got.Limits[0].What, containerd) ||
			!strings.Contains(got.Limits[0].Why, "does not serve CRI v1") || !strings.HasSuffix(got.Limits[1].What, k3s) || !strings.Contains(got.Limits[1].Why, "--cri-endpoint") {
			t.Errorf("%+v %+v", got.Runtime, got.Limits)
		}
	})
	t.Run("all fail", func(t *testing.T) {
		root := shortDir(t)
		docker := one(t, "default")
		docker.APIVersion = "v1alpha2"
		start(t, root, containerd, docker)
		if err := os.MkdirAll(filepath.Join(root, "run/crio"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, crio), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := find(t, root)
		if !errors.Is(err, cri.ErrNotCRIv1) || !errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, cri.ErrNoRuntime) || strings.Contains(err.Error(), "\n") {
			t.Error(err)
		}
	})
}

// shortDir holds sockets, whose paths are bounded.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cri")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// patience is how long a call that will never be answered is waited for, and long
// enough for one that will.
const patience = time.Second

func TestARuntimeThatStopsAnswering(t *testing.T) {
	t.Run("hangs in the lists", func(t *testing.T) {
		t.Parallel()
		node := one(t, "default")
		node.Before = fake.Hang("ListContainers")
		client := connect(t, fake.Serve(t, node).Endpoint, patience)
		if _, err := client.Inventory(t.Context()); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "ListContainers: no answer within 1s") {
			t.Error(err)
		}
	})
	t.Run("hangs in the statuses", func(t *testing.T) {
		t.Parallel()
		node := load(t, "containerd-2.4.2")
		node.Before, node.Sandboxes, node.Tasks = fake.Hang("ContainerStatus"), nil, map[string][]*fake.Task{}
		server := fake.Serve(t, node)
		client, err := cri.Connect(t.Context(), cri.Options{Endpoint: server.Endpoint, Timeout: patience, Parallel: 2})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = client.Close() }()
		got := inventory(t, client)
		for _, c := range got.Containers {
			if c.Observation != drift.Unreadable || c.Undeclared || !strings.Contains(c.Reason, "no answer within") && !strings.Contains(c.Reason, "not asked") {
				t.Errorf("%+v", c)
			}
		}
		// Two at once, at most one more that was under way already, and for each the question
		// in few words.
		if n := server.Count("ContainerStatus"); len(got.Containers) != 20 || n > 6 {
			t.Errorf("%d containers, %d questions to a runtime that does not answer", len(got.Containers), n)
		}
	})
	t.Run("dies in the middle and comes back", func(t *testing.T) {
		t.Parallel()
		server := fake.Serve(t, load(t, "cri-o-1.37.0"))
		client := connect(t, server.Endpoint, time.Minute)
		server.Update(func(n *fake.Node) {
			n.Before = func(_ context.Context, method string) error {
				if method == "ContainerStatus" {
					server.Stop()
				}
				return nil
			}
		})
		got, err := client.Inventory(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range got.Containers {
			if c.Observation != drift.Unreadable || !strings.Contains(c.Reason, "cannot open "+server.Path) && !strings.Contains(c.Reason, "the connection failed") {
				t.Errorf("%+v", c)
			}
		}
		if _, err := client.Inventory(t.Context()); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "start the runtime") {
			t.Errorf("while it is down: %v", err)
		}
		again, err := fake.Start(load(t, "cri-o-1.37.0"), server.Path)
		if err != nil {
			t.Fatal(err)
		}
		defer again.Stop()
		for err = errors.New("not yet"); err != nil && t.Context().Err() == nil; {
			got, err = client.Inventory(t.Context())
		}
		if len(got.Containers) != 15 || got.Containers[0].Observation != drift.Observed {
			t.Errorf("after it came back: %+v", got)
		}
	})
	t.Run("the caller gives up", func(t *testing.T) {
		t.Parallel()
		node := load(t, "containerd-2.4.2")
		server := fake.Serve(t, node)
		client := connect(t, server.Endpoint, time.Minute)
		ctx, cancel := context.WithCancel(t.Context())
		server.Update(func(n *fake.Node) {
			n.Before = func(ctx context.Context, method string) error {
				if method == "ContainerStatus" {
					cancel()
					<-ctx.Done()
				}
				return nil
			}
		})
		if got, err := client.Inventory(ctx); !errors.Is(err, context.Canceled) || got.Containers != nil {
			t.Errorf("%+v, %v", got, err)
		}
	})
}

func TestHostileInfo(t *testing.T) {
	const process = `"process":{"capabilities":{"bounding":["CAP_KILL"]}}`
	pad := func(n int) string { return `"config":{"envs":[{"key":"K","value":"` + strings.Repeat("x", n) + `"}]}` }
	deep := func(n int) string { return strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n) }
	for what, row := range map[string]struct {
		info   string
		want   drift.Observation
		reason string
	}{
		"empty":                            {"", drift.Partial, "the runtime gives no verbose status"},
		"an empty object":                  {"{}", drift.Partial, "the runtime gives no OCI spec"},
		"null":                             {"null", drift.Partial, "the runtime gives no OCI spec"},
		"white space":                      {" ", drift.Unreadable, "is not JSON"},
		"not JSON":                         {"\x1b[2Jboom", drift.Unreadable, "is not JSON (at byte 1)"},
		"a list":                           {"[]", drift.Unreadable, "is not of the form expected"},
		"JSON with a tail":                 {"{} {}", drift.Unreadable, "is not JSON"},
		"cut in the middle":                {`{"runtimeSpec":{"process":{"capab`, drift.Unreadable, "is not JSON"},
		"20 MiB":                           {`{"runtimeSpec":{` + process + `},` + pad(20<<20) + `}`, drift.Unreadable, "the answer is too large"},
		"as large as a pod can make it":    {`{"runtimeSpec":{` + process + `},` + pad(18<<20) + `}`, drift.Observed, ""},
		"nested 10,000 deep":               {`{"runtimeSpec":{` + process + `,"deep":` + deep(10000) + `}}`, drift.Unreadable, "is not JSON"},
		"nested as deep as JSON may be":    {`{"runtimeSpec":{` + process + `,"deep":` + deep(9000) + `}}`, drift.Observed, ""},
		"lists nested 10,000 deep":         {strings.Repeat("[", 10001), drift.Unreadable, "is not of the form expected"},
		"a pid that is text":               {`{"pid":"1"}`, drift.Unreadable, "is not of the form expected"},
		"a negative pid":                   {`{"pid":-1,"runtimeSpec":{` + process + `}}`, drift.Unreadable, "negative pid"},
		"a uid that does not fit":          {`{"runtimeSpec":{"process":{"user":{"uid":4294967296}}}}`, drift.Unreadable, "is not of the form expected"},
		"a set that is one name":           {`{"runtimeSpec":{"process":{"capabilities":{"bounding":"CAP_KILL"}}}}`, drift.Unreadable, "is not of the form expected"},
		"a set of numbers":                 {`{"runtimeSpec":{"process":{"capabilities":{"bounding":[21]}}}}`, drift.Unreadable, "is not of the form expected"},
		"a config that is text":            {`{"config":"x","runtimeSpec":{` + process + `}}`, drift.Unreadable, "is not of the form expected"},
		"no process":                       {`{"runtimeSpec":{"linux":{}}}`, drift.Partial, "the OCI spec has no process"},
		"options of another shim":          {`{"runtimeOptions":["x"],"runtimeSpec":{` + process + `}}`, drift.Observed, ""},
		"a cgroup path that is a book":     {`{"runtimeSpec":{` + process + `,"linux":{"cgroupsPath":"/` + strings.Repeat("x", 5000) + `"}}}`, drift.Partial, "cgroup path"},
		"a cgroup path with a NUL":         {`{"runtimeSpec":{` + process + `,"linux":{"cgroupsPath":"/a\u0000b"}}}`, drift.Partial, "cgroup path"},
		"a thousand names without a sense": {`{"runtimeSpec":{"process":{"capabilities":{"bounding":["CAP_KILL"` + manyNames(1000) + `]}}}}`, drift.Partial, "only 64 of 1000 unknown capability names"},
	} {
		t.Run(what, func(t *testing.T) {
			node := one(t, "default")
			node.Containers[0].Info = row.info
			_, client := serve(t, node)
			c := named(t, inventory(t, client), "default")
			if c.Observation != row.want || !strings.Contains(c.Reason, row.reason) || (c.Reason == "") != (row.want == drift.Observed) || len(c.Reason) > 400 {
				t.Errorf("%s: %q", c.Observation, c.Reason)
			}
			if (row.want == drift.Unreadable) != (c.Declared == drift.Declared{}) && row.want != drift.Partial {
				t.Errorf("declared = %+v", c.Declared)
			}
			if c.Declared.OCI != nil && (c.Declared.OCI.Bounding.Len() != 1 || len(c.Declared.OCI.UnknownNames) > 64) {
				t.Errorf("OCI = %+v", c.Declared.OCI)
			}
		})
	}
}

func manyNames(n int) string {
	var names strings.Builder
	for i := range n {
		fmt.Fprintf(&names, `,"CAP_%0200d"`, i)
	}
	return names.String()
}

// TestAFailureThatTheRuntimeExplains: its text is quoted, bounded and on one line.
func TestAFailureThatTheRuntimeExplains(t *testing.T) {
	node := one(t, "default")
	node.Before = fake.Fail(codes.Internal, "shim\n\x1b[31m"+strings.Repeat("x", 1<<16), "ContainerStatus")
	_, client := serve(t, node)
	c := named(t, inventory(t, client), "default")
	if c.Observation != drift.Unreadable || !strings.Contains(c.Reason, `ContainerStatus: Internal: "shim\n\x1b[31m`) || len(c.Reason) > 600 || strings.ContainsAny(c.Reason, "\n\x1b") {
		t.Errorf("%+v", c)
	}
}

// BenchmarkColdInventory is a first look at 100 containers of a runtime that
// takes 5 ms for each status, as a busy containerd does.
func BenchmarkColdInventory(b *testing.B) {
	for _, parallel := range []int{1, 8, 32} {
		b.Run(fmt.Sprintf("parallel=%d", parallel), func(b *testing.B) {
			captured := load(b, "containerd-2.4.2")
			node := &fake.Node{Name: "containerd", Version: "v2.4.2", Tasks: map[string][]*fake.Task{}, Before: func(_ context.Context, method string) error {
				if method == "ContainerStatus" {
					<-time.After(5 * time.Millisecond)
				}
				return nil
			}}
			for i := range 100 {
				c := captured.Containers[i%len(captured.Containers)]
				node.Containers = append(node.Containers, &fake.Container{Info: c.Info, Status: &runtimeapi.ContainerStatus{
					Id: fmt.Sprintf("%064d", i), Metadata: c.Status.GetMetadata(), State: c.Status.GetState(), Labels: c.Status.GetLabels(),
				}})
			}
			server := fake.Serve(b, node)
			for b.Loop() {
				client, err := cri.Connect(b.Context(), cri.Options{Endpoint: server.Endpoint, Parallel: parallel})
				if err != nil {
					b.Fatal(err)
				}
				if got := inventory(b, client); len(got.Containers) != 100 {
					b.Fatal(len(got.Containers))
				}
				if err := client.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestLabels: a pod's labels are its author's, and bounded: one that is left out would
// look like one that is not there.
func TestLabels(t *testing.T) {
	many := func(n int) map[string]string {
		labels := make(map[string]string)
		for i := range n {
			labels[fmt.Sprint("key-", i)] = "value"
		}
		return labels
	}
	for what, row := range map[string]struct {
		labels map[string]string
		want   int // -1 for not known
	}{
		"none":                 {nil, 0},
		"some":                 {map[string]string{"team": "shop", "app": "web=1"}, 2},
		"as many as are kept":  {many(100), 100},
		"one more":             {many(101), -1},
		"a long one":           {map[string]string{"app": strings.Repeat("x", 17<<10)}, -1},
		"no sandbox tells any": {nil, -1},
	} {
		t.Run(what, func(t *testing.T) {
			node := one(t, "default")
			node.Sandboxes[0].Status.Labels = row.labels
			if what == "no sandbox tells any" {
				node.Sandboxes = nil
			}
			_, client := serve(t, node)
			got := named(t, inventory(t, client), "default").Labels
			if got == nil && row.want >= 0 || got != nil && len(got) != row.want || !slices.IsSorted(got) {
				t.Errorf("%d labels: %.100q, want %d", len(got), got, row.want)
			}
			if what == "some" && !slices.Equal(got, []string{"app=web=1", "team=shop"}) {
				t.Errorf("%q", got)
			}
		})
	}
}

// TestPrivilegedOfCRIO: all that CRI-O tells of the CRI config; the recorded one could not
// start a privileged container.
func TestPrivilegedOfCRIO(t *testing.T) {
	for info, want := range map[string]string{
		`{"pid":7,"runtimeSpec":{"process":{}},"privileged":true}`:                       "true",
		`{"pid":7,"runtimeSpec":{"process":{}},"privileged":false}`:                      "false",
		`{"pid":7,"runtimeSpec":{"process":{}}}`:                                         "not told",
		`{"pid":7,"runtimeSpec":{"process":{}},"privileged":null}`:                       "not told",
		`{"pid":7,"runtimeSpec":{"process":{}},"privileged":true,"config":{"linux":{}}}`: "not told", // its config does
	} {
		node := one(t, "default")
		node.Containers[0].Info = info
		_, client := serve(t, node)
		got := "not told"
		if c := named(t, inventory(t, client), "default"); c.Declared.Privileged != nil {
			got = fmt.Sprint(*c.Declared.Privileged)
		}
		if got != want {
			t.Errorf("%s: privileged is %s, want %s", info, got, want)
		}
	}
}
