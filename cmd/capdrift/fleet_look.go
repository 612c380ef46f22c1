package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/capdrift/capdrift/drift"
)

// podSpecs is where the pod spec's layer of a fleet's containers comes from: the
// API server, asked with the user's rights, since the agents have none. It is asked
// once for all nodes or, where nodes were chosen, once for each.
type podSpecs struct {
	fleet     *fleet
	namespace string // "" for all
	known     map[string]podsTold
}

type podsTold struct {
	pods drift.Pods
	err  error
}

func (f *fleet) specs(namespace string) *podSpecs {
	return &podSpecs{fleet: f, namespace: namespace, known: make(map[string]podsTold)}
}

func (s *podSpecs) of(ctx context.Context, node string) (drift.Pods, error) {
	if !s.fleet.chosen {
		node = ""
	}
	told, asked := s.known[node]
	if !asked {
		told.pods, told.err = s.fleet.cluster.Pods(ctx, s.namespace, node)
		s.known[node] = told
	}
	return told.pods, told.err
}

// join gives the containers of the namespace their pod spec's layer, and says what
// could not be joined. They must have been seen before it is called: a pod is known
// before its containers run.
func (s *podSpecs) join(ctx context.Context, node string, containers []*drift.Container) []drift.Limit {
	pods, err := s.of(ctx, node)
	if err != nil {
		return []drift.Limit{{What: "what the pod specs ask for", Why: err.Error(), Blind: true, Code: drift.GapPodSpecs}}
	}
	var asked []*drift.Container
	var joined []drift.Container
	for _, c := range containers {
		if s.namespace == "" || c.Pod != nil && c.Pod.Namespace == s.namespace {
			asked, joined = append(asked, c), append(joined, *c)
		}
	}
	limits := drift.Join(joined, pods)
	for i, c := range asked {
		*c = joined[i]
	}
	return limits
}

// complete joins a report, and judges the hop from the pod spec, of which an agent
// knows nothing. What it finds is not in the report yet: a pod may have ended
// between the agent's look and the API server's answer.
func (s *podSpecs) complete(ctx context.Context, node string, report *drift.Report) (found []drift.Finding) {
	containers := make([]*drift.Container, len(report.Containers))
	for i := range report.Containers {
		containers[i] = &report.Containers[i]
	}
	limit(report, s.join(ctx, node, containers)...)
	if report.Runtime == nil {
		return nil
	}
	report.Expectations = drift.Expect(report.Node, *report.Runtime, nil, drift.Given{}, report.Containers)
	known := make(map[string]bool, len(report.Findings))
	for _, finding := range report.Findings {
		known[finding.ID] = true
	}
	for _, c := range report.Containers {
		for _, finding := range drift.Hops(report.Node, report.Expectations, c) {
			if finding.From == drift.LayerPod && !known[finding.ID] {
				found = append(found, finding)
			}
		}
	}
	return found
}

// limit adds to what a report says it did not see.
func limit(report *drift.Report, limits ...drift.Limit) {
	report.Coverage.Limits = append(report.Coverage.Limits, limits...)
	if slices.ContainsFunc(limits, func(l drift.Limit) bool { return l.Blind }) {
		report.Coverage.Complete = false
	}
}

// reports are what the agents of all nodes, or of those that --node names, see now.
func (o *fleetOptions) reports(cmd *cobra.Command, namespace string, gate bool) (*fleet, []answered[drift.Report], error) {
	limits := o.client()
	ctx, cancel := limits.within(cmd.Context())
	defer cancel()
	f, err := o.open(ctx, o.nodes)
	if err != nil {
		return nil, nil, err
	}
	defer f.close()
	reports, err := f.look(ctx, cmd.ErrOrStderr(), namespace, gate)
	return f, reports, err
}

// look has every agent look now, and joins what they saw with the pod specs. Where
// that makes something suspicious, the node is looked at once more, and what both
// looks agree on counts.
func (f *fleet) look(ctx context.Context, errs io.Writer, namespace string, gate bool) ([]answered[drift.Report], error) {
	scan := func(ctx context.Context, c *client) (drift.Report, error) { return c.scanFor(ctx, gate) }
	answers, err := gather(ctx, f, errs, scan)
	if err != nil {
		return nil, err
	}
	specs, first := f.specs(namespace), make(map[string][]drift.Finding)
	var doubtful []member
	for i := range answers {
		if answers[i].why != nil {
			continue
		}
		report := &answers[i].said
		tellAge(errs, answers[i].node, report.TakenAt, time.Now())
		report.Node.Name = answers[i].node // as Kubernetes calls it, whatever the agent does
		found := specs.complete(ctx, answers[i].node, report)
		if !slices.ContainsFunc(found, isLoud) {
			report.Findings = append(report.Findings, found...)
			drift.Sort(report.Findings)
			continue
		}
		first[answers[i].node], doubtful = found, append(doubtful, f.members[i])
	}
	if len(doubtful) == 0 {
		return answers, nil
	}
	again := *f
	again.members = doubtful
	second, err := gather(ctx, &again, errs, scan)
	if err != nil {
		return nil, err
	}
	specs = f.specs(namespace)
	for _, a := range second {
		at := slices.IndexFunc(answers, func(other answered[drift.Report]) bool { return other.node == a.node })
		answers[at].said = confirmed(ctx, specs, answers[at].said, first[a.node], a)
	}
	return answers, nil
}

func isLoud(f drift.Finding) bool { return f.Severity > drift.Info }

func loudOf(findings []drift.Finding) []drift.Finding {
	return slices.DeleteFunc(slices.Clone(findings), func(f drift.Finding) bool { return !isLoud(f) })
}

// confirmed is the report of the second look with what both looks found. Where there
// was none it is the first one, which says how much it could not confirm.
func confirmed(ctx context.Context, specs *podSpecs, before drift.Report, found []drift.Finding, again answered[drift.Report]) drift.Report {
	if again.why != nil {
		limit(&before, drift.Limit{
			What:  fmt.Sprintf("what became of suspicions about pod specs (%s)", many(len(found), "finding")),
			Why:   "the agent did not look a second time: " + again.why.Error(),
			Blind: true, Code: drift.GapUnconfirmed,
		})
		return before
	}
	report := again.said
	report.Node.Name = again.node
	now := specs.complete(ctx, again.node, &report)
	report.Findings = append(report.Findings, drift.Confirm(found, now)...)
	drift.Sort(report.Findings)
	return report
}
