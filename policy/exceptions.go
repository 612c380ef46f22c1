package policy

import (
	"fmt"
	"slices"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

// Exception is what somebody accepted, for which containers, and until when. It
// hides nothing that it does not name: a rule's result where it names the rule, a
// drift finding where it names the kind, and either only where it names each
// capability that offends there.
type Exception struct {
	ID         string
	Containers *Filter // which containers; where that cannot be told it accepts nothing
	Rules      []string
	Kinds      []drift.Kind
	// Capabilities are what is accepted; all of them where AllCapabilities is true.
	Capabilities    capdecode.Set
	AllCapabilities bool
	Owner, Reason   string
	// Expires is the first moment at which it counts no more: what was written is a
	// time, or a day that ends in UTC.
	Expires time.Time
	File    string
	Line    int
}

// ExceptionState says what became of an exception.
type ExceptionState string

// The states of exceptions.
const (
	ExceptionUsed    ExceptionState = "used"
	ExceptionUnused  ExceptionState = "unused"  // nothing is there that it would accept
	ExceptionExpired ExceptionState = "expired" // it accepts nothing any more
)

// ExceptionUse is an exception with what it accepted of a report or, once it has
// expired, with what it would have accepted.
type ExceptionUse struct {
	*Exception
	State             ExceptionState
	Results, Findings int
	// Unknown counts the containers of which it could not be told whether they are
	// meant.
	Unknown int
}

// LoadExceptions reads exceptions, docs/policy.md. file is their name in errors,
// each of which is a [*LoadError].
func LoadExceptions(file string, text []byte) ([]Exception, error) {
	list, _, err := loadExceptions(file, text)
	return list, err
}

// loadExceptions reads a file of exceptions and of accepted gaps, whose ids are all different.
func loadExceptions(file string, text []byte) (list []Exception, gaps []AcceptedGap, err error) {
	err = readDocument(file, text, func(r *reader, root *yaml.Node) {
		ids := make(map[string]bool)
		entries := func(what string, take func(*yaml.Node) string) func(*yaml.Node) {
			return func(n *yaml.Node) {
				if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
					return // the last of them was removed
				}
				r.each(n, what, func(n *yaml.Node) {
					id := take(n)
					if r.err == nil && ids[id] {
						r.fail(n, "there is another exception %s", id)
					}
					ids[id] = true
				})
			}
		}
		r.mapping(root, "a file of exceptions", map[string]func(*yaml.Node){
			"exceptions": entries("exceptions", func(n *yaml.Node) string {
				list = append(list, r.exception(n))
				return list[len(list)-1].ID
			}),
			"coverage": entries("coverage", func(n *yaml.Node) string {
				gaps = append(gaps, r.gap(n))
				return gaps[len(gaps)-1].ID
			}),
		})
		if r.err == nil && len(root.Content) == 0 {
			r.fail(root, "a file of exceptions has no exceptions and no coverage")
		}
	})
	if err != nil {
		return nil, nil, err
	}
	return list, gaps, nil
}

