package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/kube"
	"github.com/capdrift/capdrift/policy"
)

// auditOptions are the flags of `capdrift audit`.
type auditOptions struct {
	sourceOptions
	fleet        *fleetOptions // whose agents look; nil for the one node of sourceOptions
	namespace    string        // of the containers that are judged; of a fleet's only
	manifests    []string      // FILE, DIR or -; without any a node is looked at
	packs        packOptions
	showExcepted bool
	gate         gateOptions
	matching     filterOptions
	output       outputOptions
}

// auditFormats is the registry of `-o` beside the table.
var auditFormats = map[string]func(io.Writer, audit) error{
	"json":  func(w io.Writer, a audit) error { return writeJSON(w, a.published()) },
	"jsonl": writeAuditLines,
	"csv":   func(w io.Writer, a audit) error { return writeAuditCSV(w, a, true) },
	"sarif": func(w io.Writer, a audit) error { return writeJSON(w, a.sarif()) },
	"junit": writeJUnit,
}

func auditOutputs() []string {
	return append([]string{"table"}, slices.Sorted(maps.Keys(auditFormats))...)
}

func auditCommand(fleet *fleetOptions) *cobra.Command {
	o := auditOptions{fleet: fleet}
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Judge this node's containers by hardening rules, on paper and in the kernel",
		Long: `Judge every container of this node by hardening rules: on paper, by what was declared for it, and in
the kernel, by what its processes and threads hold. Where the two disagree no scanner of manifests
can tell; those results come first. The rules are those of the packs that are built in (capdrift
policy list), or of the packs that --pack names (docs/policy.md).

It looks at the node as capdrift scan does, with the same flags and needs, or has an agent look
(--agent). With --manifests it asks no node: manifests are judged on paper alone, and what the
kernel will hold stays unknown. Custom resources are judged by their shape; what was not judged is
named in every format.

--fail-on counts what fails on paper or in the kernel, and drift findings, unless an exception
accepts them. What could not be seen or judged lets nothing pass, also beside a failure that is
accepted: then the status is 1. Gaps that stay can be accepted by name in --exceptions, or all with
--allow-incomplete (docs/exit-status.md). --fail-on-expired counts exceptions that have expired,
whether or not they would accept anything.

Exit status: 0 done, 1 could not do it, or --fail-on could not be told, 2 wrong usage, 3 something
fails at or above --fail-on, or by --fail-on-expired.`,
		Example: `  capdrift audit
  capdrift audit --pack cis --pack our.yaml --exceptions exceptions.yaml --fail-on high
  capdrift audit --pack pss-restricted --filter 'pod.namespace == "shop"' --wide
  capdrift audit -o sarif > audit.sarif
  helm template . | capdrift audit --manifests - --pack pss-restricted --fail-on medium -o junit`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.validate(cmd); err != nil {
				return usageError{err}
			}
			return does(func(cmd *cobra.Command, _ []string) error { return o.run(cmd) })(cmd, args)
		},
	}
	flags := cmd.Flags()
	if fleet == nil {
		o.addFlags(cmd)
		flags.StringArrayVar(&o.manifests, "manifests", nil, "judge a file of manifests, a directory of such files, or - for standard input, on paper alone; may be repeated")
		if err := cmd.MarkFlagFilename("manifests", "yaml", "yml", "json"); err != nil {
			panic(err) // a flag of this name was just defined
		}
	} else {
		fleet.addFlags(cmd, time.Minute, 10*time.Minute)
		flags.StringVarP(&o.namespace, "namespace", "n", "", "judge only containers of pods in this namespace")
	}
	o.packs.addFlags(cmd, "judge by this pack: one that is built in, or a file (default: all that are built in)")
	flags.BoolVar(&o.showExcepted, "show-excepted", false, "list in the table what exceptions accept; it is always counted, and in the other formats marked")
	o.gate.addFlags(cmd, failOn, "exit with status 3 when something fails at or above this severity", "a file of what was accepted, by whom and until when")
	o.matching.addFlags(cmd)
	flags.StringVarP(&o.output.format, "output", "o", "table", "output format: "+strings.Join(auditOutputs(), ", "))
	flags.StringVar(&o.output.color, "color", "auto", "color the table: auto (on a terminal, unless NO_COLOR is set), always, never")
	flags.BoolVar(&o.output.wide, "wide", false, "list in the table every container that fails a rule, and what fails there")
	flags.BoolVar(&o.output.noHeaders, "no-headers", false, "leave out the heading lines of tables and of CSV")
	complete(cmd, "output", auditOutputs()...)
	complete(cmd, "color", "auto", "always", "never")
	return cmd
}

