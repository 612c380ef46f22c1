package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"

	"github.com/capdrift/capdrift/agent/rpc"
	v1 "github.com/capdrift/capdrift/api/capdrift/v1"
	"github.com/capdrift/capdrift/drift"
)

const watchSchema = "capdrift.watch/v1"

// watchOutput prints a watch: lines for people, with what is about the watch itself
// on standard error, or one object a line with all of it.
type watchOutput struct {
	io.Writer
	errs     io.Writer
	resource string
	jsonl    bool
	table    table
	node     string // which it is of several; "" for the only one
	width    int    // of the column for it

	heads   *atomic.Bool // the heading is there; shared by several nodes, nil for one
	away    bool         // the node was said to be lost
	headed  bool
	known   map[string]watchLine // what the table has shown as there, by id
	before  map[string]watchLine // the same before a snapshot that is coming
	coming  []subject            // findings of that snapshot: which are of one incident is told at its end
	leading map[string]watchLine // the incidents of what is known, by the lines that stand for them
	faring  map[string]bool      // components that were said not to be well
	partial bool                 // the coverage was said to be incomplete
}

// watchRecord is one line of -o jsonl.
type watchRecord struct {
	Schema     string           `json:"schema"`
	Type       string           `json:"type"` // container, finding, snapshot_begin, snapshot_end, lost, node_status, disconnected, connected
	Time       *time.Time       `json:"time"` // by the node's clock; null for what we notice
	Change     string           `json:"change,omitempty"`
	Resolved   string           `json:"resolved,omitempty"` // why
	ID         string           `json:"id,omitempty"`       // of one that left the filter
	Container  *drift.Container `json:"container,omitempty"`
	Finding    *drift.Finding   `json:"finding,omitempty"`
	Undecided  string           `json:"undecided,omitempty"` // why the filter could not judge it
	Position   *place           `json:"position,omitempty"`
	Reason     string           `json:"reason,omitempty"`  // why changes are lost, or the connection
	Changes    *uint64          `json:"changes,omitempty"` // how many are lost; absent when it cannot be told
	Components []component      `json:"components,omitempty"`
	Coverage   *drift.Coverage  `json:"coverage,omitempty"`
	Containers *uint32          `json:"containers,omitempty"` // how many the snapshot had, before --namespace
	Findings   *uint32          `json:"findings,omitempty"`
	Accepted   *int             `json:"accepted,omitempty"` // how many of the findings exceptions accept, shown or not
}

// watchLine is what is printed of a container or finding: all but time and change.
type watchLine struct {
	severity, rest string

	id       string
	short    string // of a finding below the one that stands for its incident
	incident string // what it belongs to; "" for what stands alone
	worst    drift.Severity
}

func (o *watchOutput) record(r watchRecord) error {
	r.Schema = watchSchema
	if err := writeJSONLine(o, r); err != nil {
		return outputError{err}
	}
	return nil
}

func (o *watchOutput) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if o.node != "" {
		text = printable(o.node) + ": " + text
	}
	fmt.Fprintf(o.errs, "capdrift: %s\n", text)
}

// connected says that one node of several, which was lost, is back.
func (o *watchOutput) connected() error {
	if !o.away || o.node == "" {
		return nil
	}
	o.away = false
	o.note("the agent is back")
	if o.jsonl {
		return o.record(watchRecord{Type: "connected"})
	}
	return nil
}

func (o *watchOutput) disconnected(why string) error {
	o.away = true
	o.note("%s; connecting again", why)
	if o.jsonl {
		return o.record(watchRecord{Type: "disconnected", Reason: why})
	}
	return nil
}

func (o *watchOutput) begin(m *v1.SnapshotBegin, at *time.Time) error {
	if o.jsonl {
		record := watchRecord{Type: "snapshot_begin", Time: at, Position: placeOf(m.GetPosition())}
		if coverage := m.GetLook().GetCoverage(); coverage != nil {
			seen := rpc.FromProtoCoverage(coverage)
			record.Coverage = &seen
		}
		return o.record(record)
	}
	if o.before == nil { // else another snapshot broke off
		o.before = o.known
	}
	o.known, o.leading, o.coming = make(map[string]watchLine), make(map[string]watchLine), nil
	return nil
}

func (o *watchOutput) end(m *v1.SnapshotEnd, accepted int, at *time.Time) error {
	if o.jsonl {
		record := watchRecord{Type: "snapshot_end", Time: at}
		if containers, findings := m.GetContainers(), m.GetFindings(); o.resource == "container" {
			record.Containers = &containers
		} else {
			record.Findings, record.Accepted = &findings, &accepted
		}
		return o.record(record)
	}
	if err := o.flush(at); err != nil {
		return err
	}
	before := o.before
	o.before = nil
	for _, line := range goneLines(before, o.known) {
		if err := o.print(at, "gone", line, ""); err != nil {
			return err
		}
	}
	return nil
}

