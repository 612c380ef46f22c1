package cri

import (
	"fmt"
	"io"
	"testing"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/drift"
)

// endless streams batches of a thousand without an end.
type endless struct {
	grpc.ServerStreamingClient[runtimeapi.StreamContainersResponse]
	sent int
}

func (e *endless) Recv() (*runtimeapi.StreamContainersResponse, error) {
	if e.sent > 2*maxTold {
		return nil, io.ErrUnexpectedEOF // somebody reads on
	}
	answer := &runtimeapi.StreamContainersResponse{}
	for range 1000 {
		answer.Containers = append(answer.Containers, &runtimeapi.Container{
			Id: fmt.Sprint(e.sent), Annotations: map[string]string{"a": "long"}, Labels: map[string]string{"io.kubernetes.pod.name": "web", "b": "long"},
		})
		e.sent++
	}
	return answer, nil
}

// TestListsAreBounded: a stream without an end is left, what is kept of it is counted, and of each
// container only what is needed is held.
func TestListsAreBounded(t *testing.T) {
	items, err := receive(&endless{}, nil, func(answer *runtimeapi.StreamContainersResponse) []*runtimeapi.Container {
		return trimContainers(answer.GetContainers())
	})
	if err != nil || len(items) > maxTold+1000 {
		t.Fatalf("%d items, %v", len(items), err)
	}
	var limits []drift.Limit
	kept := (&listing[*runtimeapi.Container]{what: "containers", items: items}).bounded(&limits)
	if len(kept) != maxTold || len(limits) != 1 || !limits[0].Blind {
		t.Errorf("%d kept, limits %+v", len(kept), limits)
	}
	if c := kept[0]; c.GetAnnotations() != nil || len(c.GetLabels()) != 1 {
		t.Errorf("held: %v", c)
	}
	sandboxes := trimSandboxes([]*runtimeapi.PodSandbox{
		{Annotations: map[string]string{"a": "long"}}, {Annotations: map[string]string{"a": "long", "io.kubernetes.CRI-O.runtimehandler": "kata"}},
	})
	if sandboxes[0].GetAnnotations() != nil || !forgeable(sandboxes[1].GetAnnotations()) || len(sandboxes[1].GetAnnotations()) != 1 {
		t.Errorf("held: %v", sandboxes)
	}
}
