package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/capdrift/capdrift/drift"
)

// scanOptions are the flags of `capdrift scan`.
type scanOptions struct {
	sourceOptions
	fleet *fleetOptions // whose agents look; nil for the one node of sourceOptions

	gate      gateOptions
	namespace string
	container string
	pid       int
	matching  filterOptions
	excepted  exceptedOptions // of --agent; a look of this program has no policy

	output outputOptions
}

func scanCommand(fleet *fleetOptions) *cobra.Command {
	o := scanOptions{fleet: fleet}
	cmd := &cobra.Command{
		Use:   "scan",
		Short: "Look at this node once: what its containers hold, beside what was declared",
		Long: `Look at this node once: list its containers through the CRI socket, read every process's
capability sets from /proc, and compare them with what was declared at each hop: the OCI spec,
the CRI config and, where --kubeconfig, --kubelet or --pods says whence, the pod spec. A finding
names the hop that changed the declaration, and why where that is known.

With --agent an agent takes the look, as it is configured, and its report is printed, with what
the agent's policy says. What an exception of it accepts is counted and left out, unless
--show-excepted asks for it; --fail-on never counts it.

It needs uid 0 for the runtime's socket, and no capability. A suspicion counts only when a
second look, a second later, confirms it. What could not be seen is said in the coverage.

The table shows an incident once: the worst of what is found about one process, or about one
cause, and the others below it in short. --wide and the other formats have every finding.

--fail-on passes only where everything was seen: what is being started is read again for some
seconds, and what cannot be seen is named on standard error, with status 1. Gaps that stay can be
accepted by name in --exceptions, or all with --allow-incomplete (docs/exit-status.md).

Exit status: 0 done, 1 could not do it (a runtime that does not answer, or a name that matches
nothing, too; the report of what was seen is still printed), or --fail-on could not be told,
2 wrong usage, 3 findings at or above --fail-on, or by --fail-on-expired.`,
		Example: `  capdrift scan
  capdrift scan --namespace shop --wide
  capdrift scan --filter 'caps.effective.hasAny(["SYS_ADMIN","NET_RAW"]) && pod.namespace != "kube-system"'
  capdrift scan --filter 'finding.severity >= severity("high")' --fail-on high
  capdrift scan --kubelet https://127.0.0.1:10250 --kubelet-token-file token --kubelet-ca-file ca.crt
  capdrift scan -o json --fail-on high > node.json
  capdrift scan --agent unix:///run/capdrift/agent.sock`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.validate(cmd); err != nil {
				return usageError{err}
			}
			return does(func(cmd *cobra.Command, _ []string) error { return o.run(cmd) })(cmd, args)
		},
	}
	if fleet == nil {
		cmd.Flags().BoolVar(&o.withArguments, "with-arguments", false, "put the command lines of processes with findings into the evidence; they may contain secrets, and go wherever the report goes")
		o.addFlags(cmd)
	} else {
		fleet.addFlags(cmd, time.Minute, 10*time.Minute)
	}
	flags := cmd.Flags()
	o.gate.addFlags(cmd, failOn, "exit with status 3 when a finding is at or above this severity", onlyGaps)
	flags.StringVarP(&o.namespace, "namespace", "n", "", "show only containers of pods in this namespace")
	flags.StringVar(&o.container, "container", "", "show only containers with this name, or whose id starts so")
	flags.IntVar(&o.pid, "pid", 0, "show only the container of this process, and only this process")
	o.matching.addFlags(cmd)
	o.excepted.addFlags(cmd)
	o.output.addFlags(flags)
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

func (o *scanOptions) validate(cmd *cobra.Command) error {
	if err := o.sourceOptions.validate(cmd, o.fleet, showExcepted); err != nil {
		return err
	}
	if err := o.gate.validate(); err != nil {
		return err
	}
	if o.pid < 0 {
		return fmt.Errorf("--pid=%d: want a process id", o.pid)
	}
	if err := o.matching.validate(); err != nil {
		return err
	}
	return o.output.validate()
}

// run scans, prints, and turns what was found into the exit status.
func (o *scanOptions) run(cmd *cobra.Command) error {
	if err := o.gate.open(); err != nil {
		return err
	}
	if o.fleet != nil {
		return o.overFleet(cmd)
	}
	report, err := o.report(cmd.Context(), o.gate.asked())
	if err != nil {
		return err
	}
	o.tellAge(cmd.ErrOrStderr(), report)
	shown, err := o.choose(report)
	if err != nil {
		return err
	}
	if err := o.output.write(cmd.OutOrStdout(), shown.Report, o.container != "" || o.pid != 0); err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	o.excepted.count(cmd.ErrOrStderr(), shown.accepted)
	if shown.unjudged != "" {
		fmt.Fprintln(cmd.ErrOrStderr(), "capdrift: warning:", shown.unjudged)
	}
	k := known{worst: shown.worst, what: "there are findings of severity %s", gaps: shown.gaps, unknown: untold(shown.unjudged)}
	if k.broken = o.unmatched(report.Containers); report.Runtime == nil {
		k.broken = errors.New("no container runtime answered, so nothing could be compared with its declaration (the coverage says why)")
	}
	return o.gate.decide(cmd.ErrOrStderr(), k)
}

// untold is what a filter could not be told of, for a gate.
func untold(unjudged string) []string {
	if unjudged == "" {
		return nil
	}
	return []string{"--filter could not be told of everything"}
}

// unmatched is the error for a name that no container has, nil where all have been found.
func (o *scanOptions) unmatched(containers []drift.Container) error {
	if !o.filtering() || slices.ContainsFunc(containers, o.asks) {
		return nil
	}
	hint := nearest(o.namespace, namesOf(containers, namespaceOf))
	within := slices.DeleteFunc(slices.Clone(containers), func(c drift.Container) bool { return o.namespace != "" && namespaceOf(c) != o.namespace })
	if len(within) > 0 && o.container != "" {
		hint = nearest(o.container, namesOf(within, func(c drift.Container) string { return c.Name }))
	}
	return fmt.Errorf("no running container matches %s%s", o.filterText(), hint)
}

// chosen is what of a report is asked for.
type chosen struct {
	drift.Report
	worst    drift.Severity // of the findings that no exception accepts
	accepted int            // findings, by exceptions
	unjudged string         // what the filter could not be told of
	gaps     []drift.Gap    // of what is asked for
}

func (o *scanOptions) choose(report drift.Report) (chosen, error) {
	matching, unjudged, err := o.matching.apply(report, o.asks)
	shown := chosen{Report: o.filter(matching), unjudged: unjudged, gaps: report.Gaps(o.matching.scope(o.asks, matching.Containers))}
	rest := unaccepted(shown.Findings)
	shown.worst, shown.accepted = worstFinding(rest), len(shown.Findings)-len(rest)
	if !o.excepted.show {
		shown.Findings = rest
	}
	return shown, err
}

func (o *scanOptions) asks(c drift.Container) bool { _, ok := o.keep(c); return ok }

func worstFinding(findings []drift.Finding) drift.Severity {
	var worst drift.Severity
	for _, finding := range findings {
		worst = max(worst, finding.Severity)
	}
	return worst
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
		about := kept[finding.ContainerID] || finding.ContainerID == "" // a handler, perhaps theirs
		if about && (o.pid == 0 || finding.PID == 0 || finding.PID == o.pid) {
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
	if o.container != "" && c.Name != o.container && !strings.HasPrefix(c.ID, o.container) && !strings.HasPrefix(c.RuntimeID, o.container) {
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
