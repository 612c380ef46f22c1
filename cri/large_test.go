package cri_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/task"
	"google.golang.org/grpc/codes"

	"github.com/capdrift/capdrift/cri"
	"github.com/capdrift/capdrift/cri/fake"
	"github.com/capdrift/capdrift/drift"
)

// sendsAtMost is what containerd sends in one message (defaults/defaults.go).
const sendsAtMost = 16 << 20

// pressed returns n bytes as they are in JSON when a pod's author writes only "<".
func pressed(n int) string { return strings.Repeat(`\u003c`, n) }

// longSpec is an OCI spec with that much in its arguments, and the capabilities after it.
func longSpec(n int) string {
	return `{"process":{"args":["` + pressed(n) + `"],"user":{"uid":7},"capabilities":{"bounding":["CAP_KILL"],"effective":["CAP_KILL"]}},"linux":{"cgroupsPath":"/kubepods/x"}}`
}

func longConfig(n int) string {
	return `{"args":["` + pressed(n) + `"],"linux":{"security_context":{"capabilities":{"add_capabilities":["KILL"]}}}}`
}

func longInfo(n int) string {
	return `{"pid":42,"runtimeType":"io.containerd.runc.v2","config":` + longConfig(n) + `,"runtimeSpec":` + longSpec(n) + `}`
}

