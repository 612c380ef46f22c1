package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	pretty "github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/policy"
)

// table prints a report for people: the findings worst first and grouped by pod,
// what they mean, what is normal in one line, and what was not seen.
type table struct {
	colored   bool
	wide      bool
	noHeaders bool
}

func (t table) write(w io.Writer, report drift.Report) error {
	var out strings.Builder
	if !t.noHeaders {
		fmt.Fprintln(&out, heading(report))
	}
	loud := loudOf(report.Findings)
	if len(loud) > 0 {
		if !t.noHeaders {
			fmt.Fprintln(&out)
		}
		incidents := byWorstPod(drift.Incidents(loud))
		fmt.Fprintln(&out, t.findings(report, incidents))
		fmt.Fprintln(&out)
		var ordered []drift.Finding
		for _, incident := range incidents {
			ordered = append(ordered, incident.Findings...)
		}
		t.explain(&out, ordered)
	} else {
		fmt.Fprintln(&out)
	}
	if t.wide || report.Runtime == nil && len(report.Containers) > 0 {
		fmt.Fprintln(&out, t.inventory(report))
		fmt.Fprintln(&out)
	}
	fmt.Fprintln(&out, normal(report, loud))
	t.coverage(&out, report.Coverage)
	t.unseen(&out, report.Containers)
	_, err := io.WriteString(w, out.String())
	return err
}

func heading(report drift.Report) string {
	runtime := "no container runtime answered"
	if report.Runtime != nil {
		runtime = report.Runtime.Name + " " + report.Runtime.Version
	}
	return fmt.Sprintf("%s · Linux %s · cgroup %s · %s · %s", printable(report.Node.Name), printable(report.Node.Kernel),
		printable(report.Node.CgroupMode), printable(runtime), report.TakenAt.Format("2006-01-02 15:04:05 MST"))
}

// style is kubectl's: columns parted by spaces, no lines.
func (t table) newWriter(header pretty.Row) pretty.Writer {
	writer := pretty.NewWriter()
	style := pretty.StyleDefault
	style.Options = pretty.OptionsNoBordersAndSeparators
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "   "
	style.Format.Header = text.FormatUpper
	writer.SetStyle(style)
	if !t.noHeaders {
		writer.AppendHeader(header)
	}
	return writer
}

// byWorstPod groups incidents, which come worst first, by pod: the pod with the worst
// one first, and within it the worst first.
func byWorstPod(incidents []drift.Incident) []drift.Incident {
	worst := make(map[string]int)
	for i, incident := range incidents {
		if _, ok := worst[podOf(incident.Worst().Pod)]; !ok {
			worst[podOf(incident.Worst().Pod)] = i
		}
	}
	slices.SortStableFunc(incidents, func(a, b drift.Incident) int { return worst[podOf(a.Worst().Pod)] - worst[podOf(b.Worst().Pod)] })
	return incidents
}

func (t table) findings(report drift.Report, incidents []drift.Incident) string {
	writer, names := t.newWriter(findingsHeader()), processNames(report)
	for _, incident := range incidents {
		writer.AppendRows(t.incidentRows(incident, findingColumn, func(f drift.Finding) pretty.Row { return t.finding(names, f) }))
	}
	return trimLines(writer.Render())
}

func findingsHeader() pretty.Row {
	return pretty.Row{"severity", "pod", "container", "pid", "process", "hop", "finding", "capabilities"}
}

const findingColumn = 6 // of findingsHeader

func (t table) finding(processes map[processKey]string, finding drift.Finding) pretty.Row {
	container, process := containerOf(finding), processes[processKey{finding.ContainerID, finding.PID}]
	pid := ""
	if finding.PID != 0 {
		pid = strconv.Itoa(finding.PID)
	}
	if finding.TID != 0 {
		pid += "/" + strconv.Itoa(finding.TID)
	}
	return pretty.Row{t.severity(finding.Severity), podOf(finding.Pod), container, pid, process, where(finding), printable(what(finding)), brief(finding.Capabilities)}
}

// hop names where reality left the declaration.
func hop(finding drift.Finding) string {
	if finding.From == "" {
		return string(finding.Layer)
	}
	return string(finding.From) + "→" + string(finding.Layer)
}

// where is the hop of a drift finding, and of a rule where it fails.
func where(f drift.Finding) string {
	if f.Rule == "" {
		return hop(f)
	}
	var sides []string
	for _, side := range []struct{ verdict, name string }{{f.Declared, "paper"}, {f.Actual, "kernel"}} {
		if side.verdict == policy.Fail.String() {
			sides = append(sides, side.name)
		}
	}
	return strings.Join(sides, "+")
}

