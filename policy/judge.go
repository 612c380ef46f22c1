package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

// Verdict is what a rule says of one container.
type Verdict int

// The verdicts, from the least that a person has to do to the most.
const (
	NotApplicable Verdict = iota // the rule is not meant for it, or says nothing there
	Pass
	Unknown // what it takes to judge was not told, or not seen
	Fail
)

var verdictNames = [...]string{"not_applicable", "pass", "unknown", "fail"}

func (v Verdict) String() string { return verdictNames[v] }

// MarshalText writes "pass", "fail", "unknown" or "not_applicable".
func (v Verdict) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (v *Verdict) UnmarshalText(text []byte) error {
	at := slices.Index(verdictNames[:], string(text))
	if at < 0 {
		return fmt.Errorf("verdict %.20q: want pass, fail, unknown or not_applicable", text)
	}
	*v = Verdict(at)
	return nil
}

// Outcome is a verdict, and what it rests on.
type Outcome struct {
	Verdict Verdict
	Reason  string // why it is unknown; empty otherwise
	// Evidence is what the condition read, where it failed or could not be told: of
	// processes that fail alike only one's, and of many that do not, the first few's.
	Evidence []Evidence
	// Capabilities are all that offend, in every process and thread that fails: those on
	// which it depends whether the condition holds.
	Capabilities capdecode.Set
	// Failing counts the processes and threads that fail; Tasks are the first of them.
	Failing int
	Tasks   []Task
	// Unjudged is why more might fail than what does, where it fails; empty where all was
	// judged, or nobody looked.
	Unjudged string

	unnamed bool // something offends that no list of capabilities names
	wrong   bool // it is unknown because an evaluation went wrong
}

// why ends a sentence about an outcome.
func (o Outcome) why() string {
	if o.Reason != "" {
		return " (" + o.Reason + ")"
	}
	for _, e := range o.Evidence {
		return fmt.Sprintf(" (%s is %s)", e.Field, e.Value)
	}
	return ""
}

// Result is what one rule says of one container.
type Result struct {
	Rule      *Rule
	Container *drift.Container // one of the report's
	Declared  Outcome          // on paper
	Actual    Outcome          // in the kernel
	// Excepted is the exception that accepts all that fails here, nil for none. What could
	// not be judged beside it is not accepted: see [Result.Unknown].
	Excepted *Exception
}

// ID is stable: the same rule on the same container keeps it.
func (r Result) ID() string {
	sum := sha256.Sum256([]byte(r.Rule.ID + "\x00" + r.Container.ID))
	return hex.EncodeToString(sum[:8])
}

// Disagrees tells whether paper and kernel say the opposite.
func (r Result) Disagrees() bool {
	return r.Declared.Verdict == Pass && r.Actual.Verdict == Fail || r.Declared.Verdict == Fail && r.Actual.Verdict == Pass
}

// Fails tells whether either does.
func (r Result) Fails() bool { return r.Declared.Verdict == Fail || r.Actual.Verdict == Fail }

// Unknown reports whether something of either could not be judged, whatever fails beside
// it.
func (r Result) Unknown() bool { return r.Declared.Unknown() || r.Actual.Unknown() }

// Unknown reports whether something could not be judged, whatever fails beside it.
func (o Outcome) Unknown() bool { return o.Verdict == Unknown || o.Unjudged != "" }

// Judgement is a report held against a policy.
type Judgement struct {
	At         time.Time
	Results    []Result // container by container in the report's order, rules in the policy's
	Findings   []Finding
	Controls   []ControlCount
	Exceptions []ExceptionUse // every exception, used or not
}

// Finding is one of the report's, and the exception that accepts it, nil for none.
type Finding struct {
	drift.Finding
	Excepted *Exception
}

// Tally counts containers by verdict.
type Tally struct {
	Pass          int `json:"pass"`
	Fail          int `json:"fail"`
	Unknown       int `json:"unknown"`
	NotApplicable int `json:"notApplicable"`
}

func (t *Tally) add(v Verdict) {
	switch v {
	case Pass:
		t.Pass++
	case Fail:
		t.Fail++
	case Unknown:
		t.Unknown++
	default:
		t.NotApplicable++
	}
}

// ControlCount says how many containers meet a control. One does when all rules do
// that answer it; failures that were accepted are still failures, and counted.
type ControlCount struct {
	Control
	Rules            []string
	Declared, Actual Tally
	Disagreements    int // containers that pass on paper and fail in the kernel, or the reverse
	Excepted         int // containers that fail, and all of it was accepted
}

const (
	// maxJudgement is how many steps one judgement may take, of some 30 ns. All of the
	// embedded packs take a few thousand for a container.
	maxJudgement = 100_000_000
	maxWitnesses = 3  // failing processes of which evidence is shown
	maxTasks     = 10 // failing processes that are named
)

