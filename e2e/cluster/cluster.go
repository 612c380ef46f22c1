//go:build linux

// Package cluster is a real Kubernetes cluster on one Linux machine, for tests: etcd, the API
// server, the controller manager and the scheduler, and nodes that each have a kubelet, containerd
// and a network for pods of their own. Nothing comes from a registry, and nothing leaves the
// machine.
//
// # Machines
//
// The control plane and each node are machines made of namespaces (e2e/machine): a node's /proc
// shows its own processes, its cgroup tree begins at its own root, its files lie in a folder of its
// own, and it has its own boot id, host name and address. Everything is where it is on a node in
// earnest: /run/containerd/containerd.sock, /var/lib/kubelet, /etc/kubernetes/manifests. The kernel
// is one, and so are its settings: a kubelet is shown those that it wants and changes none.
//
// # Network
//
// The control plane has a bridge that all machines hang on, and so does this one, by an interface
// that goes with the control plane. Each node has a network for its pods, and routes join them.
// kube-proxy gives services their addresses, a small name server (e2e/nameserver) their names.
// Nothing enforces a NetworkPolicy.
//
// # Pods
//
// Images are those of ImportImage and node.Image; imagePullPolicy is "Never" or "IfNotPresent".
//
// # Manners
//
// Everything lives in one folder and below one cgroup. Close leaves nothing. When the program that
// owns a cluster is killed, its machines go at once, because they hear of it, and with them all
// processes, mounts and interfaces; the next Start removes the folder and the cgroups.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/capdrift/capdrift/e2e/node"
)

// Config says what a cluster is made of. The zero value of every field but Programs works.
type Config struct {
	Programs string  // the folder that provision.Cluster returns
	Parent   string  // folder in which the cluster's own is made; default os.TempDir()
	Slow     float64 // factor of all deadlines; default 1
	Nodes    int     // default 2
}

// Cluster is a running cluster.
type Cluster struct {
	Nodes []*Node

	cfg    Config
	folder *node.Folder
	pki    *pki
	subnet netip.Prefix // of the machines
	client *http.Client
	plane  *machine
}

// Root is the folder that everything of the cluster's lies in; its name is also that of its cgroup.
func (c *Cluster) Root() string { return c.folder.Path }

func (c *Cluster) path(elements ...string) string {
	return filepath.Join(append([]string{c.folder.Path}, elements...)...)
}

// within returns a context with a deadline that respects Config.Slow.
func (c *Cluster) within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, time.Duration(float64(d)*c.cfg.Slow))
}

// Start brings up a cluster whose nodes are ready. The caller must Close it.
func Start(ctx context.Context, cfg Config) (_ *Cluster, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("a cluster needs root: its machines are made of namespaces, mounts and cgroups")
	}
	if cfg.Slow == 0 {
		cfg.Slow = 1
	}
	if cfg.Nodes == 0 {
		cfg.Nodes = 2
	}
	c := &Cluster{cfg: cfg}
	if c.folder, err = node.NewFolder(ctx, cfg.Parent); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(c.withLogs(err), c.Close())
		}
	}()
	ctx, cancel := c.within(ctx, 5*time.Minute)
	defer cancel()
	if c.subnet, err = freeSubnet(); err != nil {
		return nil, err
	}
	if c.pki, err = newPKI(); err != nil {
		return nil, fmt.Errorf("make certificates: %w", err)
	}
	if err := os.WriteFile(c.CA(), []byte(c.pki.Certificate()), 0o644); err != nil {
		return nil, err
	}
	c.client = c.pki.client()
	c.plane = c.newMachine("control-plane", 1)
	for i := range cfg.Nodes {
		c.Nodes = append(c.Nodes, c.newNode(i+1))
	}
	// It has the bridge that the nodes hang on.
	if err := c.startPlane(); err != nil {
		return nil, err
	}
	if err := c.startServersAndNodes(ctx); err != nil {
		return nil, err
	}
	return c, c.onEach(ctx, (*Node).join)
}

func (c *Cluster) startServersAndNodes(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.startServers(ctx) })
	g.Go(func() error { return c.onEach(ctx, (*Node).boot) })
	return g.Wait()
}

// onEach does something on all nodes at once.
func (c *Cluster) onEach(ctx context.Context, do func(*Node, context.Context) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range c.Nodes {
		g.Go(func() error { return do(n, ctx) })
	}
	return g.Wait()
}

// Close ends everything that the cluster started and removes what it made. It
// needs no context: it must happen.
func (c *Cluster) Close() error {
	ctx, cancel := c.within(context.Background(), time.Minute)
	defer cancel()
	var g errgroup.Group
	for _, m := range c.machines() {
		g.Go(func() error { return m.off(ctx) })
	}
	if c.client != nil {
		c.client.CloseIdleConnections()
	}
	return errors.Join(g.Wait(), c.folder.Remove(ctx))
}

func (c *Cluster) machines() (all []*machine) {
	for _, n := range c.Nodes {
		all = append(all, n.machine)
	}
	if c.plane != nil {
		all = append(all, c.plane)
	}
	return all
}

// ImportImage makes an image known on every node; the archive is what `docker save` makes.
func (c *Cluster) ImportImage(ctx context.Context, archive []byte) error {
	return c.onEach(ctx, func(n *Node, ctx context.Context) error { return n.ImportImage(ctx, archive) })
}

// Program is the path of one of the cluster's programs, as it is outside of the machines: kubectl,
// helm.
func (c *Cluster) Program(name string) string { return filepath.Join(c.cfg.Programs, name) }

// Kubectl is a kubectl command of the administrator's.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) *exec.Cmd {
	return c.KubectlAs(ctx, c.Kubeconfig(), args...)
}

// KubectlAs is a kubectl command of whom a kubeconfig makes it.
func (c *Cluster) KubectlAs(ctx context.Context, kubeconfig string, args ...string) *exec.Cmd {
	command := exec.CommandContext(ctx, c.Program("kubectl"), args...)
	// Its cache goes with the cluster, and the user's own settings play no part.
	command.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + c.path("home"), "KUBECONFIG=" + kubeconfig}
	return command
}
