//go:build linux

package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/e2e/node"
)

// A Node is a machine with a kubelet and a containerd. It can lose each of them, and its power, and
// get them back.
type Node struct {
	Name string

	cluster    *Cluster
	machine    *machine
	number     int // from 1
	containerd *service
	kubelet    *service
}

func (c *Cluster) newNode(number int) *Node {
	name := fmt.Sprintf("worker-%d", number)
	return &Node{Name: name, number: number, cluster: c, machine: c.newMachine(name, 10+number)}
}

// Address is where the cluster, and this machine, reach the node.
func (n *Node) Address() string { return n.machine.address.String() }

// Path is a file of the node as it is seen from outside. What is mounted on the node is not in it.
func (n *Node) Path(elements ...string) string { return n.machine.path(elements...) }

// RuntimeSocket is containerd's on the node itself; runc's state is in RuncRoot.
const (
	RuntimeSocket = "/run/containerd/containerd.sock"
	RuncRoot      = "/run/containerd/runc/k8s.io"
)

// Endpoint is the CRI endpoint as it is seen from outside, "unix://…".
func (n *Node) Endpoint() string { return "unix://" + n.Path(RuntimeSocket) }

// Command is a command on the node, in all of its namespaces and in a cgroup of its own programs,
// with the cluster's programs on its PATH: "capdrift scan", or "runc --root RuncRoot exec --cap
// CAP_SYS_ADMIN …".
func (n *Node) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return n.machine.command(ctx, name, args...)
}

// restrict_oom_score_adj: where the machine lacks CAP_SYS_RESOURCE every sandbox dies
// without it, because the pause container asks for a lower score than containerd has.
const containerdConfig = `version = 3

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '` + node.Image + `'

[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true

[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ['/opt/programs']
  conf_dir = '/etc/cni/net.d'
`

// networkConfig makes the network of pods by the reference plugins (https://www.cni.dev/plugins),
// which note in /run who has which address. Each pod has a cable to its node, and no bridge, by
// which answers would pass by kube-proxy's rules where the machine has no br_netfilter.
func networkConfig(pods netip.Prefix) (string, error) {
	return jsonText(map[string]any{
		"cniVersion": "1.0.0", "name": "pods",
		"plugins": []any{map[string]any{
			"type": "ptp",
			"ipam": map[string]any{
				"type": "host-local", "dataDir": "/run/cni",
				"ranges": []any{[]any{map[string]string{"subnet": pods.String()}}},
				"routes": []any{map[string]string{"dst": "0.0.0.0/0"}},
			},
		}},
	})
}

func jsonText(value any) (string, error) {
	b, err := json.MarshalIndent(value, "", "  ")
	return string(b), err
}

// boot sets the node up and brings it to where the kubelet can start.
func (n *Node) boot(ctx context.Context) error {
	if err := n.configure(); err != nil {
		return err
	}
	if err := n.powerOn(ctx); err != nil {
		return err
	}
	actor, err := os.ReadFile(n.cluster.Program("actor"))
	if err != nil {
		return err
	}
	image, err := node.ImageArchive(actor)
	if err != nil {
		return err
	}
	return n.ImportImage(ctx, image)
}

func (n *Node) configure() error {
	c := n.cluster
	kubelet, err := c.pki.User("system:node:"+n.Name, "system:nodes")
	if err != nil {
		return err
	}
	proxy, err := c.pki.User("system:kube-proxy")
	if err != nil {
		return err
	}
	server, err := c.pki.Server([]netip.Addr{n.machine.address}, n.Name)
	if err != nil {
		return err
	}
	forKubelet, err := c.kubeconfigFor(kubelet)
	if err != nil {
		return err
	}
	forProxy, err := c.kubeconfigFor(proxy)
	if err != nil {
		return err
	}
	network, err := networkConfig(podSubnet(n.number))
	if err != nil {
		return err
	}
	config, err := jsonText(kubeletConfig(c.plane.address))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(n.Path(manifests), 0o755); err != nil {
		return err
	}
	return n.machine.write(map[string]string{
		"/etc/machine-id":         newToken() + "\n",
		pkiFolder + "ca.crt":      c.pki.Certificate(),
		pkiFolder + "kubelet.crt": server.Certificate, pkiFolder + "kubelet.key": server.Key,
		kubeconfig:                     forKubelet,
		proxyKubeconfig:                forProxy,
		kubeletFile:                    config,
		"/etc/containerd/config.toml":  containerdConfig,
		"/etc/cni/net.d/pods.conflist": network,
	})
}

// PowerOff takes the power from the node: all that runs on it is gone at once.
func (n *Node) PowerOff(ctx context.Context) error {
	ctx, cancel := n.cluster.within(ctx, time.Minute)
	defer cancel()
	return n.machine.off(ctx)
}

// PowerOn boots the node again, with another boot id and an empty /run, and waits until it is ready.
func (n *Node) PowerOn(ctx context.Context) error {
	ctx, cancel := n.cluster.within(ctx, 2*time.Minute)
	defer cancel()
	if err := n.powerOn(ctx); err != nil {
		return err
	}
	return n.join(ctx)
}

func (n *Node) powerOn(ctx context.Context) error {
	if err := n.machine.on(); err != nil {
		return err
	}
	if err := n.cluster.plug(n); err != nil {
		return fmt.Errorf("network of %s: %w", n.Name, err)
	}
	return n.StartContainerd(ctx)
}

