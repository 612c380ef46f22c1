//go:build linux

package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	taskstypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Pod describes a pod with one container of the node's image.
type Pod struct {
	Namespace, Name string // default "default" and a name of its own
	Container       string // default "main"
	// Security is the container's context. Its namespace options are the pod's too; without
	// any the pod has the host's network and a pid namespace for its container.
	Security *cri.LinuxContainerSecurityContext
	Args     []string // the actor's steps; default "ready", "sleep"
	Command  []string // default the image's: /bin/actor
	Handler  string   // the runtime handler; default containerd's
	Env      map[string]string
	Mounts   []*cri.Mount
	// Resources are the container's; default none, which is best effort.
	Resources *cri.LinuxContainerResources
	// Shared runs the container in a pod that the node keeps for containers like it:
	// privileged or not, with the same namespaces. That is much cheaper than a pod of its own;
	// Namespace and Name are then the node's choice.
	Shared bool
	// Group tells apart those that share a pod: one pod's shim has files open for each container.
	Group string
	// CgroupParent is the pod's cgroup; default one like the kubelet's: with systemd a
	// slice, else a folder below the node's own cgroup.
	CgroupParent string
}

// Container is a container, running unless it was only created.
type Container struct {
	ID      string // containerd's
	Sandbox string // the pod's; empty when no CRI pod explains the container
	Pid     int    // of its first process, as the host sees it; 0 before it is started
	Pod     Pod
	// Namespace is containerd's, where that is another than the CRI's.
	Namespace string
	log       string // its output
}

// ReportedID is the id that a report has of it.
func (c *Container) ReportedID() string {
	if c.Namespace == "" {
		return c.ID
	}
	return c.Namespace + "/" + c.ID
}

// sandbox is a pod without containers.
type sandbox struct {
	id     string
	config *cri.PodSandboxConfig
}

// Run starts a pod and its container and waits until the actor says that it is ready
// (when its steps say so).
func (n *Node) Run(ctx context.Context, p Pod) (*Container, error) {
	ctx, cancel := n.Within(ctx, time.Minute)
	defer cancel()
	c, err := n.create(ctx, p)
	if err != nil {
		return nil, err
	}
	if err := n.start(ctx, c); err != nil {
		err = n.withLog(fmt.Errorf("start container of %s/%s: %w", c.Pod.Namespace, c.Pod.Name, err))
		return nil, errors.Join(err, n.Remove(ctx, c))
	}
	return c, nil
}

// Create starts a pod and creates its container, which [Node.Start] may start.
func (n *Node) Create(ctx context.Context, p Pod) (*Container, error) {
	ctx, cancel := n.Within(ctx, time.Minute)
	defer cancel()
	return n.create(ctx, p)
}

func (n *Node) create(ctx context.Context, p Pod) (*Container, error) {
	p = n.withDefaults(p)
	start := n.startSandbox
	if p.Shared {
		start = n.sharedSandbox
	}
	s, err := start(ctx, p)
	if err != nil {
		return nil, n.withLog(fmt.Errorf("run sandbox of %s/%s: %w", p.Namespace, p.Name, err))
	}
	p.Namespace, p.Name = s.config.Metadata.Namespace, s.config.Metadata.Name
	// The name of the log is unique also in a shared pod, where names of containers may not be.
	log := p.Container + "-" + newUID() + ".log"
	c := &Container{Sandbox: s.id, Pod: p, log: filepath.Join(s.config.LogDirectory, log)}
	if err := n.createContainer(ctx, c, s.config); err != nil {
		err = n.withLog(fmt.Errorf("create container of %s/%s: %w", p.Namespace, p.Name, err))
		return nil, errors.Join(err, n.Remove(ctx, c))
	}
	return c, nil
}

func (n *Node) startSandbox(ctx context.Context, p Pod) (sandbox, error) {
	uid := newUID()
	config := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: p.Name, Namespace: p.Namespace, Uid: uid},
		Labels: map[string]string{
			"io.kubernetes.pod.namespace": p.Namespace,
			"io.kubernetes.pod.name":      p.Name,
			"io.kubernetes.pod.uid":       uid,
		},
		LogDirectory: filepath.Join(n.Root, "logs", uid),
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: n.podCgroup(p.CgroupParent, uid),
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: p.Security.NamespaceOptions,
				Privileged:       p.Security.Privileged, // containerd demands it of both
			},
		},
	}
	if err := os.Mkdir(config.LogDirectory, 0o755); err != nil {
		return sandbox{}, err
	}
	s, err := n.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: p.Handler})
	if err != nil {
		return sandbox{}, err
	}
	return sandbox{s.PodSandboxId, config}, nil
}