// what names the kind of a finding, with its rule where there is one.
func what(f drift.Finding) string {
	if f.Rule == "" {
		return string(f.Kind)
	}
	return string(f.Kind) + " " + f.Rule
}

func (t table) severity(s drift.Severity) string {
	if !t.colored {
		return s.String()
	}
	colors := map[drift.Severity]text.Color{
		drift.Critical: text.FgHiRed, drift.High: text.FgRed, drift.Medium: text.FgYellow, drift.Low: text.FgCyan, drift.Info: text.FgWhite,
	}
	return "\x1b[" + strconv.Itoa(int(colors[s])) + "m" + s.String() + "\x1b[0m"
}

// containerOf is what to call the finding's container.
func containerOf(finding drift.Finding) string {
	switch {
	case finding.ContainerID == "" && finding.Layer == drift.LayerOCI: // all of a runtime handler
		return "(handler " + printable(cmp.Or(finding.RuntimeHandler, "default")) + ")"
	case finding.Container == "":
		return cellID(finding.ContainerID)
	}
	return printable(finding.Container)
}

// processKey is a process by its container's id.
type processKey struct {
	container string
	pid       int
}

// processNames are what to call the report's processes.
func processNames(report drift.Report) map[processKey]string {
	names := make(map[processKey]string)
	for _, c := range report.Containers {
		for _, p := range c.Processes {
			names[processKey{c.ID, p.PID}] = printable(p.Name)
		}
	}
	return names
}

func podOf(pod *drift.Pod) string {
	if pod == nil {
		return "-"
	}
	return printable(pod.Namespace + "/" + pod.Name)
}

// maxCellID is how much of a cgroup's path a table shows: a name and a part of what it is in.
const maxCellID = 40

// cellID is a container's id in a table. That of one that only its cgroup tells is the cgroup's
// path, of which the end says most; the messages have it whole.
func cellID(id string) string {
	short := shortID(id)
	if !strings.HasPrefix(id, "/") || len(short) <= maxCellID {
		return short
	}
	end := short[len(short)-maxCellID:]
	if at := strings.IndexByte(end, '/'); at >= 0 {
		end = end[at:]
	}
	return "…" + strings.ToValidUTF8(end, "")
}

func shortID(id string) string {
	if at := strings.LastIndexByte(id, '/') + 1; len(id)-at == 64 { // after its namespace
		id = id[:at+12]
	}
	return printable(id)
}

