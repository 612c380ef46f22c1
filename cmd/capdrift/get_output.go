package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	pretty "github.com/jedib0t/go-pretty/v6/table"
	"google.golang.org/protobuf/types/known/timestamppb"
	human "k8s.io/apimachinery/pkg/util/duration"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/agent/rpc"
	v1 "github.com/capdrift/capdrift/api/capdrift/v1"
	"github.com/capdrift/capdrift/drift"
)

const (
	listSchema  = "capdrift.list/v1"
	agentSchema = "capdrift.agent/v1"
)

// getWriter prints what get got.
type getWriter struct {
	io.Writer
	format string
	table  table
	now    time.Time
	nodes  bool // what is listed is of several: the table says of which
	ages   bool // of some findings that are listed it is known when they were opened

	takenAt *time.Time // when the node was looked at; nil where it was not, or several are listed
}

// itemLine is one container or finding as a line of JSON, like those of scan.
type itemLine struct {
	Schema    string           `json:"schema"`
	Type      string           `json:"type"`
	Container *drift.Container `json:"container,omitempty"`
	Finding   *drift.Finding   `json:"finding,omitempty"`
	Undecided string           `json:"undecided,omitempty"` // why the filter could not judge it
	TakenAt   *time.Time       `json:"takenAt,omitempty"`   // when the node was looked at; of one that is named
}

func lineOf(item subject) itemLine {
	return itemLine{drift.Schema, item.kind(), item.container, item.finding, item.undecided, nil}
}

// namedLine is the only one that is asked for, with when its node was looked at.
func namedLine(item subject, takenAt *time.Time) itemLine {
	line := lineOf(item)
	line.TakenAt = takenAt
	return line
}

// itemList is a list as one object.
type itemList struct {
	Schema     string            `json:"schema"`
	Position   *place            `json:"position"` // of the last page
	TakenAt    *time.Time        `json:"takenAt"`  // when the node was looked at
	Containers []drift.Container `json:"containers,omitzero"`
	Findings   []drift.Finding   `json:"findings,omitzero"`
	Accepted   *int              `json:"accepted,omitempty"` // of findings, how many exceptions accept, shown or not
	Undecided  []undecided       `json:"undecided"`          // those that the filter could not judge
}

type undecided struct {
	ID  string `json:"id"`
	Why string `json:"why"`
}

// place is a position in an agent's stream of changes.
type place struct {
	BootID   string `json:"bootId"`
	Epoch    string `json:"epoch"`
	Sequence uint64 `json:"sequence"`
}

func placeOf(m *v1.Position) *place {
	if m == nil {
		return nil
	}
	return &place{m.BootId, m.Epoch, m.Sequence}
}

func (w getWriter) line(item subject) error { return writeJSONLine(w, lineOf(item)) }

func (w getWriter) one(item subject) error {
	switch w.format {
	case "json":
		return writeJSON(w, namedLine(item, w.takenAt))
	case "yaml":
		return writeYAML(w, namedLine(item, w.takenAt))
	}
	if err := w.list(item.kind(), []subject{item}, 0, nil); err != nil || item.finding == nil || w.format == "name" || w.table.noHeaders {
		return err
	}
	return w.details(*item.finding)
}

// details explains a single finding below its row: not to scripts, which want the row.
func (w getWriter) details(f drift.Finding) error {
	var out strings.Builder
	fmt.Fprintln(&out)
	paragraph(&out, "", fmt.Sprintf("%s: %s.", f.Kind, f.Message))
	paragraph(&out, "  → ", f.Remedy)
	pasted(&out, f.Paste)
	evidence(&out, "", []drift.Finding{f})
	_, err := io.WriteString(w, out.String())
	return err
}

func (w getWriter) list(resource string, items []subject, accepted int, position *v1.Position) error {
	switch w.format {
	case "json":
		return writeJSON(w, listOf(resource, items, accepted, position, w.takenAt))
	case "yaml":
		return writeYAML(w, listOf(resource, items, accepted, position, w.takenAt))
	case "jsonl":
		for _, item := range items {
			if err := w.line(item); err != nil {
				return err
			}
		}
		return nil
	case "name":
		var out strings.Builder
		for _, item := range items {
			fmt.Fprintf(&out, "%s/%s\n", resource, printable(item.id()))
		}
		_, err := io.WriteString(w, out.String())
		return err
	}
	if len(items) == 0 {
		return nil
	}
	w.ages = slices.ContainsFunc(items, func(item subject) bool { return item.finding != nil && item.finding.OpenedAt != nil })
	writer := w.table.newWriter(w.row("node", w.header(resource)))
	for _, item := range items {
		if item.container != nil {
			writer.AppendRow(w.row(printable(item.node), w.container(item)))
		}
	}
	for _, group := range groupsOf(items) {
		column := slices.Index(w.row("node", w.header(resource)), any("finding"))
		writer.AppendRows(w.table.incidentRows(group.Incident, column, func(f drift.Finding) pretty.Row {
			opened := f.OpenedAt
			if !w.table.wide { // the row stands for all of them
				opened = openedFirst(group.Findings)
			}
			return w.row(printable(group.node), w.finding(f, opened))
		}))
	}
	_, err := fmt.Fprintln(w, trimLines(writer.Render()))
	return err
}

