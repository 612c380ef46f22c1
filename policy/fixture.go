package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

// fixture is a container, and what a rule must say of it.
type fixture struct {
	name             string
	line             int
	container        drift.Container
	kubernetes       Version
	declared, actual *Verdict // nil where the test does not ask
}

// TestResult is the outcome of one of a rule's own tests.
type TestResult struct {
	Rule string
	Test string
	Line int
	Err  error // nil when it passed
}

// Test runs the tests that the pack's rules bring with them.
func (p Pack) Test() []TestResult {
	var results []TestResult
	for _, rule := range p.Rules {
		for i := range rule.fixtures {
			f := &rule.fixtures[i]
			steps := maxJudgement
			report := drift.Report{Node: drift.Node{CapLastCap: fixtureLastCap}}
			result := newBench(Subject{Container: &f.container, Node: &report.Node, Kubernetes: &f.kubernetes}, report.Coverage.Threads.Skipped == 0, &steps).judge(rule)
			one := TestResult{Rule: rule.ID, Test: f.name, Line: f.line}
			switch {
			case f.declared != nil && result.Declared.Verdict != *f.declared:
				one.Err = fmt.Errorf("declared: it is %s, want %s%s", result.Declared.Verdict, *f.declared, result.Declared.why())
			case f.actual != nil && result.Actual.Verdict != *f.actual:
				one.Err = fmt.Errorf("actual: it is %s, want %s%s", result.Actual.Verdict, *f.actual, result.Actual.why())
			}
			results = append(results, one)
		}
	}
	return results
}

// fixtureLastCap is the last capability of the kernel that tests are thought to run
// on: CAP_CHECKPOINT_RESTORE, Linux 5.9 and later.
const fixtureLastCap capdecode.Cap = 40

func (r *reader) fixture(n *yaml.Node) fixture {
	f := fixture{line: n.Line, kubernetes: LatestVersion}
	verdict := func(to **Verdict, what string) func(*yaml.Node) {
		return func(n *yaml.Node) {
			*to = new(Verdict)
			if err := (*to).UnmarshalText([]byte(r.text(n, what))); err != nil && r.err == nil {
				r.fail(n, "%s: %s", what, err)
			}
		}
	}
	r.mapping(n, "a test", map[string]func(*yaml.Node){
		"name": r.put(&f.name, "the test's name"),
		"kubernetes": func(n *yaml.Node) {
			var err error
			if f.kubernetes, err = ParseVersion(r.text(n, "kubernetes")); err != nil && r.err == nil {
				r.fail(n, "kubernetes: %s", err)
			}
		},
		"declared":  verdict(&f.declared, "declared"),
		"actual":    verdict(&f.actual, "actual"),
		"container": func(n *yaml.Node) { f.container = r.container(n) },
	}, "name", "container")
	if r.err == nil && f.declared == nil && f.actual == nil {
		r.fail(n, "the test asks for no verdict")
	}
	return f
}

// container reads one in its published form, docs/output.md, with less to write: a
// capability set is a list of names, caps may be one list for permitted, effective
// and bounding, and what every ordinary container is need not be said.
func (r *reader) container(n *yaml.Node) drift.Container {
	c := drift.Container{Observation: drift.Observed}
	tree, ok := r.plain(n, "").(map[string]any)
	if r.err == nil && !ok {
		r.fail(n, "the container is %s, want fields", kindOf(n))
	}
	if r.err != nil {
		return c
	}
	if list, ok := tree["processes"].([]any); ok {
		for _, one := range list {
			if process, ok := one.(map[string]any); ok {
				ordinary(process, "observation", string(drift.Observed))
				ordinary(process, "userNamespace", map[string]any{"relation": drift.RelationSame})
				ordinary(process, "threadCount", 1)
				ordinary(process, "containerUid", process["uid"])
				threads, _ := process["threads"].([]any)
				for _, one := range threads {
					if thread, ok := one.(map[string]any); ok {
						ordinary(thread, "seccomp", process["seccomp"])
					}
				}
			}
		}
	}
	text, err := json.Marshal(tree)
	if err == nil {
		decoder := json.NewDecoder(bytes.NewReader(text))
		decoder.DisallowUnknownFields()
		err = decoder.Decode(&c)
	}
	if err != nil {
		at := n
		if _, field, unknown := strings.Cut(err.Error(), "unknown field "); unknown {
			if key := keyNamed(n, strings.Trim(field, `"`)); key != nil {
				at = key
			}
		}
		r.fail(at, "the container: %s", strings.TrimPrefix(err.Error(), "json: "))
	}
	return c
}

func ordinary(fields map[string]any, field string, value any) {
	if _, said := fields[field]; !said && value != nil {
		fields[field] = value
	}
}

func keyNamed(n *yaml.Node, name string) *yaml.Node {
	for i, child := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 0 && child.Value == name {
			return child
		}
		if found := keyNamed(child, name); found != nil {
			return found
		}
	}
	return nil
}

// plain is a value as JSON has it; field is its name.
func (r *reader) plain(n *yaml.Node, field string) any {
	if r.err != nil {
		return nil
	}
	switch {
	case n.Kind == yaml.SequenceNode && setFields[field] != nil:
		return hexOf(r.set(n))
	case n.Kind == yaml.SequenceNode && field == "caps":
		set := hexOf(r.set(n))
		none := hexOf(0)
		return map[string]any{"permitted": set, "effective": set, "bounding": set, "inheritable": none, "ambient": none}
	case n.Kind == yaml.SequenceNode:
		list := make([]any, 0, len(n.Content))
		for _, element := range n.Content {
			list = append(list, r.plain(element, ""))
		}
		return list
	case n.Kind == yaml.MappingNode:
		fields := make(map[string]any)
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			if _, twice := fields[key.Value]; twice || key.Kind != yaml.ScalarNode {
				r.fail(key, "the field %.40s is there twice, or has no name", key.Value)
				return nil
			}
			fields[key.Value] = r.plain(n.Content[i+1], key.Value)
		}
		if field == "caps" {
			for name := range setFields {
				ordinary(fields, name, hexOf(0))
			}
		}
		return fields
	case n.Kind == yaml.ScalarNode:
		var value any
		if err := n.Decode(&value); err != nil {
			r.fail(n, "%s", err)
		}
		return value
	}
	r.fail(n, "%s is not part of a test", kindOf(n))
	return nil
}

// set reads names of capabilities, ALL among them.
func (r *reader) set(n *yaml.Node) capdecode.Set {
	var set capdecode.Set
	for _, name := range n.Content {
		one, err := parseNames(name.Value)
		if err != nil {
			r.fail(name, "%s%s", err, nearCapability(name.Value))
			return 0
		}
		if set |= one.held; one.all {
			set |= capdecode.Full(fixtureLastCap)
		}
	}
	return set
}

func hexOf(set capdecode.Set) map[string]any {
	return map[string]any{"hex": set.Hex(), "names": []string{}}
}
