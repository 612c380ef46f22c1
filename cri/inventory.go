package cri

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/drift"
)

// subject is a container that a list named, and how to learn the rest.
type subject struct {
	drift.Container
	sandboxID string
	key       string // under which its facts are kept
	ask       func(context.Context) (facts, error)

	facts facts
	err   error
}

// Inventory lists what runs now: the containers of pods, their sandboxes, and
// the containers of containerd that no pod explains, sorted by pod, container
// name and id. A status is asked for once per container and kept until the
// container is gone; the declared layers of two inventories are therefore the
// same values, which must not be written to.
//
// An error means that the runtime could not be asked at all. One container that
// could not be read is in the inventory, with the reason; what could not be
// listed is among its limits.
func (c *Client) Inventory(ctx context.Context) (drift.Inventory, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	runtime, err := c.version(ctx)
	if err != nil {
		return drift.Inventory{}, err
	}
	c.configure(ctx, &runtime)
	// Containers before sandboxes: those of each one listed are then there too.
	all, err := call(ctx, c, c.cri.ListContainers, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return drift.Inventory{}, err
	}
	pods, err := call(ctx, c, c.cri.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return drift.Inventory{}, err
	}
	subjects := c.listed(all.GetContainers(), pods.GetItems())
	inventory := drift.Inventory{Runtime: runtime, Starting: starting(all.GetContainers()), Limits: slices.Clone(c.passed)}
	if runtime.Name == "containerd" {
		unmanaged, limits := c.unmanaged(ctx, idsOf(all.GetContainers(), pods.GetItems()))
		subjects = append(subjects, unmanaged...)
		inventory.Limits = append(inventory.Limits, limits...)
	}
	c.learn(ctx, subjects)
	if ctx.Err() != nil {
		return drift.Inventory{}, fmt.Errorf("%s: %w", c.path, ctx.Err())
	}
	inventory.Containers = conclude(subjects)
	return inventory, nil
}

// listed makes a subject of each running container and each ready sandbox.
func (c *Client) listed(all []*runtimeapi.Container, pods []*runtimeapi.PodSandbox) []*subject {
	sandboxes := make(map[string]*runtimeapi.PodSandbox, len(pods))
	var subjects []*subject
	for _, sandbox := range pods {
		sandboxes[sandbox.GetId()] = sandbox
		if sandbox.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY {
			continue
		}
		subjects = append(subjects, &subject{
			Container: drift.Container{
				ID: sandbox.GetId(), Name: "pause", Sandbox: true, Managed: new(true),
				Pod: podOf(sandbox, sandbox.GetLabels()), Labels: labelsOf(sandbox), RuntimeHandler: clip(sandbox.GetRuntimeHandler()),
			},
			sandboxID: sandbox.GetId(), key: sandbox.GetId(), ask: c.askSandbox(sandbox),
		})
	}
	for _, container := range all {
		if container.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			continue
		}
		sandbox := sandboxes[container.GetPodSandboxId()]
		subjects = append(subjects, &subject{
			Container: drift.Container{
				ID: container.GetId(), Name: clip(container.GetMetadata().GetName()), Managed: new(true),
				Image: clip(cmp.Or(container.GetImage().GetUserSpecifiedImage(), container.GetImage().GetImage(), container.GetImageRef())),
				Pod:   podOf(sandbox, container.GetLabels()), Labels: labelsOf(sandbox), RuntimeHandler: clip(sandbox.GetRuntimeHandler()),
				Created: createdAt(sandbox),
			},
			sandboxID: container.GetPodSandboxId(), key: container.GetId(), ask: c.askContainer(container.GetId()),
		})
	}
	return subjects
}