// group is an incident of one node.
type group struct {
	drift.Incident
	node string
}

// groupsOf groups the findings among the items, in the order of the items that are the
// worst of theirs.
func groupsOf(items []subject) []group {
	type key struct{ node, id string }
	places := make(map[key]int)
	byNode := make(map[string][]drift.Finding)
	for i, item := range items {
		if item.finding != nil {
			places[key{item.node, item.finding.ID}] = i
			byNode[item.node] = append(byNode[item.node], *item.finding)
		}
	}
	var groups []group
	for node, findings := range byNode {
		for _, incident := range drift.Incidents(findings) {
			groups = append(groups, group{incident, node})
		}
	}
	slices.SortFunc(groups, func(a, b group) int { return places[key{a.node, a.Worst().ID}] - places[key{b.node, b.Worst().ID}] })
	return groups
}

// row begins with the node where there are several.
func (w getWriter) row(node string, row pretty.Row) pretty.Row {
	if !w.nodes {
		return row
	}
	return append(pretty.Row{node}, row...)
}

func listOf(resource string, items []subject, accepted int, position *v1.Position, takenAt *time.Time) itemList {
	list := itemList{Schema: listSchema, Position: placeOf(position), TakenAt: takenAt, Undecided: []undecided{}}
	if resource == "container" {
		list.Containers = []drift.Container{}
	} else {
		list.Findings, list.Accepted = []drift.Finding{}, &accepted
	}
	for _, item := range items {
		if item.container != nil {
			list.Containers = append(list.Containers, *item.container)
		} else {
			list.Findings = append(list.Findings, *item.finding)
		}
		if item.undecided != "" {
			list.Undecided = append(list.Undecided, undecided{item.id(), item.undecided})
		}
	}
	return list
}

func (w getWriter) header(resource string) pretty.Row {
	if resource == "finding" {
		header := pretty.Row{"severity", "pod", "container", "pid", "hop", "finding", "capabilities", "id"}
		if w.ages {
			header = append(header, "age")
		}
		if w.table.wide {
			header = append(header, "set", "cause", "exception", "container id", "incident", "message")
		}
		return header
	}
	header := pretty.Row{"pod", "container", "id", "seen", "processes", "uid", "nnp", "age"}
	if w.table.wide {
		header = append(header, "bounding", "permitted", "handler", "managed", "image", "reason")
	}
	return header
}

func (w getWriter) container(item subject) pretty.Row {
	c := item.container
	row := pretty.Row{podOf(c.Pod), item.called(), cellID(c.ID), printable(string(c.Observation)), item.processes}
	declared := pretty.Row{"?", "?"}
	wide := pretty.Row{"unknown", "unknown"}
	if oci := c.Declared.OCI; oci != nil {
		declared = pretty.Row{oci.UID, yesNo(&oci.NoNewPrivileges)}
		wide = pretty.Row{oci.Bounding.Hex(), oci.Permitted.Hex()}
	}
	row = append(append(row, declared...), w.since(c.Created))
	if w.table.wide {
		row = append(append(row, wide...), orDefault(c.RuntimeHandler), yesNo(c.Managed), orNone(c.Image), orNone(c.Reason))
	}
	return row
}

// finding is a row of one that was opened at a time; nil where that is not known.
func (w getWriter) finding(f drift.Finding, opened *time.Time) pretty.Row {
	row := pretty.Row{
		w.table.severity(f.Severity), podOf(f.Pod), containerOf(f), taskOf(f), printable(where(f)), printable(what(f)), orNone(brief(f.Capabilities)), shortID(f.ID),
	}
	if w.ages {
		row = append(row, w.since(orZero(opened)))
	}
	if w.table.wide {
		row = append(row, orNone(f.Set), orNone(string(f.Cause)), orNone(f.Exception), orNone(cellID(f.ContainerID)), orNone(f.Incident), printable(f.Message))
	}
	return row
}

// taskOf names the process, or the thread of it, that a finding is about.
func taskOf(f drift.Finding) string {
	switch {
	case f.TID != 0:
		return fmt.Sprintf("%d/%d", f.PID, f.TID)
	case f.PID != 0:
		return strconv.Itoa(f.PID)
	}
	return "-"
}