func (o *auditOptions) validate(cmd *cobra.Command) error {
	if err := o.sourceOptions.validate(cmd, o.fleet); err != nil {
		return err
	}
	if len(o.manifests) > 0 {
		for _, flag := range append([]string{"agent"}, o.looking...) {
			if cmd.Flags().Changed(flag) {
				return fmt.Errorf("--%s says how to look at a node; with --manifests none is looked at", flag)
			}
		}
	}
	switch {
	case len(slices.DeleteFunc(slices.Clone(o.manifests), func(name string) bool { return name != stdin })) > 1:
		return errors.New("--manifests=-: standard input can be read only once")
	case !slices.Contains(auditOutputs(), o.output.format):
		return fmt.Errorf("--output=%s: want one of %s", printable(o.output.format), strings.Join(auditOutputs(), ", "))
	}
	if err := (&outputOptions{format: "table", color: o.output.color}).validate(); err != nil {
		return err
	}
	if err := o.packs.validate(); err != nil {
		return err
	}
	if err := o.gate.validate(); err != nil {
		return err
	}
	return o.matching.validate()
}

// audit is a report that was held against a policy.
type audit struct {
	report drift.Report
	rules  *policy.Policy
	policy.Judgement
	// places are where the containers of manifests were read, by their ids; nil
	// where a node was looked at.
	places map[string]manifestPlace
	unread error // manifests, beside which the others were judged
	left   leftOut
	gaps   []drift.Gap // of what is asked for, on a node
	// nodes are the reports of a fleet, of which report has all containers; nil
	// where one node was looked at, or none.
	nodes []drift.Report
}

// manifestPlace is where a manifest was read.
type manifestPlace struct {
	File     string `json:"file"`
	Document int    `json:"document"`
	Line     int    `json:"line"`
	Kind     string `json:"kind"` // "" for a CRI ContainerConfig
	Path     string `json:"path"` // of the pod spec in a custom resource that may have several; else ""
}

// unseen says what was not looked at, a line each: no format may pass for whole.
func (a audit) unseen() (lines []string) {
	for _, u := range a.left.Unjudged {
		lines = append(lines, u.String())
	}
	for _, limit := range a.report.Coverage.Limits {
		if limit.Blind {
			lines = append(lines, limit.What+": "+limit.Why)
		}
	}
	return lines
}

// onPaper tells whether only what was declared is judged.
func (a audit) onPaper() bool { return a.places != nil }

// run audits, prints, and turns what fails into the exit status.
func (o *auditOptions) run(cmd *cobra.Command) error {
	if err := o.gate.open(); err != nil {
		return err
	}
	rules, err := o.policy(cmd)
	if err != nil {
		return printableError(err)
	}
	if o.fleet != nil {
		return o.overFleet(cmd, rules)
	}
	a := audit{rules: rules}
	if len(o.manifests) > 0 {
		o.declared(cmd, &a)
	} else if a.report, err = o.report(cmd.Context(), o.gate.asked()); err != nil {
		return err
	} else {
		o.tellAge(cmd.ErrOrStderr(), a.report)
	}
	unjudged, err := o.judge(&a, time.Now())
	if err != nil {
		return err
	}
	if len(a.report.Containers) > 0 || !a.onPaper() || o.output.format != "table" {
		if err := o.write(cmd.OutOrStdout(), a); err != nil {
			return fmt.Errorf("writing the audit: %w", err)
		}
	}
	if unjudged != "" {
		fmt.Fprintln(cmd.ErrOrStderr(), "capdrift: warning:", unjudged)
	}
	k := o.known(a, unjudged)
	switch {
	case a.unread != nil:
		k.broken = printableError(a.unread)
	case a.onPaper() && len(a.places) == 0:
		k.broken = a.left.nothing("judge", o.manifests)
	case !a.onPaper() && a.report.Runtime == nil:
		k.broken = errors.New("no container runtime answered, so nothing could be judged on paper (the coverage says why)")
	}
	return o.gate.decide(cmd.ErrOrStderr(), k)
}

