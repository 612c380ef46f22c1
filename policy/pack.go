package policy

import (
	"fmt"
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/capdrift/capdrift/drift"
)

// Pack is a set of rules that belong together.
type Pack struct {
	Name        string
	Title       string
	Description string
	References  []string
	// NotJudged is what the pack's subject asks for and no rule here judges.
	NotJudged []string
	// Windows says that its rules are about pods for Windows too.
	Windows bool
	Rules   []*Rule
	File    string // as given to [LoadPack]
}

// Rule says what should be of one container, on paper and in the kernel.
type Rule struct {
	ID         string
	Pack       string
	Title      string
	Severity   drift.Severity
	Rationale  string
	Remedy     string
	References []string
	Controls   []Control
	// The expressions; nil where the rule says nothing. Applies tells for which
	// containers the rule is meant, nil for all. Declared holds on paper, Actual in
	// the kernel: of each process and thread where it reads process, else of the
	// container.
	Applies, Declared, Actual *Filter
	Line                      int // of the rule in its pack's file

	fixtures []fixture
	tells    aspect // what Actual tells processes apart by
}

// Control is one requirement of a document that a rule answers.
type Control struct {
	Benchmark string `json:"benchmark"` // "CIS Kubernetes Benchmark"
	Edition   string `json:"edition,omitempty"`
	Version   string `json:"version,omitempty"`
	ID        string `json:"id"`             // its number there, or the name of its section
	Source    string `json:"source"`         // where the number was read
	Note      string `json:"note,omitempty"` // what other sources say, where they disagree
}

// LoadPack reads a pack, docs/policy.md. file is its name in errors, each of which
// is a [*LoadError].
func LoadPack(file string, text []byte) (Pack, error) {
	pack := Pack{File: file}
	err := readDocument(file, text, func(r *reader, root *yaml.Node) {
		r.mapping(root, "a pack", map[string]func(*yaml.Node){
			"pack":        r.id(&pack.Name, "the pack's name"),
			"title":       r.put(&pack.Title, "the pack's title"),
			"description": r.put(&pack.Description, "the pack's description"),
			"references":  r.texts(&pack.References, "references"),
			"notJudged":   r.texts(&pack.NotJudged, "what is not judged"),
			"windows":     r.truth(&pack.Windows, "windows"),
			"rules": func(n *yaml.Node) {
				r.each(n, "rules", func(n *yaml.Node) {
					rule := r.rule(n)
					if r.err == nil && slices.ContainsFunc(pack.Rules, func(other *Rule) bool { return other.ID == rule.ID }) {
						r.fail(n, "there is another rule %s", rule.ID)
					}
					pack.Rules = append(pack.Rules, rule)
				})
			},
		}, "pack", "title", "rules")
	})
	if err != nil {
		return Pack{}, err
	}
	for _, rule := range pack.Rules {
		rule.Pack = pack.Name
	}
	return pack, nil
}

// On paper there are no processes; in the kernel there is nothing else.
var kernelVariables = []string{"process", "processes", "caps"}

func (r *reader) rule(n *yaml.Node) *Rule {
	rule := &Rule{Line: n.Line}
	r.mapping(n, "a rule", map[string]func(*yaml.Node){
		"id":         r.id(&rule.ID, "the rule's id"),
		"title":      r.put(&rule.Title, "the rule's title"),
		"severity":   r.severity(&rule.Severity),
		"rationale":  r.put(&rule.Rationale, "the rule's rationale"),
		"remedy":     r.put(&rule.Remedy, "the rule's remedy"),
		"references": r.texts(&rule.References, "references"),
		"controls": func(n *yaml.Node) {
			r.each(n, "controls", func(n *yaml.Node) { rule.Controls = append(rule.Controls, r.controls(n)...) })
		},
		"applies": func(n *yaml.Node) {
			rule.Applies = r.condition(n, "applies")
			r.reads(n, "applies", rule.Applies, "is about the container", slices.Concat(kernelVariables, []string{"finding"}), nil)
		},
		"declared": func(n *yaml.Node) {
			rule.Declared = r.condition(n, "declared")
			r.reads(n, "declared", rule.Declared, "is about what was declared", slices.Concat(kernelVariables, []string{"finding"}), nil)
		},
		"actual": func(n *yaml.Node) {
			rule.Actual = r.condition(n, "actual")
			r.reads(n, "actual", rule.Actual, "is about what the kernel holds", []string{"finding"}, kernelVariables)
		},
		"tests": func(n *yaml.Node) {
			r.each(n, "tests", func(n *yaml.Node) { rule.fixtures = append(rule.fixtures, r.fixture(n)) })
		},
	}, "id", "title", "severity", "rationale", "remedy")
	if r.err == nil && rule.Declared == nil && rule.Actual == nil {
		r.fail(n, "the rule has neither a declared nor an actual condition")
	}
	if rule.Actual != nil {
		rule.tells = aspectsOf(rule.Actual)
	}
	return rule
}

// reads holds an expression to the variables that it is meant for.
func (r *reader) reads(n *yaml.Node, what string, f *Filter, why string, never, some []string) {
	if r.err != nil {
		return
	}
	for _, variable := range never {
		if f.Reads(variable) {
			r.failIn(n, what, fmt.Sprintf("it %s, and cannot read %s", why, variable))
		}
	}
	if some != nil && !slices.ContainsFunc(some, f.Reads) {
		r.failIn(n, what, fmt.Sprintf("it %s, and reads none of process, processes, caps", why))
	}
}

func (r *reader) severity(to *drift.Severity) func(*yaml.Node) {
	return func(n *yaml.Node) {
		if err := to.UnmarshalText([]byte(r.text(n, "the severity"))); err != nil && r.err == nil {
			r.fail(n, "%s", err)
		}
	}
}

// controls reads a control, or the same number in several versions.
func (r *reader) controls(n *yaml.Node) []Control {
	var one Control
	var versions []string
	r.mapping(n, "a control", map[string]func(*yaml.Node){
		"benchmark": r.put(&one.Benchmark, "benchmark"),
		"edition":   r.put(&one.Edition, "edition"),
		"versions":  r.texts(&versions, "versions"),
		"id":        r.put(&one.ID, "the control's id"),
		"source":    r.put(&one.Source, "source"),
		"note":      r.put(&one.Note, "note"),
	}, "benchmark", "id", "source")
	if versions == nil {
		return []Control{one}
	}
	var list []Control
	for _, version := range versions {
		one.Version = version
		list = append(list, one)
	}
	return list
}
