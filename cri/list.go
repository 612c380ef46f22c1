package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/drift"
)

// maxTold bounds the containers, and the sandboxes, that are taken from the runtime's lists.
const maxTold = 1 << 16

// lists is what the runtime lists: containers and sandboxes in every state.
type lists struct {
	containers []*runtimeapi.Container
	sandboxes  []*runtimeapi.PodSandbox
	limits     []drift.Limit
}

// part names the part of a list that is asked for: items in one state, of one pod's sandbox.
// The zero value is all of it.
type part struct {
	state   *int32
	sandbox string
}

// listing is one of the two lists while it is asked for.
type listing[Item interface{ GetId() string }] struct {
	what   string
	states []int32 // in the order in which an item passes through them
	ask    func(context.Context, part) ([]Item, error)
	stream func(context.Context) ([]Item, error)

	items []Item
	parts bool    // they come from several answers, between which time passed
	over  []int32 // the states of which the list is too large for one answer
}

// list asks for both lists. A list that is too large for one answer is asked for as a stream
// (KEP-5825: containerd 2.4, CRI-O 1.36), else state by state, and a state that is too large
// pod by pod. What these do not tell is a limit.
func (c *Client) list(ctx context.Context) (lists, error) {
	containers, sandboxes := c.containerListing(), c.sandboxListing()
	// Containers before sandboxes: those of each one listed are then there too.
	if err := containers.whole(ctx, c); err != nil {
		return lists{}, err
	}
	if err := sandboxes.whole(ctx, c); err != nil {
		return lists{}, err
	}
	var l lists
	if len(sandboxes.over) > 0 {
		l.limits = append(l.limits, drift.Limit{
			What: "pod sandboxes, and containers in them, of which the runtime lists no other container", Blind: true,
			Why: c.path + ": ListPodSandbox: " + errTooLarge.Error() + ", and this runtime does not stream it: only sandboxes of containers that are listed can be asked for one by one",
		})
	}
	pods := make([]string, 0, len(sandboxes.items))
	for _, sandbox := range sandboxes.items {
		pods = append(pods, sandbox.GetId())
	}
	for _, container := range containers.items {
		pods = append(pods, container.GetPodSandboxId())
	}
	slices.Sort(pods)
	pods = slices.Compact(pods)
	unread, err := containers.byPod(ctx, c, pods)
	if err != nil {
		return lists{}, err
	}
	l.limits = append(l.limits, unread...)
	if unread, err = sandboxes.byPod(ctx, c, pods); err != nil {
		return lists{}, err
	}
	l.limits = append(l.limits, unread...)
	l.containers = containers.bounded(&l.limits)
	l.sandboxes = sandboxes.bounded(&l.limits)
	return l, nil
}

// whole asks for all items, but for the states that are too large for one answer.
func (l *listing[Item]) whole(ctx context.Context, c *Client) (err error) {
	if !c.wide.Load() {
		if l.items, err = l.ask(ctx, part{}); !errors.Is(err, errTooLarge) {
			return err
		}
		c.wide.Store(true)
	}
	if !c.streamless.Load() {
		switch l.items, err = l.stream(ctx); {
		case errors.Is(err, errUnimplemented):
			c.streamless.Store(true)
		case !errors.Is(err, errTooLarge):
			return err
		}
	}
	// An item that passes on meanwhile is in two of the lists, and never in none.
	l.items, l.parts = nil, true
	for _, state := range l.states {
		items, err := l.ask(ctx, part{state: &state})
		switch {
		case errors.Is(err, errTooLarge):
			l.over = append(l.over, state)
		case err != nil:
			return err
		}
		l.items = append(l.items, items...)
	}
	return nil
}

