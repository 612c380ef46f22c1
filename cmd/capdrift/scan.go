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

	failOn    string
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

Exit status: 0 done, 1 could not do it (a runtime that does not answer too; the report of what
was seen is still printed), 2 wrong usage, 3 findings at or above --fail-on.`,
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
	flags.StringVar(&o.failOn, "fail-on", "", "exit with status 3 when a finding is at or above this severity: critical, high, medium, low, info")
	flags.StringVarP(&o.namespace, "namespace", "n", "", "show only containers of pods in this namespace")
	flags.StringVar(&o.container, "container", "", "show only containers with this name, or whose id starts so")
	flags.IntVar(&o.pid, "pid", 0, "show only the container of this process, and only this process")
	o.matching.addFlags(cmd)
	o.excepted.addFlags(cmd)
	o.output.addFlags(flags)
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

func (o *scanOptions) validate(cmd *cobra.Command) error {
	if err := o.sourceOptions.validate(cmd, o.fleet, showExcepted); err != nil {
		return err
	}
	if o.failOn != "" && !slices.Contains(severityNames(), o.failOn) {
		return fmt.Errorf("--fail-on=%s: want one of %s", o.failOn, strings.Join(severityNames(), ", "))
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
	if o.fleet != nil {
		return o.overFleet(cmd)
	}
	report, err := o.report(cmd.Context())
	if err != nil {
		return err
	}
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
	if o.failOn != "" && !report.Coverage.Complete {
		fmt.Fprintln(cmd.ErrOrStderr(), "capdrift: warning: the coverage is incomplete, so --fail-on judged only what was seen (the coverage says what was not)")
	}
	switch {
	case report.Runtime == nil:
		return errors.New("no container runtime answered, so nothing could be compared with its declaration (the coverage says why)")
	case o.failOn != "" && shown.worst >= severityOf(o.failOn):
		return findingsError{fmt.Errorf("there are findings of severity %s, at or above --fail-on=%s", shown.worst, o.failOn)}
	case o.filtering() && !slices.ContainsFunc(report.Containers, o.asks):
		return fmt.Errorf("no running container matches %s", o.filterText())
	}
	return nil
}

// chosen is what of a report is asked for.
type chosen struct {
	drift.Report
	worst    drift.Severity // of the findings that no exception accepts
	accepted int            // findings, by exceptions
	unjudged string         // what the filter could not be told of
}

func (o *scanOptions) choose(report drift.Report) (chosen, error) {
	matching, unjudged, err := o.matching.apply(report, o.asks)
	shown := chosen{Report: o.filter(matching), unjudged: unjudged}
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