// goneLines are what was known before and is not now: of an incident, of which nothing is
// left, the line of its worst finding.
func goneLines(before, known map[string]watchLine) (lines []watchLine) {
	left := make(map[string]bool)
	for _, line := range known {
		left[line.incident] = true
	}
	places := make(map[string]int)
	for _, id := range slices.Sorted(maps.Keys(before)) {
		line := before[id]
		if _, still := known[id]; still || line.incident != "" && left[line.incident] {
			continue
		}
		at, told := places[cmp.Or(line.incident, id)]
		switch {
		case !told:
			places[cmp.Or(line.incident, id)] = len(lines)
			lines = append(lines, line)
		case line.worst > lines[at].worst:
			lines[at] = line
		}
	}
	return lines
}

// flush prints the findings of a snapshot that have come, each incident once.
func (o *watchOutput) flush(at *time.Time) error {
	items := o.coming
	o.coming = nil
	byID := make(map[string]subject)
	for _, item := range items {
		byID[item.id()] = item
	}
	groups := groupsOf(items)
	if o.table.wide {
		groups = nil
		for _, item := range items {
			groups = append(groups, group{Incident: drift.Incident{Findings: []drift.Finding{*item.finding}}})
		}
	}
	for _, group := range groups {
		item := byID[group.Worst().ID]
		line := o.lineOf(item)
		if line.incident != "" {
			o.leading[line.incident] = line
		}
		if err := o.print(at, "open", line, suffixOf(item)); err != nil {
			return err
		}
		if len(group.Others()) > 0 {
			if err := o.print(at, "  also", watchLine{rest: o.below("", also(group.Others()))}, ""); err != nil {
				return err
			}
		}
	}
	return nil
}

// below is the rest of a line that belongs to the one above it.
func (o *watchOutput) below(task, text string) string {
	return strings.Repeat(" ", severityWidth+1+placeWidth+1) + pad(task, taskWidth) + " " + text
}

func (o *watchOutput) item(item subject, change, resolved string, at *time.Time) error {
	if o.jsonl {
		return o.record(watchRecord{
			Type: item.kind(), Time: at, Change: change, Resolved: resolved, Container: item.container, Finding: item.finding, Undecided: item.undecided,
		})
	}
	line := o.lineOf(item)
	ends := change == "resolved" || change == "removed" || change == "accepted"
	if ends {
		if was, shown := o.known[item.id()]; shown {
			line.incident = was.incident // an exception takes it out of there
		}
		delete(o.known, item.id())
		delete(o.before, item.id())
	} else {
		o.known[item.id()] = line
	}
	if change == "open" && item.finding != nil {
		o.coming = append(o.coming, item)
		return nil
	}
	if resolved != "" {
		change += " (" + said(resolved) + ")"
	}
	change, line = o.within(change, line, ends)
	return o.print(at, change, line, suffixOf(item))
}

func suffixOf(item subject) string {
	switch {
	case item.undecided != "":
		return "(not judged by --filter: " + said(item.undecided) + ")"
	case item.isAccepted():
		return "(accepted by " + printable(item.finding.Exception) + ")"
	}
	return ""
}

// within returns how a change of a finding is shown beside the others of its incident.
// The first, and any that is worse, is shown whole and stands for all; others are shown
// below it in short. When the last one ends, the incident does.
func (o *watchOutput) within(change string, line watchLine, ends bool) (string, watchLine) {
	if line.incident == "" {
		return change, line
	}
	lead, led := o.leading[line.incident]
	switch {
	case ends:
		for _, other := range o.known {
			if other.incident == line.incident {
				return "  " + change, watchLine{rest: line.short}
			}
		}
		delete(o.leading, line.incident)
		if led {
			return change, lead
		}
	case led && line.worst <= lead.worst && line.id != lead.id:
		if change == "opened" {
			change = "also"
		}
		return "  " + change, watchLine{rest: line.short}
	default:
		o.leading[line.incident] = line
	}
	return change, line
}

// left is one that the filter does not take any more. It may be of another
// namespace than is asked for; then the table has not shown it.
func (o *watchOutput) left(id string, at *time.Time) error {
	if o.jsonl {
		return o.record(watchRecord{Type: o.resource, Time: at, Change: "left", ID: id})
	}
	line, shown := o.known[id]
	if !shown {
		return nil
	}
	delete(o.known, id)
	change, line := o.within("left", line, true)
	return o.print(at, change, line, "")
}