// byPod asks for the states that are left, of one pod after the other. What one pod's author
// can write fits into one answer; a pod of which it does not is a limit.
func (l *listing[Item]) byPod(ctx context.Context, c *Client, pods []string) ([]drift.Limit, error) {
	if len(l.over) == 0 {
		return nil, nil
	}
	found := make([][]Item, len(pods))
	failed := make([]error, len(pods))
	var group errgroup.Group
	group.SetLimit(c.parallel)
	for at, pod := range pods {
		group.Go(func() error {
			for _, state := range l.over {
				items, err := l.ask(ctx, part{state: &state, sandbox: pod})
				if err != nil && !errors.Is(err, errTooLarge) {
					return err
				}
				found[at], failed[at] = append(found[at], items...), errors.Join(failed[at], err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var limits []drift.Limit
	for at, pod := range pods {
		if failed[at] != nil {
			limits = append(limits, drift.Limit{What: fmt.Sprintf("%s of pod sandbox %s", l.what, InventoryID(criNamespace, pod)), Why: failed[at].Error(), Blind: true})
		}
		l.items = append(l.items, found[at]...)
	}
	return limits, nil
}

// bounded returns the items, those of several answers once as they were told last, and notes where there are more
// than are taken.
func (l *listing[Item]) bounded(limits *[]drift.Limit) []Item {
	at := make(map[string]int, len(l.items))
	kept := l.items[:0]
	for _, item := range l.items {
		if first, again := at[item.GetId()]; again && l.parts {
			kept[first] = item
			continue
		}
		if len(kept) == maxTold {
			*limits = append(*limits, drift.Limit{What: "some " + l.what, Why: fmt.Sprintf("the runtime lists more than %d", maxTold), Blind: true})
			break
		}
		at[item.GetId()] = len(kept)
		kept = append(kept, item)
	}
	return kept
}

func (c *Client) containerListing() *listing[*runtimeapi.Container] {
	return &listing[*runtimeapi.Container]{
		what: "containers",
		states: []int32{
			int32(runtimeapi.ContainerState_CONTAINER_CREATED), int32(runtimeapi.ContainerState_CONTAINER_RUNNING),
			int32(runtimeapi.ContainerState_CONTAINER_UNKNOWN), int32(runtimeapi.ContainerState_CONTAINER_EXITED),
		},
		ask: func(ctx context.Context, p part) ([]*runtimeapi.Container, error) {
			request := &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: p.sandbox}}
			if p.state != nil {
				request.Filter.State = &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState(*p.state)}
			}
			answer, err := call(ctx, c, c.cri.ListContainers, request)
			return trimContainers(answer.GetContainers()), err
		},
		stream: func(ctx context.Context) ([]*runtimeapi.Container, error) {
			return call(ctx, c, func(ctx context.Context, request *runtimeapi.StreamContainersRequest, options ...grpc.CallOption) ([]*runtimeapi.Container, error) {
				stream, err := c.cri.StreamContainers(ctx, request, options...)
				return receive(stream, err, func(answer *runtimeapi.StreamContainersResponse) []*runtimeapi.Container {
					return trimContainers(answer.GetContainers())
				})
			}, &runtimeapi.StreamContainersRequest{})
		},
	}
}

func (c *Client) sandboxListing() *listing[*runtimeapi.PodSandbox] {
	return &listing[*runtimeapi.PodSandbox]{
		what:   "the sandbox",
		states: []int32{int32(runtimeapi.PodSandboxState_SANDBOX_READY), int32(runtimeapi.PodSandboxState_SANDBOX_NOTREADY)},
		ask: func(ctx context.Context, p part) ([]*runtimeapi.PodSandbox, error) {
			request := &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{Id: p.sandbox}}
			if p.state != nil {
				request.Filter.State = &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState(*p.state)}
			}
			answer, err := call(ctx, c, c.cri.ListPodSandbox, request)
			return trimSandboxes(answer.GetItems()), err
		},
		stream: func(ctx context.Context) ([]*runtimeapi.PodSandbox, error) {
			return call(ctx, c, func(ctx context.Context, request *runtimeapi.StreamPodSandboxesRequest, options ...grpc.CallOption) ([]*runtimeapi.PodSandbox, error) {
				stream, err := c.cri.StreamPodSandboxes(ctx, request, options...)
				return receive(stream, err, func(answer *runtimeapi.StreamPodSandboxesResponse) []*runtimeapi.PodSandbox {
					return trimSandboxes(answer.GetPodSandboxes())
				})
			}, &runtimeapi.StreamPodSandboxesRequest{})
		},
	}
}

// receive reads a stream to its end, or until it told more than is taken.
func receive[Answer, Item any](stream grpc.ServerStreamingClient[Answer], err error, take func(*Answer) []Item) (items []Item, _ error) {
	if err != nil {
		return nil, err
	}
	for len(items) <= maxTold {
		answer, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return items, nil
		}
		if err != nil {
			return nil, err
		}
		items = append(items, take(answer)...)
	}
	return items, nil
}

// podLabels are the labels of a container that are needed where its sandbox is not listed.
var podLabels = []string{"io.kubernetes.pod.namespace", "io.kubernetes.pod.name", "io.kubernetes.pod.uid"}

// trimContainers lets go of what is not needed and what a pod's author may have made large.
func trimContainers(containers []*runtimeapi.Container) []*runtimeapi.Container {
	for _, container := range containers {
		needed := make(map[string]string, len(podLabels))
		for _, key := range podLabels {
			if value, ok := container.GetLabels()[key]; ok {
				needed[key] = value
			}
		}
		container.Labels, container.Annotations = needed, nil
	}
	return containers
}

// trimSandboxes is trimContainers for sandboxes, of whose annotations it only matters whether
// one is of a certain name.
func trimSandboxes(sandboxes []*runtimeapi.PodSandbox) []*runtimeapi.PodSandbox {
	for _, sandbox := range sandboxes {
		var needed map[string]string
		if forgeable(sandbox.GetAnnotations()) {
			needed = map[string]string{handlerAnnotation: ""}
		}
		sandbox.Annotations = needed
	}
	return sandboxes
}
