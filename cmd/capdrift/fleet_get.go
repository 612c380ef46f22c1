package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	pretty "github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	v1 "github.com/capdrift/capdrift/api/capdrift/v1"
	"github.com/capdrift/capdrift/drift"
)

// holdings is what one agent lists, or says of itself and its node.
type holdings struct {
	node     agentNode
	items    []subject
	accepted int            // findings, by exceptions
	position *v1.Position   // of the last page
	worst    drift.Severity // of what is listed and not accepted
	outlook  outlook
	names    []string // that there are, where one is asked for
	inside   bool     // something listed is in the namespace that is asked for
}

// overFleet gets of every node what get gets of one.
func (o *getOptions) overFleet(cmd *cobra.Command, out getWriter, resource, name string) error {
	limits, errs := o.fleet.client(), cmd.ErrOrStderr()
	ctx, cancel := limits.within(cmd.Context())
	defer cancel()
	nodes := o.fleet.nodes
	if resource == "node" && name != "" {
		nodes, name = append(slices.Clone(nodes), name), ""
	}
	f, err := o.fleet.open(ctx, nodes)
	if err != nil {
		return err
	}
	defer f.close()
	answers, err := gather(ctx, f, errs, func(ctx context.Context, c *client) (holdings, error) {
		return o.listing(ctx, c, resource, name)
	})
	if err != nil {
		return err
	}
	var undecided unjudged
	accepted := 0
	k, inside, namespaces := known{what: "there are findings of severity %s", gaps: f.gaps()}, false, []string(nil)
	for i := range answers {
		if a := &answers[i]; a.why == nil {
			a.said.node, a.why = nodeOf(a.told)
		}
		said := answers[i].said
		for j := range said.outlook.gaps {
			said.outlook.gaps[j].Node = answers[i].node // as Kubernetes calls it
		}
		k.worst, k.gaps = max(k.worst, said.worst), append(k.gaps, said.outlook.gaps...)
		inside, namespaces = inside || said.inside, append(namespaces, said.outlook.namespaces...)
		accepted += answers[i].said.accepted
		for j := range answers[i].said.items {
			answers[i].said.items[j].node = answers[i].node
			undecided.add(answers[i].said.items[j])
		}
	}
	if resource == "container" && viewFor(o.format) == v1.ContainerView_CONTAINER_VIEW_FULL {
		o.withPods(ctx, f, errs, answers)
	}
	list := silent(answers)
	if name != "" {
		if err := oneOf(answers, resource, name, len(list)); err != nil {
			return err
		}
	}
	if err := o.writeFleet(f, out, errs, resource, name, answers); err != nil {
		return err
	}
	undecided.warn(errs)
	o.excepted.count(errs, accepted)
	otherVersions(errs, answers)
	for _, a := range answers {
		if a.why == nil {
			tellAge(errs, a.node, orZero(a.said.node.TakenAt), out.now)
		}
		if a.why != nil || resource == "node" && len(answers) == 1 { // whose table says it
			continue
		}
		for _, blind := range blindness(a.told, pluginName+" get node "+printable(a.node)) {
			fmt.Fprintf(errs, "capdrift: warning: %s: %s\n", printable(a.node), blind)
		}
	}
	if undecided.count > 0 {
		k.unknown = append(k.unknown, untold(undecided.first)...)
	}
	if k.broken = f.finish(errs, list, &o.gate); k.broken == nil && resource != "node" && name == "" && !inside {
		k.broken = noNamespace(o.namespace, namespaces, "on the nodes that were asked")
	}
	return o.gate.decide(errs, k)
}

// listing asks one agent. That it has nothing of the name is no failure: another may.
func (o *getOptions) listing(ctx context.Context, c *client, resource, name string) (l holdings, err error) {
	if resource == "node" {
		return l, nil
	}
	q := question{client: c, filter: o.filter, namespace: o.namespace, view: viewFor(o.format)}
	if name != "" {
		l.items, l.names, err = q.named(ctx, resource, name)
		return l, err
	}
	l.position, err = q.each(ctx, resource, func(item subject) error {
		l.inside = l.inside || item.pod() != nil
		if item.isAccepted() {
			if l.accepted++; !o.excepted.show {
				return nil
			}
		} else if item.finding != nil {
			l.worst = max(l.worst, item.finding.Severity)
		}
		l.items = append(l.items, item)
		return nil
	})
	if err == nil && (o.gate.asked() || o.namespace != "" && !l.inside) {
		l.outlook, err = c.outlook(ctx, o.gate.asked(), o.namespace)
	}
	return l, err
}

