package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/policy"
)

// filterOptions is the flag --filter: an expression that says what is shown.
type filterOptions struct {
	expression string
	compiled   *policy.Filter // nil without the flag; validate makes it
}

func (o *filterOptions) addFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.expression, "filter", "", "show only containers, processes or findings of which this expression is true (docs/filter.md)")
	complete(cmd, "filter",
		`caps.effective.hasAny(["SYS_ADMIN","NET_RAW"]) && pod.namespace != "kube-system"`,
		`finding.severity >= severity("high")`)
}

func (o *filterOptions) validate() (err error) {
	if o.expression == "" {
		return nil
	}
	if o.compiled, err = policy.CompileFilter(o.expression); err != nil {
		return fmt.Errorf("--filter: %w", err)
	}
	return nil
}

// apply returns the report with what the expression is true of, among the
// containers that are asked for. An expression that reads "finding" chooses
// findings, and with them their containers; one that reads "process" chooses
// processes, and with them their containers; any other chooses containers.
//
// What it could not be told of stays, and unjudged says so.
func (o *filterOptions) apply(report drift.Report, asked func(drift.Container) bool) (_ drift.Report, unjudged string, err error) {
	if o.compiled == nil {
		return report, "", nil
	}
	s := sieve{filter: o.compiled, report: &report, containers: []drift.Container{}, findings: []drift.Finding{}}
	switch {
	case o.compiled.Reads("finding"):
		err = s.byFinding(asked)
	default:
		err = s.byContainer(asked)
	}
	if err != nil {
		return report, "", err
	}
	report.Containers, report.Findings = s.containers, s.findings
	return report, s.unjudged(), nil
}

// sieve sorts out what a filter keeps of a report.
type sieve struct {
	filter     *policy.Filter
	report     *drift.Report
	containers []drift.Container
	findings   []drift.Finding
	reasons    []string // why the expression could not be told, one for each subject
}

// keeps tells whether the subject is shown. Only an expression that takes too
// long ends the work: it is not the subject's fault.
func (s *sieve) keeps(subject policy.Subject) (bool, error) {
	subject.Node, subject.Runtime = &s.report.Node, s.report.Runtime
	matches, err := s.filter.Match(subject)
	var wrong *policy.FilterError
	switch {
	case err == nil:
		return matches, nil
	case errors.Is(err, policy.ErrCost):
		return false, usageError{fmt.Errorf("--filter: %w", err)}
	case errors.As(err, &wrong):
		s.reasons = append(s.reasons, wrong.Message)
	default:
		s.reasons = append(s.reasons, err.Error())
	}
	return true, nil
}

func (s *sieve) byContainer(asked func(drift.Container) bool) error {
	perProcess := s.filter.Reads("process")
	shown := make(map[string]*drift.Container)
	for i := range s.report.Containers {
		c := &s.report.Containers[i]
		if !asked(*c) {
			continue
		}
		kept, keep, err := *c, false, error(nil)
		if perProcess {
			kept.Processes, err = s.processes(c)
			keep = len(kept.Processes) > 0
			if c.Observation != drift.Observed && !keep && err == nil {
				keep, s.reasons = true, append(s.reasons, "processes: not all seen: "+string(c.Observation))
			}
		} else {
			keep, err = s.keeps(policy.Subject{Container: c})
		}
		if err != nil {
			return err
		}
		if keep {
			s.containers = append(s.containers, kept)
			shown[c.ID] = &kept
		}
	}
	for _, finding := range s.report.Findings {
		c := shown[finding.ContainerID]
		about := c != nil && (!perProcess || finding.PID == 0 || processOf(c, finding.PID) != nil)
		if about || finding.ContainerID == "" { // about a handler, perhaps theirs
			s.findings = append(s.findings, finding)
		}
	}
	return nil
}

func (s *sieve) processes(c *drift.Container) ([]drift.Process, error) {
	kept := []drift.Process{}
	for i := range c.Processes {
		keep, err := s.keeps(policy.Subject{Container: c, Process: &c.Processes[i]})
		if err != nil {
			return nil, err
		}
		if keep {
			kept = append(kept, c.Processes[i])
		}
	}
	return kept, nil
}

func (s *sieve) byFinding(asked func(drift.Container) bool) error {
	byID := make(map[string]*drift.Container)
	for i := range s.report.Containers {
		byID[s.report.Containers[i].ID] = &s.report.Containers[i]
	}
	shown := make(map[string]bool)
	for i := range s.report.Findings {
		finding := &s.report.Findings[i]
		subject := policy.Subject{Finding: finding, Container: byID[finding.ContainerID]}
		if subject.Container != nil {
			if !asked(*subject.Container) {
				continue
			}
			subject.Process = processOf(subject.Container, finding.PID)
		}
		keep, err := s.keeps(subject)
		if err != nil {
			return err
		}
		if keep {
			s.findings, shown[finding.ContainerID] = append(s.findings, *finding), true
		}
	}
	for _, c := range s.report.Containers {
		if shown[c.ID] {
			s.containers = append(s.containers, c)
		}
	}
	return nil
}

func processOf(c *drift.Container, pid int) *drift.Process {
	at := slices.IndexFunc(c.Processes, func(p drift.Process) bool { return p.PID == pid })
	if at < 0 || pid == 0 {
		return nil
	}
	return &c.Processes[at]
}

// unjudged says once what the expression could not be told of, and why.
func (s *sieve) unjudged() string {
	if len(s.reasons) == 0 {
		return ""
	}
	counts, order := make(map[string]int), []string{}
	for _, reason := range s.reasons {
		if counts[reason]++; counts[reason] == 1 {
			order = append(order, reason)
		}
	}
	const most = 4
	var parts []string
	for _, reason := range order[:min(len(order), most)] {
		parts = append(parts, fmt.Sprintf("%s (%d)", printable(reason), counts[reason]))
	}
	if len(order) > most {
		parts = append(parts, fmt.Sprintf("%d more", len(order)-most))
	}
	return fmt.Sprintf("--filter could not be told of %d of what it was asked about, which is shown too: %s; known(x) and has(x.y) tell what is known", len(s.reasons), strings.Join(parts, ", "))
}