// sharedSandbox starts the pod for containers of p's kind when the first one comes.
func (n *Node) sharedSandbox(ctx context.Context, p Pod) (sandbox, error) {
	kind := fmt.Sprint(p.Group, p.Handler, p.Security.Privileged, p.Security.NamespaceOptions)
	n.sharing.Lock()
	defer n.sharing.Unlock()
	if s, ok := n.shared[kind]; ok {
		return s, nil
	}
	s, err := n.startSandbox(ctx, p)
	if err == nil {
		n.shared[kind] = s
	}
	return s, err
}

func (n *Node) withDefaults(p Pod) Pod {
	if p.Namespace == "" {
		p.Namespace = "default"
	}
	if p.Name == "" {
		p.Name = "pod-" + newUID()[:8]
	}
	if p.Container == "" {
		p.Container = "main"
	}
	if p.Args == nil {
		p.Args = []string{"ready", "sleep"}
	}
	if p.Security == nil {
		p.Security = &cri.LinuxContainerSecurityContext{}
	}
	if p.Resources == nil {
		p.Resources = &cri.LinuxContainerResources{}
	}
	if p.Security.NamespaceOptions == nil {
		p.Security.NamespaceOptions = &cri.NamespaceOption{
			Network: cri.NamespaceMode_NODE, // no CNI needed
			Pid:     cri.NamespaceMode_CONTAINER,
		}
	}
	return p
}

// podCgroup completes the cgroup of a pod and remembers it when it is not below
// the node's own.
func (n *Node) podCgroup(wanted, uid string) string {
	switch {
	case wanted != "":
	case n.cfg.Systemd:
		wanted = "kubepods-besteffort-pod" + strings.ReplaceAll(uid, "-", "_") + ".slice"
	default:
		return n.Cgroup + "/kubepods/besteffort/pod" + uid
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cgroups = append(n.cgroups, expandSlice(wanted))
	return wanted
}

// expandSlice returns the path of a slice, whose name spells it (systemd.slice(5)):
// "a-b.slice" is /a.slice/a-b.slice. Any other path is returned as it is.
func expandSlice(path string) string {
	name, ok := strings.CutSuffix(path, ".slice")
	if !ok || strings.Contains(path, "/") {
		return path
	}
	full := ""
	for i := range name {
		if name[i] == '-' {
			full += "/" + name[:i] + ".slice"
		}
	}
	return full + "/" + path
}

// createContainer creates what start starts.
func (n *Node) createContainer(ctx context.Context, c *Container, sandbox *cri.PodSandboxConfig) error {
	p := c.Pod
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: p.Container, Attempt: n.attempts.Add(1)},
		Image:    &cri.ImageSpec{Image: Image, UserSpecifiedImage: Image},
		Command:  p.Command,
		Args:     p.Args,
		Mounts:   p.Mounts,
		Labels:   map[string]string{"io.kubernetes.container.name": p.Container},
		LogPath:  filepath.Base(c.log),
		Linux: &cri.LinuxContainerConfig{
			Resources:       p.Resources,
			SecurityContext: p.Security,
		},
	}
	for k, v := range sandbox.Labels {
		config.Labels[k] = v
	}
	for k, v := range p.Env {
		config.Envs = append(config.Envs, &cri.KeyValue{Key: k, Value: []byte(v)})
	}
	created, err := n.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: c.Sandbox, Config: config, SandboxConfig: sandbox,
	})
	if err != nil {
		return err
	}
	c.ID = created.ContainerId
	return nil
}

// start starts what was created, and waits until the actor is ready.
func (n *Node) start(ctx context.Context, c *Container) error {
	if _, err := n.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: c.ID}); err != nil {
		return err
	}
	// Not the verbose status, which a container can make larger than containerd can send.
	task, err := n.client.TaskService().Get(namespaces.WithNamespace(ctx, criNamespace), &tasks.GetRequest{ContainerID: c.ID})
	if err != nil {
		return fmt.Errorf("container has no task: %w", err)
	}
	if task.Process.Status == taskstypes.Status_STOPPED {
		return fmt.Errorf("container has ended with status %d", task.Process.ExitStatus)
	}
	c.Pid = int(task.Process.Pid)
	return c.awaitReady(ctx, c.Pod.Args)
}

