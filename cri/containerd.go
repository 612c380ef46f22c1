package cri

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"google.golang.org/grpc/metadata"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/drift"
)

const (
	// criNamespace is where containerd's CRI plugin keeps what the kubelet asked
	// for (internal/cri/constants).
	criNamespace = "k8s.io"
	// namespaceHeader names the namespace of a call (pkg/namespaces/grpc.go).
	namespaceHeader = "containerd-namespace"
)

// idsOf collects what the CRI's lists explain.
func idsOf(containers []*runtimeapi.Container, sandboxes []*runtimeapi.PodSandbox) map[string]bool {
	ids := make(map[string]bool, len(containers)+len(sandboxes))
	for _, container := range containers {
		ids[container.GetId()] = true
	}
	for _, sandbox := range sandboxes {
		ids[sandbox.GetId()] = true
	}
	return ids
}

// unmanaged lists the tasks of containerd that the CRI does not explain: all
// those in namespaces other than its own, such as Docker's moby and nerdctl's
// default, and those in its own that it does not know, as ctr makes them.
func (c *Client) unmanaged(ctx context.Context, explained map[string]bool) ([]*subject, []drift.Limit) {
	answer, err := call(ctx, c, namespaces.NewNamespacesClient(c.conn).List, &namespaces.ListNamespacesRequest{})
	if err != nil {
		return nil, []drift.Limit{{What: "containers in containerd that belong to no pod", Why: err.Error(), Blind: true}}
	}
	var subjects []*subject
	var limits []drift.Limit
	for _, namespace := range answer.GetNamespaces() {
		if namespace.GetName() == criNamespace && c.starts.none() {
			continue
		}
		found, err := c.tasks(ctx, namespace.GetName())
		if namespace.GetName() == criNamespace {
			if err == nil {
				found, err = c.unexplained(ctx, found, explained)
			}
			if err != nil || len(found) > 0 {
				c.starts.noted() // there is something to be told each time
			}
		}
		if err != nil {
			limits = append(limits, drift.Limit{
				What: "containers in containerd's namespace " + clip(namespace.GetName()), Why: err.Error(), Blind: true,
			})
			continue
		}
		subjects = append(subjects, found...)
	}
	return subjects, limits
}

// starts tells whether a task can have started in the CRI's namespace since none was
// found that the CRI does not explain. For each task that is listed containerd asks its
// shim, which costs the node more than all else that we ask; so while containerd's
// events are heard and tell of none, they are listed at every sixth time alone.
type starts struct {
	mu     sync.Mutex
	heard  bool // events are
	since  bool // something started, or may have
	passed int  // how often they were not listed
}

// none tells whether there is nothing to list. Else they are listed now, and what
// starts from here on counts.
func (s *starts) none() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.heard && !s.since && s.passed < 5 {
		s.passed++
		return true
	}
	s.since, s.passed = false, 0
	return false
}

func (s *starts) noted() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.since = true
}

func (s *starts) hear(heard bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heard, s.since = heard, true
}

// tasks lists the containers of a namespace that have a running program, paused
// ones too.
func (c *Client) tasks(ctx context.Context, namespace string) ([]*subject, error) {
	inside := metadata.AppendToOutgoingContext(ctx, namespaceHeader, namespace)
	answer, err := call(inside, c, tasks.NewTasksClient(c.conn).List, &tasks.ListTasksRequest{})
	if err != nil {
		return nil, err
	}
	var subjects []*subject
	for _, t := range answer.GetTasks() {
		if t.GetStatus() == task.Status_CREATED || t.GetStatus() == task.Status_STOPPED {
			continue
		}
		id := t.GetID() // its container's; container_id is for execs
		subjects = append(subjects, &subject{
			Container: drift.Container{
				ID: id, Managed: new(false), Origin: "containerd namespace " + clip(namespace), InitPID: int(t.GetPid()),
			},
			// Docker starts a stopped container again under its id, perhaps with
			// another spec.
			key: fmt.Sprintf("%s\x00%s\x00%d", namespace, id, t.GetPid()),
			ask: c.askContainerd(namespace, id),
		})
	}
	return subjects, nil
}

// unexplained keeps the tasks of the CRI's own namespace that it does not know.
// It is asked again after the tasks were listed, for a pod may have started in
// between, and for containers in every state, for a task is there before its
// container counts as running and after it counts as exited.
func (c *Client) unexplained(ctx context.Context, found []*subject, explained map[string]bool) ([]*subject, error) {
	unknown := func(ids map[string]bool) []*subject {
		return slices.DeleteFunc(found, func(s *subject) bool { return ids[s.ID] })
	}
	if found = unknown(explained); len(found) == 0 {
		return nil, nil
	}
	all, err := call(ctx, c, c.cri.ListContainers, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	pods, err := call(ctx, c, c.cri.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	return unknown(idsOf(all.GetContainers(), pods.GetItems())), nil
}

func (c *Client) askContainerd(namespace, id string) func(context.Context) (facts, error) {
	return func(ctx context.Context) (facts, error) {
		ctx = metadata.AppendToOutgoingContext(ctx, namespaceHeader, namespace)
		answer, err := patient(ctx, c, containers.NewContainersClient(c.conn).Get, &containers.GetContainerRequest{ID: id})
		if err != nil {
			return facts{}, err
		}
		container := answer.GetContainer()
		f := facts{name: clip(container.GetLabels()["nerdctl/name"]), image: clip(container.GetImage()), shim: clip(container.GetRuntime().GetName())}
		if len(container.GetSpec().GetValue()) == 0 {
			f.lacks("containerd holds no OCI spec of it")
			return f, nil
		}
		s, err := decodeSpec(container.GetSpec().GetValue())
		if err != nil {
			return f, err // its name and its shim are known all the same
		}
		f.take(s)
		return f, nil
	}
}
