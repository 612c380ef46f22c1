// Package metrics says in Prometheus' terms how the agent fares and what it found.
//
// What a scrape asks for is read from the newest view; what happens between two
// scrapes is counted by wrapping the agent's parts. No metric has a label that a
// pod's author can choose.
package metrics

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/drift"
)

// Stored tells how full the journal is.
type Stored interface {
	Depth() (records int, bytes int64)
	Lost() uint64    // records that went by its bound or by damage
	Refused() uint64 // records that were too large for it
}

// Metrics counts, and answers scrapes.
type Metrics struct {
	registry *prometheus.Registry
	now      func() time.Time
	feed     func() (agent.View, bool)
	stored   Stored

	opened, resolved *prometheus.CounterVec
	looks, seconds   *prometheus.CounterVec
	failures         *prometheus.CounterVec
	inventory        prometheus.Histogram
	unwritten        prometheus.Counter
}

// New makes the metrics of an agent. feed and stored are asked at each scrape;
// stored may be nil, for an agent without a journal.
func New(version string, now func() time.Time, feed func() (agent.View, bool), stored Stored) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &Metrics{
		registry: prometheus.NewRegistry(), now: now, feed: feed, stored: stored,
		opened:   counter("capdrift_findings_opened_total", "Findings that were opened since the start.", "kind", "severity"),
		resolved: counter("capdrift_findings_resolved_total", "Findings that were resolved since the start, by why.", "kind", "why"),
		looks:    counter("capdrift_looks_total", "Looks that were taken, by which.", "look"),
		seconds:  counter("capdrift_look_seconds_total", "Time that looks took, by which.", "look"),
		failures: counter("capdrift_look_failures_total", "Looks that failed, by which.", "look"),
		inventory: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "capdrift_cri_inventory_seconds", Help: "Time until the runtime had told which containers run, and what was declared for new ones.",
			Buckets: []float64{.005, .02, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
		unwritten: prometheus.NewCounter(prometheus.CounterOpts{Name: "capdrift_journal_failures_total", Help: "Times that the journal could not be written."}),
	}
	for _, look := range []string{"list", "sweep", "membership", "read"} { // from the start, as zero
		m.looks.WithLabelValues(look)
		m.seconds.WithLabelValues(look)
		m.failures.WithLabelValues(look)
	}
	m.registry.MustRegister(
		m.opened, m.resolved, m.looks, m.seconds, m.failures, m.inventory, m.unwritten, state{m},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "capdrift_build_info", Help: "The version that runs, as a label.", ConstLabels: prometheus.Labels{"version": version},
		}, func() float64 { return 1 }),
	)
	return m
}

// Handler answers scrapes.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second})
}

// took enters one look.
func (m *Metrics) took(look string, since time.Time, err error) {
	m.looks.WithLabelValues(look).Inc()
	m.seconds.WithLabelValues(look).Add(m.now().Sub(since).Seconds())
	if err != nil {
		m.failures.WithLabelValues(look).Inc()
	}
}

// Runtime counts what a runtime is asked.
func (m *Metrics) Runtime(r agent.Runtime) agent.Runtime { return countedRuntime{r, m} }

type countedRuntime struct {
	agent.Runtime
	m *Metrics
}

func (r countedRuntime) Inventory(ctx context.Context) (drift.Inventory, error) {
	began := r.m.now()
	inventory, err := r.Runtime.Inventory(ctx)
	r.m.took("list", began, err)
	r.m.inventory.Observe(r.m.now().Sub(began).Seconds())
	return inventory, err
}

// Host counts the sweeps of a host.
func (m *Metrics) Host(h agent.Host) agent.Host { return countedHost{h, m} }

type countedHost struct {
	agent.Host
	m *Metrics
}

func (h countedHost) Sweep(ctx context.Context, containers []drift.Container) (drift.Sweep, error) {
	began := h.m.now()
	sweep, err := h.Host.Sweep(ctx, containers)
	h.m.took("sweep", began, err)
	return sweep, err
}

// Members counts the looks at memberships.
func (m *Metrics) Members(inner agent.Members) agent.Members { return countedMembers{inner, m} }

type countedMembers struct {
	agent.Members
	m *Metrics
}

func (c countedMembers) Changes(ctx context.Context) ([]drift.MembershipChange, error) {
	began := c.m.now()
	changes, err := c.Members.Changes(ctx)
	c.m.took("membership", began, err)
	return changes, err
}

func (c countedMembers) Read(ctx context.Context, id string, pids []int) ([]drift.Process, error) {
	began := c.m.now()
	read, err := c.Members.Read(ctx, id, pids)
	c.m.took("read", began, err)
	return read, err
}

// Journal counts what is written down; inner may be nil, and then nothing is.
func (m *Metrics) Journal(inner agent.Journal) agent.Journal { return countedJournal{inner, m} }

type countedJournal struct {
	inner agent.Journal
	m     *Metrics
}

func (j countedJournal) Record(changes []agent.Change, open []drift.Finding) error {
	for _, change := range changes {
		switch change.Kind {
		case agent.FindingOpened:
			j.m.opened.WithLabelValues(string(change.Finding.Kind), change.Finding.Severity.String()).Inc()
		case agent.FindingResolved:
			j.m.resolved.WithLabelValues(string(change.Finding.Kind), change.Resolved).Inc()
		}
	}
	if j.inner == nil {
		return nil
	}
	err := j.inner.Record(changes, open)
	if err != nil {
		j.m.unwritten.Inc()
	}
	return err
}
