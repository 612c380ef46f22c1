//go:build linux

package node

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/capdrift/capdrift/e2e/cgroup"
)

// What is here happens behind the kubelet's back.

// newContainerID has the form of a container's id: 64 hexadecimal digits.
func newContainerID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// RunMoby starts a container through containerd, as dockerd does, in its namespace
// "moby", which no CRI client sees.
func (n *Node) RunMoby(ctx context.Context, args ...string) (*Container, error) {
	return n.RunMobyAs(ctx, newContainerID(), args...)
}

// RunMobyAs is RunMoby with an id, which may be that of a container of the CRI.
func (n *Node) RunMobyAs(ctx context.Context, id string, args ...string) (_ *Container, err error) {
	ctx, cancel := n.Within(namespaces.WithNamespace(ctx, mobyNamespace), time.Minute)
	defer cancel()
	image, err := n.client.GetImage(ctx, Image)
	if err != nil {
		return nil, err
	}
	c := &Container{ID: id, Namespace: mobyNamespace}
	c.log = filepath.Join(n.Root, "logs", mobyNamespace+"-"+c.ID)
	container, err := n.client.NewContainer(ctx, c.ID,
		containerd.WithNewSnapshot(c.ID, image),
		containerd.WithRuntime("io.containerd.runc.v2", &runcoptions.Options{
			BinaryName: n.program("runc"), Root: n.runcRoot(),
		}),
		containerd.WithNewSpec(
			oci.WithImageConfigArgs(image, args),
			oci.WithHostNamespace(specs.NetworkNamespace),
			oci.WithCgroup(filepath.Join(n.Cgroup, mobyNamespace, c.ID)),
		))
	if err != nil {
		return nil, fmt.Errorf("create container in %s: %w", mobyNamespace, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(n.withLog(err), n.removeMoby(ctx, c))
		}
	}()
	task, err := container.NewTask(ctx, cio.LogFile(c.log))
	if err != nil {
		return nil, fmt.Errorf("create task in %s: %w", mobyNamespace, err)
	}
	if err := task.Start(ctx); err != nil {
		return nil, fmt.Errorf("start task in %s: %w", mobyNamespace, err)
	}
	c.Pid = int(task.Pid())
	return c, c.awaitReady(ctx, args)
}

// removeMoby kills and removes; what is gone already is fine.
func (n *Node) removeMoby(ctx context.Context, c *Container) error {
	ctx = namespaces.WithNamespace(ctx, mobyNamespace)
	container, err := n.client.LoadContainer(ctx, c.ID)
	if err != nil {
		return err
	}
	if task, err := container.Task(ctx, nil); err == nil {
		if _, err := task.Delete(ctx, containerd.WithProcessKill); err != nil {
			return err
		}
	}
	return container.Delete(ctx, containerd.WithSnapshotCleanup)
}

// aloneRoot is the state folder of runc for containers that it runs alone.
func (n *Node) aloneRoot() string { return filepath.Join(n.runcRoot(), "alone") }

// Alone describes a container that `runc run` starts and no daemon knows.
type Alone struct {
	Capabilities []string // all it has
	Args         []string // the actor's steps
	// Cgroup is its cgroup, in which "ID" stands for the container's id; default one below
	// the node's own.
	Cgroup string
}

// RunAlone starts a container by `runc run`.
func (n *Node) RunAlone(ctx context.Context, a Alone) (*Container, error) {
	ctx, cancel := n.Within(ctx, time.Minute)
	defer cancel()
	c := &Container{ID: newContainerID()}
	cgroup := filepath.Join(n.Cgroup, "alone", c.ID)
	if a.Cgroup != "" {
		cgroup = strings.ReplaceAll(a.Cgroup, "ID", c.ID)
		n.mu.Lock()
		n.cgroups = append(n.cgroups, cgroup)
		n.mu.Unlock()
	}
	bundle := filepath.Join(n.Root, "alone", c.ID)
	c.log = filepath.Join(bundle, "output")
	if err := makeBundle(bundle, n.program("actor"), a, cgroup); err != nil {
		return nil, fmt.Errorf("make bundle: %w", err)
	}
	pidFile := filepath.Join(bundle, "pid")
	if err := n.runc(ctx, c.log, "--root", n.aloneRoot(), "run", "--detach", "--bundle", bundle, "--pid-file", pidFile, c.ID); err != nil {
		return nil, err
	}
	var err error
	if c.Pid, err = readPid(pidFile); err != nil {
		return nil, err
	}
	return c, c.awaitReady(ctx, a.Args)
}

func makeBundle(bundle, program string, a Alone, cgroup string) error {
	rootfs := filepath.Join(bundle, "rootfs")
	for _, dir := range []string{"bin", "proc", "dev", "sys"} {
		if err := os.MkdirAll(filepath.Join(rootfs, dir), 0o755); err != nil {
			return err
		}
	}
	actor, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(rootfs, "bin", "actor"), actor, 0o755); err != nil {
		return err
	}
	spec, err := json.Marshal(&specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Args: append([]string{"/bin/actor"}, a.Args...),
			Cwd:  "/",
			Capabilities: &specs.LinuxCapabilities{
				Bounding: a.Capabilities, Effective: a.Capabilities, Permitted: a.Capabilities,
			},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
		},
		Linux: &specs.Linux{
			CgroupsPath: cgroup,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
			},
		},
	})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(bundle, "config.json"), spec, 0o644)
}

// removeUnmanaged removes a container that Remove finds without a pod.
func (n *Node) removeUnmanaged(ctx context.Context, c *Container) error {
	if _, err := os.Stat(filepath.Join(n.Root, "alone", c.ID)); err == nil {
		return n.runc(ctx, "", "--root", n.aloneRoot(), "delete", "--force", c.ID)
	}
	return n.removeMoby(ctx, c)
}