// Judge holds every container of a report but the pods' sandboxes, which no pod spec
// declares, against the policy. now decides which exceptions have expired.
func (p *Policy) Judge(report drift.Report, now time.Time) Judgement {
	return p.judgeWithin(report, now, maxJudgement)
}

// subject is what the policy's conditions are put to.
func (p *Policy) subject(c *drift.Container, node *drift.Node, runtime *drift.Runtime) Subject {
	return Subject{Container: c, Node: node, Runtime: runtime, Kubernetes: &p.version}
}

// judgeWithin is Judge in so many steps. What they do not suffice for is unknown.
func (p *Policy) judgeWithin(report drift.Report, now time.Time, steps int) Judgement {
	j := Judgement{At: now, Results: make([]Result, 0, len(p.rules)*len(report.Containers))}
	for i := range report.Containers {
		c := &report.Containers[i]
		if c.Sandbox {
			continue
		}
		b := newBench(p.subject(c, &report.Node, report.Runtime), report.Coverage.Threads.Skipped == 0, &steps)
		j.Results = b.judgeAll(p, j.Results)
	}
	p.except(&j, &report, now, &steps)
	p.count(&j)
	return j
}

// bench is where the rules are put to one container.
type bench struct {
	vars      *vars
	container *drift.Container
	threads   bool // those of its processes were read
	steps     *int
	tasks     []task // its processes, and the threads that differ
	groups    map[aspect][]group
}

func newBench(subject Subject, threads bool, steps *int) *bench {
	return &bench{vars: newVars(subject), container: subject.Container, threads: threads, steps: steps}
}

// judgeAll puts the policy's rules, and adds what they say. Rules of several documents ask
// the same in the same words, and that is asked once.
func (b *bench) judgeAll(p *Policy, results []Result) []Result {
	first := len(results)
	for i, rule := range p.rules {
		result, applies := b.apply(rule)
		if applies {
			asked := p.asked[i]
			if asked.declared < i {
				result.Declared = results[first+asked.declared].Declared
			} else {
				result.Declared = b.declared(rule)
			}
			if asked.actual < i {
				result.Actual = results[first+asked.actual].Actual
			} else {
				result.Actual = b.actual(rule)
			}
		}
		results = append(results, result)
	}
	return results
}

// judge puts one rule.
func (b *bench) judge(rule *Rule) Result {
	result, applies := b.apply(rule)
	if applies {
		result.Declared, result.Actual = b.declared(rule), b.actual(rule)
	}
	return result
}

// apply tells whether the rule is meant for the container; the result is all there is to
// say where it is not.
func (b *bench) apply(rule *Rule) (result Result, applies bool) {
	result = Result{Rule: rule, Container: b.container}
	if rule.Applies == nil {
		return result, true
	}
	applies, err := rule.Applies.eval(b.vars, b.steps)
	if err != nil {
		result.Declared = Outcome{Verdict: Unknown, Reason: "whether the rule applies: " + reason(err)}
		result.Actual = result.Declared
		result.drop()
	}
	return result, applies
}

// drop leaves out the verdicts of which the rule says nothing.
func (r *Result) drop() {
	if r.Rule.Declared == nil {
		r.Declared = Outcome{}
	}
	if r.Rule.Actual == nil {
		r.Actual = Outcome{}
	}
}

// reason is why something could not be told.
func reason(err error) string {
	var wrong *FilterError
	if errors.As(err, &wrong) {
		return wrong.Message
	}
	return err.Error()
}

// declared judges what is on paper.
func (b *bench) declared(rule *Rule) Outcome {
	if rule.Declared == nil {
		return Outcome{}
	}
	return b.whole(rule.Declared)
}

// whole judges a condition about the container as a whole.
func (b *bench) whole(f *Filter) Outcome {
	holds, err := f.eval(b.vars, b.steps)
	switch {
	case err != nil:
		o := Outcome{Verdict: Unknown, Reason: reason(err), wrong: isWrong(err)}
		o.witness(b.vars, f, nil, true, b.steps)
		o.Capabilities = 0 // what could not be judged offends nobody
		return o
	case holds:
		return Outcome{Verdict: Pass}
	}
	o := Outcome{Verdict: Fail}
	o.witness(b.vars, f, nil, true, b.steps)
	return o
}

// isWrong reports whether an evaluation ended in something else than in what is unknown.
func isWrong(err error) bool {
	var unknown *UnknownError
	return !errors.As(err, &unknown)
}