// driftOf are the findings that are no agent's judgement by a policy of its own, with
// nothing accepted by it: here it is by what --pack and --exceptions name.
func driftOf(findings []drift.Finding) []drift.Finding {
	rest := make([]drift.Finding, 0, len(findings))
	for _, finding := range findings {
		if finding.Kind != drift.PolicyViolation {
			finding.Exception = ""
			rest = append(rest, finding)
		}
	}
	return rest
}

// policy compiles what --pack and --exceptions name.
func (o *auditOptions) policy(cmd *cobra.Command) (*policy.Policy, error) {
	ask := o.pods.version()
	if o.fleet != nil {
		ask = o.fleet.version
	}
	return o.packs.compile(cmd.Context(), cmd.ErrOrStderr(), o.gate.excepted, ask)
}

// judge holds what the filter keeps of the report against the policy. A container
// is kept whole, whatever of it the filter was about. What became of exceptions is
// told of the whole report: one is not unused because its containers are not shown.
func (o *auditOptions) judge(a *audit, now time.Time) (unjudged string, err error) {
	a.report.Findings = driftOf(a.report.Findings)
	whole := a.report
	kept, unjudged, err := o.matching.apply(whole, o.asks)
	if err != nil {
		return "", err
	}
	kept.Containers = slices.DeleteFunc(slices.Clone(kept.Containers), func(c drift.Container) bool { return !o.asks(c) })
	if !a.onPaper() {
		a.gaps = slices.DeleteFunc(whole.Gaps(o.matching.scope(o.asks, kept.Containers)), func(g drift.Gap) bool {
			return g.Code == drift.GapPolicy // an agent's own, by which nothing is judged here
		})
	}
	if o.matching.compiled == nil && o.namespace == "" {
		a.Judgement = a.rules.Judge(whole, now)
		return "", nil
	}
	shown := make(map[string]bool)
	for _, c := range kept.Containers {
		shown[c.ID] = true
	}
	a.report.Containers = slices.DeleteFunc(slices.Clone(whole.Containers), func(c drift.Container) bool { return !shown[c.ID] })
	a.report.Findings = slices.DeleteFunc(slices.Clone(kept.Findings), func(f drift.Finding) bool { return o.namespace != "" && f.ContainerID != "" && !shown[f.ContainerID] })
	exceptions := a.rules.Judge(whole, now).Exceptions
	a.Judgement = a.rules.Judge(a.report, now)
	a.Exceptions = exceptions
	return unjudged, nil
}

func (o *auditOptions) asks(c drift.Container) bool {
	return o.namespace == "" || c.Pod != nil && c.Pod.Namespace == o.namespace
}

// expired names the exceptions that have expired, and who owns them.
func (a audit) expired() (list []string) {
	for _, use := range a.Exceptions {
		if use.State == policy.ExceptionExpired {
			list = append(list, fmt.Sprintf("%s (%s)", use.ID, use.Owner))
		}
	}
	return list
}