func orNone(text string) string {
	if text == "" {
		return "-"
	}
	return printable(text)
}

func (w getWriter) since(moment time.Time) string {
	if moment.IsZero() {
		return "?"
	}
	return human.HumanDuration(max(w.now.Sub(moment), 0))
}

// agentNode is `capdrift get node` for programs.
type agentNode struct {
	Schema     string          `json:"schema"`
	Agent      agentIdentity   `json:"agent"`
	Node       *drift.Node     `json:"node"`    // null before the first look, as is what follows
	Runtime    *drift.Runtime  `json:"runtime"` // null too when none answered
	TakenAt    *time.Time      `json:"takenAt"`
	DurationMs *int64          `json:"durationMs"`
	Coverage   *drift.Coverage `json:"coverage"`
	Components []component     `json:"components"`
	Position   *place          `json:"position"`
	Findings   map[string]int  `json:"findings"` // how many are open that no exception accepts, by severity
	Accepted   map[string]int  `json:"accepted"` // how many an exception accepts
	Policy     *nodePolicy     `json:"policy"`   // null where none is configured
}

// nodePolicy is the policy that the agent judges by.
type nodePolicy struct {
	Packs      []string       `json:"packs"`
	Rules      int            `json:"rules"`
	LoadedAt   *time.Time     `json:"loadedAt"` // null where none could be loaded
	Pending    int            `json:"pending"`  // containers that wait to be judged
	Unknown    int            `json:"unknown"`  // results with a verdict that is unknown
	Exceptions []exceptionUse `json:"exceptions"`
}

type exceptionUse struct {
	ID       string     `json:"id"`
	State    string     `json:"state"` // used, unused, expired
	Expires  *time.Time `json:"expires"`
	Findings int        `json:"findings"` // that it accepts; once expired, would accept
}

func policyOf(m *v1.Policy) *nodePolicy {
	if m == nil {
		return nil
	}
	told := rpc.FromProtoPolicy(m)
	p := &nodePolicy{
		Packs: told.Packs, Rules: told.Rules, LoadedAt: momentOf(m.LoadedAt), Pending: told.Pending, Unknown: told.Unknown, Exceptions: []exceptionUse{},
	}
	for i, e := range told.Exceptions {
		p.Exceptions = append(p.Exceptions, exceptionUse{e.ID, string(e.State), momentOf(m.Exceptions[i].GetExpires()), e.Findings})
	}
	return p
}

type agentIdentity struct {
	Version   string     `json:"version"`
	StartedAt *time.Time `json:"startedAt"`
	NodeName  string     `json:"nodeName"`
}

type component struct {
	Name  string     `json:"name"`
	OK    bool       `json:"ok"`
	Why   string     `json:"why,omitempty"`
	Since *time.Time `json:"since"`
}

func componentsOf(messages []*v1.Component) []component {
	list := make([]component, 0, len(messages))
	for _, m := range messages {
		list = append(list, component{m.GetName(), m.GetOk(), m.GetWhy(), momentOf(m.GetSince())})
	}
	return list
}

// momentOf is nil for an absent time, and for one that is none.
func momentOf(m *timestamppb.Timestamp) *time.Time {
	if m == nil || !m.IsValid() {
		return nil
	}
	at := m.AsTime()
	return &at
}

func nodeOf(m *v1.GetNodeResponse) (agentNode, error) {
	node := agentNode{
		Schema:     agentSchema,
		Agent:      agentIdentity{m.GetAgent().GetVersion(), momentOf(m.GetAgent().GetStartedAt()), m.GetAgent().GetNodeName()},
		Components: componentsOf(m.Components),
		Position:   placeOf(m.Position),
	}
	if m.Look == nil {
		return node, nil
	}
	report, err := rpc.FromProtoReport(m.Look, nil, nil)
	if err != nil {
		return node, err
	}
	node.Node, node.Runtime, node.Coverage = &report.Node, report.Runtime, &report.Coverage
	node.TakenAt, node.DurationMs = &report.TakenAt, &report.DurationMs
	node.Findings, node.Accepted, node.Policy = make(map[string]int), make(map[string]int), policyOf(m.Policy)
	for _, count := range m.Findings {
		severity := strings.ToLower(strings.TrimPrefix(count.GetSeverity().String(), "SEVERITY_"))
		node.Findings[severity], node.Accepted[severity] = int(count.GetCount()), int(count.GetAccepted())
	}
	return node, nil
}

