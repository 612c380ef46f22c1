//go:build linux

// Command demo-cluster starts a Kubernetes cluster of two nodes on this machine, says how to use
// it, and takes it down on Ctrl-C. It builds what that needs (once), and needs root, Go and gcc.
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
	scan := c.Nodes[0].Command(ctx, "/opt/programs/capdrift", "scan")
	fmt.Fprintf(stdout, howTo, programs, tools, c.Kubeconfig(), strings.Join(scan.Args, " "))
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
}

func applyPods(ctx context.Context, c *cluster.Cluster, _ string) error {
	repo, err := provision.Repo()
	if err != nil {
		return err
	}
	return carryOut(c.Kubectl(ctx, "apply", "-f", filepath.Join(repo, "e2e", "cmd", "demo-cluster", "pods.yaml")))
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

  export PATH=%s:%s:$PATH
  export KUBECONFIG=%s

  kubectl get nodes -o wide
  kubectl get pods -A -o wide

A debugger with every capability, in a pod that dropped them all:

  kubectl -n shop debug $(kubectl -n shop get pod -l app=cart -o name | head -1) \
    --profile=sysadmin --image=capdrift.test/actor:1 -- /bin/actor sleep

A scan on the first node, as its root:

  %s
`
