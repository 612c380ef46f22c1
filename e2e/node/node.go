//go:build linux

// Package node starts a real Kubernetes node's runtime for tests: containerd with runc,
// pods made through the CRI, and containers and processes made behind its back.
//
// # Manners
//
// Everything lives in one folder that the node owns: containerd's root, state, socket and
// log, the rootfs of containers. Cgroups that no caller names are below one cgroup with
// the folder's name. Close stops only what the node started and leaves nothing: no process,
// mount, cgroup or file. When the program that owns a node is killed, the next Start
// finds the orphaned folder (nobody holds its lock) and tears it down first.
//
// # Speed
//
// Nothing waits for a time to pass: every wait is for a condition, with a deadline that
// only ends a hopeless one. Config.Slow stretches the deadlines, for emulated CPUs.
package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"text/template"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Image is the only image of a node: the actor, which is the pause image too.
const Image = "capdrift.test/actor:1"

// Config says what a node is made of. The zero value of every field but Programs works.
type Config struct {
	Programs string  // folder with containerd, containerd-shim-runc-v2, runc and actor
	Parent   string  // folder in which the node's own is made; default os.TempDir()
	Slow     float64 // factor of all deadlines; default 1
	// Systemd lets runc ask systemd for cgroups, as most kubelets have it; the machine must
	// be booted with it. Pods are then in kubepods.slice.
	Systemd bool
	// NetworkPlugin is a program that answers as a CNI plugin, NoNetwork for one. Without any
	// all pods must have the host's network.
	NetworkPlugin string
}

// Node is a running containerd and what was started on it.
type Node struct {
	Root string // the node's folder
	// Cgroup is the node's own cgroup, "/capdrift-e2e-…", in every hierarchy.
	Cgroup string

	cfg     Config
	folder  *Folder
	daemon  *exec.Cmd
	exited  chan struct{} // closed when the daemon has ended
	closing chan struct{}
	conn    *grpc.ClientConn
	runtime cri.RuntimeServiceClient
	images  cri.ImageServiceClient
	client  *containerd.Client

	mu      sync.Mutex // tests start many things at once
	cgroups []string   // those outside of Cgroup that pods were put into
	actors  []*Process

	attempts atomic.Uint32 // makes containers of one name in one pod distinct
	sharing  sync.Mutex    // held while a shared pod starts
	shared   map[string]sandbox
}

// Programs inside Config.Programs.
func (n *Node) program(name string) string { return filepath.Join(n.cfg.Programs, name) }

func (n *Node) socket() string { return filepath.Join(n.Root, "run", "containerd.sock") }

// Endpoint is the CRI endpoint, "unix://…".
func (n *Node) Endpoint() string { return "unix://" + n.socket() }

// RuntimePid is the pid of containerd itself.
func (n *Node) RuntimePid() int { return n.daemon.Process.Pid }

// SocketDir is the folder that holds nothing but the runtime's sockets.
func (n *Node) SocketDir() string { return filepath.Dir(n.socket()) }

// Within returns a context with a deadline that respects Config.Slow.
func (n *Node) Within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, n.Patience(d))
}

// Patience is a deadline that respects Config.Slow.
func (n *Node) Patience(d time.Duration) time.Duration { return time.Duration(float64(d) * n.cfg.Slow) }

// Start brings up a node with the image imported. The caller must Close it.
func Start(ctx context.Context, cfg Config) (_ *Node, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("a node needs root: containerd and runc make namespaces, mounts and cgroups")
	}
	if cfg.Slow == 0 {
		cfg.Slow = 1
	}
	// Shims and what they leave become children of this process, which reaps them: not every
	// machine's pid 1 does it soon.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, closing: make(chan struct{}), shared: map[string]sandbox{}}
	if n.folder, err = NewFolder(ctx, cfg.Parent); err != nil {
		return nil, err
	}
	n.Root, n.Cgroup = n.folder.Path, n.folder.Cgroup
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	go n.keepReaping()
	for _, dir := range []string{"run", "logs", "alone"} {
		if err := os.Mkdir(filepath.Join(n.Root, dir), 0o755); err != nil {
			return nil, err
		}
	}
	if err := n.makeHandlers(ctx); err != nil {
		return nil, err
	}
	if err := n.configure(); err != nil {
		return nil, err
	}
	if err := n.startDaemon(); err != nil {
		return nil, err
	}
	ctx, cancel := n.Within(ctx, time.Minute)
	defer cancel()
	if err := n.connect(ctx); err != nil {
		return nil, err
	}
	return n, n.importImage(ctx)
}

