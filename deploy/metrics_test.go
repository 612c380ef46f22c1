package deploy

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/agent/metrics"
	"github.com/capdrift/capdrift/drift"
)

// The labels that Prometheus and the PodMonitor add.
var added = []string{"node", "instance", "le"}

// asked is what a rule or a dashboard asks Prometheus.
type asked struct {
	where, expression string
	shown             []string // the labels that its texts show
}

var shows = regexp.MustCompile(`\$labels\.([a-z_]+)`)

func alerts(t *testing.T) (list []asked) {
	t.Helper()
	var file struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr         string
				Labels, Annotations map[string]string
			}
		}
	}
	read(t, "chart/files/alerts.yaml", &file)
	for _, rule := range file.Groups[0].Rules {
		a := asked{where: "alert " + rule.Alert, expression: rule.Expr}
		if rule.Annotations["summary"] == "" || rule.Annotations["description"] == "" || !slices.Contains([]string{"critical", "warning"}, rule.Labels["severity"]) {
			t.Errorf("%s: labels %q, annotations %q", a.where, rule.Labels, rule.Annotations)
		}
		for _, label := range shows.FindAllStringSubmatch(rule.Annotations["summary"]+rule.Annotations["description"], -1) {
			a.shown = append(a.shown, label[1])
		}
		list = append(list, a)
	}
	return list
}

func panels(t *testing.T) (list []asked) {
	t.Helper()
	var dashboard struct {
		Panels []struct {
			ID      int
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr, LegendFormat string }
		}
	}
	read(t, "chart/files/dashboard.json", &dashboard)
	ids := make(map[int]bool)
	for _, p := range dashboard.Panels {
		if ids[p.ID] || p.GridPos.X+p.GridPos.W > 24 || len(p.Targets) == 0 {
			t.Errorf("panel %d, %s: %+v", p.ID, p.Title, p.GridPos)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			a := asked{where: "panel " + p.Title, expression: strings.ReplaceAll(target.Expr, "$node", ".*")}
			for _, label := range regexp.MustCompile(`\{\{([a-z_]+)\}\}`).FindAllStringSubmatch(target.LegendFormat, -1) {
				a.shown = append(a.shown, label[1])
			}
			list = append(list, a)
		}
	}
	return list
}

// TestQueries: rules and dashboards ask for series that the agent has, by labels and values
// that they can have.
func TestQueries(t *testing.T) {
	promql := tool(t, "promql")
	list := slices.Concat(alerts(t), panels(t))
	expressions := make([]string, len(list))
	for i, one := range list {
		expressions[i] = one.expression
	}
	stdin, err := json.Marshal(expressions)
	if err != nil {
		t.Fatal(err)
	}
	stdout, stderr, status := run(t, string(stdin), promql)
	var understood []struct {
		Selectors []struct {
			Name     string
			Matchers []struct{ Label, Type, Value string }
		}
		Labels []string
	}
	if err := json.Unmarshal([]byte(stdout), &understood); err != nil || status != 0 || len(understood) != len(list) {
		t.Fatalf("status %d, %v: %s", status, err, stderr)
	}
	series := exported(t)
	for i, one := range understood {
		labels := slices.Clone(added)
		for _, selector := range one.Selectors {
			values, ok := series[selector.Name]
			if !ok {
				t.Errorf("%s: the agent has no %s", list[i].where, selector.Name)
				continue
			}
			labels = slices.AppendSeq(labels, maps.Keys(values))
			for _, m := range selector.Matchers {
				if slices.Contains(added, m.Label) {
					continue
				}
				if !slices.ContainsFunc(values[m.Label], matches(t, m.Type, m.Value)) {
					t.Errorf("%s: no %s has %s%s%q", list[i].where, selector.Name, m.Label, m.Type, m.Value)
				}
			}
		}
		for _, label := range slices.Concat(one.Labels, list[i].shown) {
			if !slices.Contains(labels, label) {
				t.Errorf("%s: what it asks for has no label %s", list[i].where, label)
			}
		}
		for _, label := range list[i].shown {
			if strings.Contains(list[i].expression, " by (") && !slices.Contains(one.Labels, label) {
				t.Errorf("%s shows %s, by which it does not group", list[i].where, label)
			}
		}
	}
}

// matches tells whether a value is one that a matcher takes.
func matches(t *testing.T, kind, wanted string) func(string) bool {
	t.Helper()
	expression, err := regexp.Compile("^(?:" + wanted + ")$")
	if err != nil {
		t.Fatal(err)
	}
	return func(value string) bool {
		switch kind {
		case "=":
			return value == wanted
		case "!=":
			return value != wanted
		case "=~":
			return expression.MatchString(value)
		default:
			return !expression.MatchString(value)
		}
	}
}

// exported are the series of an agent that has something of everything, and the values of their
// labels.
func exported(t *testing.T) map[string]map[string][]string {
	t.Helper()
	var found []drift.Finding
	for _, severity := range []drift.Severity{drift.Info, drift.Low, drift.Medium, drift.High, drift.Critical} {
		found = append(found, drift.Finding{Kind: drift.BoundingExcess, Severity: severity})
	}
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	m := metrics.New("v1", func() time.Time { return now }, func() (agent.View, bool) {
		return agent.View{Status: []agent.Component{{Name: "runtime"}}, Report: drift.Report{TakenAt: now, Findings: found}}, true
	}, full{})
	for _, f := range found {
		if err := m.Journal(nil).Record([]agent.Change{{Kind: agent.FindingOpened, Finding: &f}, {Kind: agent.FindingResolved, Finding: &f, Resolved: agent.ResolvedEnded}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	answer := httptest.NewRecorder()
	m.Handler().ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	series := make(map[string]map[string][]string)
	for name, family := range families {
		values := make(map[string][]string)
		for _, one := range family.Metric {
			for _, label := range one.Label {
				values[label.GetName()] = append(values[label.GetName()], label.GetValue())
			}
		}
		series[name] = values
		if family.Metric[0].Histogram != nil {
			series[name+"_bucket"], series[name+"_sum"], series[name+"_count"] = values, values, values
		}
	}
	return series
}

// full is a journal that holds something.
type full struct{}

func (full) Depth() (records int, bytes int64) { return 1, 4096 }
func (full) Lost() uint64                      { return 1 }
func (full) Refused() uint64                   { return 1 }
