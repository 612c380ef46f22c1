package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	pretty "github.com/jedib0t/go-pretty/v6/table"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

// forecastTable prints a forecast for people: a row for each container and for
// each user that it may run as, then what will not do what it seems to, worst
// first, and what was assumed.
type forecastTable struct {
	table
	runtimes []string
}

func (t forecastTable) write(w io.Writer, f forecast) error {
	var out strings.Builder
	t.rows(&out, f)
	fmt.Fprintln(&out)
	t.refusals(&out, f)
	t.warnings(&out, f)
	paragraph(&out, "", t.summary(f))
	paragraph(&out, "", assumedText(f))
	if classes := f.runtimeClasses(); len(classes) > 0 {
		paragraph(&out, "", fmt.Sprintf("Assumed too: that the handlers of these runtime classes are configured as the default one, and run containers on the node's own kernel: %s.", strings.Join(classes, ", ")))
	}
	leftOut{Skipped: f.Skipped, Unjudged: f.unsaid()}.paragraphs(&out)
	_, err := io.WriteString(w, out.String())
	return err
}

// unsaid is what was left out, but for what is refused, of which the refusals tell.
func (f forecast) unsaid() []notJudged {
	return slices.DeleteFunc(slices.Clone(f.Unjudged), func(u notJudged) bool {
		return u.refused && slices.ContainsFunc(f.Containers, func(c foreseen) bool {
			return c.Source == u.File && c.Document == u.Document && c.Kind == u.Kind && c.Namespace == u.Namespace && c.Name == u.Name
		})
	})
}

// several tells whether more than one runtime was asked for.
func (t forecastTable) several() bool { return len(t.runtimes) > 1 }

// rows writes the containers below a line for each object.
func (t forecastTable) rows(out *strings.Builder, f forecast) {
	header := pretty.Row{"  container"}
	if t.several() {
		header = append(header, "runtime")
	}
	header = append(header, "user", "effective, permitted", "bounding")
	extra := f.rare() // the sets that are empty but for rare cases
	if extra {
		header = append(header, "inheritable", "ambient")
	}
	writer := t.newWriter(append(header, "nnp", "userns"))
	place := "" // of the object that the rows are below
	headings := make(map[int]string)
	n := 0
	for _, c := range f.Containers {
		if where := c.object(); where != place {
			place = where
			headings[n] = fmt.Sprintf("%s  (%s)", printable(c.called()), printable(fmt.Sprintf("%s:%d", c.Source, c.objectLine)))
		}
		label := "  " + printable(c.Container)
		if c.Role != drift.RoleContainer && c.Role != "" {
			label += " (" + string(c.Role) + ")"
		}
		for _, same := range f.alike(c.Predictions) {
			runtimes := t.named(same)
			for _, cells := range f.cells(same[0], extra) {
				row := pretty.Row{label}
				if t.several() {
					row = append(row, runtimes)
				}
				writer.AppendRow(append(row, cells...))
				n++
				label, runtimes = "", ""
			}
		}
	}
	lines := strings.Split(trimLines(writer.Render()), "\n")
	first := 0
	if !t.noHeaders {
		fmt.Fprintln(out, lines[0])
		first = 1
	}
	for i, line := range lines[first:] {
		if heading, ok := headings[i]; ok {
			fmt.Fprintln(out, heading)
		}
		fmt.Fprintln(out, line)
	}
	if !extra && !t.noHeaders {
		fmt.Fprintln(out, "Inheritable and ambient sets are empty in all of them.")
	}
}

// object identifies the manifest of a container.
func (c foreseen) object() string {
	return fmt.Sprintf("%s\x00%d\x00%d\x00%s\x00%s\x00%s\x00%s", c.Source, c.Document, c.objectLine, c.Kind, c.Namespace, c.Name, c.Path)
}

// called is the object's name for people.
func (c foreseen) called() string {
	if c.Kind == "" {
		return "CRI container config"
	}
	name := c.Kind + " " + strings.TrimPrefix(c.Namespace+"/"+cmp.Or(c.Name, "(no name)"), "/")
	if c.Path != "" {
		name += " " + c.Path
	}
	return name
}

// at is where the container was read.
func (c foreseen) at() string { return fmt.Sprintf("%s:%d", c.Source, c.Line) }

// rare tells whether any container starts with an inheritable or ambient set.
func (f forecast) rare() bool {
	for _, c := range f.Containers {
		for _, p := range c.Predictions {
			for _, start := range p.AtStart {
				if !(start.Caps.Inheritable | start.Caps.Ambient).Empty() {
					return true
				}
			}
		}
	}
	return false
}

