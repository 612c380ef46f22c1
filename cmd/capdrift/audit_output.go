package main

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/policy"
)

const auditSchema = "capdrift.audit/v1"

// The published form of an audit.
type (
	auditForm struct {
		Schema     string          `json:"schema"`
		Node       *drift.Node     `json:"node"` // nil where manifests were judged
		Runtime    *drift.Runtime  `json:"runtime"`
		TakenAt    time.Time       `json:"takenAt"`
		Coverage   *drift.Coverage `json:"coverage"`   // nil where manifests were judged
		Skipped    []skipped       `json:"skipped"`    // of manifests
		Unjudged   []notJudged     `json:"unjudged"`   // of manifests
		PSSVersion string          `json:"pssVersion"` // of Kubernetes, by which the Pod Security Standards were judged
		Packs      []packForm      `json:"packs"`
		Rules      []ruleForm      `json:"rules"`
		Containers []judgedForm    `json:"containers"`
		Results    []resultForm    `json:"results"`
		Findings   []exceptedForm  `json:"findings"`
		Controls   []controlForm   `json:"controls"`
		Exceptions []exceptionForm `json:"exceptions"`
	}
	judgedForm struct {
		ID          string            `json:"id"`
		Name        string            `json:"name"`
		Image       string            `json:"image"`
		Pod         *drift.Pod        `json:"pod"`
		Manifest    *manifestPlace    `json:"manifest"` // nil where a node was looked at
		Observation drift.Observation `json:"observation,omitempty"`
		Reason      string            `json:"reason,omitempty"`
	}
	resultForm struct {
		ID          string         `json:"id"`
		Rule        string         `json:"rule"`
		Severity    drift.Severity `json:"severity"`
		ContainerID string         `json:"containerId"`
		Declared    outcomeForm    `json:"declared"`
		Actual      outcomeForm    `json:"actual"`
		Disagrees   bool           `json:"disagrees"`
		Exception   *string        `json:"exception"` // the id of the one that accepts what fails
	}
	outcomeForm struct {
		Verdict      policy.Verdict `json:"verdict"`
		Reason       string         `json:"reason,omitempty"`
		Evidence     []evidenceForm `json:"evidence,omitempty"`
		Capabilities []string       `json:"capabilities,omitempty"` // that offend
		Failing      int            `json:"failing,omitempty"`      // processes and threads
		Tasks        []policy.Task  `json:"tasks,omitempty"`        // the first of them
	}
	evidenceForm struct {
		Field        string       `json:"field"`
		Value        string       `json:"value"`
		Capabilities []string     `json:"capabilities,omitempty"`
		Task         *policy.Task `json:"task,omitempty"`
	}
	exceptedForm struct {
		Finding   drift.Finding `json:"finding"`
		Exception *string       `json:"exception"`
	}
	controlForm struct {
		policy.Control
		Rules         []string     `json:"rules"`
		Declared      policy.Tally `json:"declared"`
		Actual        policy.Tally `json:"actual"`
		Disagreements int          `json:"disagreements"`
		Excepted      int          `json:"excepted"`
	}
	exceptionForm struct {
		ID       string                `json:"id"`
		State    policy.ExceptionState `json:"state"`
		Owner    string                `json:"owner"`
		Reason   string                `json:"reason"`
		Expires  time.Time             `json:"expires"` // the first moment at which it counts no more
		File     string                `json:"file"`
		Line     int                   `json:"line"`
		Results  int                   `json:"results"` // that it accepts; once expired, would accept
		Findings int                   `json:"findings"`
		Unknown  int                   `json:"unknown"` // containers of which it could not be told whether they are meant
	}
)

// head is the published form without what is many.
func (a audit) head() auditForm {
	form := auditForm{
		Schema: auditSchema, TakenAt: a.report.TakenAt, PSSVersion: a.rules.Version().String(), Skipped: []skipped{}, Unjudged: []notJudged{}, Packs: []packForm{}, Rules: []ruleForm{}, Containers: []judgedForm{},
		Results: []resultForm{}, Findings: []exceptedForm{}, Controls: []controlForm{}, Exceptions: []exceptionForm{},
	}
	if !a.onPaper() {
		form.Node, form.Runtime, form.Coverage = &a.report.Node, a.report.Runtime, &a.report.Coverage
	} else {
		form.Skipped, form.Unjudged = a.left.Skipped, a.left.Unjudged
	}
	for _, pack := range a.rules.Packs() {
		form.Packs = append(form.Packs, formOfPack(pack))
	}
	for _, control := range a.Controls {
		form.Controls = append(form.Controls, controlForm{control.Control, control.Rules, control.Declared, control.Actual, control.Disagreements, control.Excepted})
	}
	for _, use := range a.Exceptions {
		form.Exceptions = append(form.Exceptions, exceptionForm{
			use.ID, use.State, use.Owner, use.Reason, use.Expires, use.File, use.Line, use.Results, use.Findings, use.Unknown,
		})
	}
	return form
}