// actual judges what the kernel holds.
func (b *bench) actual(rule *Rule) Outcome {
	c := b.container
	switch {
	case rule.Actual == nil:
		return Outcome{}
	case c.Observation == drift.UnsupportedRuntime:
		return Outcome{Verdict: Unknown, Reason: "processes: not visible from the host: " + c.Reason}
	case len(c.Processes) == 0:
		return Outcome{Verdict: Unknown, Reason: "processes: none was seen"}
	}
	if !rule.Actual.Reads("process") {
		o := b.whole(rule.Actual)
		o.settle(b.doubt())
		return o
	}
	o, witnesses, unknown := Outcome{Verdict: Pass}, 0, ""
	for _, alike := range b.alike(rule.tells) {
		b.vars.setProcess(alike.first)
		holds, err := rule.Actual.eval(b.vars, b.steps)
		switch {
		case err != nil:
			if o.wrong = o.wrong || isWrong(err); unknown == "" {
				unknown = fmt.Sprintf("process %d: %s", alike.first.PID, reason(err))
			}
		case !holds:
			o.Verdict = Fail
			o.Failing += alike.size
			o.name(alike.named)
			o.witness(b.vars, rule.Actual, &alike.named[0], witnesses < maxWitnesses, b.steps)
			witnesses++
		}
	}
	b.vars.setProcess(nil)
	if unknown == "" {
		unknown = b.doubt()
	}
	o.settle(unknown)
	return o
}

// settle takes a pass back where something could not be judged, and notes it beside a
// failure.
func (o *Outcome) settle(unjudged string) {
	switch {
	case unjudged == "":
	case o.Verdict == Pass:
		o.Verdict, o.Reason = Unknown, unjudged
	case o.Verdict == Fail:
		o.Unjudged = unjudged
	}
}

// name adds the first of those that fail.
func (o *Outcome) name(failing []Task) {
	if o.Tasks == nil {
		o.Tasks = failing // whose room is full: what is appended goes elsewhere
		return
	}
	o.Tasks = append(o.Tasks, failing[:min(len(failing), maxTasks-len(o.Tasks))]...)
}

// doubt is why not all was seen, empty where it was.
func (b *bench) doubt() string {
	switch {
	case b.container.Observation != drift.Observed:
		return b.vars.seen(b.container).Error()
	case slices.ContainsFunc(b.container.Processes, func(p drift.Process) bool { return p.Observation == drift.Starting }):
		return "processes: not all seen: one is starting"
	case !b.threads && slices.ContainsFunc(b.container.Processes, func(p drift.Process) bool { return p.ThreadCount > 1 }):
		return "threads: not all were read"
	}
	return ""
}

// witness adds what a condition read, of a task where there is one. What offends
// counts also where it is not shown any more.
func (o *Outcome) witness(v *vars, f *Filter, t *Task, show bool, steps *int) {
	if !f.note(v, steps) {
		o.unnamed = true
	}
	o.Capabilities |= v.noted[""].set
	o.unnamed = o.unnamed || v.noted[""].unnamed
	v.meter.left = maxSteps // the evaluation has ended, and nobody would hear that it is spent
	first := len(o.Evidence)
	if show {
		o.Evidence = slices.Grow(o.Evidence, len(f.facts))
	}
	for i := range f.facts {
		fact := &f.facts[i]
		if !fact.read(v.subject.Kubernetes) {
			continue
		}
		value, offends, unnamed, ok := v.see(fact, show)
		if !ok {
			continue
		}
		o.Capabilities |= offends
		o.unnamed = o.unnamed || unnamed
		if !show {
			continue
		}
		e := Evidence{Field: fact.name, Value: value, Capabilities: offends}
		if fact.path[0] == "process" {
			e.Task = t
		}
		at := slices.IndexFunc(o.Evidence, func(other Evidence) bool { return other.Field == e.Field && other.Task == e.Task })
		if at >= 0 && (at >= first || e.Task == nil) {
			o.Evidence[at].Capabilities |= e.Capabilities // of another question about it
			continue
		}
		o.Evidence = append(o.Evidence, e)
	}
}

// count fills in how the controls fare.
func (p *Policy) count(j *Judgement) {
	j.Controls = make([]ControlCount, len(p.controls))
	for i, control := range p.controls {
		count := &j.Controls[i]
		count.Control = control.Control
		for _, at := range control.rules {
			count.Rules = append(count.Rules, p.rules[at].ID)
		}
		for first := 0; first < len(j.Results); first += len(p.rules) {
			declared, actual, fails, accepted := NotApplicable, NotApplicable, false, true
			for _, at := range control.rules {
				r := &j.Results[first+at]
				declared, actual = max(declared, r.Declared.Verdict), max(actual, r.Actual.Verdict)
				if r.Fails() {
					fails, accepted = true, accepted && r.Excepted != nil
				}
			}
			count.Declared.add(declared)
			count.Actual.add(actual)
			if (Result{Declared: Outcome{Verdict: declared}, Actual: Outcome{Verdict: actual}}).Disagrees() {
				count.Disagreements++
			}
			if fails && accepted {
				count.Excepted++
			}
		}
	}
}