// restrict_oom_score_adj: where the machine lacks CAP_SYS_RESOURCE every sandbox dies
// without it, because the pause container asks for a lower score than containerd has.
//
// Version 2 is what containerd 1.7 reads; 2.x migrates it (docs/man/containerd-config.toml.5.md).
var configTemplate = template.Must(template.New("").Parse(`version = 2
root = '{{.Root}}/containerd'
state = '{{.Root}}/state'

[grpc]
  address = '{{.Socket}}'

# A shim answers within two seconds, says containerd; on an emulated CPU it may not.
[timeouts]
  'io.containerd.timeout.task.state' = '{{.TaskState}}'

[plugins.'io.containerd.grpc.v1.cri']
  sandbox_image = '{{.Image}}'
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true

[plugins.'io.containerd.grpc.v1.cri'.cni]
  bin_dir = '{{.CNI}}'
  conf_dir = '{{.CNI}}'

[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'

[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc.options]
  BinaryName = '{{.Runc}}'
  Root = '{{.RuncRoot}}'
  SystemdCgroup = {{.Systemd}}

[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.{{.WideHandler}}]
  runtime_type = 'io.containerd.runc.v2'
  base_runtime_spec = '{{.BaseSpec}}'

[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.{{.WideHandler}}.options]
  BinaryName = '{{.Runc}}'
  Root = '{{.RuncRoot}}'
  SystemdCgroup = {{.Systemd}}

[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.{{.WrappedHandler}}]
  runtime_type = 'io.containerd.runc.v2'

[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.{{.WrappedHandler}}.options]
  BinaryName = '{{.Wrapper}}'
  Root = '{{.RuncRoot}}'
  SystemdCgroup = {{.Systemd}}

[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.{{.SlowHandler}}]
  runtime_type = 'io.containerd.runc.v2'

[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.{{.SlowHandler}}.options]
  BinaryName = '{{.SlowWrapper}}'
  Root = '{{.RuncRoot}}'
  SystemdCgroup = {{.Systemd}}
`))

// runcRoot is runc's state folder; the shim adds the containerd namespace.
func (n *Node) runcRoot() string { return filepath.Join(n.Root, "runc") }

// configuration is containerd's.
func (n *Node) configuration() string { return filepath.Join(n.Root, "config.toml") }

func (n *Node) configure() error {
	if err := n.addNetwork(); err != nil {
		return err
	}
	var config bytes.Buffer
	err := configTemplate.Execute(&config, map[string]any{
		"Root": n.Root, "Socket": n.socket(), "Image": Image, "CNI": n.cni(),
		"Runc": n.program("runc"), "RuncRoot": n.runcRoot(), "Systemd": n.cfg.Systemd,
		"WideHandler": HandlerWide, "BaseSpec": n.BaseSpec(), "WrappedHandler": HandlerWrapped, "Wrapper": n.Wrapper(),
		"SlowHandler": HandlerSlow, "SlowWrapper": n.slowWrapper(),
		"TaskState": time.Duration(float64(2*time.Second) * n.cfg.Slow),
	})
	if err != nil {
		return err
	}
	return os.WriteFile(n.configuration(), config.Bytes(), 0o644)
}

func (n *Node) startDaemon() error {
	log, err := os.OpenFile(n.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	n.daemon = exec.Command(n.program("containerd"), "--config", n.configuration())
	n.daemon.Env = append(os.Environ(), "PATH="+n.cfg.Programs+":"+os.Getenv("PATH"))
	n.daemon.Stdout, n.daemon.Stderr = log, log
	// Its own session: Ctrl-C reaches the owner alone, which then closes the node in
	// order, and reap knows by it what came from here.
	n.daemon.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := n.daemon.Start(); err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	daemon, exited := n.daemon, make(chan struct{})
	n.exited = exited
	go func() {
		_ = daemon.Wait() // how it ended is in its log
		close(exited)
	}()
	return nil
}

// StopRuntime ends containerd, and waits until it has ended. The containers run on.
func (n *Node) StopRuntime(ctx context.Context) error {
	ctx, cancel := n.Within(ctx, time.Minute)
	defer cancel()
	if err := n.daemon.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("end containerd: %w", err)
	}
	select {
	case <-n.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting until containerd has ended: %w", ctx.Err())
	}
}

// StartRuntime starts containerd again, with a new socket, and waits until it answers.
func (n *Node) StartRuntime(ctx context.Context) error {
	ctx, cancel := n.Within(ctx, time.Minute)
	defer cancel()
	if err := n.startDaemon(); err != nil {
		return err
	}
	return n.answers(ctx)
}

func (n *Node) logFile() string { return filepath.Join(n.Root, "containerd.log") }

// connect waits until the CRI says that the runtime is ready.
func (n *Node) connect(ctx context.Context) (err error) {
	n.conn, err = grpc.NewClient(n.Endpoint(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		return err
	}
	n.runtime, n.images = cri.NewRuntimeServiceClient(n.conn), cri.NewImageServiceClient(n.conn)
	if err := n.answers(ctx); err != nil {
		return err
	}
	n.client, err = containerd.New(n.socket(), containerd.WithDefaultRuntime("io.containerd.runc.v2"))
	return err
}

// answers waits until it does.
func (n *Node) answers(ctx context.Context) error {
	err := Until(ctx, "containerd answers on its CRI socket", func() (bool, error) {
		select {
		case <-n.exited:
			return false, errors.New("containerd ended")
		default:
		}
		if _, err := os.Stat(n.socket()); errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		_, err := n.runtime.Version(ctx, &cri.VersionRequest{}, grpc.WaitForReady(true))
		return err == nil, nil
	})
	if err != nil {
		return n.withLog(err)
	}
	return nil
}

// withLog adds the end of containerd's log to an error that it may explain.
func (n *Node) withLog(err error) error {
	log, _ := os.ReadFile(n.logFile())
	if len(log) > 2000 {
		log = log[len(log)-2000:]
	}
	return fmt.Errorf("%w\ncontainerd's log ends with:\n%s", err, log)
}

// Until asks for a condition often; what names it in the error when the context ends first.
func Until(ctx context.Context, what string, holds func() (bool, error)) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := holds()
		if err != nil {
			return fmt.Errorf("waiting until %s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting until %s: %w", what, ctx.Err())
		case <-tick.C:
		}
	}
}
