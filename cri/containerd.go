package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
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
		return nil, []drift.Limit{{What: "containers in containerd that belong to no pod", Why: err.Error(), Blind: true, Code: drift.GapOtherRuntime, Object: "containerd"}}
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
				What: "containers in containerd's namespace " + clip(namespace.GetName()), Why: err.Error(), Blind: true, Code: drift.GapOtherRuntime, Object: "containerd/" + clip(namespace.GetName()),
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
	// making are the containers and sandboxes of which it was told that they were made,
	// and not yet that they started: no list shows a sandbox before.
	making map[string]bool
}

// maxMaking is more than a node starts at once.
const maxMaking = 1024

// tell takes an event of the CRI's namespace.
func (s *starts) tell(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch e.Kind {
	case ContainerCreated, Started:
		s.since = true
	}
	switch {
	case e.Kind == ContainerCreated && len(s.making) < maxMaking:
		if s.making == nil {
			s.making = make(map[string]bool)
		}
		s.making[e.ContainerID] = true
	case e.Kind == Started, e.Kind == Deleted, e.Kind == Exited && e.ExecID == "":
		delete(s.making, e.ContainerID)
	}
}

// made returns what is being made, sorted.
func (s *starts) made() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.making))
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
	clear(s.making) // whose start is perhaps not told
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
				Managed: new(false), Origin: "containerd namespace " + clip(namespace), InitPID: int(t.GetPid()),
			},
			id: id, namespace: namespace,
			// Docker starts a stopped container again under its id, perhaps with
			// another spec.
			key: fmt.Sprintf("%s\x00%s\x00%d", namespace, id, t.GetPid()),
			ask: func(ctx context.Context) (facts, error) {
				f, err := c.recorded(ctx, namespace, id)
				f.cri = nil // whoever made it may have written one
				return f, err
			},
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
		return slices.DeleteFunc(found, func(s *subject) bool { return ids[s.id] })
	}
	if found = unknown(explained); len(found) == 0 {
		return nil, nil
	}
	lists, err := c.list(ctx)
	if err != nil {
		return nil, err
	}
	return unknown(idsOf(lists.containers, lists.sandboxes)), nil
}

// record is what containerd keeps of a container: Container in
// api/services/containers/v1/containers.proto.
type record struct {
	name, image, shim, binary string
	spec                      *spec
	failed                    error // why there is no spec
	config                    *config
}

// criMetadata is the extension in which the CRI's plugin keeps the config that the
// kubelet sent (internal/cri/store/container/metadata.go).
const criMetadata = "io.cri-containerd.container.metadata"

func (rec *record) read(r io.Reader) error {
	return fields(r, func(number, _ uint64, body io.Reader) error {
		if number != 1 || body == nil {
			return nil
		}
		return fields(body, func(number, _ uint64, body io.Reader) error {
			if body == nil {
				return nil
			}
			switch number {
			case 2: // an entry of labels
				return entry(body, func(key string, value io.Reader) (err error) {
					if key == "nerdctl/name" {
						rec.name, err = text(value)
					}
					return err
				})
			case 3:
				return into(&rec.image, body)
			case 4:
				return rec.readRuntime(body)
			case 5:
				return packed(body, func(_ string, value io.Reader) error {
					rec.spec, rec.failed = decodeSpec(value)
					return nil
				})
			case 10: // an entry of extensions
				return entry(body, func(key string, value io.Reader) error {
					if key != criMetadata {
						return nil
					}
					return packed(value, func(_ string, value io.Reader) error {
						rec.readMetadata(value)
						return nil
					})
				})
			}
			return nil
		})
	})
}

func (rec *record) readRuntime(r io.Reader) error {
	return fields(r, func(number, _ uint64, body io.Reader) error {
		switch {
		case number == 1 && body != nil:
			return into(&rec.shim, body)
		case number == 2 && body != nil:
			return packed(body, func(kind string, value io.Reader) error {
				if !strings.HasSuffix(kind, "containerd.runc.v1.Options") {
					return nil
				}
				return fields(value, func(number, _ uint64, body io.Reader) error {
					if number == 6 && body != nil { // binary_name
						return into(&rec.binary, body)
					}
					return nil
				})
			})
		}
		return nil
	})
}

// readMetadata takes the CRI's config where the extension has the form that is known.
func (rec *record) readMetadata(r io.Reader) {
	metadata, err := decode[struct {
		Metadata struct {
			Config *config `json:"Config"`
		} `json:"Metadata"`
	}](r)
	if err == nil {
		rec.config = metadata.Metadata.Config
	}
}

// packed reads a google.protobuf.Any: the name of a type and a value.
func packed(r io.Reader, value func(kind string, value io.Reader) error) error {
	kind := ""
	return fields(r, func(number, _ uint64, body io.Reader) error {
		switch {
		case number == 1 && body != nil:
			return into(&kind, body)
		case number == 2 && body != nil:
			return value(kind, body)
		}
		return nil
	})
}

func text(r io.Reader) (string, error) {
	bytes, err := io.ReadAll(io.LimitReader(r, maxPath))
	return clip(string(bytes)), err
}

func into(field *string, r io.Reader) (err error) {
	*field, err = text(r)
	return err
}

// recorded returns what containerd itself keeps of a container. Its name and its shim
// are known even where its spec is not.
func (c *Client) recorded(ctx context.Context, namespace, id string) (facts, error) {
	ctx = metadata.AppendToOutgoingContext(ctx, namespaceHeader, namespace)
	rec, err := ask(ctx, c, "/containerd.services.containers.v1.Containers/Get", &containers.GetContainerRequest{ID: id},
		func() *record { return &record{} })
	if err != nil {
		return facts{}, err
	}
	f := facts{name: rec.name, image: image{name: rec.image}, shim: rec.shim, binary: rec.binary}
	if errors.Is(rec.failed, errEmpty) || rec.failed == nil && rec.spec == nil {
		f.lacks("containerd holds no OCI spec of it")
		return f, nil
	}
	if rec.failed != nil {
		return f, rec.failed
	}
	f.take(rec.spec)
	if rec.config != nil {
		f.cri = f.layer(rec.config)
	}
	return f, nil
}

// taskPID returns the first process of a container as containerd knows it, and 0 where
// it does not tell.
func (c *Client) taskPID(ctx context.Context, namespace, id string) int {
	ctx = metadata.AppendToOutgoingContext(ctx, namespaceHeader, namespace)
	answer, err := call(ctx, c, tasks.NewTasksClient(c.conn).Get, &tasks.GetRequest{ContainerID: id})
	if err != nil {
		return 0
	}
	return int(answer.GetProcess().GetPid())
}
