package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	pretty "github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/capdrift/capdrift/drift"
)

// overFleet has the agent of every node look, and judges and prints what they saw
// as run does what one did.
func (o *scanOptions) overFleet(cmd *cobra.Command) error {
	f, answers, err := o.fleet.reports(cmd, o.namespace, o.gate.asked())
	if err != nil {
		return err
	}
	errs := cmd.ErrOrStderr()
	k, accepted := known{what: "there are findings of severity %s", gaps: f.gaps()}, 0
	var runtimeless []string
	var containers []drift.Container
	for i := range answers {
		if answers[i].why != nil {
			continue
		}
		report := answers[i].said
		if report.Runtime == nil {
			runtimeless = append(runtimeless, printable(answers[i].node))
		}
		containers = append(containers, report.Containers...)
		shown, err := o.choose(report)
		if err != nil {
			return err
		}
		if shown.unjudged != "" {
			fmt.Fprintf(errs, "capdrift: warning: %s: %s\n", printable(answers[i].node), shown.unjudged)
			k.unknown = untold(shown.unjudged)
		}
		k.worst, accepted, k.gaps = max(k.worst, shown.worst), accepted+shown.accepted, append(k.gaps, shown.gaps...)
		answers[i].said = shown.Report
	}
	if err := o.writeFleet(cmd.OutOrStdout(), f, answers); err != nil {
		return fmt.Errorf("writing the reports: %w", err)
	}
	o.excepted.count(errs, accepted)
	otherVersions(errs, answers)
	list := silent(answers)
	switch k.broken = f.finish(errs, list, &o.gate); {
	case k.broken != nil:
	case len(list) == len(answers):
		k.broken = errors.New("no node answered")
	case len(runtimeless) > 0:
		k.broken = fmt.Errorf("no container runtime answered on %s, so nothing could be compared with its declaration there (the coverage says why)", strings.Join(runtimeless, ", "))
	default:
		k.broken = o.unmatched(containers)
	}
	return o.gate.decide(errs, k)
}

func (o *scanOptions) writeFleet(w io.Writer, f *fleet, answers []answered[drift.Report]) error {
	switch o.output.format {
	case "json", "yaml":
		form := formOf(f, answers, func(a answered[drift.Report]) any { return a.said })
		if o.output.format == "yaml" {
			return writeYAML(w, form)
		}
		return writeJSON(w, form)
	case "jsonl":
		for _, a := range answers {
			if a.why != nil {
				continue
			}
			if err := writeJSONLines(naming{w, a.node}, a.said); err != nil {
				return err
			}
		}
		return writeSilentLines(w, silent(answers))
	case "csv":
		return o.writeRows(w, answers)
	}
	t := table{colored: o.output.colored(w), wide: o.output.wide || o.container != "" || o.pid != 0, noHeaders: o.output.noHeaders}
	return t.writeFleet(w, answers)
}

// writeRows are the rows of all nodes, which have a column for theirs. A node
// without an answer is a row that says so where an observation would stand.
func (o *scanOptions) writeRows(w io.Writer, answers []answered[drift.Report]) error {
	writer := csv.NewWriter(w)
	if !o.output.noHeaders {
		if err := writer.Write(csvColumns); err != nil {
			return err
		}
	}
	for _, a := range answers {
		if a.why == nil {
			if err := writeCSVRows(writer, a.said); err != nil {
				return err
			}
			continue
		}
		row := make([]string, len(csvColumns))
		row[0], row[slices.Index(csvColumns, "observation")] = cell(a.node), cell("no answer: "+oneLine(a.why))
		if err := writer.Write(row); err != nil {
			return err
		}
	}
	writer.Flush()
	return writer.Error()
}

// writeFleet prints the reports as one: the findings of all nodes, the worst first,
// what they mean once for all, and then node by node what is normal and what was
// not seen.
func (t table) writeFleet(w io.Writer, answers []answered[drift.Report]) error {
	type at struct {
		node      string
		processes map[processKey]string
		incident  drift.Incident
	}
	var out strings.Builder
	var loud []at
	for i := range answers {
		if answers[i].why != nil {
			continue
		}
		if !t.noHeaders {
			fmt.Fprintln(&out, heading(answers[i].said))
		}
		processes := processNames(answers[i].said)
		for _, incident := range drift.Incidents(loudOf(answers[i].said.Findings)) {
			loud = append(loud, at{answers[i].node, processes, incident})
		}
	}
	slices.SortStableFunc(loud, func(a, b at) int { return int(b.incident.Worst().Severity - a.incident.Worst().Severity) })
	if !t.noHeaders && out.Len() > 0 {
		fmt.Fprintln(&out)
	}
	if len(loud) > 0 {
		writer := t.newWriter(append(pretty.Row{"node"}, findingsHeader()...))
		var findings []drift.Finding
		for _, one := range loud {
			writer.AppendRows(t.incidentRows(one.incident, 1+findingColumn, func(f drift.Finding) pretty.Row {
				return append(pretty.Row{printable(one.node)}, t.finding(one.processes, f)...)
			}))
			findings = append(findings, one.incident.Findings...)
		}
		fmt.Fprintf(&out, "%s\n\n", trimLines(writer.Render()))
		t.explain(&out, findings)
	}
	for _, a := range answers {
		if a.why != nil {
			continue
		}
		fmt.Fprintf(&out, "%s:\n", printable(a.node))
		if t.wide || a.said.Runtime == nil && len(a.said.Containers) > 0 {
			fmt.Fprintf(&out, "%s\n\n", t.inventory(a.said))
		}
		fmt.Fprintln(&out, normal(a.said, loudOf(a.said.Findings)))
		t.coverage(&out, a.said.Coverage)
	}
	if err := writeSilence(&out, t, out.Len() > 0, silent(answers)); err != nil {
		return err
	}
	_, err := io.WriteString(w, out.String())
	return err
}
