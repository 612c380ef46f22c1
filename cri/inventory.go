package cri

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/drift"
)

// subject is a container that a list named, and how to learn the rest.
type subject struct {
	drift.Container
	id        string // as the runtime has it, and unbounded
	namespace string // containerd's
	sandboxID string
	image     image  // as it is listed
	key       string // under which its facts are kept
	ask       func(context.Context) (facts, error)
	runs      func(context.Context) (bool, error) // asked in few words; nil outside the CRI

	facts facts
	err   error
	asked bool // this time; of one that ended, ever
	// settled is true where the failure is this container's own.
	settled bool
	// stateless is true where the runtime lists it and does not know its state.
	stateless bool
}

// Inventory lists what runs now: the containers of pods, their sandboxes, and
// the containers of containerd that no pod explains, sorted by pod, container
// name and id. A status is asked for once per container and kept until the
// container is gone; the declared layers of two inventories are therefore the
// same values, which must not be written to. What a failure left unknown is asked for
// again less and less often.
//
// Containers that ended, and sandboxes, are told as long as the CRI lists them, the
// newest few hundred: what is beyond is no limit, because a process that is left in the
// cgroup of such a one is found all the same, as nobody's.
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
	lists, err := c.list(ctx)
	if err != nil {
		return drift.Inventory{}, err
	}
	budget, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	c.large.over = budget
	subjects, ended := c.listed(lists.containers, lists.sandboxes)
	inventory := drift.Inventory{Runtime: runtime, Starting: c.starting(lists.containers, lists.sandboxes), Limits: slices.Concat(c.passed, lists.limits)}
	ended = slices.DeleteFunc(ended, func(s *subject) bool { // one that is not ready yet
		return slices.Contains(inventory.Starting, InventoryID(s.namespace, s.id))
	})
	if c.containerd = runtime.Name == "containerd"; c.containerd {
		unmanaged, limits := c.unmanaged(ctx, idsOf(lists.containers, lists.sandboxes))
		subjects = append(subjects, unmanaged...)
		inventory.Limits = append(inventory.Limits, limits...)
	}
	identify(slices.Concat(subjects, ended))
	c.learn(ctx, subjects, ended)
	if ctx.Err() != nil {
		return drift.Inventory{}, fmt.Errorf("%s: %w", c.path, ctx.Err())
	}
	sandboxes := make(map[string]facts) // where only theirs tell, or tell at all
	for _, s := range slices.Concat(subjects, ended) {
		if s.Sandbox {
			sandboxes[s.sandboxID] = s.facts
		}
	}
	inventory.Containers = conclude(runtime, subjects, sandboxes)
	inventory.Ended = conclude(runtime, ended, sandboxes)
	if limit, ok := weak(subjects); ok {
		inventory.Limits = append(inventory.Limits, limit)
	}
	return inventory, nil
}

// weak says of which containers only the bundle told what was declared.
func weak(subjects []*subject) (drift.Limit, bool) {
	var of []string
	for _, s := range subjects {
		if s.err == nil && s.facts.weak {
			of = append(of, s.ID)
		}
	}
	if len(of) == 0 {
		return drift.Limit{}, false
	}
	slices.Sort(of)
	named := of[:min(len(of), 3)]
	more := ""
	if len(of) > len(named) {
		more = fmt.Sprintf(" and %d more", len(of)-len(named))
	}
	return drift.Limit{
		What: "what the runtime declared for " + strings.Join(named, ", ") + more,
		Why: "it comes from config.json, because the runtime's answer is too large or cannot be read: " +
			"what a wrapper of the OCI runtime or a hook changed cannot be told from it",
	}, true
}