// join makes the node part of the cluster: it takes pods, and reaches services.
func (n *Node) join(ctx context.Context) error {
	if _, err := exec.LookPath("nft"); err != nil {
		return errors.New("kube-proxy needs nft, and nodes have this machine's programs; run: make packages")
	}
	// First, because kube-proxy waits for the node to be known.
	if err := n.StartKubelet(ctx); err != nil {
		return err
	}
	proxy, err := n.machine.run(ctx, "kube-proxy",
		"--kubeconfig", proxyKubeconfig, "--hostname-override", n.Name,
		"--proxy-mode", "nftables", "--cluster-cidr", podNetwork.String(),
		// The kernel's settings are the machine's.
		"--conntrack-max-per-core", "0", "--conntrack-tcp-timeout-established", "0", "--conntrack-tcp-timeout-close-wait", "0",
	)
	if err != nil {
		return err
	}
	return n.awaitHealthy(ctx, proxy, "http://"+n.Address()+":10256/healthz")
}

// StopContainerd kills containerd. The containers run on.
func (n *Node) StopContainerd(ctx context.Context) error { return n.stop(ctx, n.containerd) }

// StopKubelet kills the kubelet. The pods run on.
func (n *Node) StopKubelet(ctx context.Context) error { return n.stop(ctx, n.kubelet) }

func (n *Node) stop(ctx context.Context, s *service) error {
	ctx, cancel := n.cluster.within(ctx, time.Minute)
	defer cancel()
	return s.kill(ctx)
}

// StartContainerd starts containerd and waits until it answers.
func (n *Node) StartContainerd(ctx context.Context) (err error) {
	ctx, cancel := n.cluster.within(ctx, time.Minute)
	defer cancel()
	if n.containerd, err = n.machine.run(ctx, "containerd"); err != nil {
		return err
	}
	conn, err := n.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	return node.Until(ctx, "containerd answers on "+n.Name, func() (bool, error) {
		_, err := cri.NewRuntimeServiceClient(conn).Version(ctx, &cri.VersionRequest{}, grpc.WaitForReady(true))
		return err == nil, n.containerd.ended()
	})
}

func (n *Node) dial() (*grpc.ClientConn, error) {
	return grpc.NewClient(n.Endpoint(), grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// StartKubelet starts the kubelet and waits until the API tells that the node is ready.
func (n *Node) StartKubelet(ctx context.Context) (err error) {
	ctx, cancel := n.cluster.within(ctx, 2*time.Minute)
	defer cancel()
	n.kubelet, err = n.machine.run(ctx, "kubelet", "--config", kubeletFile, "--kubeconfig", kubeconfig, "--node-ip", n.Address(), "--v", "2")
	if err != nil {
		return err
	}
	if err := n.awaitHealthy(ctx, n.kubelet, n.KubeletURL()+"/healthz"); err != nil {
		return err
	}
	return n.AwaitReady(ctx, true)
}

func (n *Node) awaitHealthy(ctx context.Context, s *service, url string) error {
	return node.Until(ctx, s.name+" is healthy", func() (bool, error) {
		_, err := n.cluster.ask(ctx, http.MethodGet, url, "", nil)
		return err == nil, s.ended()
	})
}

// AwaitReady waits until the API tells that the node is ready and takes pods, or that it is not.
func (n *Node) AwaitReady(ctx context.Context, ready bool) error {
	ctx, cancel := n.cluster.within(ctx, 2*time.Minute)
	defer cancel()
	return node.Until(ctx, fmt.Sprintf("%s's readiness is %v", n.Name, ready), func() (bool, error) {
		is, err := n.ready(ctx)
		return is == ready, err
	})
}

func (n *Node) ready(ctx context.Context) (bool, error) {
	b, err := n.cluster.Request(ctx, http.MethodGet, "/api/v1/nodes/"+n.Name, nil)
	var refused *StatusError
	if errors.As(err, &refused) && refused.Code == http.StatusNotFound {
		return false, nil // not registered yet
	}
	if err != nil {
		return false, err
	}
	var told struct {
		Spec   struct{ Taints []struct{ Key string } }
		Status struct {
			Conditions []struct{ Type, Status string }
		}
	}
	if err := json.Unmarshal(b, &told); err != nil {
		return false, fmt.Errorf("node: %w in %q", err, b)
	}
	for _, condition := range told.Status.Conditions {
		if condition.Type == "Ready" {
			return condition.Status == "True" && len(told.Spec.Taints) == 0, nil
		}
	}
	return false, nil
}

// ImportImage makes an image known on the node; the archive is what `docker save` makes.
func (n *Node) ImportImage(ctx context.Context, archive []byte) error {
	ctx, cancel := n.cluster.within(namespaces.WithNamespace(ctx, "k8s.io"), time.Minute)
	defer cancel()
	client, err := containerd.New(n.Path(RuntimeSocket))
	if err != nil {
		return err
	}
	defer client.Close()
	images, err := client.Import(ctx, bytes.NewReader(archive))
	if err != nil {
		return fmt.Errorf("import an image on %s: %w", n.Name, err)
	}
	conn, err := n.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	for _, image := range images {
		if err := containerd.NewImage(client, image).Unpack(ctx, ""); err != nil {
			return fmt.Errorf("unpack image %s on %s: %w", image.Name, n.Name, err)
		}
		err := node.Until(ctx, "the CRI of "+n.Name+" knows the image "+image.Name, func() (bool, error) {
			r, err := cri.NewImageServiceClient(conn).ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: image.Name}})
			return err == nil && r.Image != nil, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
