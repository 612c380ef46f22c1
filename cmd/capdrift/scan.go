package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/cri"
	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/proc"
)

// scanOptions are the flags of `capdrift scan`.
type scanOptions struct {
	endpoint   string
	hostRoot   string
	nodeName   string
	criTimeout time.Duration
	threads    string
	failOn     string

	namespace string
	container string
	pid       int

	output outputOptions
}

// threadBudget is how many threads beside their leaders `--threads=auto` reads
// in one sweep: more than an ordinary node runs, and no more than a second's work.
const threadBudget = 20_000

// betweenLooks is the time between two looks at something suspicious.
const betweenLooks = time.Second

func scanCommand() *cobra.Command {
	var o scanOptions
	cmd := &cobra.Command{
		Use:   "scan",
		Short: "Look at this node once: what its containers hold, beside what was declared",
		Long: `Look at this node once: list its containers through the CRI socket, read every process's
capability sets from /proc, and compare them with the container's OCI spec.

It needs uid 0 for the runtime's socket, and no capability. A suspicion counts only when a
second look, a second later, confirms it. What could not be seen is said in the coverage.

Exit status: 0 done, 1 could not do it (a runtime that does not answer too; the report of what
was seen is still printed), 2 wrong usage, 3 findings at or above --fail-on.`,
		Example: `  capdrift scan
  capdrift scan --namespace shop --wide
  capdrift scan -o json --fail-on high > node.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.validate(); err != nil {
				return usageError{err}
			}
			return does(func(cmd *cobra.Command, _ []string) error { return o.run(cmd) })(cmd, args)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.endpoint, "cri-endpoint", "", "the runtime's CRI socket, unix:///path (default: found among the usual places)")
	flags.StringVar(&o.hostRoot, "host-root", "/", "where the host's root, or at least its /proc and /sys/fs/cgroup, is mounted")
	flags.StringVar(&o.nodeName, "node-name", "", "what to call this node in the report (default: its host name, which in a pod is the pod's: give spec.nodeName there)")
	flags.DurationVar(&o.criTimeout, "cri-timeout", 10*time.Second, "how long one call to the runtime may take")
	flags.StringVar(&o.threads, "threads", "auto", "read the capabilities of threads: auto (all but on nodes with very many), always, never")
	flags.StringVar(&o.failOn, "fail-on", "", "exit with status 3 when a finding is at or above this severity: critical, high, medium, low, info")
	flags.StringVarP(&o.namespace, "namespace", "n", "", "show only containers of pods in this namespace")
	flags.StringVar(&o.container, "container", "", "show only containers with this name, or whose id starts so")
	flags.IntVar(&o.pid, "pid", 0, "show only the container of this process, and only this process")
	o.output.addFlags(flags)
	complete(cmd, "threads", "auto", "always", "never")
	complete(cmd, "fail-on", severityNames()...)
	complete(cmd, "output", outputNames()...)
	complete(cmd, "color", "auto", "always", "never")
	return cmd
}

func complete(cmd *cobra.Command, flag string, values ...string) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // a flag of this name was just defined
	}
}

func severityNames() []string {
	var names []string
	for _, severity := range drift.Severities() {
		names = append(names, severity.String())
	}
	return names
}

func (o *scanOptions) validate() error {
	if !slices.Contains([]string{"auto", "always", "never"}, o.threads) {
		return fmt.Errorf("--threads=%s: want auto, always or never", o.threads)
	}
	if o.failOn != "" && !slices.Contains(severityNames(), o.failOn) {
		return fmt.Errorf("--fail-on=%s: want one of %s", o.failOn, strings.Join(severityNames(), ", "))
	}
	if o.pid < 0 {
		return fmt.Errorf("--pid=%d: want a process id", o.pid)
	}
	if o.criTimeout <= 0 {
		return fmt.Errorf("--cri-timeout=%s: want a time above zero", o.criTimeout)
	}
	return o.output.validate()
}

// run scans, prints, and turns what was found into the exit status.
func (o *scanOptions) run(cmd *cobra.Command) error {
	scanner := agent.Scanner{
		Host:    proc.New(o.hostRoot, proc.Options{Threads: o.threadBudget()}),
		Between: betweenLooks,
		Now:     time.Now,
		Wait:    wait,
	}
	client, err := cri.Connect(cmd.Context(), cri.Options{Endpoint: o.endpoint, Root: o.hostRoot, Timeout: o.criTimeout})
	switch {
	case errors.Is(err, cri.ErrEndpoint):
		return usageError{fmt.Errorf("--cri-endpoint: %w", err)}
	case err != nil:
		scanner.NoRuntime = err
	default:
		defer client.Close()
		scanner.Runtime = client
	}

	report, err := scanner.Scan(cmd.Context())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w; if the node's /proc and /sys/fs/cgroup are mounted elsewhere, name their root with --host-root", err)
	case err != nil:
		return err
	}
	if o.nodeName != "" {
		report.Node.Name = o.nodeName
	}
	shown := o.filter(report)
	worst := worstFinding(shown.Findings)
	if err := o.output.write(cmd.OutOrStdout(), shown, o.container != "" || o.pid != 0); err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	if o.failOn != "" && !report.Coverage.Complete {
		fmt.Fprintln(cmd.ErrOrStderr(), "capdrift: warning: the coverage is incomplete, so --fail-on judged only what was seen (the coverage says what was not)")
	}
	switch {
	case report.Runtime == nil:
		return errors.New("no container runtime answered, so nothing could be compared with its declaration (the coverage says why)")
	case o.failOn != "" && worst >= o.threshold():
		return findingsError{fmt.Errorf("there are findings of severity %s, at or above --fail-on=%s", worst, o.failOn)}
	case o.filtering() && len(shown.Containers) == 0:
		return fmt.Errorf("no running container matches %s", o.filterText())
	}
	return nil
}

func (o *scanOptions) threadBudget() int {
	switch o.threads {
	case "always":
		return -1
	case "never":
		return 0
	}
	return threadBudget
}

func (o *scanOptions) threshold() drift.Severity {
	var severity drift.Severity
	if err := severity.UnmarshalText([]byte(o.failOn)); err != nil {
		panic(err) // validate has accepted it
	}
	return severity
}

func worstFinding(findings []drift.Finding) drift.Severity {
	var worst drift.Severity
	for _, finding := range findings {
		worst = max(worst, finding.Severity)
	}
	return worst
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

func (o *scanOptions) filtering() bool { return o.namespace != "" || o.container != "" || o.pid != 0 }

func (o *scanOptions) filterText() string {
	var parts []string
	if o.namespace != "" {
		parts = append(parts, "--namespace="+printable(o.namespace))
	}
	if o.container != "" {
		parts = append(parts, "--container="+printable(o.container))
	}
	if o.pid != 0 {
		parts = append(parts, fmt.Sprintf("--pid=%d", o.pid))
	}
	return strings.Join(parts, " ")
}

// filter returns the report with only the containers, processes and findings
// asked for. The coverage stays the whole node's: what was not seen might be
// just what was asked for.
func (o *scanOptions) filter(report drift.Report) drift.Report {
	if !o.filtering() {
		return report
	}
	containers, findings := []drift.Container{}, []drift.Finding{}
	kept := make(map[string]bool)
	for _, c := range report.Containers {
		if c, ok := o.keep(c); ok {
			containers = append(containers, c)
			kept[c.ID] = true
		}
	}
	for _, finding := range report.Findings {
		if kept[finding.ContainerID] && (o.pid == 0 || finding.PID == 0 || finding.PID == o.pid) {
			findings = append(findings, finding)
		}
	}
	report.Containers, report.Findings = containers, findings
	return report
}

func (o *scanOptions) keep(c drift.Container) (drift.Container, bool) {
	if o.namespace != "" && (c.Pod == nil || c.Pod.Namespace != o.namespace) {
		return c, false
	}
	if o.container != "" && c.Name != o.container && !strings.HasPrefix(c.ID, o.container) {
		return c, false
	}
	if o.pid != 0 {
		at := slices.IndexFunc(c.Processes, func(p drift.Process) bool { return p.PID == o.pid })
		if at < 0 {
			return c, false
		}
		c.Processes = c.Processes[at : at+1]
	}
	return c, true
}