// withPods gives containers the pod spec's layer. They are holdings with the user's
// own rights, after the containers: a pod is known before its containers run.
func (o *getOptions) withPods(ctx context.Context, f *fleet, errs io.Writer, answers []answered[holdings]) {
	specs, said := f.specs(o.namespace), make(map[drift.Limit]bool)
	for _, a := range answers {
		var containers []*drift.Container
		for _, item := range a.said.items {
			containers = append(containers, item.container)
		}
		for _, limit := range specs.join(ctx, a.node, containers) {
			if !said[limit] { // most often the same of all nodes
				fmt.Fprintf(errs, "capdrift: warning: %s: %s\n", printable(limit.What), printable(limit.Why))
			}
			said[limit] = true
		}
	}
}

// oneOf fails unless one node has what is named.
func oneOf(answers []answered[holdings], resource, name string, silent int) error {
	var found, names []string
	for _, a := range answers {
		names = append(names, a.said.names...)
		for _, item := range a.said.items {
			found = append(found, fmt.Sprintf("%s/%s (%s) on %s", podOf(item.pod()), item.called(), shortID(item.id()), printable(a.node)))
		}
	}
	unasked := ""
	if silent > 0 {
		unasked = fmt.Sprintf(" (and %s did not answer)", many(silent, "node"))
	}
	switch {
	case len(found) == 0:
		return fmt.Errorf("there is no %s %s on %s%s; %s get %ss lists them%s", resource, printable(name), many(len(answers)-silent, "node"), unasked, pluginName, resource, nearest(name, names))
	case len(found) > 1:
		return fmt.Errorf("%d %ss are called %s: %s; name one by its id, or its node with --node", len(found), resource, printable(name), strings.Join(found[:min(len(found), 8)], ", "))
	}
	return nil
}

func (o *getOptions) writeFleet(f *fleet, out getWriter, errs io.Writer, resource, name string, answers []answered[holdings]) error {
	switch o.format {
	case "json", "yaml":
		form := formOf(f, answers, func(a answered[holdings]) any {
			switch {
			case resource == "node":
				return a.said.node
			case name == "":
				o.sort(resource, a.said.items)
				return listOf(resource, a.said.items, a.said.accepted, a.said.position, a.said.node.TakenAt)
			case len(a.said.items) == 0: // it is on another one
				return nil
			}
			return namedLine(a.said.items[0], a.said.node.TakenAt)
		})
		if o.format == "yaml" {
			return writeYAML(out, form)
		}
		return writeJSON(out, form)
	case "jsonl":
		for _, a := range answers {
			if err := o.writeLines(out, resource, a); err != nil {
				return err
			}
		}
		return writeSilentLines(out, silent(answers))
	case "name":
		for _, s := range silent(answers) {
			fmt.Fprintf(errs, "capdrift: %s: no answer: %s\n", printable(s.node), oneLine(s.why))
		}
	}
	if resource == "node" {
		return out.fleetNodes(answers)
	}
	var items []subject
	for _, a := range answers {
		items = append(items, a.said.items...)
	}
	o.sort(resource, items)
	if len(items) == 0 && o.format != "name" {
		fmt.Fprintf(errs, "No %ss found.\n", resource)
	}
	if err := out.list(resource, items, 0, nil); err != nil || o.format == "name" {
		return err
	}
	return writeSilence(out, out.table, len(items) > 0, silent(answers))
}

func (o *getOptions) writeLines(out getWriter, resource string, a answered[holdings]) error {
	if a.why != nil {
		return nil
	}
	out.Writer = naming{out.Writer, a.node}
	if resource == "node" {
		return writeJSONLine(out, a.said.node)
	}
	if o.sortBy != "" {
		o.sort(resource, a.said.items)
	}
	return out.list(resource, a.said.items, a.said.accepted, nil)
}

// fleetNodes has a row for each node and, of a single one, what get node says on it.
func (w getWriter) fleetNodes(answers []answered[holdings]) error {
	var rows []pretty.Row
	var header pretty.Row
	var last agentNode
	for _, a := range answers {
		if a.why != nil {
			continue
		}
		if w.format == "name" {
			if _, err := fmt.Fprintf(w, "node/%s\n", printable(a.node)); err != nil {
				return err
			}
			continue
		}
		var row pretty.Row
		last = a.said.node
		header, row = w.nodeRow(last)
		row[0] = printable(a.node)
		rows = append(rows, append(row, sees(a.told)))
	}
	if len(rows) > 0 {
		var out strings.Builder
		writer := w.table.newWriter(append(header, "sees"))
		writer.AppendRows(rows)
		fmt.Fprintln(&out, trimLines(writer.Render()))
		if len(answers) == 1 && !w.table.noHeaders {
			w.health(&out, last)
		}
		if _, err := io.WriteString(w, out.String()); err != nil {
			return err
		}
	}
	if w.format == "name" {
		return nil
	}
	return writeSilence(w, w.table, len(rows) > 0, silent(answers))
}

// sees says whether the agent sees all of its node; warnings say what is amiss.
func sees(m *v1.GetNodeResponse) string {
	switch {
	case m.Look == nil:
		return "?"
	case len(blindness(m, "")) > 0:
		return "in part"
	}
	return "all"
}