// listed makes a subject of each running container and each ready sandbox, and of
// those that ended.
func (c *Client) listed(all []*runtimeapi.Container, pods []*runtimeapi.PodSandbox) (running, ended []*subject) {
	sandboxes := make(map[string]*runtimeapi.PodSandbox, len(pods))
	for _, sandbox := range pods {
		sandboxes[sandbox.GetId()] = sandbox
		s := &subject{
			Container: drift.Container{
				Name: "pause", Sandbox: true, Managed: new(true), Pod: podOf(sandbox, sandbox.GetLabels()), Labels: labelsOf(sandbox),
				RuntimeHandler: clip(sandbox.GetRuntimeHandler()), Ended: sandbox.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY,
			},
			id: sandbox.GetId(), namespace: criNamespace, sandboxID: sandbox.GetId(), key: "sandbox\x00" + sandbox.GetId(),
		}
		s.ask, s.runs = c.askSandbox(sandbox, s.Ended)
		if s.Ended {
			s.Created = createdAt(sandbox)
			ended = append(ended, s)
		} else {
			running = append(running, s)
		}
	}
	for _, container := range all {
		state := container.GetState()
		if state == runtimeapi.ContainerState_CONTAINER_CREATED {
			continue
		}
		sandbox := sandboxes[container.GetPodSandboxId()]
		s := &subject{
			Container: drift.Container{
				Name: clip(container.GetMetadata().GetName()), Managed: new(true),
				Pod: podOf(sandbox, container.GetLabels()), Labels: labelsOf(sandbox), RuntimeHandler: clip(sandbox.GetRuntimeHandler()),
				Created: createdAt(sandbox), Made: madeAt(container), Ended: state == runtimeapi.ContainerState_CONTAINER_EXITED,
			},
			image: image{asked: container.GetImage().GetUserSpecifiedImage(), name: container.GetImage().GetImage(), ref: container.GetImageRef()},
			id:    container.GetId(), namespace: criNamespace, sandboxID: container.GetPodSandboxId(), key: "container\x00" + container.GetId(),
		}
		if s.stateless = !s.Ended && state != runtimeapi.ContainerState_CONTAINER_RUNNING; s.stateless {
			s.key += "\x00stateless" // its pid may be told later
		}
		s.ask, s.runs = c.askContainer(s.id, s.Ended)
		if s.Ended {
			ended = append(ended, s)
		} else {
			running = append(running, s)
		}
	}
	return running, newest(ended)
}

const (
	// maxEnded bounds the containers that ended. A kubelet keeps one of each container of
	// a pod, and a hundred of pods that are deleted.
	maxEnded = 512
	// maxEndedInPod of one pod are kept before any others of it: a pod that restarts
	// hundreds of containers pushes out its own.
	maxEndedInPod = 16
)

// newest returns the ended containers that are told of, those made last first.
func newest(ended []*subject) []*subject {
	slices.SortStableFunc(ended, func(a, b *subject) int { return b.Created.Compare(a.Created) })
	count := make(map[string]int)
	var first, rest []*subject
	for _, s := range ended {
		if count[s.sandboxID]++; count[s.sandboxID] <= maxEndedInPod {
			first = append(first, s)
		} else {
			rest = append(rest, s)
		}
	}
	ended = append(first, rest...)
	return ended[:min(len(ended), maxEnded)]
}

// identify gives the subjects ids that no two share, and nobody else can read as
// something else. A container that is not in the CRI's namespace of containerd has its
// own namespace before its id: ids are unique within one alone, and whoever may make
// containers may choose them.
func identify(subjects []*subject) {
	count := make(map[string]int, len(subjects))
	for _, s := range subjects {
		s.ID = InventoryID(s.namespace, s.id)
		if count[s.ID]++; count[s.ID] > 1 {
			s.ID = fmt.Sprintf("%s#%d", s.ID, count[s.ID])
		}
		if s.ID != s.id && plainID(s.id) {
			s.RuntimeID = s.id
		}
	}
}