// CheckIDs returns a [*LoadError] where two exceptions or accepted gaps have the same id. Within
// one file none have, but those of several files may.
func CheckIDs(exceptions []Exception, gaps []AcceptedGap) error {
	files := make(map[string]string) // by the id
	check := func(id, file string, line int) error {
		if other, twice := files[id]; twice {
			return &LoadError{File: file, Line: line, Column: 1, Message: fmt.Sprintf("there is another exception %s in %s", id, other)}
		}
		files[id] = file
		return nil
	}
	for _, e := range exceptions {
		if err := check(e.ID, e.File, e.Line); err != nil {
			return err
		}
	}
	for _, g := range gaps {
		if err := check(g.ID, g.File, g.Line); err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) exception(n *yaml.Node) Exception {
	e := Exception{File: r.file, Line: n.Line}
	r.mapping(n, "an exception", map[string]func(*yaml.Node){
		"id": r.id(&e.ID, "the exception's id"),
		"containers": func(n *yaml.Node) {
			e.Containers = r.condition(n, "containers")
			r.reads(n, "containers", e.Containers, "chooses containers", []string{"process", "finding"}, nil)
		},
		"rules": r.texts(&e.Rules, "rules"),
		"kinds": func(n *yaml.Node) {
			r.each(n, "kinds", func(n *yaml.Node) {
				kind := drift.Kind(r.text(n, "a kind"))
				switch {
				case r.err != nil:
				case kind == drift.PolicyViolation:
					r.fail(n, "what fails a rule is accepted by the rule's id: name it in rules")
				case !slices.Contains(drift.Kinds(), kind):
					r.fail(n, "no finding is of the kind %.40q%s", string(kind), didYouMean(string(kind), kindNames()))
				}
				e.Kinds = append(e.Kinds, kind)
			})
		},
		"capabilities": func(n *yaml.Node) {
			r.each(n, "capabilities", func(n *yaml.Node) {
				name := r.text(n, "a capability")
				one, err := parseNames(name)
				if err != nil && r.err == nil {
					r.fail(n, "%s%s", err, nearCapability(name))
				}
				e.Capabilities, e.AllCapabilities = e.Capabilities|one.held, e.AllCapabilities || one.all
			})
		},
		"owner":   r.put(&e.Owner, "owner"),
		"reason":  r.put(&e.Reason, "reason"),
		"expires": func(n *yaml.Node) { e.Expires = r.expiry(n, "expires") },
	}, "id", "containers", "owner", "reason", "expires")
	if r.err == nil && len(e.Rules) == 0 && len(e.Kinds) == 0 {
		r.fail(n, "the exception names neither rules nor kinds, and so accepts nothing")
	}
	return e
}

func kindNames() []string {
	var names []string
	for _, kind := range drift.Kinds() {
		names = append(names, string(kind))
	}
	return names
}

// accept takes the exceptions into the policy.
func (p *Policy) accept(exceptions []Exception, rules map[string]Pack) error {
	builtIn := make(map[string]bool)
	for _, pack := range embedded() {
		for _, rule := range pack.Rules {
			builtIn[rule.ID] = true
		}
	}
	if err := CheckIDs(exceptions, nil); err != nil {
		return err
	}
	for i := range exceptions {
		e := exceptions[i]
		for _, id := range e.Rules {
			if _, given := rules[id]; !given && !builtIn[id] {
				return &LoadError{File: e.File, Line: e.Line, Column: 1, Message: fmt.Sprintf("the exception %s names the rule %.64q, which is in no pack", e.ID, id)}
			}
		}
		p.exceptions = append(p.exceptions, &e)
	}
	return nil
}

// names tells whether the exception names all of these capabilities.
func (e *Exception) names(set capdecode.Set) bool {
	return e.AllCapabilities || set.Within(e.Capabilities)
}

// namesAll reports whether the exception names the rule, and all that is known to offend.
// Whether it accepts the result a [trial] tells.
func (e *Exception) namesAll(r *Result) bool {
	if !slices.Contains(e.Rules, r.Rule.ID) {
		return false
	}
	for _, o := range []*Outcome{&r.Declared, &r.Actual} {
		if o.Verdict == Fail && (o.unnamed && !e.AllCapabilities || !e.names(o.Capabilities)) {
			return false
		}
	}
	return true
}

func (e *Exception) acceptsFinding(f *drift.Finding) bool {
	return slices.Contains(e.Kinds, f.Kind) && e.names(f.Capabilities)
}

// except marks what was accepted, and tells what became of each exception.
func (p *Policy) except(j *Judgement, report *drift.Report, now time.Time, steps *int) {
	j.Findings = make([]Finding, len(report.Findings))
	byID := make(map[string]*drift.Container)
	for i := range report.Containers {
		byID[report.Containers[i].ID] = &report.Containers[i]
	}
	for i := range report.Findings {
		j.Findings[i].Finding = report.Findings[i]
	}
	j.Exceptions = make([]ExceptionUse, len(p.exceptions))
	for i, e := range p.exceptions {
		use := &j.Exceptions[i]
		use.Exception = e
		expired := !now.Before(e.Expires)
		trials := make(map[*drift.Container]*trial)
		// Each container is asked about once, whatever is in it.
		meant := make(map[*drift.Container]bool)
		asked := func(c *drift.Container) bool {
			answer, known := meant[c]
			if !known && c != nil {
				var err error
				answer, err = e.Containers.eval(newVars(Subject{Container: c, Node: &report.Node}), steps)
				if err != nil {
					use.Unknown++
				}
				meant[c] = answer
			}
			return answer
		}
		for k := range j.Results {
			r := &j.Results[k]
			if !r.Fails() || !e.namesAll(r) || !asked(r.Container) {
				continue
			}
			if trials[r.Container] == nil {
				trials[r.Container] = newTrial(e, p.subject(r.Container, &report.Node, report.Runtime), report.Coverage.Threads.Skipped == 0, steps)
			}
			declared, actual, accepts := trials[r.Container].accepts(r)
			if !accepts {
				continue
			}
			use.Results++
			if !expired && r.Excepted == nil {
				r.Excepted, r.Declared.Unjudged, r.Actual.Unjudged = e, declared, actual
			}
		}
		for k := range j.Findings {
			f := &j.Findings[k]
			if !e.acceptsFinding(&f.Finding) || !asked(byID[f.ContainerID]) {
				continue
			}
			use.Findings++
			if !expired && f.Excepted == nil {
				f.Excepted = e
			}
		}
		switch {
		case expired:
			use.State = ExceptionExpired
		case use.Results+use.Findings > 0:
			use.State = ExceptionUsed
		default:
			use.State = ExceptionUnused
		}
	}
}