// brief names a few capabilities and counts the rest.
func brief(set capdecode.Set) string {
	const most = 3
	names := set.Names()
	if len(names) <= most+1 {
		return strings.Join(names, " ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], " "), len(names)-most)
}

// reason is what findings are explained by: each kind once for each cause.
// What is pasted differs from container to container, so each is shown.
type reason struct {
	kind  drift.Kind
	rule  string
	cause drift.Cause
	paste string
}

func reasonOf(f drift.Finding) reason { return reason{f.Kind, f.Rule, f.Cause, f.Paste} }

// explain says once for each reason what it means, by its first finding, and once
// for all that need the same what to do.
func (t table) explain(out *strings.Builder, findings []drift.Finding) {
	var remedies []drift.Finding // one for each remedy
	meanings := make(map[string][]string)
	counts := make(map[reason]int)
	for _, finding := range findings {
		counts[reasonOf(finding)]++
	}
	for _, finding := range findings {
		why := reasonOf(finding)
		if counts[why] == 0 {
			continue // it was told
		}
		others := ""
		if n := counts[why] - 1; n > 0 {
			others = fmt.Sprintf(" (and %d more)", n)
		}
		delete(counts, why)
		key := finding.Remedy + finding.Paste
		if meanings[key] == nil {
			remedies = append(remedies, finding)
		}
		meanings[key] = append(meanings[key], fmt.Sprintf("%s: %s%s.", finding.Kind, finding.Message, others))
	}
	for _, finding := range remedies {
		for _, meaning := range meanings[finding.Remedy+finding.Paste] {
			paragraph(out, "", meaning)
		}
		paragraph(out, "  → ", finding.Remedy)
		pasted(out, finding.Paste)
		fmt.Fprintln(out)
	}
	if t.wide {
		before := out.Len()
		evidence(out, "", findings)
		if out.Len() > before {
			fmt.Fprintln(out)
		}
	}
}

// pasted writes YAML as it is, moved to the right.
func pasted(out *strings.Builder, yaml string) {
	for line := range strings.Lines(yaml) {
		fmt.Fprintf(out, "        %s\n", printable(strings.TrimSuffix(line, "\n")))
	}
}

// paragraph writes text in lines that a terminal shows whole.
func paragraph(out *strings.Builder, mark, content string) {
	const width = 118
	for i, line := range strings.Split(text.WrapSoft(printable(content), width), "\n") {
		if i > 0 {
			mark = "    "
		}
		fmt.Fprintf(out, "%s%s\n", mark, strings.TrimRight(line, " "))
	}
}

func count(findings []drift.Finding, kind drift.Kind) (n int) {
	for _, finding := range findings {
		if finding.Kind == kind {
			n++
		}
	}
	return n
}

// inventory lists every process with its five sets, and beside each container
// what its OCI spec allows.
func (t table) inventory(report drift.Report) string {
	writer := t.newWriter(pretty.Row{"pod", "container", "pid", "process", "uid", "userns", "nnp", "effective", "permitted", "bounding", "inheritable", "ambient"})
	for _, c := range report.Containers {
		container := printable(c.Name)
		if container == "" {
			container = cellID(c.ID)
		}
		allowed := pretty.Row{podOf(c.Pod), container, "", "declared", "", "", "", "unknown", "unknown", "unknown", "unknown", "unknown"}
		if oci := c.Declared.OCI; oci != nil {
			allowed = append(pretty.Row{podOf(c.Pod), container, "", "declared", oci.UID, "", yesNo(&oci.NoNewPrivileges)}, sets(oci.Sets)...)
		}
		if c.Observation != drift.Observed {
			allowed[3] = "declared (" + string(c.Observation) + ")"
		}
		writer.AppendRow(allowed)
		for _, p := range c.Processes {
			writer.AppendRow(append(pretty.Row{podOf(c.Pod), container, p.PID, printable(p.Name), uidsOf(p.ContainerUID, p.UIDs), string(p.UserNamespace.Relation), yesNo(p.NoNewPrivileges)}, sets(p.Caps)...))
			for _, thread := range p.Threads {
				writer.AppendRow(append(pretty.Row{podOf(c.Pod), container, fmt.Sprintf("%d/%d", p.PID, thread.TID), printable(thread.Name), threadUIDs(p, thread), "", yesNo(thread.NoNewPrivileges)}, sets(thread.Caps)...))
			}
		}
	}
	return trimLines(writer.Render())
}

func sets(s capdecode.Sets) pretty.Row {
	return pretty.Row{s.Effective.Hex(), s.Permitted.Hex(), s.Bounding.Hex(), s.Inheritable.Hex(), s.Ambient.Hex()}
}

func yesNo(value *bool) string {
	switch {
	case value == nil:
		return "?"
	case *value:
		return "yes"
	}
	return "no"
}

// normal sums up what needs nobody's attention, and says in a line of its own what
// nobody has compared: that may be normal, and may not.
func normal(report drift.Report, loud []drift.Finding) string {
	if report.Runtime == nil {
		return fmt.Sprintf("Nothing was compared: %s found by their cgroups, and nobody to say what was declared for them.", many(len(report.Containers), "container"))
	}
	troubled := make(map[string]bool)
	for _, finding := range loud {
		if finding.Kind != drift.PolicyViolation { // perhaps just what was declared
			troubled[finding.ContainerID] = true
		}
	}
	containers, processes := 0, 0
	for _, c := range report.Containers {
		if c.Sandbox || troubled[c.ID] || notCompared(c) != "" || report.Expectations.Excuses(&c) {
			continue
		}
		compared := 0
		for _, p := range c.Processes {
			if processNotCompared(p) == "" {
				compared++
			}
		}
		if processes += compared; compared > 0 || len(c.Processes) == 0 {
			containers++
		}
	}
	line := fmt.Sprintf("Normal: %s with %s hold no more than declared", many(containers, "container"), many(processes, "process"))
	var kinds []string
	for _, finding := range report.Findings {
		if finding.Severity == drift.Info && !slices.Contains(kinds, string(finding.Kind)) {
			kinds = append(kinds, string(finding.Kind))
		}
	}
	slices.Sort(kinds)
	for i, kind := range kinds {
		kinds[i] = fmt.Sprintf("%d %s", count(report.Findings, drift.Kind(kind)), printable(kind))
	}
	if len(kinds) > 0 {
		line += " (explained: " + strings.Join(kinds, ", ") + ")"
	}
	line += "."
	if rest := uncompared(report); rest != "" {
		line += "\nNot compared: " + rest + "."
	}
	return line
}

// notCompared says why a container was not held against its declaration, or only in
// part; "" where it was.
func notCompared(c drift.Container) string {
	switch {
	case c.Observation == drift.UnsupportedRuntime:
		return "in a sandbox that hides its processes"
	case c.Observation == drift.Unreadable:
		return "that could not be read"
	case c.Declared.OCI == nil:
		return "whose declaration is not known"
	case c.Observation != drift.Observed:
		return "seen in part"
	}
	return ""
}

// processNotCompared says why a process of a container that was compared was not; ""
// where it was.
func processNotCompared(p drift.Process) string {
	switch {
	case p.Observation == drift.Starting:
		return "still starting"
	case p.Observation == drift.Helper:
		return "of the runtime's own"
	case p.Observation != drift.Observed:
		return "that no look compares (" + printable(string(p.Observation)) + ")"
	case p.UserNamespace.Relation == drift.RelationUnknown:
		return "whose user namespace could not be told"
	}
	return ""
}

// uncompared counts by reason what was not compared, the processes of other containers
// than those that are counted themselves.
func uncompared(report drift.Report) string {
	var reasons []string
	counts := make(map[string]int)
	note := func(what, why string) {
		why = what + "\x00" + why
		if counts[why] == 0 {
			reasons = append(reasons, why)
		}
		counts[why]++
	}
	for _, c := range report.Containers {
		if why := notCompared(c); why != "" {
			if !c.Sandbox {
				note("container", why)
			}
			continue
		}
		for _, p := range c.Processes {
			if why := processNotCompared(p); why != "" {
				note("process", why)
			}
		}
	}
	slices.Sort(reasons) // containers first
	for i, reason := range reasons {
		what, why, _ := strings.Cut(reason, "\x00")
		reasons[i] = many(counts[reason], what) + " " + why
	}
	return strings.Join(reasons, ", ")
}

func (t table) coverage(out *strings.Builder, c drift.Coverage) {
	whole := "complete"
	if !c.Complete {
		whole = "INCOMPLETE"
	}
	fmt.Fprintf(out, "Coverage: %s: %d of %s seen, %s, %s", whole, c.Containers.Observed, many(c.Containers.Running, "container"),
		many(c.Processes.Observed, "process"), many(c.Threads.Observed, "thread"))
	for _, part := range []struct {
		n    int
		what string
	}{
		{c.Containers.Partial, "containers seen in part"}, {c.Containers.Unreadable, "containers unreadable"},
		{c.Containers.Unsupported, "containers in a sandbox that hides them"},
		{c.Sandboxes.Partial, "pod sandboxes seen in part"}, {c.Sandboxes.Unreadable, "pod sandboxes unreadable"}, {c.Processes.Starting, "processes starting"},
		{c.Processes.Vanished, "processes ended meanwhile"}, {c.Processes.Unreadable, "processes unreadable"}, {c.Threads.Skipped, "threads skipped"},
	} {
		if part.n > 0 {
			fmt.Fprintf(out, ", %d %s", part.n, part.what)
		}
	}
	fmt.Fprintln(out, ".")
	for _, limit := range c.Limits {
		verb := "Note"
		if limit.Blind {
			verb = "Not seen"
		}
		fmt.Fprintf(out, "  %s: %s: %s\n", verb, printable(limit.What), printable(limit.Why))
	}
}

// unseen says of the first few containers that were not seen whole why.
func (t table) unseen(out *strings.Builder, containers []drift.Container) {
	const most = 5
	n := 0
	for _, c := range containers {
		if c.Ended || c.Observation != drift.Partial && c.Observation != drift.Unreadable {
			continue
		}
		if n++; n <= most {
			how := "In part"
			if c.Observation == drift.Unreadable {
				how = "Not seen"
			}
			fmt.Fprintf(out, "  %s: %s: %s\n", how, printable(c.Label()), printable(c.Reason))
		}
	}
	if n > most {
		fmt.Fprintf(out, "  The same of %d more; -o json tells why.\n", n-most)
	}
}

func many(n int, what string) string {
	switch {
	case n == 1:
	case strings.HasSuffix(what, "s"):
		what += "es"
	default:
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

func trimLines(rendered string) string {
	lines := strings.Split(rendered, "\n")
	for i, line := range lines {
		lines[i] = strings.TrimRight(line, " ")
	}
	return strings.Join(lines, "\n")
}
