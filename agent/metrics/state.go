package metrics

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/drift"
)

// state is read from the newest view at each scrape.
type state struct{ m *Metrics }

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	ready       = describe("capdrift_ready", "1 once the node was looked at as a whole.")
	containers  = describe("capdrift_containers", "Running containers, by how much of them is seen.", "observation")
	processes   = describe("capdrift_processes", "Processes of containers, by how much of them is seen.", "observation")
	findings    = describe("capdrift_findings", "Findings that are open, and that no exception accepts.", "kind", "severity")
	accepted    = describe("capdrift_findings_accepted", "Findings that are open, and that an exception accepts.", "kind", "severity")
	incidents   = describe("capdrift_incidents", "Incidents that are open, by the worst of their findings that no exception accepts; a finding that stands alone is one.", "severity")
	complete    = describe("capdrift_coverage_complete", "1 when nothing that runs is left unseen.")
	limits      = describe("capdrift_coverage_limits", "What is not seen (blind) or judged by a weaker means.", "blind")
	age         = describe("capdrift_look_age_seconds", "Time since the node was looked at as a whole.")
	duration    = describe("capdrift_look_duration_seconds", "Time that the last whole look took.")
	healthy     = describe("capdrift_component_healthy", "1 when the part of the agent fares well.", "component")
	inForce     = describe("capdrift_policy_in_force", "1 when the newest policy is the one that is judged by; absent where none is configured.")
	loaded      = describe("capdrift_policy_loaded_timestamp_seconds", "When the policy that is judged by was loaded; absent where none could be.")
	pending     = describe("capdrift_policy_pending_containers", "Containers that wait to be judged by the policy.")
	undecided   = describe("capdrift_policy_unknown_results", "Results, of a rule and a container, of which a verdict is unknown.")
	exceptions  = describe("capdrift_policy_exceptions", "Exceptions of the policy, by what becomes of them.", "state")
	unconfirmed = describe("capdrift_suspicions_unconfirmed_total", "Suspicions that one look had and no second look confirmed, since the start.", "kind")
	sequence    = describe("capdrift_changes_sequence", "How many changes this run of the agent has told of.")
	records     = describe("capdrift_journal_records", "Records that the journal holds.")
	stored      = describe("capdrift_journal_bytes", "Bytes that the journal holds.")
	lost        = describe("capdrift_journal_lost_total", "Records that went because the journal is bounded.")
	refused     = describe("capdrift_journal_refused_total", "Records that the journal did not take because they were too large.")
)

// suspicious are the kinds of findings that two looks must agree on.
var suspicious = []drift.Kind{
	drift.BoundingExcess, drift.PermittedExcess, drift.InheritableExcess, drift.ThreadExcess, drift.UsernsEscape, drift.NNPMissing,
	drift.BecameRoot, drift.Moved, drift.UnknownOrigin, drift.Undeclared, drift.UnmanagedContainer,
}

// Describe implements prometheus.Collector.
func (s state) Describe(to chan<- *prometheus.Desc) {
	for _, one := range []*prometheus.Desc{ready, containers, processes, findings, accepted, incidents, complete, limits, age, duration, healthy, inForce, loaded, pending, undecided, exceptions, unconfirmed, sequence, records, stored, lost, refused} {
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
		to <- prometheus.MustNewConstMetric(refused, prometheus.CounterValue, float64(s.m.stored.Refused()))
	}
	view, ok := s.m.feed()
	gauge(ready, number(ok))
	for _, kind := range suspicious {
		to <- prometheus.MustNewConstMetric(unconfirmed, prometheus.CounterValue, float64(view.Unconfirmed[kind]), string(kind))
	}
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
	open := map[*prometheus.Desc]map[sort]int{findings: {}, accepted: {}}
	for _, finding := range report.Findings {
		which := findings
		if finding.Exception != "" {
			which = accepted
		}
		open[which][sort{finding.Kind, finding.Severity}]++
	}
	for what, counts := range open {
		for which, n := range counts {
			gauge(what, float64(n), string(which.kind), which.severity.String())
		}
	}
	worst := make(map[drift.Severity]int)
	for _, incident := range drift.Incidents(report.Findings) {
		if finding := incident.Worst(); finding.Exception == "" {
			worst[finding.Severity]++
		}
	}
	for _, severity := range drift.Severities() { // zero is told too
		gauge(incidents, float64(worst[severity]), severity.String())
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
		if component.Name == "policy" {
			gauge(inForce, number(component.OK))
		}
	}
	if p := view.Policy; p != nil {
		if !p.Since.IsZero() {
			gauge(loaded, float64(p.Since.Unix()))
		}
		gauge(pending, float64(p.Pending))
		gauge(undecided, float64(p.Unknown))
		states := map[agent.ExceptionState]int{agent.ExceptionUsed: 0, agent.ExceptionUnused: 0, agent.ExceptionExpired: 0}
		for _, e := range p.Exceptions {
			states[e.State]++
		}
		for which, n := range states {
			gauge(exceptions, float64(n), string(which))
		}
	}
	gauge(sequence, float64(view.Position.Sequence))
}

func number(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
