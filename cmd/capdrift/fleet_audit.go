package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/policy"
)

// overFleet has the agent of every node look, and puts the rules here to what they
// saw: the agents know no pod specs, and need not know the rules.
func (o *auditOptions) overFleet(cmd *cobra.Command, rules *policy.Policy) error {
	f, reports, err := o.fleet.reports(cmd, o.namespace, o.gate.asked())
	if err != nil {
		return err
	}
	errs := cmd.ErrOrStderr()
	now, answers := time.Now(), make([]answered[audit], len(reports))
	var unjudged, runtimeless []string
	var containers []drift.Container
	for i, r := range reports {
		answers[i] = answered[audit]{node: r.node, told: r.told, why: r.why, said: audit{rules: rules, report: r.said}}
		if r.why != nil {
			continue
		}
		containers = append(containers, r.said.Containers...)
		untold, err := o.judge(&answers[i].said, now)
		if err != nil {
			return err
		}
		if untold != "" {
			unjudged = append(unjudged, printable(r.node)+": "+untold)
		}
		if r.said.Runtime == nil {
			runtimeless = append(runtimeless, printable(r.node))
		}
	}
	all := merged(rules, answers)
	list := silent(answers)
	if err := o.writeFleet(cmd.OutOrStdout(), f, all, answers, list); err != nil {
		return fmt.Errorf("writing the audit: %w", err)
	}
	for _, untold := range unjudged {
		fmt.Fprintln(errs, "capdrift: warning:", untold)
	}
	otherVersions(errs, answers)
	k := o.known(all, strings.Join(unjudged, "; "))
	k.gaps = append(f.gaps(), k.gaps...)
	switch k.broken = f.finish(errs, list, &o.gate); {
	case k.broken != nil:
	case len(list) == len(answers):
		k.broken = errors.New("no node answered")
	case len(runtimeless) > 0:
		k.broken = fmt.Errorf("no container runtime answered on %s, so nothing could be judged on paper there (the coverage says why)", strings.Join(runtimeless, ", "))
	default:
		k.broken = noNamespace(o.namespace, namesOf(containers, namespaceOf), "on the nodes that were asked")
	}
	return o.gate.decide(errs, k)
}

// merged is one audit of all nodes, for people and for the gate.
func merged(rules *policy.Policy, answers []answered[audit]) audit {
	all := audit{rules: rules, nodes: []drift.Report{}}
	var judgements []policy.Judgement
	for _, a := range answers {
		if a.why != nil {
			continue
		}
		all.nodes = append(all.nodes, a.said.report)
		all.report.Containers = append(all.report.Containers, a.said.report.Containers...)
		all.report.Findings = append(all.report.Findings, a.said.report.Findings...)
		all.gaps = append(all.gaps, a.said.gaps...)
		all.report.Coverage.Limits = append(all.report.Coverage.Limits, a.said.report.Coverage.Limits...)
		judgements = append(judgements, a.said.Judgement)
	}
	all.Judgement = policy.Merge(judgements)
	return all
}

// nodesOf says on which node of a fleet each container is that was judged: an agent may
// say any id.
func (a audit) nodesOf() map[*drift.Container]string {
	nodes := make(map[*drift.Container]string)
	for c, report := range a.reportsOf() {
		nodes[c] = report.Node.Name
	}
	return nodes
}

// reportsOf says in which report of a fleet each container is that was judged.
func (a audit) reportsOf() map[*drift.Container]*drift.Report {
	reports := make(map[*drift.Container]*drift.Report)
	for n := range a.nodes {
		for i := range a.nodes[n].Containers {
			reports[&a.nodes[n].Containers[i]] = &a.nodes[n]
		}
	}
	return reports
}

func (o *auditOptions) writeFleet(w io.Writer, f *fleet, all audit, answers []answered[audit], list []silence) error {
	switch o.output.format {
	case "json":
		return writeJSON(w, formOf(f, answers, func(a answered[audit]) any { return a.said.published() }))
	case "jsonl":
		for _, a := range answers {
			if a.why != nil {
				continue
			}
			if err := writeAuditLines(naming{w, a.node}, a.said); err != nil {
				return err
			}
		}
		return writeSilentLines(w, list)
	case "csv":
		return o.writeRows(w, answers)
	case "sarif":
		return writeJSON(w, fleetSARIF(answers))
	case "junit":
		return fleetJUnit(answers).write(w)
	}
	t := auditTable{
		table:        table{colored: o.output.colored(w), wide: o.output.wide, noHeaders: o.output.noHeaders},
		showExcepted: o.showExcepted,
	}
	if len(all.nodes) > 0 {
		if err := t.write(w, all); err != nil {
			return err
		}
	}
	return writeSilence(w, t.table, len(all.nodes) > 0, list)
}

// writeRows are the rows of all nodes. One without an answer is a row that says so.
func (o *auditOptions) writeRows(w io.Writer, answers []answered[audit]) error {
	headers := !o.output.noHeaders
	for _, a := range answers {
		if a.why == nil {
			if err := writeAuditCSV(w, a.said, headers); err != nil {
				return err
			}
			headers = false
		}
	}
	writer := csv.NewWriter(w)
	if headers {
		if err := writer.Write(auditColumns); err != nil {
			return err
		}
	}
	for _, s := range silent(answers) {
		row := make([]string, len(auditColumns))
		row[0], row[2], row[7] = cell(s.node), "no_answer", cell(oneLine(s.why))
		if err := writer.Write(row); err != nil {
			return err
		}
	}
	writer.Flush()
	return writer.Error()
}

// fleetSARIF has a run for each node. That of a node without an answer has failed.
func fleetSARIF(answers []answered[audit]) sarifLog {
	log := sarifLog{Schema: sarifSchema, Version: sarifVersion, Runs: []sarifRun{}}
	for _, a := range answers {
		if a.why == nil {
			log.Runs = append(log.Runs, a.said.sarif().Runs...)
			continue
		}
		run := a.said.sarif().Runs[0] // the rules, and no results
		run.Results, run.Properties = []sarifResult{}, map[string]any{"node": map[string]string{"name": a.node}, "complete": false}
		run.Invocations = []sarifInvocation{{Notifications: []sarifNotification{{"error", sarifMessage(a.node + ": no answer: " + oneLine(a.why))}}}}
		log.Runs = append(log.Runs, run)
	}
	return log
}

// fleetJUnit has the suites of every node, and an error for one without an answer.
func fleetJUnit(answers []answered[audit]) junitSuites {
	all := junitSuites{Name: "capdrift audit"}
	for _, a := range answers {
		if a.why != nil {
			suite := junitSuite{Name: printable(a.node) + ": no answer", Hostname: printable(a.node), Timestamp: time.Now().UTC().Format(time.RFC3339)}
			suite.add(junitCase{ClassName: "unseen", Name: printable(a.node), Error: &junitOutcome{"no answer: " + oneLine(a.why), "unknown", ""}})
			all.add(suite)
			continue
		}
		for _, suite := range a.said.junit().Suites {
			suite.Name = printable(a.node) + ": " + suite.Name
			all.add(suite)
		}
	}
	return all
}
