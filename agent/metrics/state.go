package metrics

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/capdrift/capdrift/drift"
)

// state is read from the newest view at each scrape.
type state struct{ m *Metrics }

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	ready      = describe("capdrift_ready", "1 once the node was looked at as a whole.")
	containers = describe("capdrift_containers", "Running containers, by how much of them is seen.", "observation")
	processes  = describe("capdrift_processes", "Processes of containers, by how much of them is seen.", "observation")
	findings   = describe("capdrift_findings", "Findings that are open.", "kind", "severity")
	complete   = describe("capdrift_coverage_complete", "1 when nothing that runs is left unseen.")
	limits     = describe("capdrift_coverage_limits", "What is not seen (blind) or judged by a weaker means.", "blind")
	age        = describe("capdrift_look_age_seconds", "Time since the node was looked at as a whole.")
	duration   = describe("capdrift_look_duration_seconds", "Time that the last whole look took.")
	healthy    = describe("capdrift_component_healthy", "1 when the part of the agent fares well.", "component")
	sequence   = describe("capdrift_changes_sequence", "How many changes this run of the agent has told of.")
	records    = describe("capdrift_journal_records", "Records that the journal holds.")
	stored     = describe("capdrift_journal_bytes", "Bytes that the journal holds.")
	lost       = describe("capdrift_journal_lost_total", "Records that went because the journal is bounded.")
)

// Describe implements prometheus.Collector.
func (s state) Describe(to chan<- *prometheus.Desc) {
	for _, one := range []*prometheus.Desc{ready, containers, processes, findings, complete, limits, age, duration, healthy, sequence, records, stored, lost} {
		to <- one
	}
}

// Collect implements prometheus.Collector.
func (s state) Collect(to chan<- prometheus.Metric) {
	gauge := func(what *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(what, prometheus.GaugeValue, value, labels...)
	}
	if s.m.stored != nil {
		n, bytes := s.m.stored.Depth()
		gauge(records, float64(n))
		gauge(stored, float64(bytes))
		to <- prometheus.MustNewConstMetric(lost, prometheus.CounterValue, float64(s.m.stored.Lost()))
	}
	view, ok := s.m.feed()
	gauge(ready, number(ok))
	if !ok {
		return
	}
	report := view.Report
	cover := report.Coverage
	for observation, n := range map[drift.Observation]int{
		drift.Observed: cover.Containers.Observed, drift.Partial: cover.Containers.Partial,
		drift.Unreadable: cover.Containers.Unreadable, drift.UnsupportedRuntime: cover.Containers.Unsupported,
	} {
		gauge(containers, float64(n), string(observation))
	}
	for observation, n := range map[drift.Observation]int{
		drift.Observed: cover.Processes.Observed, drift.Starting: cover.Processes.Starting,
		drift.Vanished: cover.Processes.Vanished, drift.Unreadable: cover.Processes.Unreadable,
	} {
		gauge(processes, float64(n), string(observation))
	}
	type sort struct {
		kind     drift.Kind
		severity drift.Severity
	}
	open := make(map[sort]int)
	for _, finding := range report.Findings {
		open[sort{finding.Kind, finding.Severity}]++
	}
	for which, n := range open {
		gauge(findings, float64(n), string(which.kind), which.severity.String())
	}
	gauge(complete, number(cover.Complete))
	blind := map[bool]int{true: 0, false: 0}
	for _, limit := range cover.Limits {
		blind[limit.Blind]++
	}
	for which, n := range blind {
		gauge(limits, float64(n), strconv.FormatBool(which))
	}
	gauge(age, s.m.now().Sub(report.TakenAt).Seconds())
	gauge(duration, float64(report.DurationMs)/1000)
	for _, component := range view.Status {
		gauge(healthy, number(component.OK), component.Name)
	}
	gauge(sequence, float64(view.Position.Sequence))
}

func number(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
