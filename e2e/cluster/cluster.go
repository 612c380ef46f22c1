//go:build linux

// Package cluster puts a real kubelet on top of a node of package node: alone, with static
// pods, or with a real control plane, which is etcd and kube-apiserver. A test binds its
// pods itself, so that no scheduler is needed, and there is no controller manager: nothing
// makes pods for a Deployment or a DaemonSet, and no namespace can be deleted.
//
// # Pods
//
// Their image is node.Image and their imagePullPolicy "Never", and they need hostNetwork,
// for there is no CNI plugin. A kubelet removes every pod of its runtime that it
// does not know: pods of node.Run do not last beside a cluster.
//
// # Manners
//
// Everything lives in the folder "cluster" of the node's own and below the cgroup "cluster"
// of the node's. Close stops only what was started and leaves nothing: no process, pod,
// mount, cgroup or file. When the program that owns a cluster is killed, the next
// node.Start finds the processes by their cgroup and all else by the node's folder.
//
// A kubelet also changes what is the machine's: kernel settings, /var/log/containers and
// /var/lib/kubelet/device-plugins. Close restores them, or the next cluster's does. So a machine
// runs one cluster at a time (another Start waits for it), and none beside a kubelet in earnest.
//
// # Ports
//
// All listen on loopback alone. Every port but the kubelet's read-only one asks who calls.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/capdrift/capdrift/e2e/node"
)

// Config says what a cluster is made of.
type Config struct {
	Programs  string  // folder with kubelet, and with APIServer also kube-apiserver and etcd
	Slow      float64 // factor of all deadlines; default 1
	APIServer bool    // with a control plane; without one the kubelet runs static pods alone
}

// Cluster is a running kubelet, and with Config.APIServer the control plane it obeys.
type Cluster struct {
	cfg      Config
	node     *node.Node
	dir      string
	pki      *pki
	kubelet  kubeletPorts
	api      string // "https://127.0.0.1:PORT"
	client   *http.Client
	services []*service
	traces   *traces
}

// How a node is named that has one name only.
const nodeName = "capdrift-node"

// NodeName is the name that the kubelet gives its node.
func (c *Cluster) NodeName() string { return nodeName }

func (c *Cluster) path(elements ...string) string {
	return filepath.Join(append([]string{c.dir}, elements...)...)
}

// within returns a context with a deadline that respects Config.Slow.
func (c *Cluster) within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, time.Duration(float64(d)*c.cfg.Slow))
}

// Start brings up a cluster that takes pods. The caller must Close it, before the node.
func Start(ctx context.Context, n *node.Node, cfg Config) (_ *Cluster, err error) {
	if cfg.Slow == 0 {
		cfg.Slow = 1
	}
	c := &Cluster{cfg: cfg, node: n, dir: filepath.Join(n.Root, "cluster")}
	if err := os.Mkdir(c.dir, 0o755); err != nil {
		return nil, fmt.Errorf("start a cluster: %w", err) // a node has one at a time
	}
	defer func() {
		if err != nil {
			err = errors.Join(c.withLogs(err), c.Close())
		}
	}()
	ctx, cancel := c.within(ctx, 2*time.Minute)
	defer cancel()
	if c.pki, err = makePKI(c.path("pki")); err != nil {
		return nil, fmt.Errorf("make certificates: %w", err)
	}
	c.client = c.pki.client()
	if c.traces, err = findTraces(ctx, n.Root); err != nil {
		return nil, err
	}
	if err := makeCgroup(c.cgroup()); err != nil {
		return nil, err
	}
	if cfg.APIServer {
		if err := c.startControlPlane(ctx); err != nil {
			return nil, err
		}
	}
	return c, c.startKubelet(ctx)
}

// cgroup holds the pods and, apart from them, the cluster's own processes.
func (c *Cluster) cgroup() string { return c.node.Cgroup + "/cluster" }

// Close ends everything that the cluster started and removes what it made. It
// needs no context: it must happen. Closing twice is fine.
func (c *Cluster) Close() error {
	ctx, cancel := c.within(context.Background(), time.Minute)
	defer cancel()
	var errs []error
	// The kubelet first, lest it starts anew what is removed here.
	for i := len(c.services) - 1; i >= 0; i-- {
		errs = append(errs, c.services[i].stop(ctx))
	}
	if len(c.services) > 0 {
		errs = append(errs, c.removePods(ctx))
		c.services = nil
	}
	if c.client != nil {
		c.client.CloseIdleConnections()
	}
	errs = append(errs, node.RemoveCgroup(ctx, c.cgroup()), node.UnmountBelow(c.dir))
	if c.traces != nil {
		errs = append(errs, c.traces.remove())
		c.traces = nil
	}
	return errors.Join(append(errs, os.RemoveAll(c.dir))...)
}

// freePorts returns ports of loopback that nobody listens on now.
func freePorts(n int) ([]int, error) {
	ports := make([]int, n)
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // only when all are found, so that they differ
		ports[i] = l.Addr().(*net.TCPAddr).Port
	}
	return ports, nil
}