// starting returns the containers that are made and do not count as running yet.
// While one starts, the OCI runtime and its createContainer hooks are in its
// cgroup, for as long as a hook takes.
func starting(all []*runtimeapi.Container) []string {
	var ids []string
	for _, container := range all {
		if s := container.GetState(); s == runtimeapi.ContainerState_CONTAINER_CREATED || s == runtimeapi.ContainerState_CONTAINER_UNKNOWN {
			ids = append(ids, container.GetId())
		}
	}
	return ids
}

// podOf takes the pod from its sandbox, else from the labels that the kubelet
// puts on every container (pkg/kubelet/types/labels.go); nil when neither tells.
func podOf(sandbox *runtimeapi.PodSandbox, labels map[string]string) *drift.Pod {
	pod := drift.Pod{
		Namespace: clip(cmp.Or(sandbox.GetMetadata().GetNamespace(), labels["io.kubernetes.pod.namespace"])),
		Name:      clip(cmp.Or(sandbox.GetMetadata().GetName(), labels["io.kubernetes.pod.name"])),
		UID:       clip(cmp.Or(sandbox.GetMetadata().GetUid(), labels["io.kubernetes.pod.uid"])),
	}
	if pod == (drift.Pod{}) {
		return nil
	}
	return &pod
}

// What is kept of a pod's labels. A key has at most 317 bytes and a value 63, and nothing
// but the size of a pod bounds how many there are.
const (
	maxLabels     = 100
	maxLabelBytes = 16 << 10
)

// labelsOf takes the labels that the kubelet gave to a pod's sandbox, and that do not
// change afterwards (pkg/kubelet/kuberuntime/labels.go); nil for more than are kept, because a
// label that is left out would look like one that is not there.
func labelsOf(sandbox *runtimeapi.PodSandbox) []string {
	if sandbox == nil || len(sandbox.GetLabels()) > maxLabels {
		return nil
	}
	labels, bytes := make([]string, 0, len(sandbox.GetLabels())), 0
	for key, value := range sandbox.GetLabels() {
		labels, bytes = append(labels, key+"="+value), bytes+len(key)+len(value)
	}
	if bytes > maxLabelBytes {
		return nil
	}
	slices.Sort(labels)
	return labels
}

// createdAt is when the sandbox was made, zero when no sandbox tells.
func createdAt(sandbox *runtimeapi.PodSandbox) time.Time {
	if sandbox.GetCreatedAt() == 0 {
		return time.Time{}
	}
	return time.Unix(0, sandbox.GetCreatedAt())
}

func (c *Client) askContainer(id string) func(context.Context) (facts, error) {
	return func(ctx context.Context) (facts, error) {
		answer, err := patient(ctx, c, c.cri.ContainerStatus, &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
		if err != nil {
			return facts{}, err
		}
		// CRI-O keeps the pid of a container that has ended since.
		if answer.GetStatus().GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			return facts{}, errVanished
		}
		f, err := decodeInfo(answer.GetInfo())
		if err == nil {
			f.bundle = c.bundle(id)
		}
		return f, err
	}
}

func (c *Client) askSandbox(sandbox *runtimeapi.PodSandbox) func(context.Context) (facts, error) {
	return func(ctx context.Context) (facts, error) {
		answer, err := patient(ctx, c, c.cri.PodSandboxStatus, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sandbox.GetId(), Verbose: true})
		if err != nil {
			return facts{}, err
		}
		if answer.GetStatus().GetState() != runtimeapi.PodSandboxState_SANDBOX_READY {
			return facts{}, errVanished
		}
		f, err := decodeSandbox(answer.GetInfo())
		// CRI-O tells the handler in an annotation alone, among those of the pod's
		// author, who could pass for a virtual machine by writing one of that name.
		if forgeable(sandbox.GetAnnotations()) || forgeable(sandbox.GetLabels()) {
			f.handler = ""
		}
		return f, err
	}
}

func forgeable(written map[string]string) bool {
	for key := range written {
		if strings.EqualFold(key, "io.kubernetes.cri-o.RuntimeHandler") {
			return true
		}
	}
	return false
}

