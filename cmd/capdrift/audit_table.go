package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	pretty "github.com/jedib0t/go-pretty/v6/table"

	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/policy"
)

// auditTable prints an audit for people: what no scanner of manifests can see first,
// then what fails, then the controls, then what was accepted and what was not judged.
type auditTable struct {
	table
	showExcepted bool
}

func (t auditTable) write(w io.Writer, a audit) error {
	var out strings.Builder
	if !t.noHeaders {
		for _, report := range a.looks() {
			fmt.Fprintln(&out, heading(report))
		}
		names := make([]string, 0, len(a.rules.Packs()))
		for _, pack := range a.rules.Packs() {
			names = append(names, pack.Name)
		}
		fmt.Fprintf(&out, "%s judged by %s of %s.\n", many(a.containers(), "container"), many(len(a.rules.Rules()), "rule"), strings.Join(names, ", "))
		if a.rules.ByVersion() {
			fmt.Fprintf(&out, "The Pod Security Standards are those of Kubernetes %s.\n", a.rules.Version())
		}
	}
	var disagreeing, failing, accepted []policy.Result
	for _, r := range a.Results {
		switch {
		case !r.Fails():
		case r.Excepted != nil:
			accepted = append(accepted, r)
		case r.Declared.Verdict == policy.Pass:
			disagreeing = append(disagreeing, r)
		default:
			failing = append(failing, r)
		}
	}
	bySeverity := func(a, b policy.Result) int { return cmp.Compare(b.Rule.Severity, a.Rule.Severity) }
	slices.SortStableFunc(disagreeing, bySeverity)
	slices.SortStableFunc(failing, bySeverity)

	t.section(&out, "Passes on paper, fails in the kernel:", len(disagreeing), func() string { return t.each(a, disagreeing) })
	if t.wide {
		t.section(&out, "Fails:", len(failing), func() string { return t.each(a, failing) })
	} else {
		t.section(&out, "Fails:", len(failing), func() string { return t.byRule(a, failing) })
	}
	if len(disagreeing)+len(failing) == 0 {
		fmt.Fprintln(&out, "\nNothing fails.")
	} else {
		fmt.Fprintf(&out, "%s policy show RULE says why, and what to do.\n", a.program())
	}
	t.section(&out, "Controls:", len(a.Controls), func() string { return t.controls(a) })
	if t.showExcepted {
		t.section(&out, "Accepted:", len(accepted)+acceptedFindings(a), func() string { return t.accepted(a, accepted) })
	}
	fmt.Fprintln(&out)
	exceptions(&out, a, len(accepted))
	driftBeside(&out, a)
	unknown(&out, a)
	a.left.paragraphs(&out)
	for _, pack := range a.rules.Packs() {
		if len(pack.NotJudged) > 0 {
			paragraph(&out, "", fmt.Sprintf("Not judged by %s: %s", pack.Name, printable(strings.Join(pack.NotJudged, " "))))
		}
	}
	if a.onPaper() {
		fmt.Fprintln(&out, "Judged on paper alone: no node was looked at, and what the kernel will hold is unknown.")
	}
	for _, report := range a.looks() {
		if a.nodes != nil {
			fmt.Fprintf(&out, "%s: ", printable(report.Node.Name))
		}
		t.coverage(&out, report.Coverage)
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// program is how this program was called.
func (a audit) program() string {
	if a.nodes != nil {
		return pluginName
	}
	return "capdrift"
}

// looks are the reports of the nodes that were looked at.
func (a audit) looks() []drift.Report {
	switch {
	case a.nodes != nil:
		return a.nodes
	case a.onPaper():
		return nil
	}
	return []drift.Report{a.report}
}

func (a audit) containers() (n int) {
	for _, c := range a.report.Containers {
		if !c.Sandbox {
			n++
		}
	}
	return n
}

// section writes a heading and what is below it, if there is anything.
func (t auditTable) section(out *strings.Builder, title string, n int, content func() string) {
	if n == 0 {
		return
	}
	if !t.noHeaders {
		fmt.Fprintf(out, "\n%s\n", title)
	}
	fmt.Fprintln(out, content())
}

// each has a row for each result or, unless all are asked for, for those of one
// container that fail for the same reason: packs have many a rule in common.
func (t auditTable) each(a audit, results []policy.Result) string {
	type reason struct {
		severity               drift.Severity
		container              *drift.Container
		declared, actual, text string
	}
	rules := make(map[reason][]string)
	var order []reason
	for _, r := range results {
		why := because(r.Actual)
		if r.Actual.Verdict != policy.Fail {
			why = because(r.Declared)
		}
		one := reason{r.Rule.Severity, r.Container, verdict(r.Declared), verdict(r.Actual), why}
		if t.wide || rules[one] == nil {
			order = append(order, one)
		}
		rules[one] = append(rules[one], r.Rule.ID)
	}
	nodes := a.nodesOf()
	named := func(node string, row pretty.Row) pretty.Row {
		if a.nodes == nil {
			return row
		}
		return append(pretty.Row{node}, row...)
	}
	writer := t.newWriter(named("node", pretty.Row{"severity", "rule", "container", "paper", "kernel", "because"}))
	for _, one := range order {
		ids := rules[one]
		if t.wide { // its rows stand in the order of its rules
			ids, rules[one] = ids[:1], ids[1:]
		}
		writer.AppendRow(named(printable(nodes[one.container]), pretty.Row{t.severity(one.severity), t.rules(ids), a.called(one.container), one.declared, one.actual, printable(one.text)}))
	}
	return trimLines(writer.Render())
}

func verdict(o policy.Outcome) string {
	if o.Verdict == policy.NotApplicable {
		return "-"
	}
	return o.Verdict.String()
}

// byRule has a row for each rule, and names the first of the containers.
func (t auditTable) byRule(a audit, results []policy.Result) string {
	writer := t.newWriter(pretty.Row{"severity", "rule", "paper", "kernel", "containers"})
	var rules []*policy.Rule
	of := make(map[*policy.Rule][]policy.Result)
	for _, r := range results {
		if of[r.Rule] == nil {
			rules = append(rules, r.Rule)
		}
		of[r.Rule] = append(of[r.Rule], r)
	}
	for _, rule := range rules {
		const most = 3
		declared, actual := 0, 0
		var names []string
		for _, r := range of[rule] {
			if r.Declared.Verdict == policy.Fail {
				declared++
			}
			if r.Actual.Verdict == policy.Fail {
				actual++
			}
			names = append(names, a.called(r.Container))
		}
		list := strings.Join(names[:min(len(names), most)], ", ")
		if len(names) > most {
			list += fmt.Sprintf(" and %d more", len(names)-most)
		}
		writer.AppendRow(pretty.Row{t.severity(rule.Severity), rule.ID, failures(declared), failures(actual), list})
	}
	return trimLines(writer.Render())
}

func failures(n int) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprintf("%d fail", n)
}

// controls has a row for each control of a benchmark. Its versions and editions, of
// which there are dozens with other numbers for the same, share one unless all are
// asked for.
func (t auditTable) controls(a audit) string {
	writer := t.newWriter(pretty.Row{"control", "rules", "paper", "kernel", "disagree", "accepted"})
	type key struct{ benchmark, rules string }
	rows := make(map[key][]policy.ControlCount)
	var order []key
	for _, count := range a.Controls {
		k := key{count.Benchmark, strings.Join(count.Rules, ", ")}
		if t.wide {
			k.benchmark = (controlGroup{Control: count.Control, versions: []string{count.Version}}).String()
		}
		if rows[k] == nil {
			order = append(order, k)
		}
		rows[k] = append(rows[k], count)
	}
	for _, k := range order {
		name, count := k.benchmark, rows[k][0] // alike, for the rules are the same
		if !t.wide {
			var ids, editions []string
			for _, one := range rows[k] {
				ids, editions = append(ids, one.ID), append(editions, one.Edition)
			}
			slices.Sort(editions)
			if editions = slices.Compact(editions); len(editions) > 1 {
				name += fmt.Sprintf(" (%d editions)", len(editions))
			} else if editions[0] != "" {
				name += " " + editions[0]
			}
			slices.Sort(ids)
			name += " " + strings.Join(slices.Compact(ids), ", ")
		}
		writer.AppendRow(pretty.Row{printable(name), t.rules(count.Rules), tally(count.Declared), tally(count.Actual), number(count.Disagreements), number(count.Excepted)})
	}
	return trimLines(writer.Render())
}

// rules names the first of them, or all.
func (t auditTable) rules(ids []string) string {
	if t.wide || len(ids) == 1 {
		return strings.Join(ids, ", ")
	}
	return fmt.Sprintf("%s and %d more", ids[0], len(ids)-1)
}

func tally(t policy.Tally) string {
	var parts []string
	for _, part := range []struct {
		n    int
		what string
	}{{t.Fail, "fail"}, {t.Unknown, "unknown"}, {t.Pass, "pass"}} {
		if part.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", part.n, part.what))
		}
	}
	if parts == nil {
		return "-"
	}
	return strings.Join(parts, ", ")
}

