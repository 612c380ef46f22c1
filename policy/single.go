package policy

import (
	"slices"

	"github.com/capdrift/capdrift/drift"
)

// maxSingle is how many steps the judgement of one container by itself may take: a
// tenth of what a report's may.
const maxSingle = maxJudgement / 10

// JudgeContainer holds one container against every rule, as [Policy.Judge] does. threads
// tells whether those of its processes were read. Nothing is marked as accepted, for that
// depends on the time: see [Policy.Accepting]. A pod's sandbox is not judged.
func (p *Policy) JudgeContainer(node *drift.Node, runtime *drift.Runtime, c *drift.Container, threads bool) []Result {
	if c.Sandbox {
		return nil
	}
	steps := maxSingle
	b := newBench(p.subject(c, node, runtime), threads, &steps)
	return b.judgeAll(p, make([]Result, 0, len(p.rules)))
}

// Exceptions returns the policy's exceptions.
func (p *Policy) Exceptions() []*Exception { return p.exceptions }

// Accepting lists the exceptions that accept all that fails in the result, in the policy's
// order, whether or not they have expired.
func (p *Policy) Accepting(node *drift.Node, runtime *drift.Runtime, r *Result) []*Exception {
	if !r.Fails() {
		return nil
	}
	subject, steps := p.subject(r.Container, node, runtime), maxSingle
	list := p.accepting(subject, func(e *Exception) bool { return e.namesAll(r) })
	return slices.DeleteFunc(list, func(e *Exception) bool {
		_, _, accepts := newTrial(e, subject, true, &steps).accepts(r)
		return !accepts
	})
}

// AcceptingFinding does the same for a drift finding about the container.
func (p *Policy) AcceptingFinding(node *drift.Node, runtime *drift.Runtime, c *drift.Container, f *drift.Finding) []*Exception {
	return p.accepting(Subject{Container: c, Node: node, Runtime: runtime}, func(e *Exception) bool { return e.acceptsFinding(f) })
}

// accepting lists those that name it, of this container. Where it cannot be told whether
// the container is meant, it is not.
func (p *Policy) accepting(subject Subject, names func(*Exception) bool) (list []*Exception) {
	steps := maxSingle
	for _, e := range p.exceptions {
		if !names(e) {
			continue
		}
		if meant, err := e.Containers.eval(newVars(subject), &steps); err == nil && meant {
			list = append(list, e)
		}
	}
	return slices.Clip(list)
}
