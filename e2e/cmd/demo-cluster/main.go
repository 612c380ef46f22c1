//go:build linux

// Command demo-cluster starts a Kubernetes cluster of two nodes on this machine with the chart
// installed on it, says what to try, and takes it down on Ctrl-C. It builds what that needs (once), and needs root, Go and gcc.
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

	"github.com/capdrift/capdrift/e2e/cluster"
	"github.com/capdrift/capdrift/e2e/image"
	"github.com/capdrift/capdrift/e2e/provision"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "demo-cluster:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, stdout, stderr io.Writer) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("a cluster of its own needs root; run: sudo make demo-cluster")
	}
	programs, err := provision.KubernetesFromEnv(ctx, stderr)
	if err != nil {
		return err
	}
	tools, err := provision.ChartToolsFromEnv(ctx, stderr)
	if err != nil {
		return err
	}
	fmt.Fprintln(stderr, "starting a cluster of two nodes …")
	c, err := cluster.Start(ctx, cluster.Config{Programs: programs})
	if err != nil {
		return err
	}
	defer func() {
		fmt.Fprintln(stderr, "taking the cluster down …")
		err = errors.Join(err, c.Close())
	}()
	for _, s := range steps {
		fmt.Fprintln(stderr, s.says, "…")
		if err := s.do(ctx, c, tools); err != nil {
			return fmt.Errorf("%s: %w", s.says, err)
		}
	}
	n := c.Nodes[0]
	runc, scan := n.Command(ctx, "/opt/programs/runc"), n.Command(ctx, "/opt/programs/capdrift", "scan")
	fmt.Fprintf(stdout, howTo, plugins(c), programs, tools, c.Kubeconfig(), n.Name, strings.Join(runc.Args, " "), cluster.RuncRoot, strings.Join(scan.Args, " "))
	<-ctx.Done()
	return nil
}

// A step is one of those that make of a bare cluster one that is worth a look.
type step struct {
	says string
	do   func(ctx context.Context, c *cluster.Cluster, tools string) error
}

// steps are carried out in this order.
var steps = []step{
	{"deploying some pods", applyPods},
	{"building the image of the agents", importImage},
	{"installing the chart", installChart},
	{"making kubectl capdrift a command", linkPlugin},
}

func applyPods(ctx context.Context, c *cluster.Cluster, _ string) error {
	repo, err := provision.Repo()
	if err != nil {
		return err
	}
	return carryOut(c.Kubectl(ctx, "apply", "-f", filepath.Join(repo, "e2e", "cmd", "demo-cluster", "pods.yaml")))
}

func importImage(ctx context.Context, c *cluster.Cluster, _ string) error {
	repo, err := provision.Repo()
	if err != nil {
		return err
	}
	dir := filepath.Join(c.Root(), "image")
	if _, err := image.Build(ctx, repo, repo, dir); err != nil {
		return err
	}
	archive, err := os.ReadFile(image.Archive(dir))
	if err != nil {
		return err
	}
	return c.ImportImage(ctx, archive)
}

// installChart does what docs/kubernetes.md says.
func installChart(ctx context.Context, c *cluster.Cluster, tools string) error {
	repo, err := provision.Repo()
	if err != nil {
		return err
	}
	if err := carryOut(c.Kubectl(ctx, "create", "namespace", "capdrift")); err != nil {
		return err
	}
	if err := carryOut(c.Kubectl(ctx, "label", "namespace", "capdrift", "pod-security.kubernetes.io/enforce=privileged")); err != nil {
		return err
	}
	install := exec.CommandContext(ctx, filepath.Join(tools, "helm"), "install", "capdrift", filepath.Join(repo, "deploy", "chart"),
		"--namespace", "capdrift", "--set", "image.tag="+image.Version, "--set", "image.pullPolicy=Never", "--wait")
	install.Env = c.Kubectl(ctx).Env // whose cluster and folders serve helm too
	return carryOut(install)
}

// plugins is the folder in which kubectl finds its plugin.
func plugins(c *cluster.Cluster) string { return filepath.Join(c.Root(), "bin") }

func linkPlugin(_ context.Context, c *cluster.Cluster, _ string) error {
	if err := os.MkdirAll(plugins(c), 0o755); err != nil {
		return err
	}
	return os.Symlink(c.Program("capdrift"), filepath.Join(plugins(c), "kubectl-capdrift"))
}

// carryOut runs a command that says something only if it fails.
func carryOut(command *exec.Cmd) error {
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

const howTo = `
The cluster runs until Ctrl-C. In another terminal, as root:

  export PATH=%s:%s:%s:$PATH
  export KUBECONFIG=%s

  kubectl get pods -A -o wide
  kubectl capdrift get nodes
  kubectl capdrift explain deploy/cart -n shop
  kubectl capdrift audit --pack pss-restricted -n shop
  kubectl capdrift watch

While that watches: a debugger with every capability in a pod that dropped them all, which somebody ordered,

  kubectl -n shop debug $(kubectl -n shop get pod -l app=cart -o name | head -1) \
    --profile=sysadmin --image=capdrift.test/actor:1 -c debugger -- /bin/actor sleep
  kubectl capdrift explain deploy/cart -n shop -c debugger SYS_ADMIN

and a process with a capability that nobody ordered, on %s:

  ID=$(kubectl -n shop get pod -l app=network --field-selector spec.nodeName=%[5]s -o jsonpath='{.items[0].status.containerStatuses[0].containerID}')
  %s \
    --root %s exec --detach --cap CAP_SYS_ADMIN ${ID#containerd://} /bin/actor name=intruder sleep >/dev/null 2>&1 </dev/null
  kubectl capdrift get findings

A scan on that node, as its root:

  %s
`
