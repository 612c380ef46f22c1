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
	series["kube_node_info"], series["up"] = map[string][]string{"os_image": {plainNode["os_image"]}, "provider_id": {plainNode["provider_id"]}, "container_runtime_version": {plainNode["container_runtime_version"]}}, map[string][]string{"job": {"capdrift"}}
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

// plainNode is what kube-state-metrics tells of a node that an agent can be on
// (kube_node_info, docs/metrics/cluster/node-metrics.md of its sources).
var plainNode = map[string]string{
	"os_image": "Debian GNU/Linux 13 (trixie)", "provider_id": "aws:///eu-west-1a/i-0123456789abcdef0", "container_runtime_version": "containerd://2.4.2",
}

// TestSilentNode: one node on which no agent is heard is told, and none that can have no agent.
func TestSilentNode(t *testing.T) {
	list := alerts(t)
	i := slices.IndexFunc(list, func(a asked) bool { return a.where == "alert CapdriftSilent" })
	if i < 0 {
		t.Fatal("there is no alert about one node")
	}
	expression := list[i].expression
	for _, want := range []string{"unless on (node) capdrift_build_info", `or group by (node) (up{job="capdrift", node!=""} == 0)`} {
		if !strings.Contains(expression, want) {
			t.Errorf("no %q in %s", want, expression)
		}
	}
	if !strings.Contains(render(t, set("monitoring.podMonitor.enabled=true")...), "jobLabel: app.kubernetes.io/name ") {
		t.Error("the job of the PodMonitor is not called capdrift")
	}
	stdout, stderr, status := run(t, mustJSON(t, []string{expression}), tool(t, "promql"))
	var understood []struct {
		Selectors []struct {
			Name     string
			Matchers []struct{ Label, Type, Value string }
		}
	}
	if err := json.Unmarshal([]byte(stdout), &understood); err != nil || status != 0 {
		t.Fatalf("status %d, %v: %s", status, err, stderr)
	}
	for what, row := range map[string]struct {
		label, value string
		told         bool
	}{
		"a plain node":                   {"os_image", "Debian GNU/Linux 13 (trixie)", true},
		"a node without a provider":      {"provider_id", "", true},
		"Windows":                        {"os_image", "Windows Server 2022 Datacenter", false},
		"EKS on Fargate":                 {"provider_id", "aws:///eu-west-1a/0123-abcd/fargate-ip-192-168-1-2.eu-west-1.compute.internal", false},
		"virtual-kubelet, of no runtime": {"container_runtime_version", "", false},
	} {
		node := maps.Clone(plainNode)
		node[row.label] = row.value
		told := true
		for _, m := range understood[0].Selectors[0].Matchers {
			told = told && matches(t, m.Type, m.Value)(node[m.Label])
		}
		if told != row.told || understood[0].Selectors[0].Name != "kube_node_info" {
			t.Errorf("%s: told %v, want %v", what, told, row.told)
		}
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestNoNegativeAlert: no alert subtracts. A counter that began anew would make the difference negative, and
// hide what another series of the node counted.
func TestNoNegativeAlert(t *testing.T) {
	for _, a := range alerts(t) {
		if regexp.MustCompile(`[)}\]] *- *[a-z0-9(]`).MatchString(a.expression) || strings.Contains(a.expression, "delta(") {
			t.Errorf("%s subtracts: %s", a.where, a.expression)
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