// InventoryID returns the id that an inventory has of a container whose runtime calls
// it by the given one, in the given namespace of containerd (empty elsewhere).
func InventoryID(namespace, id string) string {
	if !plainID(id) {
		id = fmt.Sprintf("(%.40q %x)", id, sha256.Sum256([]byte(id)))
	}
	switch {
	case namespace == "" || namespace == criNamespace:
		return id
	case !plainID(namespace):
		namespace = fmt.Sprintf("(%.40q %x)", namespace, sha256.Sum256([]byte(namespace)))
	}
	return namespace + "/" + id
}

// plainID reports whether a text is one that runtimes take for an id or a namespace:
// letters, digits and, between them, ".", "_" and "-"; pkg/identifiers of containerd.
func plainID(text string) bool {
	if text == "" || len(text) > 255 {
		return false
	}
	for i, c := range []byte(text) {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !letter && (i == 0 || c != '.' && c != '_' && c != '-') {
			return false
		}
	}
	return true
}

// starting returns the containers and sandboxes that are made and do not count as
// running yet. While one starts, the OCI runtime and its createContainer hooks are in
// its cgroup, for as long as a hook takes. A container's state is told by the list; that
// a sandbox is being made is told by containerd's events alone, where they are heard.
func (c *Client) starting(all []*runtimeapi.Container, pods []*runtimeapi.PodSandbox) []string {
	var ids []string
	told := make(map[string]bool, len(all))
	for _, container := range all {
		told[container.GetId()] = true
		if container.GetState() == runtimeapi.ContainerState_CONTAINER_CREATED {
			ids = append(ids, InventoryID(criNamespace, container.GetId()))
		}
	}
	for _, sandbox := range pods {
		told[sandbox.GetId()] = told[sandbox.GetId()] || sandbox.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY
	}
	for _, id := range c.starts.made() {
		if !told[id] {
			ids = append(ids, InventoryID(criNamespace, id))
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
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

// madeAt is when the container was made, zero when that is not told.
func madeAt(container *runtimeapi.Container) time.Time {
	if container.GetCreatedAt() == 0 {
		return time.Time{}
	}
	return time.Unix(0, container.GetCreatedAt())
}

// mayRun reports whether a container may have processes by its state. containerd does not
// know that of one whose record it could not load (internal/cri/server/restart.go), and
// its processes run on.
func mayRun(state runtimeapi.ContainerState) bool {
	return state != runtimeapi.ContainerState_CONTAINER_CREATED && state != runtimeapi.ContainerState_CONTAINER_EXITED
}

// askContainer returns the question for a container's facts, and the one whether it
// runs.
func (c *Client) askContainer(id string, ended bool) (func(context.Context) (facts, error), func(context.Context) (bool, error)) {
	ask := func(ctx context.Context) (facts, error) {
		answer, err := c.verbose(ctx, containerStatus, &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
		if err != nil {
			return facts{}, err
		}
		// CRI-O keeps the pid of a container that has ended since.
		if !ended && !mayRun(runtimeapi.ContainerState(answer.state)) { //nolint:gosec // an enum has 32 bits
			return facts{}, errVanished
		}
		f, err := answer.facts()
		f.image = answer.image
		if err == nil {
			b, _ := c.bundle(ctx, criNamespace, id) // it explains causes, where it can be read
			f.bundle = b.oci
		}
		return f, err
	}
	runs := func(ctx context.Context) (bool, error) {
		answer, err := call(ctx, c, c.cri.ContainerStatus, &runtimeapi.ContainerStatusRequest{ContainerId: id})
		return answer.GetStatus() != nil && mayRun(answer.GetStatus().GetState()), err
	}
	return ask, runs
}

// askSandbox is askContainer for a sandbox.
func (c *Client) askSandbox(sandbox *runtimeapi.PodSandbox, ended bool) (func(context.Context) (facts, error), func(context.Context) (bool, error)) {
	id := sandbox.GetId()
	ask := func(ctx context.Context) (facts, error) {
		answer, err := c.verbose(ctx, podSandboxStatus, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true})
		if err != nil {
			return facts{}, err
		}
		if !ended && answer.state != uint64(runtimeapi.PodSandboxState_SANDBOX_READY) {
			return facts{}, errVanished
		}
		f, err := answer.sandbox()
		f.spoofed = f.spoofed && !ended // one that ended has no process either
		// CRI-O tells the handler in an annotation alone, among those of the pod's
		// author, who could pass for a virtual machine by writing one of that name.
		if forgeable(sandbox.GetAnnotations()) || forgeable(sandbox.GetLabels()) {
			f.handler = ""
		}
		return f, err
	}
	runs := func(ctx context.Context) (bool, error) {
		answer, err := call(ctx, c, c.cri.PodSandboxStatus, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
		return answer.GetStatus().GetState() == runtimeapi.PodSandboxState_SANDBOX_READY, err
	}
	return ask, runs
}

// handlerAnnotation is where CRI-O notes a sandbox's runtime handler.
const handlerAnnotation = "io.kubernetes.cri-o.RuntimeHandler"

func forgeable(written map[string]string) bool {
	for key := range written {
		if strings.EqualFold(key, handlerAnnotation) {
			return true
		}
	}
	return false
}

// conclude makes the containers of an inventory out of what was learnt, of their
// sandboxes too, by id.
func conclude(runtime drift.Runtime, subjects []*subject, sandboxes map[string]facts) []drift.Container {
	containers := make([]drift.Container, 0, len(subjects))
	for _, s := range subjects {
		if errors.Is(s.err, errVanished) || s.facts.spoofed {
			continue
		}
		container := s.Container
		container.RuntimeHandler = cmp.Or(container.RuntimeHandler, sandboxes[s.sandboxID].handler)
		container.Name = cmp.Or(container.Name, s.facts.name, container.RuntimeID, container.ID)
		container.Image = imageOf(s.facts.image, s.image)
		if container.InitPID = cmp.Or(container.InitPID, s.facts.pid); container.Ended {
			container.InitPID = 0
		}
		container.Runtime, container.CgroupPath, container.Binary = runtime.Name, s.facts.cgroupPath, s.facts.binary
		container.Declared = drift.Declared{CRI: s.facts.cri, OCI: s.facts.oci, Bundle: s.facts.bundle, Privileged: s.facts.privileged}
		container.Observation = drift.Observed
		container.Undeclared = s.facts.undeclared
		s.facts.shim = cmp.Or(s.facts.shim, sandboxes[s.sandboxID].shim)
		var handler drift.Handler // of a container outside the CRI none is known
		if *container.Managed {
			handler = runtime.Handlers[cmp.Or(container.RuntimeHandler, runtime.DefaultHandler)]
		}
		guest := s.facts.unsupported(container.RuntimeHandler, handler)
		switch {
		case guest != "":
			container.Observation, container.Reason = drift.UnsupportedRuntime, guest
		case s.err != nil:
			container.Observation, container.Reason = drift.Unreadable, s.err.Error()
		case s.stateless:
			missing := append([]string{"the runtime does not know whether it runs"}, s.facts.missing...)
			container.Observation, container.Reason = drift.Partial, strings.Join(missing, "; ")
		case len(s.facts.missing) > 0:
			container.Observation, container.Reason = drift.Partial, strings.Join(s.facts.missing, "; ")
		}
		containers = append(containers, container)
	}
	slices.SortFunc(containers, func(a, b drift.Container) int {
		podA, podB := cmp.Or(a.Pod, &drift.Pod{}), cmp.Or(b.Pod, &drift.Pod{})
		return cmp.Or(
			cmp.Compare(unmanaged(a), unmanaged(b)), strings.Compare(podA.Namespace, podB.Namespace), strings.Compare(podA.Name, podB.Name),
			strings.Compare(a.Name, b.Name), strings.Compare(a.ID, b.ID),
		)
	})
	return containers
}

// unmanaged orders those that no pod explains last. Where one claims the cgroup of a
// pod's container, the pod's comes first and keeps it.
func unmanaged(c drift.Container) int {
	if *c.Managed {
		return 0
	}
	return 1
}