// alike groups the predictions that are the same but for the runtime's name.
func (f forecast) alike(predictions []drift.Prediction) (groups [][]drift.Prediction) {
	for _, p := range predictions {
		at := slices.IndexFunc(groups, func(group []drift.Prediction) bool {
			other := group[0]
			if p.Refused != "" || other.Refused != "" {
				return (p.Refused != "") == (other.Refused != "")
			}
			return slices.Equal(p.AtStart, other.AtStart) && p.OCI.NoNewPrivileges == other.OCI.NoNewPrivileges && p.OCI.UserNamespace == other.OCI.UserNamespace
		})
		if at < 0 {
			groups = append(groups, nil)
			at = len(groups) - 1
		}
		groups[at] = append(groups[at], p)
	}
	return groups
}

// named names the runtimes of a group, "all" for all of them.
func (t forecastTable) named(group []drift.Prediction) string {
	var names []string
	for _, p := range group {
		names = append(names, p.Runtime)
	}
	return t.runtimesText(names)
}

func (t forecastTable) runtimesText(names []string) string {
	if len(names) == len(t.runtimes) {
		return allRuntimes
	}
	return strings.Join(names, ", ")
}

// cells are the columns right of the runtime, a row for each user.
func (f forecast) cells(p drift.Prediction, extra bool) (rows []pretty.Row) {
	if p.Refused != "" {
		return []pretty.Row{{"refused"}}
	}
	s := f.settings[p.Runtime]
	set := func(set capdecode.Set) string { return inWords(set, s.Default.Bounding, s.LastCap) }
	for _, start := range p.AtStart {
		user := start.User
		if len(p.AtStart) > 1 {
			user = "if " + user
		}
		holds := set(start.Caps.Effective)
		if start.Caps.Effective != start.Caps.Permitted {
			holds += " / " + set(start.Caps.Permitted)
		}
		row := pretty.Row{user, holds, set(start.Caps.Bounding)}
		if extra {
			row = append(row, set(start.Caps.Inheritable), set(start.Caps.Ambient))
		}
		rows = append(rows, append(row, yesNo(&p.OCI.NoNewPrivileges), yesNo(&p.OCI.UserNamespace)))
	}
	return rows
}

// inWords says what a set is in as few words as it takes: what it is beside the
// runtime's default, or beside all, or its names; the number and the bits where
// words would be too many.
func inWords(set, byDefault capdecode.Set, last capdecode.Cap) string {
	const most = 26 // columns
	full := capdecode.Full(last)
	shorts := func(set capdecode.Set, sign string) (words []string) {
		for _, name := range set.Names() {
			words = append(words, sign+strings.TrimPrefix(name, "CAP_"))
		}
		return words
	}
	switch set {
	case 0:
		return "none"
	case full:
		return fmt.Sprintf("all %d", set.Len())
	case byDefault:
		return fmt.Sprintf("default %d", set.Len())
	}
	if words := strings.Join(shorts(set, ""), " "); len(words) <= most {
		return words
	}
	for _, from := range []struct {
		name string
		set  capdecode.Set
	}{{"default", byDefault}, {"all", full}} {
		words := append([]string{fmt.Sprintf("%s %d", from.name, from.set.Len())}, shorts(set&^from.set, "+")...)
		if text := strings.Join(append(words, shorts(from.set&^set, "-")...), " "); len(text) <= most && !from.set.Empty() {
			return text
		}
	}
	return fmt.Sprintf("%d (%#x)", set.Len(), uint64(set))
}

// refusals lists what never runs, and who refuses it.
func (t forecastTable) refusals(out *strings.Builder, f forecast) {
	for _, c := range f.Containers {
		var reasons []string
		by := make(map[string][]string)
		for _, p := range c.Predictions {
			if p.Refused != "" {
				if by[p.Refused] == nil {
					reasons = append(reasons, p.Refused)
				}
				by[p.Refused] = append(by[p.Refused], p.Runtime)
			}
		}
		for _, reason := range reasons {
			paragraph(out, "", fmt.Sprintf("refused%s: %s: %s.", t.on(by[reason]), c.full(), reason))
			fmt.Fprintln(out)
		}
	}
}

// full names the container with its object.
func (c foreseen) full() string {
	return fmt.Sprintf("%s (%s), container %s", c.called(), c.at(), c.Container)
}

// on names the runtimes that something is true of, unless it is so for all.
func (t forecastTable) on(runtimes []string) string {
	if len(runtimes) == len(t.runtimes) {
		return ""
	}
	return " on " + strings.Join(runtimes, ", ")
}

// warning is a finding with all the containers and runtimes that it is about.
type warning struct {
	drift.Finding
	text       string
	containers []int // indices of the forecast's containers
	runtimes   []string
}

