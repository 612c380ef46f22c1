//go:build linux

package workload

import (
	"context"

	"github.com/capdrift/capdrift/e2e/node"
)

// Demo is a node as one meets it.
func Demo() []Workload {
	return []Workload{
		{About: "default capabilities", Namespace: "shop", Name: "web-7d4b9c6f5-x2kqp", Container: "nginx"},
		{About: "drops ALL", Namespace: "shop", Name: "cart-5f6d8b7c9-m4vzt", Container: "cart", Security: dropping("ALL")},
		{
			About:     "restricted: non-root, ALL dropped but NET_BIND_SERVICE, no_new_privs",
			Namespace: "payments", Name: "ledger-0", Container: "ledger", Security: restrictedBut("NET_BIND_SERVICE"),
		},
		{
			About:     "adds NET_ADMIN",
			Namespace: "kube-system", Name: "cni-agent-9hw2r", Container: "cni-agent", Security: SecurityContext{Capabilities: &Capabilities{Add: []string{"NET_ADMIN"}}},
		},
		{About: "privileged", Namespace: "kube-system", Name: "node-exporter-kq8sd", Container: "node-exporter", Security: SecurityContext{Privileged: true}},
		{
			About:     "non-root with default capabilities",
			Namespace: "shop", Name: "search-6c9f7d8b4-pl7nw", Container: "search", Security: SecurityContext{RunAsUser: new(int64(1000))},
		},
		{
			About:     "starts as root, and its entrypoint becomes another user, as those of databases do",
			Namespace: "shop", Name: "orders-db-0", Container: "postgres", Steps: []string{"uid=999"},
		},
		{About: "a user namespace of its own", Namespace: "ci", Name: "builder-t5xqz", Container: "builder", OwnUsers: true},
		{
			About:     "runAsNonRoot, and a setuid program in its image, as sudo is one",
			Namespace: "ci", Name: "runner-7f8c9d6b5-nq4ts", Container: "runner",
			Security: SecurityContext{RunAsNonRoot: true, RunAsUser: new(int64(1000))},
			Steps:    []string{"exec=/bin/actor-setuid", "name=sudo"},
		},
		{
			About:     "drop: [CAP_NET_RAW], which containerd does not understand",
			Namespace: "payments", Name: "gateway-84c5d6f7b-w9j3h", Container: "gateway", Security: dropping("CAP_NET_RAW"),
		},
		{About: "a browser's sandbox: a nested user namespace", Namespace: "ci", Name: "browser-tests-zr6mv", Container: "chrome", Steps: []string{"userns=root"}},
		{
			About:     "its runtime class has a base_runtime_spec that gives SYS_PTRACE to all",
			Namespace: "observability", Name: "profiler-hw5xk", Container: "profiler", Handler: node.HandlerWide,
		},
		{
			About:     "restricted, and somebody on the host put a process into it",
			Namespace: "payments", Name: "card-vault-0", Container: "vault", Security: restrictedBut("NET_BIND_SERVICE"),
			Then: func(ctx context.Context, n *node.Node, c *node.Container) error {
				_, err := n.Inject(ctx, c, "name=sh", "ready", "sleep")
				return err
			},
		},
		{
			About:     "drops ALL, and somebody ran runc exec --cap CAP_SYS_ADMIN",
			Namespace: "shop", Name: "checkout-58b7c4d9f-6tqrl", Container: "checkout", Security: dropping("ALL"),
			Then: func(ctx context.Context, n *node.Node, c *node.Container) error {
				_, err := n.RuncExec(ctx, c, []string{"CAP_SYS_ADMIN"}, "name=debug", "ready", "sleep")
				return err
			},
		},
	}
}

// Miner is the program, and AboutMiner the tale, of a container that no pod explains.
const (
	Miner      = "miner"
	AboutMiner = "no pod: a container started by runc alone, behind the kubelet's back"
)

// RunMiner starts it.
func RunMiner(ctx context.Context, n *node.Node) (*node.Container, error) {
	return n.RunAlone(ctx, node.Alone{
		Capabilities: []string{"CAP_NET_ADMIN", "CAP_SYS_ADMIN"},
		Args:         []string{"name=" + Miner, "ready", "sleep"},
	})
}

func dropping(names ...string) SecurityContext {
	return SecurityContext{Capabilities: &Capabilities{Drop: names}}
}

func restrictedBut(names ...string) SecurityContext {
	security := Restricted()
	security.Capabilities.Add = names
	return security
}
