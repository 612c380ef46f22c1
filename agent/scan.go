// Package agent decides when and in what order one node is looked at.
//
// It knows neither the CRI nor /proc: [Runtime] and [Host] are what it needs of
// them, and whoever builds a [Scanner] hands it the parts.
package agent

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

// Runtime tells which containers run and what was declared for them.
type Runtime interface {
	Inventory(ctx context.Context) (drift.Inventory, error)
}

// Pods tells what the pod specs of the node ask for.
type Pods interface {
	Pods(ctx context.Context) (drift.Pods, error)
}

// Host tells what the kernel holds.
type Host interface {
	Node() (drift.Node, []drift.Limit, error)
	Sweep(ctx context.Context, containers []drift.Container) (drift.Sweep, error)
	Process(pid int) (drift.Process, error)
}

// Scanner takes one look at one node and, where something is suspicious, more.
type Scanner struct {
	Host    Host
	Runtime Runtime // nil when none could be reached: then NoRuntime says why
	// NoRuntime is the error that kept Runtime from being built.
	NoRuntime error
	Pods      Pods // nil when no pod specs are asked for: that layer is then unknown
	// Given are settings of the runtime that are stated instead of learnt.
	Given drift.Given
	// Between is the time from one look to the next. A runtime's own stages hold
	// full capabilities in the container's cgroup for milliseconds at every
	// start and exec, so a suspicion counts only when it is still there.
	Between time.Duration
	Now     func() time.Time
	// Wait returns after the duration, or earlier with the context's error.
	Wait func(context.Context, time.Duration) error
}

// maxLooks bounds how often one scan looks: twice to confirm, and once more for
// what appeared only in the second look.
const maxLooks = 3

// verdict is what the looks of one scan agree on, and what they do not.
type verdict struct {
	confirmed  map[string]drift.Finding
	transients transients
	repeats    []string // containers where two looks saw what no other confirmed
}

// compare enters the look that follows another.
func (v *verdict) compare(first, second look) {
	for _, finding := range drift.Confirm(first.candidates, second.candidates) {
		v.confirmed[finding.ID] = finding
	}
	for _, finding := range first.suspicions(v.confirmed) {
		if !second.acquits(finding) {
			v.giveUp(finding, first)
		}
	}
}

// end enters that no look follows the last one.
func (v *verdict) end(last look) {
	for _, finding := range last.suspicions(v.confirmed) {
		v.giveUp(finding, last)
	}
}

func (v *verdict) giveUp(finding drift.Finding, in look) {
	if v.transients.note(in.at, &suspicion{Finding: finding, since: in.at}) && !slices.Contains(v.repeats, finding.ContainerID) {
		v.repeats = append(v.repeats, finding.ContainerID)
	}
}

// findings returns what is above [drift.Info].
func (v *verdict) findings() (list []drift.Finding) {
	for _, finding := range v.confirmed {
		if finding.Severity > drift.Info {
			list = append(list, finding)
		}
	}
	for _, id := range v.repeats {
		list = append(list, v.transients.finding(id))
	}
	return list
}

// Scan returns the report of the node. A runtime that does not answer is said in
// the report (Runtime is nil, and a limit tells why); an error means that there
// was nothing to report at all.
func (s Scanner) Scan(ctx context.Context) (drift.Report, error) {
	started := s.Now()
	node, limits, err := s.Host.Node()
	if err != nil {
		return drift.Report{}, fmt.Errorf("reading the node: %w", err)
	}
	current, err := s.look(ctx, node, nil)
	if err != nil {
		return drift.Report{}, err
	}
	current.at = started
	verdict := verdict{confirmed: make(map[string]drift.Finding), transients: newTransients()}
	for n := 1; n < maxLooks && current.unsettled(verdict.confirmed); n++ {
		if err := s.Wait(ctx, s.Between); err != nil {
			return drift.Report{}, fmt.Errorf("waiting for another look: %w", err)
		}
		next, err := s.look(ctx, node, current.sweep.Containers)
		if err != nil {
			return drift.Report{}, err
		}
		next.at = started.Add(time.Duration(n) * s.Between)
		verdict.compare(current, next)
		current = next
	}
	verdict.end(current)

	report := drift.Report{
		Schema: drift.Schema, Node: node, Runtime: current.runtime, TakenAt: started.UTC(),
		Containers: current.sweep.Containers, Findings: []drift.Finding{}, Expectations: current.expectations,
		Coverage: drift.Coverage{
			Processes: current.sweep.Processes, Threads: current.sweep.Threads,
			Limits: slices.Concat(limits, current.limits, current.sweep.Limits, drift.Limits(node, current.sweep.Containers), verdict.transients.limits()),
		},
	}
	for _, finding := range current.candidates {
		if finding.Severity == drift.Info {
			report.Findings = append(report.Findings, finding)
		}
	}
	report.Findings = append(report.Findings, verdict.findings()...)
	drift.Sort(report.Findings)
	report.Cover()
	report.DurationMs = s.Now().Sub(started).Milliseconds()
	return report, nil
}