// patient makes a call whose answer is of the usual size and, where it is larger,
// makes it again: those are waited for one at a time, since a few of them at once
// would fill the memory of a small agent.
func patient[Request proto.Message, Answer any](
	ctx context.Context, c *Client, method func(context.Context, Request, ...grpc.CallOption) (Answer, error), request Request,
) (Answer, error) {
	answer, err := call(ctx, c, method, request, grpc.MaxCallRecvMsgSize(usualInfo))
	if !errors.Is(err, errTooLarge) {
		return answer, err
	}
	c.large.Lock()
	defer c.large.Unlock()
	return call(ctx, c, method, request, grpc.MaxCallRecvMsgSize(largeInfo))
}

// learn asks for the facts that are not known yet, several at once, and forgets
// those of containers that are gone.
func (c *Client) learn(ctx context.Context, subjects []*subject) {
	var unanswered atomic.Int64
	var group errgroup.Group
	group.SetLimit(c.parallel)
	for _, s := range subjects {
		if known, ok := c.known[s.key]; ok {
			s.facts = known
			continue
		}
		group.Go(func() error {
			// A runtime that hangs costs one timeout, not one per container.
			if n := unanswered.Load(); n >= int64(c.parallel) {
				s.err = fmt.Errorf("%s: not asked, because %d questions before it stayed without an answer", c.path, n)
				return nil
			}
			s.facts, s.err = s.ask(ctx)
			if errors.Is(s.err, context.DeadlineExceeded) {
				unanswered.Add(1)
			}
			return nil
		})
	}
	_ = group.Wait() // no error: each is kept with its container
	if ctx.Err() != nil {
		return
	}
	c.known = make(map[string]facts, len(subjects))
	for _, s := range subjects {
		if s.err == nil {
			c.known[s.key] = s.facts
		}
	}
}

// conclude makes the containers of an inventory out of what was learnt.
func conclude(subjects []*subject) []drift.Container {
	handlers := map[string]string{} // by sandbox, where only its status tells
	for _, s := range subjects {
		if s.Sandbox {
			handlers[s.sandboxID] = s.facts.handler
		}
	}
	containers := make([]drift.Container, 0, len(subjects))
	for _, s := range subjects {
		if errors.Is(s.err, errVanished) || s.facts.spoofed {
			continue
		}
		container := s.Container
		container.RuntimeHandler = cmp.Or(container.RuntimeHandler, handlers[s.sandboxID])
		container.Name = cmp.Or(container.Name, s.facts.name, container.ID)
		container.Image = cmp.Or(container.Image, s.facts.image)
		container.InitPID = cmp.Or(container.InitPID, s.facts.pid)
		container.CgroupPath, container.Binary = s.facts.cgroupPath, s.facts.binary
		container.Declared = drift.Declared{CRI: s.facts.cri, OCI: s.facts.oci, Bundle: s.facts.bundle, Privileged: s.facts.privileged}
		container.Observation = drift.Observed
		guest := s.facts.unsupported(container.RuntimeHandler)
		switch {
		case guest != "":
			container.Observation, container.Reason = drift.UnsupportedRuntime, guest
		case s.err != nil:
			container.Observation, container.Reason = drift.Unreadable, s.err.Error()
		case len(s.facts.missing) > 0:
			container.Observation, container.Reason = drift.Partial, strings.Join(s.facts.missing, "; ")
		}
		containers = append(containers, container)
	}
	slices.SortFunc(containers, func(a, b drift.Container) int {
		podA, podB := cmp.Or(a.Pod, &drift.Pod{}), cmp.Or(b.Pod, &drift.Pod{})
		return cmp.Or(
			strings.Compare(podA.Namespace, podB.Namespace), strings.Compare(podA.Name, podB.Name),
			strings.Compare(a.Name, b.Name), strings.Compare(a.ID, b.ID),
		)
	})
	return containers
}