// node prints the node. Its table goes on with how the agent's parts fare and with
// what is not seen: a node without findings may be one that nobody looks at.
func (w getWriter) node(node agentNode) error {
	switch w.format {
	case "json":
		return writeJSON(w, node)
	case "jsonl":
		return writeJSONLine(w, node)
	case "yaml":
		return writeYAML(w, node)
	case "name":
		_, err := fmt.Fprintf(w, "node/%s\n", printable(node.name()))
		return err
	}
	var out strings.Builder
	header, row := w.nodeRow(node)
	writer := w.table.newWriter(header)
	writer.AppendRow(row)
	fmt.Fprintln(&out, trimLines(writer.Render()))
	if !w.table.noHeaders {
		w.health(&out, node)
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// nodeRow is the node in a table, and the table's heading.
func (w getWriter) nodeRow(node agentNode) (header, row pretty.Row) {
	header = pretty.Row{"name", "runtime", "kernel", "agent", "up", "looked", "containers"}
	row = pretty.Row{printable(node.name()), "?", "?", orNone(node.Agent.Version), w.since(orZero(node.Agent.StartedAt)), "not yet", "?"}
	if node.Node != nil {
		row[1], row[2] = "none answered", orNone(node.Node.Kernel)
		row[5], row[6] = w.since(*node.TakenAt)+" ago", node.Coverage.Containers.Running
	}
	if node.Runtime != nil {
		row[1] = printable(node.Runtime.Name + " " + node.Runtime.Version)
	}
	for _, severity := range drift.Severities() {
		header, row = append(header, severity.String()), append(row, "?")
		if count, told := node.Findings[severity.String()]; told {
			row[len(row)-1] = count
		}
	}
	if w.table.wide {
		header, row = append(header, "boot id", "cgroup", "endpoint"), append(row, "?", "?", "?")
		if node.Node != nil {
			row[len(row)-3], row[len(row)-2] = orNone(node.Node.BootID), orNone(node.Node.CgroupMode)
		}
		if node.Runtime != nil {
			row[len(row)-1] = orNone(node.Runtime.Endpoint)
		}
	}
	return header, row
}

func (n agentNode) name() string {
	if n.Node != nil && n.Agent.NodeName == "" {
		return n.Node.Name
	}
	return n.Agent.NodeName
}

func (w getWriter) health(out *strings.Builder, node agentNode) {
	if len(node.Components) > 0 {
		writer := w.table.newWriter(pretty.Row{"component", "ok", "since", "why"})
		for _, c := range node.Components {
			writer.AppendRow(pretty.Row{printable(c.Name), yesNo(&c.OK), w.since(orZero(c.Since)), orNone(c.Why)})
		}
		fmt.Fprintf(out, "\n%s\n", trimLines(writer.Render()))
	}
	fmt.Fprintln(out)
	if node.Coverage == nil {
		fmt.Fprintln(out, "The agent has not looked at its node yet.")
		return
	}
	w.table.coverage(out, *node.Coverage)
	w.policy(out, node)
}

// policy says by what containers are judged, and what needs somebody's attention there.
func (w getWriter) policy(out *strings.Builder, node agentNode) {
	p := node.Policy
	switch {
	case p == nil:
		return
	case p.LoadedAt == nil:
		fmt.Fprintln(out, "Policy: none could be loaded, and nothing is judged by rules.")
		return
	}
	packs := make([]string, len(p.Packs))
	for i, pack := range p.Packs {
		packs[i] = printable(pack)
	}
	accepted := 0
	for _, n := range node.Accepted {
		accepted += n
	}
	fmt.Fprintf(out, "Policy: %s (%s), loaded %s ago: %s accepted, %s unknown", many(p.Rules, "rule"), strings.Join(packs, ", "),
		w.since(*p.LoadedAt), many(accepted, "finding"), many(p.Unknown, "result"))
	if p.Pending > 0 {
		fmt.Fprintf(out, ", %s not judged yet", many(p.Pending, "container"))
	}
	fmt.Fprintln(out, ".")
	for _, e := range p.Exceptions {
		switch e.State {
		case string(agent.ExceptionExpired):
			fmt.Fprintf(out, "  Exception %s has expired %s ago; it would accept %s.\n", printable(e.ID), w.since(orZero(e.Expires)), many(e.Findings, "finding"))
		case string(agent.ExceptionUnused):
			fmt.Fprintf(out, "  Exception %s is unused: nothing that is open is what it accepts.\n", printable(e.ID))
		}
	}
}

func orZero(moment *time.Time) time.Time {
	if moment == nil {
		return time.Time{}
	}
	return *moment
}

// writeJSONLine writes one object in one line.
func writeJSONLine(w io.Writer, said any) error {
	return json.NewEncoder(escapingWriter{w}).Encode(said)
}