// heldBy returns what the runtime's own process holds, nil when that cannot be read:
// it is then learnt from what the runtime made. A pid that is one of a container's
// was told in another pid namespace than /proc is of.
func heldBy(host Host, daemon int, containers []drift.Container) *capdecode.Set {
	inside := slices.ContainsFunc(containers, func(c drift.Container) bool {
		return slices.ContainsFunc(c.Processes, func(p drift.Process) bool { return p.PID == daemon })
	})
	if daemon == 0 || inside {
		return nil
	}
	process, err := host.Process(daemon)
	if err != nil {
		return nil
	}
	return &process.Caps.Effective
}

// look is what one look saw.
type look struct {
	runtime    *drift.Runtime
	sweep      drift.Sweep
	limits     []drift.Limit
	candidates []drift.Finding
	named      map[string]bool // containers that the runtime told of
	at         time.Time       // by the plan, so that no two looks have the same

	expectations drift.Expectations
}

// look asks the runtime and reads /proc once. before are the containers as the look before
// it saw them.
func (s Scanner) look(ctx context.Context, node drift.Node, before []drift.Container) (look, error) {
	var seen look
	var inventory drift.Inventory
	failure := s.NoRuntime
	if s.Runtime != nil {
		if inventory, failure = s.Runtime.Inventory(ctx); failure == nil {
			seen.runtime, seen.limits, seen.named = &inventory.Runtime, inventory.Limits, named(inventory)
		}
	}
	var known state
	sweep, err := s.Host.Sweep(ctx, slices.Concat(inventory.Containers, known.nowEnded(inventory)))
	if err != nil {
		return look{}, fmt.Errorf("reading the processes: %w", err)
	}
	sweep.Containers = known.living(sweep.Containers)
	seen.sweep = sweep
	seen.limits = append(seen.limits, s.join(ctx, sweep.Containers)...)
	if failure != nil {
		seen.limits = append(seen.limits, drift.Limit{
			What: "what was declared for any container", Why: failure.Error(), Blind: true,
		})
	}
	for i := range sweep.Containers {
		c := &sweep.Containers[i]
		if at := slices.IndexFunc(before, func(b drift.Container) bool { return b.ID == c.ID }); at >= 0 {
			drift.Remember(before[at].Processes, c.Processes)
		}
		drift.Settle(node, seen.runtime, c)
		drift.Admit(c, inventory.Starting)
		if failure != nil {
			// Nobody could say whether a pod explains it.
			c.Managed = nil
			continue
		}
		seen.candidates = append(seen.candidates, drift.Compare(node, *c)...)
	}
	if failure == nil {
		s.hops(node, inventory.Runtime, &seen)
	}
	return seen, nil
}

// join adds the pod specs' layer. They are asked for after the runtime, because a
// pod is known before its containers run.
func (s Scanner) join(ctx context.Context, containers []drift.Container) []drift.Limit {
	if s.Pods == nil {
		return nil
	}
	pods, err := s.Pods.Pods(ctx)
	if err != nil {
		return []drift.Limit{{What: "what the pod specs ask for", Why: err.Error(), Blind: true}}
	}
	return drift.Join(containers, pods)
}

// hops compares the layers before the kernel.
func (s Scanner) hops(node drift.Node, runtime drift.Runtime, seen *look) {
	seen.expectations = drift.Expect(node, runtime, heldBy(s.Host, runtime.PID, seen.sweep.Containers), s.Given, seen.sweep.Containers)
	seen.limits = append(seen.limits, seen.expectations.Limits()...)
	seen.candidates = append(seen.candidates, seen.expectations.Findings()...)
	for _, c := range seen.sweep.Containers {
		seen.candidates = append(seen.candidates, drift.Hops(node, seen.expectations, c)...)
	}
	seen.candidates = seen.expectations.Fold(seen.candidates)
}

// unsettled tells whether another look could say more: something suspicious is
// not confirmed yet, or a runtime has not finished starting a process.
func (l look) unsettled(confirmed map[string]drift.Finding) bool {
	return len(l.suspicions(confirmed)) > 0 || slices.ContainsFunc(l.sweep.Containers, func(c drift.Container) bool {
		return slices.ContainsFunc(c.Processes, func(p drift.Process) bool { return p.Observation == drift.Starting })
	})
}

// suspicions returns what is above [drift.Info] and not confirmed, the worst first.
func (l look) suspicions(confirmed map[string]drift.Finding) (list []drift.Finding) {
	for _, finding := range l.candidates {
		if _, known := confirmed[finding.ID]; !known && finding.Severity > drift.Info {
			list = append(list, finding)
		}
	}
	drift.Sort(list)
	slices.Reverse(list) // the worst is noted last, and is the example
	return list
}

// acquits reports whether the look, which did not confirm a suspicion, tells that there was
// none: it is about no process, and a runtime has told meanwhile what the container is.
func (l look) acquits(finding drift.Finding) bool {
	return l.runtime != nil && !tied(finding) && (finding.Kind != drift.UnmanagedContainer || l.named[finding.ContainerID])
}