func (a audit) published() auditForm {
	form := a.head()
	for _, rule := range a.rules.Rules() {
		form.Rules = append(form.Rules, formOfRule(rule))
	}
	for i := range a.report.Containers {
		if c := &a.report.Containers[i]; !c.Sandbox {
			form.Containers = append(form.Containers, a.judged(c))
		}
	}
	for _, r := range a.Results {
		form.Results = append(form.Results, formOfResult(r))
	}
	for _, f := range a.Findings {
		form.Findings = append(form.Findings, exceptedForm{f.Finding, idOf(f.Excepted)})
	}
	return form
}

func (a audit) judged(c *drift.Container) judgedForm {
	form := judgedForm{ID: c.ID, Name: c.Name, Image: c.Image, Pod: c.Pod, Observation: c.Observation, Reason: c.Reason}
	if at, ok := a.places[c.ID]; ok {
		form.Manifest = &at
	}
	return form
}

func idOf(e *policy.Exception) *string {
	if e == nil {
		return nil
	}
	return &e.ID
}

func formOfResult(r policy.Result) resultForm {
	return resultForm{
		ID: r.ID(), Rule: r.Rule.ID, Severity: r.Rule.Severity, ContainerID: r.Container.ID,
		Declared: formOfOutcome(r.Declared), Actual: formOfOutcome(r.Actual), Disagrees: r.Disagrees(), Exception: idOf(r.Excepted),
	}
}

func formOfOutcome(o policy.Outcome) outcomeForm {
	form := outcomeForm{Verdict: o.Verdict, Reason: o.Reason, Capabilities: o.Capabilities.Names(), Failing: o.Failing, Tasks: o.Tasks}
	for _, e := range o.Evidence {
		form.Evidence = append(form.Evidence, evidenceForm{e.Field, e.Value, e.Capabilities.Names(), e.Task})
	}
	return form
}

// writeAuditLines writes one object a line: the audit with its packs, controls and
// exceptions, then each result with its container, then each finding.
func writeAuditLines(w io.Writer, a audit) error {
	type line struct {
		Schema string `json:"schema"`
		Type   string `json:"type"`
	}
	encoder := json.NewEncoder(escapingWriter{w})
	head := a.head()
	err := encoder.Encode(struct {
		line
		Node       *drift.Node     `json:"node"`
		Runtime    *drift.Runtime  `json:"runtime"`
		TakenAt    time.Time       `json:"takenAt"`
		Coverage   *drift.Coverage `json:"coverage"`
		Skipped    []skipped       `json:"skipped"`
		Unjudged   []notJudged     `json:"unjudged"`
		PSSVersion string          `json:"pssVersion"`
		Packs      []packForm      `json:"packs"`
		Controls   []controlForm   `json:"controls"`
		Exceptions []exceptionForm `json:"exceptions"`
	}{line{auditSchema, "audit"}, head.Node, head.Runtime, head.TakenAt, head.Coverage, head.Skipped, head.Unjudged, head.PSSVersion, head.Packs, head.Controls, head.Exceptions})
	for i := 0; err == nil && i < len(a.Results); i++ {
		err = encoder.Encode(struct {
			line
			Container judgedForm `json:"container"`
			Result    resultForm `json:"result"`
		}{line{auditSchema, "result"}, a.judged(a.Results[i].Container), formOfResult(a.Results[i])})
	}
	for i := 0; err == nil && i < len(a.Findings); i++ {
		err = encoder.Encode(struct {
			line
			exceptedForm
		}{line{auditSchema, "finding"}, exceptedForm{a.Findings[i].Finding, idOf(a.Findings[i].Excepted)}})
	}
	return err
}

// auditColumns head the rows: one a result, then one a finding, then one each for
// what of manifests was not judged, and for what a pack does not judge.
var auditColumns = []string{
	"node", "takenAt", "type", "id", "severity", "pack", "rule", "title", "namespace", "pod", "container", "containerId", "image", "source",
	"declared", "actual", "disagrees", "exception", "capabilities", "pids", "declaredBecause", "actualBecause", "controls", "incident",
}

func writeAuditCSV(w io.Writer, a audit, headers bool) error {
	writer := csv.NewWriter(w)
	if headers {
		if err := writer.Write(auditColumns); err != nil {
			return err
		}
	}
	write := func(row []string) error {
		for i, text := range row {
			row[i] = cell(text)
		}
		return writer.Write(row)
	}
	for _, r := range a.Results {
		if err := write(a.resultRow(r)); err != nil {
			return err
		}
	}
	for _, f := range a.Findings {
		if err := write(a.findingRow(f)); err != nil {
			return err
		}
	}
	for _, row := range a.leftRows() {
		if err := write(row); err != nil {
			return err
		}
	}
	writer.Flush()
	return writer.Error()
}