func number(n int) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprint(n)
}

func acceptedFindings(a audit) (n int) {
	for _, f := range a.Findings {
		if f.Excepted != nil {
			n++
		}
	}
	return n
}

// accepted has a row for each result and finding that an exception accepts.
func (t auditTable) accepted(a audit, results []policy.Result) string {
	writer := t.newWriter(pretty.Row{"exception", "owner", "severity", "rule", "container", "capabilities"})
	for _, r := range results {
		writer.AppendRow(pretty.Row{r.Excepted.ID, printable(r.Excepted.Owner), t.severity(r.Rule.Severity), r.Rule.ID, a.called(r.Container), brief(r.Declared.Capabilities | r.Actual.Capabilities)})
	}
	for _, f := range a.Findings {
		if f.Excepted != nil {
			container := containerOf(f.Finding)
			if f.Pod != nil {
				container = podOf(f.Pod) + "/" + container
			}
			writer.AppendRow(pretty.Row{f.Excepted.ID, printable(f.Excepted.Owner), t.severity(f.Severity), string(f.Kind), container, brief(f.Capabilities)})
		}
	}
	return trimLines(writer.Render())
}

// exceptions says what was accepted, and which exceptions need somebody.
func exceptions(out *strings.Builder, a audit, results int) {
	if len(a.Exceptions) == 0 {
		return
	}
	fmt.Fprintf(out, "Accepted: %s and %s, which are counted as failures all the same.\n", many(results, "result"), many(acceptedFindings(a), "finding"))
	for _, use := range a.Exceptions {
		line := fmt.Sprintf("%s (%s)", use.ID, use.Owner)
		accepts := fmt.Sprintf("%s and %s", many(use.Results, "result"), many(use.Findings, "finding"))
		switch use.State {
		case policy.ExceptionExpired:
			line = fmt.Sprintf("EXPIRED: %s counts no more since %s; it would accept %s", line, use.Expires.Format("2006-01-02 15:04 MST"), accepts)
		case policy.ExceptionUnused:
			line = fmt.Sprintf("Unused: %s accepts nothing that is here", line)
			if !a.asks(use.Exception) {
				line += ": its rules are not asked for"
			}
		default:
			line = fmt.Sprintf("%s accepts %s until %s: %s", line, accepts, use.Expires.Format("2006-01-02 15:04 MST"), use.Reason)
		}
		if use.Unknown > 0 {
			line += fmt.Sprintf("; whether %s are meant could not be told", many(use.Unknown, "container"))
		}
		paragraph(out, "  ", fmt.Sprintf("%s (%s:%d)", line, use.File, use.Line))
	}
}