// TestNothingWrittenHidesAContainer: a pod with 1.42 MiB of "<" in its arguments makes
// its verbose status too large to send. What is declared comes from where it is then.
func TestNothingWrittenHidesAContainer(t *testing.T) {
	const state = `{"stateDir":"/run/containerd/io.containerd.grpc.v1.cri"}`
	const large, huge = 1_420_000, 2_000_000 // huge is what the expansion of $(NAME) makes
	for what, row := range map[string]struct {
		noGzip bool
		status int // bytes of arguments in the verbose status
		record int // in containerd's record; -1 for no record
		bundle int // in config.json; -1 for none
		want   string
		limit  string
	}{
		"a runtime packs it":                        {status: large, record: large, bundle: -1, want: "observed from the status"},
		"one that cannot pack, and a short record":  {noGzip: true, status: large, record: 1, bundle: -1, want: "observed from the record"},
		"one that cannot pack, and a long record":   {noGzip: true, status: large, record: large, bundle: large, want: "observed from the bundle", limit: "config.json"},
		"one that cannot pack, and no record":       {noGzip: true, status: large, record: -1, bundle: large, want: "observed from the bundle", limit: "config.json"},
		"more than is held when it is unpacked":     {status: huge, record: huge, bundle: huge, want: "observed from the bundle", limit: "config.json"},
		"more than is held, and a short record":     {status: huge, record: 1, bundle: huge, want: "observed from the record"},
		"one that cannot pack, and nothing besides": {noGzip: true, status: large, record: large, bundle: -1, want: "undeclared"},
		"more than is held, and nothing besides":    {status: huge, record: huge, bundle: -1, want: "undeclared"},
	} {
		t.Run(what, func(t *testing.T) {
			node, root := one(t, "default"), shortDir(t)
			other := one(t, "restricted")
			node.Containers, node.Sandboxes = append(node.Containers, other.Containers...), append(node.Sandboxes, other.Sandboxes...)
			node.MaxSend, node.NoGzip, node.Config = sendsAtMost, row.noGzip, state
			node.Containers[0].Info = longInfo(row.status)
			id := node.Containers[0].Status.GetId()
			if row.record >= 0 {
				node.Tasks["k8s.io"] = []*fake.Task{{
					ID: id, PID: 43, Status: task.Status_RUNNING, Runtime: "io.containerd.runc.v2", Binary: "/opt/crun", Spec: longSpec(row.record),
					Metadata: `{"Version":"v1","Metadata":{"ID":"x","Config":` + longConfig(row.record) + `}}`,
				}}
			}
			if row.bundle >= 0 {
				dir := filepath.Join(root, "run/containerd/io.containerd.runtime.v2.task/k8s.io", id)
				if err := os.MkdirAll(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(longSpec(row.bundle)), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			server := fake.Serve(t, node)
			client, err := cri.Connect(t.Context(), cri.Options{Endpoint: server.Endpoint, Root: root, Timeout: time.Minute})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = client.Close() }()
			got := inventory(t, client)
			if c := named(t, got, "restricted"); c.Observation != drift.Observed {
				t.Errorf("the other one: %+v", c)
			}
			c := named(t, got, "default")
			where := map[string]string{"42 ": "the status", "43 /opt/crun": "the record", "43 ": "the bundle", "0 ": "the bundle"}[fmt.Sprint(c.InitPID, " ", c.Binary)]
			switch {
			case row.want == "undeclared":
				if c.Observation != drift.Unreadable || !c.Undeclared || c.Declared != (drift.Declared{}) || c.InitPID != 43 || c.Pod == nil ||
					!strings.Contains(c.Reason, "too large") || !strings.Contains(c.Reason, "containerd's own record of it") || len(c.Reason) > 600 {
					t.Errorf("%+v", c)
				}
			case c.Observation != drift.Observed || c.Reason != "" || c.Undeclared || row.want != "observed from "+where:
				t.Errorf("it is %s from %s: %+v", c.Observation, where, c)
			default:
				if oci := c.Declared.OCI; oci.Bounding.Hex() != "0000000000000020" || oci.UID != 7 || c.CgroupPath != "/kubepods/x" {
					t.Errorf("%+v, OCI %+v", c, oci)
				}
				if (c.Declared.CRI == nil) != (where == "the bundle") || c.Declared.CRI != nil && !slices.Equal(c.Declared.CRI.Add, []string{"KILL"}) {
					t.Errorf("CRI %+v", c.Declared.CRI)
				}
				if (c.Declared.Bundle != nil) != (row.bundle >= 0) {
					t.Errorf("bundle %+v", c.Declared.Bundle)
				}
			}
			if (len(got.Limits) > 0) != (row.limit != "") || row.limit != "" && (!strings.Contains(got.Limits[0].Why, row.limit) || !strings.Contains(got.Limits[0].What, id) || got.Limits[0].Blind) {
				t.Errorf("limits %v", got.Limits)
			}
			// Nothing of it is asked for again, also where nothing was learnt.
			asked := server.Count("ContainerStatus") + server.Count("containers.Get")
			if again := named(t, inventory(t, client), "default"); again.Undeclared != c.Undeclared || again.Declared != c.Declared || again.Reason != c.Reason {
				t.Errorf("at the second look: %+v", again)
			}
			if n := server.Count("ContainerStatus") + server.Count("containers.Get"); n != asked {
				t.Errorf("%d questions more at the second look", n-asked)
			}
		})
	}
}

// TestFailuresAreAskedAboutLessAndLess: what one container's failure costs is bounded.
func TestFailuresAreAskedAboutLessAndLess(t *testing.T) {
	node := one(t, "default")
	node.Containers[0].Info = "{"
	server, client := serve(t, node)
	var asked []int
	before := 0
	for look := range 20 {
		c := named(t, inventory(t, client), "default")
		if !c.Undeclared || c.Observation != drift.Unreadable || c.Reason == "" {
			t.Errorf("look %d: %+v", look, c)
		}
		if n := server.Count("ContainerStatus"); n > before {
			asked, before = append(asked, look), n
		}
	}
	if want := []int{0, 1, 3, 7, 15}; !slices.Equal(asked, want) {
		t.Errorf("asked at looks %v, want %v", asked, want)
	}
}

// TestAStatusThatHangsIsItsOwnAffair: the facts come from the record, and of all others
// as always.
func TestAStatusThatHangsIsItsOwnAffair(t *testing.T) {
	node := load(t, "containerd-2.4.2")
	node.Before = fake.Hang("ContainerStatus")
	client := connect(t, fake.Serve(t, node).Endpoint, patience)
	for _, c := range inventory(t, client).Containers {
		if c.Observation != drift.Observed || c.Declared.OCI == nil || c.InitPID == 0 {
			t.Errorf("%+v", c)
		}
	}
}

// TestAStatusThatHangsAlone: the runtime answers in few words, so it is the container's own
// affair that nothing is known of it, and no other source tells.
func TestAStatusThatHangsAlone(t *testing.T) {
	node := one(t, "default")
	var calls atomic.Int64
	node.Before = func(ctx context.Context, method string) error {
		if method == "ContainerStatus" && calls.Add(1) == 1 {
			<-ctx.Done()
		}
		return ctx.Err()
	}
	client := connect(t, fake.Serve(t, node).Endpoint, patience)
	if c := named(t, inventory(t, client), "default"); c.Observation != drift.Unreadable || !c.Undeclared || !strings.Contains(c.Reason, "no answer within") {
		t.Errorf("%+v", c)
	}
	if c := named(t, inventory(t, client), "default"); c.Observation != drift.Observed || c.Undeclared {
		t.Errorf("at the second look: %+v", c)
	}
}

// TestLargeAnswersWaitForEachOther, and no longer than one timeout: the container for which
// there was no time is asked for at the next look.
func TestLargeAnswersWaitForEachOther(t *testing.T) {
	node, other := one(t, "default"), one(t, "restricted")
	node.Containers, node.Sandboxes = append(node.Containers, other.Containers...), append(node.Sandboxes, other.Sandboxes...)
	for _, c := range node.Containers {
		c.Info = longInfo(500_000)
	}
	var calls atomic.Int64
	both := make(chan struct{}) // are asked for in the usual way
	node.Before = func(ctx context.Context, method string) error {
		if method != "ContainerStatus" {
			return nil
		}
		switch calls.Add(1) {
		case 1:
			<-both
		case 2:
			close(both)
		case 3: // the first one in gzip
			<-ctx.Done()
		}
		return ctx.Err()
	}
	server := fake.Serve(t, node)
	client := connect(t, server.Endpoint, 8*patience) // two large answers under the race detector need some of it
	later := 0
	for _, c := range inventory(t, client).Containers {
		if strings.Contains(c.Reason, "not asked yet") && !c.Undeclared {
			later++
		}
	}
	if later != 1 {
		t.Errorf("%d containers were put off, want 1", later)
	}
	server.Update(func(n *fake.Node) { n.Before = nil })
	for _, c := range inventory(t, client).Containers {
		if c.Observation != drift.Observed || c.Undeclared {
			t.Errorf("at the second look: %+v", c)
		}
	}
}

// TestARuntimeInTroubleSettlesNothing: its failure is no container's own, and is over
// when it is over.
func TestARuntimeInTroubleSettlesNothing(t *testing.T) {
	node := one(t, "default")
	node.Before = fake.Fail(codes.Internal, "no", "ContainerStatus")
	server, client := serve(t, node)
	for range 4 {
		if c := named(t, inventory(t, client), "default"); c.Observation != drift.Unreadable || c.Undeclared {
			t.Errorf("%+v", c)
		}
	}
	server.Update(func(n *fake.Node) { n.Before = nil })
	if c := named(t, inventory(t, client), "default"); c.Observation != drift.Observed {
		t.Errorf("%+v", c)
	}
}

// TestLongListsOfNames: what is kept is bounded and the rest counted, and a capability
// at the end is not lost.
func TestLongListsOfNames(t *testing.T) {
	list := func(name string, n int, last string) string {
		names := make([]string, n, n+1)
		for i := range names {
			names[i] = fmt.Sprintf(name, i)
		}
		text, err := json.Marshal(append(names, last))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	for what, row := range map[string]struct {
		add    string
		kept   int
		reason string
	}{
		"3 MB of names":               {list(strings.Repeat("N", 90)+"%d", 32000, "SYS_ADMIN"), 178, "only 178 of 32001 added capabilities"},
		"many names of <":             {list(strings.Repeat("<", 200)+"%d", 1024, "sys_admin"), 82, "only 82 of 1025 added capabilities"},
		"one long name":               {list(strings.Repeat("<", 1<<20)+"%d", 1, "CAP_SYS_ADMIN"), 2, ""},
		"one capability, many times":  {list("NET_ADMIN%.0s", 5000, "SYS_ADMIN"), 786, "only 786 of 5001"},
		"short names that mean none":  {list("%d", 1100, "SYS_ADMIN"), 1025, "only 1025 of 1101"},
		"as many as there can be use": {list("N%d", 100, "SYS_ADMIN"), 101, ""},
	} {
		t.Run(what, func(t *testing.T) {
			node := one(t, "default")
			node.Containers[0].Info = `{"pid":42,"config":{"linux":{"security_context":{"capabilities":{"add_capabilities":` + row.add +
				`}}}},"runtimeSpec":{"process":{"capabilities":{"bounding":` + list("CAP_BOGUS_%d", 40000, "CAP_SYS_ADMIN") + `}}}}`
			_, client := serve(t, node)
			c := named(t, inventory(t, client), "default")
			kept := c.Declared.CRI.Add
			size := 0
			for _, name := range kept {
				size += len(name)
			}
			if len(kept) != row.kept || size > 17<<10 || !strings.HasSuffix(strings.ToUpper(kept[len(kept)-1]), "SYS_ADMIN") {
				t.Errorf("%d names, %d bytes, the last is %q", len(kept), size, kept[len(kept)-1])
			}
			if !strings.Contains(c.Reason, row.reason) || strings.Contains(c.Reason, "added") != (row.reason != "") {
				t.Errorf("reason %q", c.Reason)
			}
			if oci := c.Declared.OCI; oci.Bounding.Hex() != "0000000000200000" || len(oci.UnknownNames) != 64 || !strings.Contains(c.Reason, "only 64 of 40000 unknown capability names") {
				t.Errorf("OCI %+v, reason %q", oci.Sets, c.Reason)
			}
		})
	}
}
