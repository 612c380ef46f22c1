package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/policy"
)

// ruling is a policy as the agent's loop is handed it.
type ruling struct{ *policy.Policy }

// read returns the policy that the configuration names, nil where it names none.
func (c policyConfig) read() (agent.Policy, error) {
	if len(c.Packs)+len(c.Exceptions) == 0 {
		return nil, nil
	}
	var packs []policy.Pack
	if len(c.Packs) > 0 { // no names would mean all
		var err error
		if packs, err = (&packOptions{packs: c.Packs}).choose(); err != nil {
			return nil, err
		}
	}
	var exceptions []policy.Exception
	for _, name := range c.Exceptions {
		some, err := readExceptions(name)
		if err != nil {
			return nil, err
		}
		exceptions = append(exceptions, some...)
	}
	compiled, err := policy.Compile(packs, exceptions)
	if err != nil {
		return nil, err
	}
	compiled, err = (&packOptions{version: c.PSSVersion}).at(context.Background(), io.Discard, compiled, nil)
	return ruling{compiled}, err
}

// files are those that the policy is read from.
func (c policyConfig) files() []string {
	return slices.DeleteFunc(slices.Concat(c.Packs, c.Exceptions), isBuiltIn)
}

// Contents implements [agent.Policy].
func (r ruling) Contents() (contents agent.PolicyContents) {
	for _, pack := range r.Packs() {
		contents.Packs = append(contents.Packs, pack.Name)
	}
	for _, rule := range r.Rules() {
		contents.Rules = append(contents.Rules, rule.ID)
	}
	for _, e := range r.Exceptions() {
		contents.Exceptions = append(contents.Exceptions, agent.Exception{ID: e.ID, Expires: e.Expires})
	}
	return contents
}

// Judge implements [agent.Policy].
func (r ruling) Judge(node drift.Node, runtime *drift.Runtime, c *drift.Container, threads bool) (judged agent.Judged) {
	for _, result := range r.JudgeContainer(&node, runtime, c, threads) {
		switch {
		case result.Fails():
			judged.Violations = append(judged.Violations, agent.Violation{
				Finding: violationOf(result), Failing: failing(result), Accepting: ids(r.Policy.Accepting(&node, runtime, &result)),
			})
		case result.Declared.Verdict == policy.Unknown || result.Actual.Verdict == policy.Unknown:
			judged.Undecided = append(judged.Undecided, result.Rule.ID)
		}
	}
	return judged
}

// Accepting implements [agent.Policy].
func (r ruling) Accepting(node drift.Node, runtime *drift.Runtime, c *drift.Container, f drift.Finding) []string {
	return ids(r.AcceptingFinding(&node, runtime, c, &f))
}

func ids(exceptions []*policy.Exception) (list []string) {
	for _, e := range exceptions {
		list = append(list, e.ID)
	}
	return list
}

// failing are the processes that a result names as failing.
func failing(r policy.Result) (seen []agent.Seen) {
	for _, task := range r.Actual.Tasks {
		at := slices.IndexFunc(r.Container.Processes, func(p drift.Process) bool { return p.PID == task.PID })
		if task.TID == 0 && at >= 0 {
			seen = append(seen, agent.Seen{PID: task.PID, StartTime: task.StartTime, Age: r.Container.Processes[at].Age})
		}
	}
	return seen
}

// violationOf is a result that fails as a finding.
func violationOf(r policy.Result) drift.Finding {
	f := drift.Finding{
		ID: r.ID(), Kind: drift.PolicyViolation, Severity: r.Rule.Severity, ContainerID: r.Container.ID, Container: r.Container.Name, Pod: r.Container.Pod,
		Rule: r.Rule.ID, Declared: r.Declared.Verdict.String(), Actual: r.Actual.Verdict.String(),
		Message: fmt.Sprintf("%s fails %s (%s) ", r.Container.Label(), r.Rule.ID, r.Rule.Title), Remedy: strings.TrimSpace(r.Rule.Remedy),
	}
	paper, kernel := r.Declared.Verdict == policy.Fail, r.Actual.Verdict == policy.Fail
	if paper {
		f.Capabilities |= r.Declared.Capabilities
	}
	if kernel {
		f.Capabilities |= r.Actual.Capabilities
	}
	switch {
	case paper && kernel:
		f.Message += "on paper and in the kernel: " + rests(r.Declared) + "; " + rests(r.Actual)
	case paper:
		f.Message += "on paper" + beside("in the kernel", r.Actual) + ": " + rests(r.Declared)
	default:
		f.Message += "in the kernel" + beside("on paper", r.Declared) + ": " + rests(r.Actual)
	}
	return f
}

// beside says what the other side of a violation is.
func beside(where string, o policy.Outcome) string {
	switch o.Verdict {
	case policy.Pass:
		return ", and passes " + where
	case policy.Unknown:
		return ", and " + where + " it could not be told (" + o.Reason + ")"
	}
	return ""
}

// rests is what a failure rests on, as much of it as anybody reads. Of processes the first
// speaks for all: who else fails changes with every one that comes.
func rests(o policy.Outcome) string {
	const most = 4
	var parts []string
	var first *policy.Task
	for _, e := range o.Evidence {
		if e.Task != nil && first != nil && *e.Task != *first {
			break
		}
		if len(parts) == most {
			parts = append(parts, "…")
			break
		}
		text := e.Field + " is " + e.Value
		if !e.Capabilities.Empty() {
			text += " (" + brief(e.Capabilities) + ")"
		}
		parts = append(parts, text)
		if e.Task != nil {
			first = e.Task
		}
	}
	text := strings.Join(parts, ", ")
	if first != nil {
		text += fmt.Sprintf(", of process %d %s", first.PID, strconv.QuoteToASCII(first.Name))
		if first.TID != 0 {
			text += fmt.Sprintf(" (thread %d)", first.TID)
		}
	}
	return text
}