// RuncExec starts another process in a CRI container by `runc exec --cap`, as somebody
// with root on the host can, and waits until it is ready.
func (n *Node) RuncExec(ctx context.Context, c *Container, capabilities []string, steps ...string) (pid int, err error) {
	ctx, cancel := n.Within(ctx, time.Minute)
	defer cancel()
	name := filepath.Join(n.Root, "logs", "exec-"+newUID())
	args := []string{"--root", filepath.Join(n.runcRoot(), criNamespace), "exec", "--detach", "--pid-file", name + ".pid"}
	for _, c := range capabilities {
		args = append(args, "--cap", c)
	}
	args = append(append(args, c.ID, "/bin/actor"), steps...)
	if err := n.runc(ctx, name, args...); err != nil {
		return 0, err
	}
	if pid, err = readPid(name + ".pid"); err != nil {
		return 0, err
	}
	return pid, (&Container{log: name}).awaitReady(ctx, steps)
}

// TaskExec starts another process in a CRI container through containerd, as `ctr task exec`
// does, with capabilities of its own, and waits until it is ready. containerd tells of it.
func (n *Node) TaskExec(ctx context.Context, c *Container, capabilities []string, steps ...string) (pid int, err error) {
	ctx, cancel := n.Within(namespaces.WithNamespace(ctx, criNamespace), time.Minute)
	defer cancel()
	container, err := n.client.LoadContainer(ctx, c.ID)
	if err != nil {
		return 0, err
	}
	task, err := container.Task(ctx, nil)
	if err != nil {
		return 0, err
	}
	spec, err := container.Spec(ctx)
	if err != nil {
		return 0, err
	}
	process := *spec.Process
	process.Args = append([]string{"/bin/actor"}, steps...)
	process.Capabilities = &specs.LinuxCapabilities{Bounding: capabilities, Permitted: capabilities, Effective: capabilities}
	id := "exec-" + newUID()
	log := filepath.Join(n.Root, "logs", id)
	started, err := task.Exec(ctx, id, &process, cio.LogFile(log))
	if err != nil {
		return 0, err
	}
	if err := started.Start(ctx); err != nil {
		return 0, err
	}
	return int(started.Pid()), (&Container{log: log}).awaitReady(ctx, steps)
}

// runc runs runc; what a detached container writes goes to the file output, if named.
func (n *Node) runc(ctx context.Context, output string, args ...string) error {
	if output == "" {
		output = os.DevNull
	}
	f, err := os.Create(output)
	if err != nil {
		return err
	}
	defer f.Close()
	// A file and not a pipe: a detached container keeps it open.
	cmd := exec.CommandContext(ctx, n.program("runc"), args...)
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Run(); err != nil {
		said, _ := os.ReadFile(output)
		return fmt.Errorf("runc %s: %w\n%s", strings.Join(args, " "), err, said)
	}
	return nil
}

func readPid(file string) (int, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// Process is an actor that the node started on the host itself.
type Process struct {
	// Pid as the host sees it: of the child where the steps begin with "ns=".
	Pid int

	cmd    *exec.Cmd
	stdin  io.Writer
	stdout *bufio.Reader
}

// StartActor runs the actor on the host, with all that this process holds, and waits until
// it is ready. The steps must contain "ready".
func (n *Node) StartActor(ctx context.Context, steps ...string) (*Process, error) {
	ctx, cancel := n.Within(ctx, time.Minute)
	defer cancel()
	cmd := exec.Command(n.program("actor"), steps...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &Process{Pid: cmd.Process.Pid, cmd: cmd, stdin: stdin, stdout: bufio.NewReader(stdout)}
	n.mu.Lock()
	n.actors = append(n.actors, p)
	n.mu.Unlock()
	// Killing it ends the reading below.
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	// A child that the steps are handed to may be ready before its parent has told its pid.
	told, ready := !strings.HasPrefix(steps[0], "ns="), false
	for !told || !ready {
		line, err := p.readLine()
		if err != nil {
			p.Stop()
			return nil, fmt.Errorf("actor %q ended before it was ready: %w\n%s", steps, err, stderr.String())
		}
		ready = ready || line == "ready"
		if pid, ok := strings.CutPrefix(line, "pid "); ok {
			told = true
			if p.Pid, err = strconv.Atoi(pid); err != nil {
				return nil, err
			}
		}
	}
	return p, nil
}

func (p *Process) readLine() (string, error) {
	line, err := p.stdout.ReadString('\n')
	return strings.TrimSuffix(line, "\n"), err
}

// Ask sends a command to an actor that serves and returns its answer.
func (p *Process) Ask(command string) (string, error) {
	if _, err := io.WriteString(p.stdin, command+"\n"); err != nil {
		return "", err
	}
	return p.readLine()
}

// Stop ends the process and its children and waits for it. Stopping twice is fine.
func (p *Process) Stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	_ = p.cmd.Wait()
}

// Inject puts a new process with all of the host's capabilities into a container's
// namespaces (but for the user namespace) and cgroups; steps may lower what it holds.
func (n *Node) Inject(ctx context.Context, c *Container, steps ...string) (*Process, error) {
	p, err := n.StartActor(ctx, append([]string{"ns=" + strconv.Itoa(c.Pid)}, steps...)...)
	if err != nil {
		return nil, err
	}
	return p, n.MoveTo(c, p)
}

// MoveTo puts a host process into a container's cgroups.
func (n *Node) MoveTo(c *Container, p *Process) error {
	return cgroup.Follow(c.Pid, p.Pid)
}
