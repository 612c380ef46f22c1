package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/cri"
	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/proc"
)

// lookOptions are the flags of every command that looks at this node.
type lookOptions struct {
	endpoint   string
	hostRoot   string
	nodeName   string
	criTimeout time.Duration
	threads    string
	assume     []string
	pods       podOptions

	withArguments bool // of a command that has a flag for it
}

// threadBudget is how many threads beside their leaders `--threads=auto` reads
// in one sweep: more than an ordinary node runs, and no more than a second's work.
const threadBudget = 20_000

// scanTime bounds the processor time of one look at all processes, which are as costly to
// read as they like: 200,000 ordinary ones fit. Who wants all threads has the time.
const (
	scanTime     = 10 * time.Second
	thoroughTime = 2 * time.Minute
)

// betweenLooks is the time between two looks at something suspicious.
const betweenLooks = time.Second

// learnt are the settings of the runtime that a look learns from the node unless
// they are stated.
var learnt = []string{assumeDefaultCaps, assumeHeldCaps, assumeInheritable}

func (o *lookOptions) addFlags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&o.endpoint, "cri-endpoint", "", "the runtime's CRI socket, unix:///path (default: found among the usual places)")
	flags.StringVar(&o.hostRoot, "host-root", "/", "where the host's root, or at least its /proc and /sys/fs/cgroup, is mounted")
	flags.StringVar(&o.nodeName, "node-name", "", "what this node is called in the report and in the cluster (default: its host name, which in a pod is the pod's: give spec.nodeName there)")
	flags.DurationVar(&o.criTimeout, "cri-timeout", 10*time.Second, "how long one call to the runtime may take")
	flags.StringVar(&o.threads, "threads", "auto", "read the capabilities of threads: auto (all but on nodes with very many), always, never")
	flags.StringArrayVar(&o.assume, "assume", nil, "KEY=VALUE: state a setting of the runtime instead of learning it from its containers; keys: default-caps, held-caps, inheritable")
	o.pods.addFlags(cmd)
	complete(cmd, "threads", "auto", "always", "never")
	complete(cmd, "assume", assumeDefaultCaps+"=", assumeHeldCaps+"=", assumeInheritable+"=true", assumeInheritable+"=false")
}

func (o *lookOptions) validate() error {
	if !slices.Contains([]string{"auto", "always", "never"}, o.threads) {
		return fmt.Errorf("--threads=%s: want auto, always or never", o.threads)
	}
	if o.criTimeout <= 0 {
		return fmt.Errorf("--cri-timeout=%s: want a time above zero", o.criTimeout)
	}
	if _, err := parseAssumptions(o.assume, learnt...); err != nil {
		return err
	}
	return o.pods.validate()
}

func (o *lookOptions) threadBudget() int {
	switch o.threads {
	case "always":
		return -1
	case "never":
		return 0
	}
	return threadBudget
}

// host reads this node's /proc and cgroups.
func (o *lookOptions) host() *proc.FS {
	limit := scanTime
	if o.threads == "always" {
		limit = thoroughTime
	}
	return proc.New(o.hostRoot, proc.Options{Threads: o.threadBudget(), Time: limit, Arguments: o.withArguments})
}

// look takes one look at the node, and more where something is suspicious.
func (o *lookOptions) look(ctx context.Context, host *proc.FS) (drift.Report, error) {
	assumed, err := parseAssumptions(o.assume, learnt...)
	if err != nil {
		return drift.Report{}, usageError{err}
	}
	scanner := agent.Scanner{Host: host, Given: assumed.Given, Between: betweenLooks, Now: time.Now, Wait: wait}
	client, err := cri.Connect(ctx, cri.Options{Endpoint: o.endpoint, Root: o.hostRoot, Timeout: o.criTimeout})
	switch {
	case errors.Is(err, cri.ErrEndpoint):
		return drift.Report{}, usageError{fmt.Errorf("--cri-endpoint: %w", err)}
	case err != nil:
		scanner.NoRuntime = err
	default:
		defer client.Close()
		scanner.Runtime = client
	}
	pods, closing, err := o.pods.open(o.nodeName, host)
	if err != nil {
		return drift.Report{}, err
	}
	defer func() { _ = closing() }() // nothing is written that could be lost
	scanner.Pods = pods

	report, err := scanner.Scan(ctx)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return drift.Report{}, fmt.Errorf("%w; if the node's /proc and /sys/fs/cgroup are mounted elsewhere, name their root with --host-root", err)
	case err != nil:
		return drift.Report{}, err
	}
	if o.nodeName != "" {
		report.Node.Name = o.nodeName
	}
	return report, nil
}

// wait returns after the duration, or earlier with the context's error.
func wait(ctx context.Context, duration time.Duration) error {
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