// leftRows are those of what was not judged: the title says what and why.
func (a audit) leftRows() (rows [][]string) {
	row := func(what, title, namespace, name, source string) {
		cells := make([]string, len(auditColumns))
		cells[1], cells[2], cells[7], cells[8], cells[9], cells[13] = a.report.TakenAt.Format(time.RFC3339), what, title, namespace, name, source
		rows = append(rows, cells)
	}
	for _, s := range a.left.Skipped {
		row("skipped", fmt.Sprintf("%d %s", s.Count, s.Kind), "", "", "")
	}
	for _, u := range a.left.Unjudged {
		row("unjudged", u.String(), u.Namespace, u.Name, placeText(u.File, u.Line))
	}
	for _, pack := range a.rules.Packs() {
		for _, text := range pack.NotJudged {
			row("notJudged", text, "", "", "")
			rows[len(rows)-1][5] = pack.Name
		}
	}
	return rows
}

func (a audit) resultRow(r policy.Result) []string {
	var pids, controls []string
	for _, task := range r.Actual.Tasks {
		pids = append(pids, strconv.Itoa(task.PID))
	}
	for _, group := range groupControls(r.Rule.Controls) {
		controls = append(controls, group.String())
	}
	pod := podOrNone(r.Container.Pod)
	return []string{
		a.report.Node.Name, a.report.TakenAt.Format(time.RFC3339), "result", r.ID(), r.Rule.Severity.String(), r.Rule.Pack, r.Rule.ID, r.Rule.Title,
		pod.Namespace, pod.Name, r.Container.Name, r.Container.ID, r.Container.Image, a.source(r.Container.ID),
		r.Declared.Verdict.String(), r.Actual.Verdict.String(), strconv.FormatBool(r.Disagrees()), optional(idOf(r.Excepted)),
		strings.Join((r.Declared.Capabilities | r.Actual.Capabilities).Names(), " "), strings.Join(pids, " "),
		because(r.Declared), because(r.Actual), strings.Join(controls, "; "), "",
	}
}

// findingRow has the finding's kind for a rule, and no verdicts.
func (a audit) findingRow(f policy.Finding) []string {
	pod, pid := podOrNone(f.Pod), ""
	if f.PID != 0 {
		pid = strconv.Itoa(f.PID)
	}
	return []string{
		a.report.Node.Name, a.report.TakenAt.Format(time.RFC3339), "finding", f.ID, f.Severity.String(), "", string(f.Kind), f.Message,
		pod.Namespace, pod.Name, f.Container, f.ContainerID, "", "",
		"", "", "", optional(idOf(f.Excepted)), strings.Join(f.Capabilities.Names(), " "), pid, "", "", "", f.Incident,
	}
}

func podOrNone(pod *drift.Pod) drift.Pod {
	if pod == nil {
		return drift.Pod{}
	}
	return *pod
}

// source is where the container's manifest was read, "" on a node.
func (a audit) source(id string) string {
	at, ok := a.places[id]
	if !ok {
		return ""
	}
	return placeText(at.File, at.Line)
}

func placeText(file string, line int) string {
	if file == "" {
		return ""
	}
	return fmt.Sprintf("%s:%d", file, line)
}

// called is the container's name for people.
func (a audit) called(c *drift.Container) string {
	pod := podOrNone(c.Pod)
	var words []string
	for _, word := range []string{pod.Namespace, pod.Name, c.Name} {
		if word != "" {
			words = append(words, word)
		}
	}
	name := strings.Join(words, "/")
	if c.Name == "" {
		name = strings.Trim(name+" "+shortID(c.ID), " ")
	}
	if at, ok := a.places[c.ID]; ok && at.Kind != "" {
		name = at.Kind + " " + name
		if at.Path != "" {
			name += " (" + at.Path + ")"
		}
	}
	return printable(name)
}

// because says in one line why an outcome is not a pass: what the condition read
// that offends or, where nothing does, all that it read.
func because(o policy.Outcome) string {
	if o.Verdict != policy.Fail {
		return o.Reason
	}
	most := 3 // fields; where capabilities offend the next ones say the same of another set
	if !o.Capabilities.Empty() {
		most = 1
	}
	var parts []string
	var task *policy.Task
	for _, e := range o.Evidence {
		if !o.Capabilities.Empty() && e.Capabilities.Empty() || task != nil && e.Task != nil && e.Task != task || len(parts) == most {
			continue
		}
		part := fmt.Sprintf("%s is %s", e.Field, e.Value)
		if !e.Capabilities.Empty() {
			part = fmt.Sprintf("%s has %s", e.Field, brief(e.Capabilities))
		}
		if e.Task != nil && task == nil {
			task = e.Task
		}
		parts = append(parts, part)
	}
	text := strings.Join(parts, ", ")
	if task == nil {
		return text
	}
	who := fmt.Sprintf("process %d %s", task.PID, task.Name)
	if task.TID != 0 {
		who = fmt.Sprintf("thread %d/%d %s", task.PID, task.TID, task.Name)
	}
	if o.Failing > 1 {
		who += fmt.Sprintf(" and %d more", o.Failing-1)
	}
	return who + ": " + text
}
