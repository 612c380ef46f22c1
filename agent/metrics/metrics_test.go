package metrics_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/agent/metrics"
	"github.com/capdrift/capdrift/drift"
)

type parts struct{ err error }

func (p parts) Inventory(context.Context) (drift.Inventory, error) { return drift.Inventory{}, p.err }
func (p parts) Node() (drift.Node, []drift.Limit, error)           { return drift.Node{}, nil, p.err }
func (p parts) Process(int) (drift.Process, error)                 { return drift.Process{}, p.err }
func (p parts) Sweep(context.Context, []drift.Container) (drift.Sweep, error) {
	return drift.Sweep{}, p.err
}
func (p parts) Follow([]drift.Container) []drift.Limit                       { return nil }
func (p parts) Attend(string)                                                {}
func (p parts) Changes(context.Context) ([]drift.MembershipChange, error)    { return nil, p.err }
func (p parts) Read(context.Context, string, []int) ([]drift.Process, error) { return nil, p.err }
func (p parts) Record([]agent.Change, []drift.Finding) error                 { return p.err }
func (p parts) Depth() (int, int64)                                          { return 3, 4096 }
func (p parts) Lost() uint64                                                 { return 7 }
func (p parts) Refused() uint64                                              { return 2 }

func scrape(m *metrics.Metrics) string {
	answer := httptest.NewRecorder()
	m.Handler().ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	return answer.Body.String()
}

func TestMetrics(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	p := parts{errors.New("no")}
	known := false
	m := metrics.New("v1", func() time.Time { return now }, func() (agent.View, bool) {
		return agent.View{
			Position: agent.Position{Sequence: 9}, Unconfirmed: map[drift.Kind]uint64{drift.UsernsEscape: 4},
			Status: []agent.Component{{Name: "runtime"}, {Name: "proc", OK: true}, {Name: "policy"}},
			Policy: &agent.PolicyStatus{
				Since: now.Add(-time.Hour), Unknown: 12, Pending: 3,
				Exceptions: []agent.ExceptionStatus{{State: agent.ExceptionUsed}, {State: agent.ExceptionExpired}, {State: agent.ExceptionExpired}},
			},
			Report: drift.Report{
				TakenAt: now.Add(-5 * time.Second), DurationMs: 20,
				Coverage: drift.Coverage{Containers: drift.ContainerCoverage{Running: 2, Observed: 2}, Limits: []drift.Limit{{Blind: true}}},
				Findings: []drift.Finding{
					{Kind: drift.BoundingExcess, Severity: drift.Critical, Incident: "a"}, {Kind: drift.BoundingExcess, Severity: drift.Critical},
					{Kind: drift.NNPMissing, Severity: drift.High, Incident: "a"}, {Kind: drift.NNPMissing, Severity: drift.High, Incident: "b"},
					{Kind: drift.BoundingExcess, Severity: drift.Critical, Exception: "debugging"}, {Kind: drift.PolicyViolation, Severity: drift.Low},
				},
			},
		}, known
	}, p)
	if text := scrape(m); !strings.Contains(text, "capdrift_ready 0\n") || !strings.Contains(text, `capdrift_looks_total{look="sweep"} 0`) ||
		!strings.Contains(text, `capdrift_suspicions_unconfirmed_total{kind="moved"} 0`) {
		t.Errorf("before the first look:\n%s", text)
	}
	known = true
	_, _ = m.Runtime(p).Inventory(t.Context())
	_, _ = m.Host(p).Sweep(t.Context(), nil)
	_, _ = m.Members(p).Changes(t.Context())
	_, _ = m.Members(p).Read(t.Context(), "c", nil)
	finding := &drift.Finding{Kind: drift.NNPMissing, Severity: drift.High}
	for _, journal := range []agent.Journal{m.Journal(p), m.Journal(nil)} {
		_ = journal.Record([]agent.Change{{Kind: agent.FindingOpened, Finding: finding}, {Kind: agent.FindingResolved, Finding: finding, Resolved: agent.ResolvedEnded}}, nil)
	}
	text := scrape(m)
	for _, want := range []string{
		"capdrift_ready 1", `capdrift_containers{observation="observed"} 2`, `capdrift_findings{kind="bounding_excess",severity="critical"} 2`,
		`capdrift_incidents{severity="critical"} 2`, `capdrift_incidents{severity="high"} 1`, `capdrift_incidents{severity="low"} 1`,
		`capdrift_incidents{severity="medium"} 0`, `capdrift_findings{kind="nnp_missing",severity="high"} 2`,
		"capdrift_coverage_complete 0", `capdrift_coverage_limits{blind="true"} 1`, `capdrift_coverage_limits{blind="false"} 0`,
		"capdrift_look_age_seconds 5", "capdrift_look_duration_seconds 0.02", `capdrift_component_healthy{component="runtime"} 0`,
		`capdrift_component_healthy{component="proc"} 1`, "capdrift_changes_sequence 9", "capdrift_journal_records 3", "capdrift_journal_bytes 4096",
		"capdrift_journal_lost_total 7", "capdrift_journal_refused_total 2", `capdrift_look_failures_total{look="list"} 1`, `capdrift_look_failures_total{look="read"} 1`,
		`capdrift_findings_opened_total{kind="nnp_missing",severity="high"} 2`, `capdrift_findings_resolved_total{kind="nnp_missing",why="ended"} 2`,
		`capdrift_findings{kind="policy_violation",severity="low"} 1`, `capdrift_findings_accepted{kind="bounding_excess",severity="critical"} 1`,
		"capdrift_policy_in_force 0", fmt.Sprintf("capdrift_policy_loaded_timestamp_seconds %g", float64(now.Add(-time.Hour).Unix())),
		"capdrift_policy_unknown_results 12", "capdrift_policy_pending_containers 3", `capdrift_policy_exceptions{state="expired"} 2`,
		`capdrift_policy_exceptions{state="unused"} 0`, `capdrift_policy_exceptions{state="used"} 1`,
		`capdrift_suspicions_unconfirmed_total{kind="userns_escape"} 4`, `capdrift_suspicions_unconfirmed_total{kind="bounding_excess"} 0`,
		"capdrift_journal_failures_total 1", "capdrift_cri_inventory_seconds_count 1", `capdrift_build_info{version="v1"} 1`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	told := make(map[string]bool)
	for _, found := range regexp.MustCompile(`(?m)^# TYPE (capdrift_\w+)`).FindAllStringSubmatch(text, -1) {
		told[found[1]] = true
	}
	page, err := os.ReadFile("../../docs/agent.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "\n## Metrics\n")
	section, _, _ = strings.Cut(section, "\n## ")
	documented := make(map[string]bool)
	for _, found := range regexp.MustCompile("`(capdrift_\\w+)`").FindAllStringSubmatch(section, -1) {
		documented[found[1]] = true
	}
	if !maps.Equal(told, documented) {
		t.Errorf("docs/agent.md has the metrics %v, there are %v", slices.Sorted(maps.Keys(documented)), slices.Sorted(maps.Keys(told)))
	}
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range problems {
		if strings.HasPrefix(problem.Metric, "capdrift_") {
			t.Errorf("%s: %s", problem.Metric, problem.Text)
		}
	}
}
