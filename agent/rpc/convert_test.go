package rpc_test

import (
	"context"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/agent/rpc"
	v1 "github.com/capdrift/capdrift/api/capdrift/v1"
	"github.com/capdrift/capdrift/drift"
)

// TestReportsComeBack holds that a report, told and put together again, is the
// same: in memory, and so in the published JSON.
func TestReportsComeBack(t *testing.T) {
	g := gathered(t)
	for range 300 {
		want := g.report(g.IntN(6), g.IntN(6))
		look := rpc.ToProtoLook(want)
		var containers []*v1.Container
		for _, c := range want.Containers {
			containers = append(containers, overWire(t, rpc.ToProtoContainer(c), &v1.Container{}))
		}
		var findings []*v1.Finding
		for _, f := range want.Findings {
			findings = append(findings, overWire(t, rpc.ToProtoFinding(f), &v1.Finding{}))
		}
		got, err := rpc.FromProtoReport(overWire(t, look, &v1.Look{}), containers, findings)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			wantJSON, _ := json.Marshal(want)
			gotJSON, _ := json.Marshal(got)
			t.Fatalf("came back another:\n%s\nwant\n%s", gotJSON, wantJSON)
		}
	}
}

func overWire[M proto.Message](t *testing.T, message, empty M) M {
	t.Helper()
	bytes, err := proto.Marshal(message)
	if err == nil {
		err = proto.Unmarshal(bytes, empty)
	}
	if err != nil {
		t.Fatal(err)
	}
	return empty
}