// known is what the gate is told of an audit. Of manifests nobody asks what no look saw.
func (o *auditOptions) known(a audit, unjudged string) known {
	k := known{what: "something fails of severity %s", expired: a.expired(), gaps: a.gaps}
	reports, results := a.reportsOf(), 0
	for _, r := range a.Results {
		report := cmp.Or(reports[r.Container], &a.report)
		switch {
		case !a.onPaper() && report.Runtime == nil: // nobody knows by what names it may be accepted
		case r.Fails() && r.Excepted == nil:
			k.worst = max(k.worst, r.Rule.Severity)
		case o.gate.asked() && r.Rule.Severity < severityOf(o.gate.severity):
		case a.undecided(r) && !o.acceptsUnseen(a, r, report.Node.Name):
			results++
		}
	}
	for _, f := range a.Findings {
		if f.Excepted == nil {
			k.worst = max(k.worst, f.Severity)
		}
	}
	if results > 0 {
		k.unknown = append(k.unknown, many(results, "result")+" could not be judged")
	}
	if parts := a.left.unknown(); parts != "" {
		k.unknown = append(k.unknown, parts+" could not be judged")
	}
	k.unknown = append(k.unknown, untold(unjudged)...)
	return k
}

// acceptsUnseen reports whether a result is unknown only because its container is not seen, which
// is accepted. node is the container's.
func (o *auditOptions) acceptsUnseen(a audit, r policy.Result, node string) bool {
	gap, unseen := drift.GapOf(r.Container, node)
	return unseen && !a.onPaper() && !r.Declared.Unknown() && o.gate.accepts(gap)
}

// undecided tells whether something of the result that was asked for is unknown:
// of manifests nobody asks what the kernel holds. Where something fails that is answer
// enough, unless an exception accepts it.
func (a audit) undecided(r policy.Result) bool {
	return (!r.Fails() || r.Excepted != nil) && (r.Declared.Unknown() || !a.onPaper() && r.Actual.Unknown())
}

// declared makes a report of manifests, in which no container has processes.
func (o *auditOptions) declared(cmd *cobra.Command, a *audit) {
	manifests, unread := readManifests(cmd, o.manifests)
	report := drift.Report{TakenAt: time.Now(), Node: drift.Node{CapLastCap: newestCap}, Containers: []drift.Container{}}
	places := make(map[string]manifestPlace)
	add := func(m kube.Manifest, name string, line int, declared drift.Declared) {
		c := drift.Container{Name: name, Declared: declared}
		if m.Kind != "" {
			c.Pod = &drift.Pod{Namespace: m.Namespace, Name: m.Name}
		}
		// The same wherever the file lies, so that results keep their ids.
		words := []string{m.Kind, m.Namespace, m.Name}
		if m.Path != "" {
			words = append(words, m.Path)
		}
		id := strings.Join(append(words, name), "/")
		c.ID = id
		for n := 2; places[c.ID] != (manifestPlace{}); n++ {
			c.ID = fmt.Sprintf("%s#%d", id, n)
		}
		places[c.ID] = manifestPlace{m.File, m.Document, line, m.Kind, m.Path}
		report.Containers = append(report.Containers, c)
	}
	left := leftOutOf(manifests, unread)
	if !slices.ContainsFunc(a.rules.Packs(), func(pack policy.Pack) bool { return !pack.Windows }) {
		manifests.Objects, left.Skipped = append(manifests.Objects, manifests.Windows...), slices.DeleteFunc(left.Skipped, func(s skipped) bool { return s.Windows })
	}
	for _, m := range manifests.Objects {
		if len(m.Refused) > 0 {
			continue // it is in what is left out
		}
		if m.Raw != nil {
			name, layer, err := decodeContainerConfig(m)
			if err != nil {
				unread = errors.Join(unread, err)
				continue
			}
			add(m, name, m.Line, drift.Declared{CRI: &layer})
			continue
		}
		for i, c := range m.Pod.Containers {
			add(m, c.Name, m.Lines[i], drift.Declared{Pod: &c.Security})
		}
	}
	a.report, a.places, a.unread, a.left = report, places, unread, left
}

// write prints the audit in the format that was asked for.
func (o *auditOptions) write(w io.Writer, a audit) error {
	if o.output.format == "csv" && o.output.noHeaders {
		return writeAuditCSV(w, a, false)
	}
	if format, ok := auditFormats[o.output.format]; ok {
		return format(w, a)
	}
	return auditTable{
		table:        table{colored: o.output.colored(w), wide: o.output.wide, noHeaders: o.output.noHeaders},
		showExcepted: o.showExcepted,
	}.write(w, a)
}