// warnings says each finding once, worst first.
func (t forecastTable) warnings(out *strings.Builder, f forecast) {
	const most = 10 // containers named
	for _, w := range f.warnings() {
		var places []string
		for _, i := range w.containers {
			places = append(places, f.Containers[i].full())
		}
		others := ""
		if len(places) > 1 {
			others = fmt.Sprintf(". The same: %s", strings.Join(places[1:min(len(places), most)], "; "))
		}
		if n := len(places) - most; n > 0 {
			others += fmt.Sprintf("; and %d more", n)
		}
		var text strings.Builder
		paragraph(&text, "", fmt.Sprintf("%s %s%s: %s%s%s.", w.Severity, w.Kind, t.on(w.runtimes), places[0], w.text, others))
		// The color would count as width, so it comes after the lines are broken.
		out.WriteString(strings.Replace(text.String(), w.Severity.String(), t.severity(w.Severity), 1))
		paragraph(out, "  → ", w.Remedy)
		pasted(out, w.Paste)
		fmt.Fprintln(out)
	}
}

// warnings joins the findings that say the same of several containers or
// runtimes.
func (f forecast) warnings() []*warning {
	var list []*warning
	byText := make(map[string]*warning)
	for i, c := range f.Containers {
		var own []*warning // of this container, each with all runtimes that have it
		for _, p := range c.Predictions {
			for _, finding := range p.Findings {
				text, ok := strings.CutPrefix(finding.Message, "container "+finding.Container)
				if !ok {
					text = ": " + finding.Message
				}
				at := slices.IndexFunc(own, func(w *warning) bool {
					return w.Severity == finding.Severity && w.Kind == finding.Kind && w.text == text && w.Remedy == finding.Remedy && w.Paste == finding.Paste
				})
				if at < 0 {
					at = len(own)
					own = append(own, &warning{Finding: finding, text: text})
				}
				own[at].runtimes = append(own[at].runtimes, p.Runtime)
			}
		}
		for _, w := range own {
			key := strings.Join(append([]string{w.Severity.String(), string(w.Kind), w.text, w.Remedy, w.Paste}, w.runtimes...), "\x00")
			if byText[key] == nil {
				byText[key] = w
				list = append(list, w)
			}
			byText[key].containers = append(byText[key].containers, i)
		}
	}
	slices.SortStableFunc(list, func(a, b *warning) int { return int(b.Severity - a.Severity) })
	return list
}

// summary counts containers, what is refused and the findings.
func (t forecastTable) summary(f forecast) string {
	objects := make(map[string]bool)
	refused := 0
	findings := make(map[drift.Severity]int)
	for _, c := range f.Containers {
		objects[c.object()] = true
		if slices.ContainsFunc(c.Predictions, func(p drift.Prediction) bool { return p.Refused != "" }) {
			refused++
		}
	}
	for _, w := range f.warnings() {
		findings[w.Severity] += len(w.containers)
	}
	text := fmt.Sprintf("Predicted for %s: %s of %s", strings.Join(t.runtimes, ", "), many(len(f.Containers), "container"), many(len(objects), "object"))
	if refused > 0 {
		text += fmt.Sprintf(", %d refused", refused)
	}
	var counts []string
	for _, severity := range drift.Severities() {
		if n := findings[severity]; n > 0 {
			counts = append(counts, fmt.Sprintf("%d %s", n, severity))
		}
	}
	switch {
	case len(counts) == 0 && refused > 0:
		return text + "."
	case len(counts) == 0:
		return text + "; nothing to say against them."
	}
	return text + "; findings: " + strings.Join(counts, ", ") + "."
}

// assumedText tells what the prediction rests on.
func assumedText(f forecast) string {
	var parts []string
	for _, what := range []string{assumeDefaultCaps, assumeHeldCaps, assumeInheritable, assumeImageUser, assumeLastCap} {
		var values []string
		for _, a := range f.Assumptions {
			if text := cmp.Or(a.Value, "unknown") + " (" + a.Source + ")"; a.What == what && !slices.Contains(values, text) {
				values = append(values, text)
			}
		}
		if len(values) > 0 {
			parts = append(parts, what+" "+strings.Join(values, ", "))
		}
	}
	return "Assumed: " + strings.Join(parts, "; ") + "."
}

// runtimeClasses names those that any container asks for, safe to print.
func (f forecast) runtimeClasses() []string {
	names := make(map[string]bool)
	for _, c := range f.Containers {
		if pod := c.Declared.Pod; pod != nil && pod.RuntimeClass != "" {
			names[printable(pod.RuntimeClass)] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}