func (o *watchOutput) lineOf(item subject) watchLine {
	where := podOf(item.pod()) + "/" + item.called()
	if item.finding != nil && item.finding.ContainerID == "" { // of a handler
		where = item.called()
	}
	if f := item.finding; f != nil {
		what := strings.Join([]string{pad(printable(what(*f)), 20), brief(f.Capabilities)}, " ")
		line := watchLine{
			severity: pad(o.table.severity(f.Severity), severityWidth) + " ", rest: strings.Join([]string{pad(where, placeWidth), pad(taskOf(*f), taskWidth), what}, " "),
			id: f.ID, short: o.below(taskOf(*f), what), worst: f.Severity,
		}
		if o.table.wide {
			line.rest += " · " + printable(f.Message)
			if f.Evidence != nil {
				line.rest += " · " + strings.Join(evidenceLines(*f.Evidence), "; ")
			}
		} else if f.Incident != "" {
			line.incident = f.Incident + "\x00" + f.Exception
		}
		return line
	}
	return watchLine{rest: strings.Join([]string{
		pad(where, placeWidth), pad(cellID(item.id()), 14), pad(printable(string(item.container.Observation)), 12), fmt.Sprint(item.processes),
	}, " ")}
}

func pad(cell string, width int) string { return text.Pad(cell, width, ' ') }

const timeWidth, changeWidth, severityWidth, placeWidth, taskWidth = 24, 20, 9, 40, 8

func (o *watchOutput) print(at *time.Time, change string, line watchLine, suffix string) error {
	var out strings.Builder
	if !o.table.noHeaders && (o.heads == nil && !o.headed || o.heads != nil && o.heads.CompareAndSwap(false, true)) {
		heading := []string{pad("POD/CONTAINER", placeWidth), pad("ID", 14), pad("SEEN", 12), "PROCESSES"}
		if o.resource == "finding" {
			heading = []string{pad("SEVERITY", severityWidth), pad("POD/CONTAINER", placeWidth), pad("PID", taskWidth), pad("FINDING", 20), "CAPABILITIES"}
		}
		fmt.Fprintf(&out, "%s %s%s %s\n", pad("TIME", timeWidth), o.column("NODE"), pad("CHANGE", changeWidth), strings.Join(heading, " "))
	}
	o.headed = true
	when := "-"
	if at != nil {
		when = at.UTC().Format("2006-01-02T15:04:05.000Z")
	}
	full := fmt.Sprintf("%s %s%s %s%s %s", pad(when, timeWidth), o.column(printable(o.node)), pad(change, changeWidth), line.severity, line.rest, suffix)
	fmt.Fprintln(&out, strings.TrimRight(full, " "))
	if _, err := io.WriteString(o, out.String()); err != nil {
		return outputError{fmt.Errorf("writing: %w", err)}
	}
	return nil
}

// column is the node's, where there are several.
func (o *watchOutput) column(name string) string {
	if o.width == 0 {
		return ""
	}
	return pad(name, o.width) + " "
}

// lossReasons say why changes are missing.
var lossReasons = map[v1.Lost_Reason]string{
	v1.Lost_REASON_NOT_KEPT:         "they are older than what the agent keeps, or too many",
	v1.Lost_REASON_OTHER_EPOCH:      "the agent was started anew",
	v1.Lost_REASON_OTHER_BOOT:       "the node was booted",
	v1.Lost_REASON_UNKNOWN_POSITION: "the agent has not come to where we were",
}

func (o *watchOutput) lost(m *v1.Lost, at *time.Time) error {
	if o.jsonl {
		reason := strings.ToLower(strings.TrimPrefix(m.GetReason().String(), "REASON_"))
		return o.record(watchRecord{Type: "lost", Time: at, Reason: reason, Changes: m.Changes})
	}
	why, ok := lossReasons[m.GetReason()]
	if !ok {
		why = "the agent says " + m.GetReason().String()
	}
	count := "an unknown number of changes"
	if m.Changes != nil {
		count = many(int(min(*m.Changes, 1<<31)), "change")
	}
	o.note("lost: %s, for %s; what is there now follows", count, why)
	return nil
}

func (o *watchOutput) status(m *v1.NodeStatus, at *time.Time) error {
	if o.jsonl {
		record := watchRecord{Type: "node_status", Time: at, Components: componentsOf(m.GetComponents())}
		if m.Coverage != nil {
			coverage := rpc.FromProtoCoverage(m.Coverage)
			record.Coverage = &coverage
		}
		return o.record(record)
	}
	if o.faring == nil {
		o.faring = make(map[string]bool)
	}
	for _, c := range m.GetComponents() {
		switch {
		case !c.GetOk():
			o.faring[c.GetName()] = true
			o.note("node status: the agent's %s is not well: %s", printable(c.GetName()), said(c.GetWhy()))
		case o.faring[c.GetName()]:
			delete(o.faring, c.GetName())
			o.note("node status: the agent's %s is well again", printable(c.GetName()))
		}
	}
	switch coverage := m.GetCoverage(); {
	case coverage == nil:
	case !coverage.Complete:
		o.partial = true
		var limits []string
		for _, limit := range coverage.Limits {
			if limit.GetBlind() {
				limits = append(limits, said(limit.GetWhat()+": "+limit.GetWhy()))
			}
		}
		o.note("node status: the agent does not see all of its node: %s", strings.Join(limits[:min(len(limits), 4)], "; "))
	case o.partial:
		o.partial = false
		o.note("node status: the agent sees all of its node again")
	}
	return nil
}
