package main

import (
	"context"
	"errors"

	"github.com/capdrift/capdrift/agent/rpc"
	v1 "github.com/capdrift/capdrift/api/capdrift/v1"
	"github.com/capdrift/capdrift/drift"
)

// mostAsked bounds how often a gate asks an agent because something that was there in its first
// answer could not be read yet.
const mostAsked = 6

// settle asks again, with a pause, until everything that the first answer could not read yet was
// read, and an answer is of one moment. A later answer that fails leaves the one before it.
func settle(ctx context.Context, ask func(context.Context) (drift.Report, error)) (drift.Report, error) {
	report, err := ask(ctx)
	if err != nil {
		return report, err
	}
	pending := drift.PendingOf(report.Containers)
	for n := 1; n < mostAsked && (pending.Any() || report.Disagrees() || drift.Missed(report.Coverage.Limits)); n++ {
		if wait(ctx, betweenLooks) != nil {
			break
		}
		next, err := ask(ctx)
		if err != nil {
			break
		}
		report, pending = next, pending.After(next.Containers, next.TakenAt)
	}
	kept, newcomers := pending.Without(report.Containers)
	if newcomers != nil {
		report.Containers, report.Coverage.Limits = kept, append(report.Coverage.Limits, *newcomers)
		report.Cover()
	}
	return report, nil
}

// scanFor has the agent look; for a gate, again where something could not be read yet.
func (c *client) scanFor(ctx context.Context, gate bool) (drift.Report, error) {
	if !gate {
		return c.scan(ctx)
	}
	return c.settled(ctx, c.scan)
}

// settled is what settle makes of the agent's answers, with a gap where the agent judges by another
// policy than it should.
func (c *client) settled(ctx context.Context, ask func(context.Context) (drift.Report, error)) (drift.Report, error) {
	report, err := settle(ctx, ask)
	if err != nil {
		return report, err
	}
	node, err := c.GetNode(ctx, &v1.GetNodeRequest{})
	if err != nil {
		return report, c.explained(ctx, err)
	}
	for _, component := range node.Components {
		if component.Name == "policy" && !component.Ok {
			limit(&report, drift.Limit{What: "what the agent's policy says", Why: component.Why, Blind: true, Code: drift.GapPolicy})
		}
	}
	return report, nil
}

// view is what an agent sees now, of which only the node, the coverage and the containers are
// asked for, with as much of each as a view has.
func (c *client) view(ctx context.Context, view v1.ContainerView) (drift.Report, error) {
	node, err := c.GetNode(ctx, &v1.GetNodeRequest{})
	switch {
	case err != nil:
		return drift.Report{}, c.explained(ctx, err)
	case node.Look == nil:
		return drift.Report{}, errors.New("the agent has not looked at its node yet; ask again in a moment")
	}
	report, err := rpc.FromProtoReport(node.Look, nil, nil)
	if err != nil {
		return report, err
	}
	_, err = question{client: c, view: view}.each(ctx, "container", func(item subject) error {
		report.Containers = append(report.Containers, *item.container)
		return nil
	})
	return report, err
}

// outlook is what a command that lists or follows an agent's findings has to know of its node.
type outlook struct {
	gaps       []drift.Gap
	namespaces []string // of the containers
}

// outlook asks an agent for what a gate has to know, or else for the namespaces alone.
func (c *client) outlook(ctx context.Context, gate bool, namespace string) (o outlook, err error) {
	if !gate {
		report, err := c.view(ctx, v1.ContainerView_CONTAINER_VIEW_BASIC)
		o.namespaces = namesOf(report.Containers, namespaceOf)
		return o, err
	}
	report, err := c.settled(ctx, func(ctx context.Context) (drift.Report, error) {
		return c.view(ctx, v1.ContainerView_CONTAINER_VIEW_FULL) // which tells what is starting
	})
	if err != nil {
		return o, err
	}
	o.namespaces = namesOf(report.Containers, namespaceOf)
	o.gaps = report.Gaps(func(c *drift.Container) bool { return namespace == "" || namespaceOf(*c) == namespace })
	return o, nil
}