// Start starts a container that Create made, and waits until the actor says that it is ready.
func (n *Node) Start(ctx context.Context, c *Container) error {
	ctx, cancel := n.Within(ctx, time.Minute)
	defer cancel()
	return n.start(ctx, c)
}

// Info is the JSON that the runtime adds to a verbose status: the container's CRI config, its
// OCI spec, its pid.
func (n *Node) Info(ctx context.Context, c *Container) ([]byte, error) {
	ctx, cancel := n.Within(ctx, time.Minute)
	defer cancel()
	r, err := n.status(ctx, c)
	if err != nil {
		return nil, err
	}
	return []byte(r.Info["info"]), nil
}

func (n *Node) status(ctx context.Context, c *Container) (*cri.ContainerStatusResponse, error) {
	return n.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.ID, Verbose: true})
}

// awaitReady waits for the line "ready" in the container's output, whatever
// format the log has, if any of the steps prints it.
func (c *Container) awaitReady(ctx context.Context, args []string) error {
	expected := 0
	for _, arg := range args {
		if arg == "ready" {
			expected++
		}
	}
	var log []byte
	err := Until(ctx, "the actor is ready", func() (done bool, err error) {
		if log, err = os.ReadFile(c.log); err != nil {
			return false, err
		}
		if bytes.Contains(log, []byte("actor:")) {
			return false, errors.New("the actor failed")
		}
		return bytes.Count(log, []byte("ready\n")) >= expected, nil
	})
	if err != nil {
		return fmt.Errorf("%w\nits output was:\n%s", err, log)
	}
	return nil
}

// Exec runs a command in a container, as the kubelet does for `kubectl exec` and for probes.
func (n *Node) Exec(ctx context.Context, c *Container, command ...string) (stdout, stderr []byte, err error) {
	ctx, cancel := n.Within(ctx, time.Minute)
	defer cancel()
	r, err := n.runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: c.ID, Cmd: command})
	if err != nil {
		return nil, nil, err
	}
	if r.ExitCode != 0 {
		return r.Stdout, r.Stderr, &ExitError{Code: int(r.ExitCode), Stderr: r.Stderr}
	}
	return r.Stdout, r.Stderr, nil
}

// ExitError says that a command in a container ended with another status than 0.
type ExitError struct {
	Code   int
	Stderr []byte
}

func (e *ExitError) Error() string {
	return "exit status " + strconv.Itoa(e.Code) + ": " + string(e.Stderr)
}

// Resize gives a container other resources while it runs, as the kubelet does for a resized pod.
func (n *Node) Resize(ctx context.Context, c *Container, resources *cri.LinuxContainerResources) error {
	ctx, cancel := n.Within(ctx, time.Minute)
	defer cancel()
	_, err := n.runtime.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{ContainerId: c.ID, Linux: resources})
	return err
}

// Stop stops a container, at once, and keeps it and its pod.
func (n *Node) Stop(ctx context.Context, c *Container) error {
	ctx, cancel := n.Within(ctx, time.Minute)
	defer cancel()
	_, err := n.runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.ID})
	return err
}

// Remove stops and removes a pod with its container, or of a shared pod the container alone.
// Removing twice is not an error.
func (n *Node) Remove(ctx context.Context, c *Container) error {
	ctx, cancel := n.Within(ctx, time.Minute)
	defer cancel()
	if c.Sandbox == "" {
		return n.removeUnmanaged(ctx, c)
	}
	if c.ID != "" { // at once: an actor in the middle of something need not hear SIGTERM
		if _, err := n.runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.ID, Timeout: 0}); err != nil {
			return fmt.Errorf("stop container: %w", err)
		}
	}
	if c.Pod.Shared {
		if c.ID == "" {
			return nil
		}
		_, err := n.runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: c.ID})
		return err
	}
	if _, err := n.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: c.Sandbox}); err != nil {
		return fmt.Errorf("stop sandbox: %w", err)
	}
	if _, err := n.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: c.Sandbox}); err != nil {
		return fmt.Errorf("remove sandbox: %w", err)
	}
	return nil
}

// newUID has the form of a pod's uid.
func newUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
