package cri_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/cri/fake"
)

// crowd is a node of 300 pods with 40 containers each, of which one runs and the others ended,
// whose annotations have the given sizes.
func crowd(running, ended, pod int) *fake.Node {
	node := &fake.Node{Name: "cri-o", Version: "1.30.0", MaxSend: sendsAtMost}
	for n := range 300 {
		sandbox := fmt.Sprintf("%064x", n)
		node.Sandboxes = append(node.Sandboxes, &fake.Sandbox{
			Status: &runtimeapi.PodSandboxStatus{
				Id: sandbox, State: runtimeapi.PodSandboxState_SANDBOX_READY, Metadata: &runtimeapi.PodSandboxMetadata{Name: fmt.Sprint("pod-", n), Namespace: "crowd"},
				Annotations: map[string]string{"note": strings.Repeat("x", pod)},
			},
			Info: `{"runtimeSpec":{}}`,
		})
		for at := range 40 {
			state, size := runtimeapi.ContainerState_CONTAINER_EXITED, ended
			if at == 0 {
				state, size = runtimeapi.ContainerState_CONTAINER_RUNNING, running
			}
			node.Containers = append(node.Containers, &fake.Container{
				SandboxID: sandbox,
				Status: &runtimeapi.ContainerStatus{
					Id: fmt.Sprintf("%032x%032x", n, at+1), Metadata: &runtimeapi.ContainerMetadata{Name: fmt.Sprint("c-", at)}, State: state,
					Annotations: map[string]string{"preStop": strings.Repeat("x", size)},
				},
				Info: `{"pid":7,"runtimeSpec":{"process":{"capabilities":{"bounding":["CAP_KILL"]}},"linux":{"cgroupsPath":"/x"}}}`,
			})
		}
	}
	return node
}

// TestTwelveThousandContainers: lists that do not fit into one answer are taken in parts.
func TestTwelveThousandContainers(t *testing.T) {
	for what, row := range map[string]struct {
		running, ended, pod int
		batch               int
		asked               string // for the second inventory
		limits              int
	}{
		"lists that fit":                {asked: "ListContainers 1, ListPodSandbox 1"},
		"a runtime that streams":        {ended: 1500, batch: 5000, asked: "StreamContainers 1, StreamPodSandboxes 1"},
		"batches that do not fit":       {ended: 1500, batch: 12_000, asked: "ListContainers 304, StreamContainers 1, StreamPodSandboxes 1"},
		"those that ended are too many": {ended: 1500, asked: "ListContainers 304, ListPodSandbox 2"},
		"those that run are too large":  {running: 60_000, asked: "ListContainers 304, ListPodSandbox 2"},
		"pods are too large":            {pod: 60_000, asked: "ListContainers 4, ListPodSandbox 302", limits: 1},
		"pods are too large to stream":  {pod: 60_000, batch: 300, asked: "ListPodSandbox 302, StreamContainers 1, StreamPodSandboxes 1", limits: 1},
	} {
		t.Run(what, func(t *testing.T) {
			node := crowd(row.running, row.ended, row.pod)
			node.Batch = row.batch
			server, client := serve(t, node)
			for look := range 2 {
				before := len(server.Calls())
				got := inventory(t, client)
				if len(got.Containers) != 300 || len(got.Ended) == 0 || got.Containers[0].Pod == nil || got.Containers[0].Pod.Namespace != "crowd" {
					t.Fatalf("%d containers, %d ended", len(got.Containers), len(got.Ended))
				}
				if len(got.Limits) != row.limits || row.limits > 0 && (!got.Limits[0].Blind || !strings.Contains(got.Limits[0].Why, "too large")) {
					t.Errorf("limits %v", got.Limits)
				}
				if asked := lists(server.Calls()[before:]); look > 0 && asked != row.asked {
					t.Errorf("asked %s, want %s", asked, row.asked)
				}
			}
		})
	}
}

// lists counts the calls that list.
func lists(calls []string) string {
	counts := make(map[string]int)
	for _, call := range calls {
		if strings.HasPrefix(call, "List") || strings.HasPrefix(call, "Stream") {
			counts[call]++
		}
	}
	var told []string
	for call, n := range counts {
		told = append(told, fmt.Sprint(call, " ", n))
	}
	slices.Sort(told)
	return strings.Join(told, ", ")
}

// TestListsOfAnotherRuntime: what was found of a runtime's lists is forgotten when it restarts.
func TestListsOfAnotherRuntime(t *testing.T) {
	node := crowd(0, 0, 0)
	node.Containers, node.Sandboxes = node.Containers[:40], node.Sandboxes[:1]
	full := true
	node.Before = func(_ context.Context, method string) error {
		if full && method == "ListContainers" {
			full = false
			return status.Error(codes.ResourceExhausted, "trying to send message larger than max")
		}
		return nil
	}
	server := fake.Serve(t, node)
	client := connect(t, server.Endpoint, time.Minute)
	_ = inventory(t, client)
	if got := lists(server.Calls()); got != "ListContainers 5, ListPodSandbox 2, StreamContainers 1" {
		t.Errorf("at first %s", got)
	}
	server.Stop()
	again, err := fake.Start(node, server.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Stop()
	for {
		_, err := client.Inventory(t.Context())
		if err == nil {
			break
		}
	}
	if got := lists(again.Calls()); got != "ListContainers 1, ListPodSandbox 1" {
		t.Errorf("after the restart %s", got)
	}
}

// TestAContainerThatEndsWhileItIsListed is told once, as ended.
func TestAContainerThatEndsWhileItIsListed(t *testing.T) {
	node := crowd(0, 0, 0)
	node.Containers, node.Sandboxes, node.MaxSend = node.Containers[:1], node.Sandboxes[:1], 0
	server := fake.Serve(t, node)
	server.Update(func(n *fake.Node) {
		n.Before = func(_ context.Context, method string) error {
			switch {
			case method == "ListContainers" && server.Count(method) == 1:
				return status.Error(codes.ResourceExhausted, "trying to send message larger than max")
			case method == "ListContainers" && server.Count(method) == 4: // those that run were asked for
				server.Update(func(n *fake.Node) { n.Containers[0].Status.State = runtimeapi.ContainerState_CONTAINER_EXITED })
			}
			return nil
		}
	})
	got := inventory(t, connect(t, server.Endpoint, time.Minute))
	if len(got.Containers) != 0 || len(got.Ended) != 1 || got.Ended[0].ID != node.Containers[0].Status.GetId() {
		t.Errorf("%d containers, ended %+v", len(got.Containers), got.Ended)
	}
}