// asks tells whether the policy has any of the exception's rules, or it is about
// findings, which are always there.
func (a audit) asks(e *policy.Exception) bool {
	return len(e.Kinds) > 0 || slices.ContainsFunc(a.rules.Rules(), func(rule *policy.Rule) bool { return slices.Contains(e.Rules, rule.ID) })
}

// driftBeside counts what is not as declared, by incident.
func driftBeside(out *strings.Builder, a audit) {
	var found []drift.Finding
	for _, f := range a.Findings {
		if f.Excepted == nil && isLoud(f.Finding) {
			found = append(found, f.Finding)
		}
	}
	counts := make(map[drift.Severity]int)
	for _, incident := range drift.Incidents(found) {
		counts[incident.Worst().Severity]++
	}
	var parts []string
	severities := drift.Severities()
	slices.SortFunc(severities, func(a, b drift.Severity) int { return cmp.Compare(b, a) })
	for _, severity := range severities {
		if counts[severity] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", counts[severity], severity))
		}
	}
	if parts != nil {
		fmt.Fprintf(out, "Drift: %s; %s scan explains it.\n", strings.Join(parts, ", "), a.program())
	}
}

// unknown says how much could not be judged, and why.
func unknown(out *strings.Builder, a audit) {
	counts := make(map[string]int)
	var reasons []string
	total := 0
	for _, r := range a.Results {
		if !a.undecided(r) {
			continue
		}
		total++
		reason := cmp.Or(r.Declared.Reason, r.Declared.Unjudged, r.Actual.Reason, r.Actual.Unjudged)
		if counts[reason]++; counts[reason] == 1 {
			reasons = append(reasons, reason)
		}
	}
	if total == 0 {
		return
	}
	slices.SortStableFunc(reasons, func(a, b string) int { return cmp.Compare(counts[b], counts[a]) })
	const most = 4
	var parts []string
	for _, reason := range reasons[:min(len(reasons), most)] {
		parts = append(parts, fmt.Sprintf("%s (%d)", reason, counts[reason]))
	}
	if len(reasons) > most {
		parts = append(parts, fmt.Sprintf("%s more", many(len(reasons)-most, "reason")))
	}
	paragraph(out, "", fmt.Sprintf("Not judged: %s: %s.", many(total, "result"), strings.Join(parts, "; ")))
}
