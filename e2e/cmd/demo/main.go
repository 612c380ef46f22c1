//go:build linux

// Command demo shows capdrift on a real node: it builds what a node needs (once), starts
// containerd with a dozen containers as one meets them, runs `capdrift scan` and `explain`, and takes
// everything down again. It needs root, Go and gcc.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sync/errgroup"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/e2e/node"
	"github.com/capdrift/capdrift/e2e/provision"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, stdout, stderr io.Writer) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("a node of its own needs root; run: sudo make demo")
	}
	programs, err := provision.FromEnv(ctx, stderr)
	if err != nil {
		return err
	}
	fmt.Fprintln(stderr, "starting a node …")
	n, err := node.Start(ctx, node.Config{Programs: programs})
	if err != nil {
		return err
	}
	defer func() {
		fmt.Fprintln(stderr, "taking the node down …")
		err = errors.Join(err, n.Close())
	}()
	if err := populate(ctx, n, stderr); err != nil {
		if ctx.Err() != nil {
			return errors.New("interrupted")
		}
		return err
	}

	for _, args := range [][]string{
		{"scan"},
		{"explain", "gateway", "NET_RAW", "CHOWN"},
	} {
		args = append(args, "--cri-endpoint", n.Endpoint())
		fmt.Fprintf(stderr, "capdrift %s\n\n", strings.Join(args, " "))
		command := exec.CommandContext(ctx, filepath.Join(programs, "capdrift"), args...)
		command.Stdout, command.Stderr = stdout, stderr
		if err := command.Run(); err != nil {
			return fmt.Errorf("capdrift %s: %w", args[0], err)
		}
		fmt.Fprintln(stderr)
	}
	return nil
}

// A workload is a pod, and what somebody does to it afterwards.
type workload struct {
	about string
	pod   node.Pod
	then  func(ctx context.Context, n *node.Node, c *node.Container) error
}

func populate(ctx context.Context, n *node.Node, stderr io.Writer) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4) // containerd is busy with about so many
	for _, w := range workloads {
		fmt.Fprintf(stderr, "  %s/%s: %s\n", w.pod.Namespace, w.pod.Name, w.about)
		g.Go(func() error {
			c, err := n.Run(ctx, w.pod)
			if err == nil && w.then != nil {
				err = w.then(ctx, n, c)
			}
			return err
		})
	}
	fmt.Fprintln(stderr, "  (no pod): a container started by runc alone, behind the kubelet's back")
	g.Go(func() error {
		_, err := n.RunAlone(ctx, node.Alone{
			Capabilities: []string{"CAP_NET_ADMIN", "CAP_SYS_ADMIN"},
			Args:         []string{"name=miner", "ready", "sleep"},
		})
		return err
	})
	return g.Wait()
}

func capabilities(add, drop []string) *cri.LinuxContainerSecurityContext {
	return &cri.LinuxContainerSecurityContext{
		Capabilities: &cri.Capability{AddCapabilities: add, DropCapabilities: drop},
	}
}

func restricted() *cri.LinuxContainerSecurityContext {
	sc := capabilities([]string{"NET_BIND_SERVICE"}, []string{"ALL"})
	sc.NoNewPrivs = true
	sc.RunAsUser = &cri.Int64Value{Value: 1000}
	return sc
}

func userNamespace() *cri.LinuxContainerSecurityContext {
	ids := []*cri.IDMapping{{HostId: 100000, Length: 65536}}
	return &cri.LinuxContainerSecurityContext{NamespaceOptions: &cri.NamespaceOption{
		Network:       cri.NamespaceMode_NODE,
		Pid:           cri.NamespaceMode_CONTAINER,
		UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids},
	}}
}

func pod(namespace, name, container string, sc *cri.LinuxContainerSecurityContext, steps ...string) node.Pod {
	return node.Pod{
		Namespace: namespace, Name: name, Container: container, Security: sc,
		Args: append(append([]string{"name=" + container}, steps...), "ready", "sleep"),
	}
}

var workloads = []workload{
	{about: "default capabilities", pod: pod("shop", "web-7d4b9c6f5-x2kqp", "nginx", nil)},
	{about: "drops ALL", pod: pod("shop", "cart-5f6d8b7c9-m4vzt", "cart", capabilities(nil, []string{"ALL"}))},
	{about: "restricted: non-root, ALL dropped, no_new_privs", pod: pod("payments", "ledger-0", "ledger", restricted())},
	{about: "adds NET_ADMIN", pod: pod("kube-system", "cni-agent-9hw2r", "cni-agent", capabilities([]string{"NET_ADMIN"}, nil))},
	{about: "privileged", pod: pod("kube-system", "node-exporter-kq8sd", "node-exporter", &cri.LinuxContainerSecurityContext{Privileged: true})},
	{about: "non-root with default capabilities", pod: pod("shop", "search-6c9f7d8b4-pl7nw", "search", &cri.LinuxContainerSecurityContext{RunAsUser: &cri.Int64Value{Value: 1000}})},
	{about: "a user namespace of its own", pod: pod("ci", "builder-t5xqz", "builder", userNamespace())},
	{about: "drop: [CAP_NET_RAW], which containerd does not understand", pod: pod("payments", "gateway-84c5d6f7b-w9j3h", "gateway", capabilities(nil, []string{"CAP_NET_RAW"}))},
	{about: "a browser's sandbox: a nested user namespace", pod: pod("ci", "browser-tests-zr6mv", "chrome", nil, "userns=root")},
	{
		about: "restricted, and somebody on the host put a process into it",
		pod:   pod("payments", "card-vault-0", "vault", restricted()),
		then: func(ctx context.Context, n *node.Node, c *node.Container) error {
			_, err := n.Inject(ctx, c, "name=sh", "ready", "sleep")
			return err
		},
	},
	{
		about: "drops ALL, and somebody ran runc exec --cap CAP_SYS_ADMIN",
		pod:   pod("shop", "checkout-58b7c4d9f-6tqrl", "checkout", capabilities(nil, []string{"ALL"})),
		then: func(ctx context.Context, n *node.Node, c *node.Container) error {
			_, err := n.RuncExec(ctx, c, []string{"CAP_SYS_ADMIN"}, "name=debug", "ready", "sleep")
			return err
		},
	},
}