func TestAbsentIsNotZero(t *testing.T) {
	whole := func() *v1.Container { return rpc.ToProtoContainer(steady().container("c", 2)) }
	for name, spoil := range map[string]func(*v1.Container){
		"no observation":                  func(c *v1.Container) { c.Observation = 0 },
		"nothing of what was declared":    func(c *v1.Container) { c.Declared = nil },
		"a process without sets":          func(c *v1.Container) { c.Processes[0].Capabilities = nil },
		"a process without one set":       func(c *v1.Container) { c.Processes[1].Capabilities.Bounding = nil },
		"a process without observation":   func(c *v1.Container) { c.Processes[1].Observation = 0 },
		"an OCI spec without sets":        func(c *v1.Container) { c.Declared.Oci = &v1.OciSecurity{} },
		"a config.json without sets":      func(c *v1.Container) { c.Declared.Bundle = &v1.OciSecurity{} },
		"a thread without sets":           func(c *v1.Container) { c.Processes[0].Threads = []*v1.Thread{{Tid: 7}} },
		"a process that is not there":     func(c *v1.Container) { c.Processes[0] = nil },
		"a thread that is not there":      func(c *v1.Container) { c.Processes[0].Threads = []*v1.Thread{nil} },
		"an empty message for five names": func(c *v1.Container) { c.Processes[0].Capabilities = &v1.CapabilitySets{} },
	} {
		c := whole()
		spoil(c)
		if got, err := rpc.FromProtoContainer(c); err == nil || !strings.Contains(err.Error(), `container "c"`) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if _, err := rpc.FromProtoContainer(whole()); err != nil {
		t.Error(err)
	}
	if _, err := rpc.FromProtoFinding(&v1.Finding{Id: "f", Capabilities: &v1.Set{}}); err == nil {
		t.Error("a finding without a severity was taken")
	}
	if _, err := rpc.FromProtoFinding(&v1.Finding{Id: "f", Severity: v1.Severity_SEVERITY_LOW}); err == nil {
		t.Error("a finding without its capabilities was taken")
	}
	if _, err := rpc.FromProtoReport(&v1.Look{}, nil, nil); err == nil {
		t.Error("a report without a node was taken")
	}
	old := whole()
	old.Processes[0].Uids, old.Processes[1].Uids = nil, &v1.UserIds{}
	if c, err := rpc.FromProtoContainer(old); err != nil || !c.Processes[0].UIDs.Untold || c.Processes[1].UIDs != (drift.UIDs{}) {
		t.Errorf("an agent that tells no uids has told root's: %+v, %v", c.Processes[0].UIDs, err)
	}
	secret, err := proto.Marshal(rpc.ToProtoFinding(drift.Finding{Evidence: &drift.Evidence{Arguments: []string{"--password", "hunter2"}}}))
	if err != nil || strings.Contains(string(secret), "hunter2") {
		t.Errorf("arguments are on the wire: %q, %v", secret, err)
	}
	later := whole()
	later.Observation = 77
	if c, err := rpc.FromProtoContainer(later); err != nil || c.Observation != "77" {
		t.Errorf("an observation of a later version: %q, %v", c.Observation, err)
	}
}

// TestLargeOnesComeInParts scans a node with a container of thousands of processes
// and a process of thousands of threads, which a client with gRPC's usual limit of
// 4 MiB receives whole.
func TestLargeOnesComeInParts(t *testing.T) {
	g := steady()
	report := g.report(3, 2000)
	report.Containers = append(report.Containers, g.container("many", 3000), g.container("threads", 2), g.container("last", 1))
	process := &report.Containers[4].Processes[0]
	for tid := range 4000 {
		process.Threads = append(process.Threads, g.thread(tid+100))
	}
	process.ThreadCount = 4001
	f := newFeed()
	f.publish(report)
	conn := onSocket(t, f, rpc.Options{Scanner: scanner(func(context.Context) (agent.View, error) {
		view, _ := f.View()
		return view, nil
	})})
	client := v1.NewAgentServiceClient(conn)
	stream, err := client.Scan(soon(t), &v1.ScanRequest{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := rpc.ReadScan(stream)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, report) {
		t.Error("the report came back another")
	}

	t.Run("in pages", func(t *testing.T) {
		var parts []*v1.Container
		for request := (&v1.ListContainersRequest{View: v1.ContainerView_CONTAINER_VIEW_FULL}); ; {
			page, err := client.ListContainers(soon(t), request)
			if err != nil {
				t.Fatal(err)
			}
			if size := proto.Size(page); size > 1<<20+1<<16 {
				t.Errorf("a page has %d bytes", size)
			}
			parts = append(parts, page.Containers...)
			if request.PageToken = page.NextPageToken; request.PageToken == "" {
				break
			}
		}
		same(t, parts, report.Containers)
	})
	t.Run("one of them", func(t *testing.T) {
		var parts []*v1.Container
		for request := (&v1.GetContainerRequest{Id: "threads"}); ; {
			page, err := client.GetContainer(soon(t), request)
			if err != nil {
				t.Fatal(err)
			}
			parts = append(parts, page.Container)
			if request.PageToken = page.NextPageToken; request.PageToken == "" {
				break
			}
		}
		if len(parts) < 3 {
			t.Errorf("it came in %d parts", len(parts))
		}
		same(t, parts, report.Containers[4:5])
	})
	t.Run("one of them ends between two pages", func(t *testing.T) {
		page, err := client.GetContainer(soon(t), &v1.GetContainerRequest{Id: "threads"})
		if err != nil {
			t.Fatal(err)
		}
		smaller := report
		smaller.Containers = append([]drift.Container{}, report.Containers...)
		smaller.Containers[4].Processes = report.Containers[4].Processes[1:]
		f.publish(smaller)
		rest, err := client.GetContainer(soon(t), &v1.GetContainerRequest{Id: "threads", PageToken: page.NextPageToken})
		if err != nil {
			t.Fatal(err)
		}
		whole, err := rpc.JoinParts([]*v1.Container{page.Container, rest.Container})
		if err != nil || len(whole) != 1 || len(whole[0].Processes) != 2 {
			t.Errorf("%d containers, %v", len(whole), err)
		}
	})
}

// same compares containers whatever their order.
func same(t *testing.T, parts []*v1.Container, want []drift.Container) {
	t.Helper()
	whole, err := rpc.JoinParts(parts)
	if err != nil {
		t.Fatal(err)
	}
	byID := make(map[string]drift.Container)
	for _, c := range want {
		byID[c.ID] = c
	}
	for _, message := range whole {
		got, err := rpc.FromProtoContainer(message)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, byID[got.ID]) {
			t.Errorf("container %s came back another", got.ID)
		}
		delete(byID, got.ID)
	}
	if len(byID) != 0 {
		t.Errorf("%d containers did not come", len(byID))
	}
}

// TestInventedParts holds that parts which do not belong together are noticed.
func TestInventedParts(t *testing.T) {
	for name, parts := range map[string][]*v1.Container{
		"another container's": {{Id: "a", More: true}, {Id: "b"}},
		"no more":             {{Id: "a", More: true}},
	} {
		if whole, err := rpc.JoinParts(parts); err == nil {
			t.Errorf("%s: %v", name, whole)
		}
	}
}

func FuzzFromProto(f *testing.F) {
	for _, c := range []drift.Container{ // small ones, which the fuzzer can take apart
		{ID: "c", Observation: drift.Observed},
		{ID: "c", Observation: drift.Partial, Processes: []drift.Process{{PID: 1, Name: "\xff", Observation: drift.Starting, Threads: []drift.Thread{{TID: 2}}}}},
		{ID: "c", Observation: drift.Partial, Declared: drift.Declared{CRI: &drift.CRI{Add: []string{"a"}}, OCI: &drift.OCI{}}},
	} {
		bytes, _ := proto.Marshal(rpc.ToProtoContainer(c))
		f.Add(bytes)
	}
	f.Fuzz(func(t *testing.T, bytes []byte) {
		var message v1.Container
		if proto.Unmarshal(bytes, &message) != nil {
			return
		}
		container, err := rpc.FromProtoContainer(&message)
		if err != nil {
			return
		}
		again, err := rpc.FromProtoContainer(overWire(t, rpc.ToProtoContainer(container), &v1.Container{}))
		if container.Observation != again.Observation && err == nil {
			t.Errorf("%q became %q", container.Observation, again.Observation)
		}
	})
}
