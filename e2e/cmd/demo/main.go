//go:build linux

// Command demo shows capdrift on a real node: it builds what a node needs (once), starts
// containerd with containers as one meets them, runs `capdrift scan` and `explain`, and takes
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

	"github.com/capdrift/capdrift/e2e/node"
	"github.com/capdrift/capdrift/e2e/provision"
	"github.com/capdrift/capdrift/e2e/workload"
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

func populate(ctx context.Context, n *node.Node, stderr io.Writer) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4) // containerd is busy with about so many
	for _, w := range workload.Demo() {
		fmt.Fprintf(stderr, "  %s/%s: %s\n", w.Namespace, w.Name, w.About)
		g.Go(func() error {
			_, err := w.Run(ctx, n)
			return err
		})
	}
	fmt.Fprintf(stderr, "  %s: %s\n", workload.Miner, workload.AboutMiner)
	g.Go(func() error {
		_, err := workload.RunMiner(ctx, n)
		return err
	})
	return g.Wait()
}
