package policy

import (
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/capdrift/capdrift/drift"
)

// aRule is a pack of one rule.
func aRule(t *testing.T, lines ...string) Pack {
	t.Helper()
	text := "pack: own\ntitle: own\nrules:\n- id: one\n  title: a\n  severity: high\n  rationale: b\n  remedy: c\n"
	for _, line := range lines {
		text += "  " + line + "\n"
	}
	pack, err := LoadPack("own.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return pack
}

func judge(t *testing.T, pack Pack, exceptions []Exception, now time.Time, findings []drift.Finding, containers ...*drift.Container) Judgement {
	t.Helper()
	p, err := Compile([]Pack{pack}, exceptions)
	if err != nil {
		t.Fatal(err)
	}
	report := drift.Report{Node: *node, Findings: findings}
	for _, c := range containers {
		report.Containers = append(report.Containers, *c)
	}
	return p.Judge(report, now)
}

// TestVerdicts: what is not known is unknown, and never a pass.
func TestVerdicts(t *testing.T) {
	empty := web()
	empty.Processes = nil
	kata := web()
	kata.Observation = drift.UnsupportedRuntime
	manifest := &drift.Container{Declared: web().Declared}
	nameless := web()
	nameless.Processes[1].UserNamespace.Relation = drift.RelationUnknown
	for _, row := range []struct {
		what      string
		rule      string
		container *drift.Container
		want      string
	}{
		{"all processes hold to it", `actual: process.caps.bounding.hasNone(["SYS_MODULE"])`, web(), "not_applicable pass"},
		{"one process does not", `actual: process.caps.bounding.hasNone(["SYS_ADMIN"])`, web(), "not_applicable fail"},
		{"only a thread does not", `actual: process.caps.bounding.hasNone(["SYS_PTRACE"])`, web(), "not_applicable fail"},
		{"one process cannot be told", `actual: process.noNewPrivileges`, web(), "not_applicable unknown"},
		{"one fails and another cannot be told", `actual: "!process.noNewPrivileges"`, web(), "not_applicable fail"},
		{"not all was seen, and what was seen holds", `actual: process.pid > 0`, partial(), "not_applicable unknown"},
		{"not all was seen, and what was seen does not hold", `actual: process.pid > 100`, partial(), "not_applicable fail"},
		{"one is still the runtime's own", `actual: process.pid < 150`, starting(), "not_applicable unknown"},
		{"no process was seen", `actual: process.pid < 0`, empty, "not_applicable unknown"},
		{"no process was seen, of the container as a whole", `actual: caps.effective.hasNone(["ALL"])`, empty, "not_applicable unknown"},
		{"the host does not see it", `actual: process.pid > 0`, kata, "not_applicable unknown"},
		{"a manifest", `{declared: '!declared.privileged', actual: process.pid > 0}`, manifest, "pass unknown"},
		{"nothing was told", `declared: "!declared.privileged"`, bare(), "unknown not_applicable"},
		{"a user namespace that could not be told", `actual: process.userNamespace.nested || process.caps.effective.hasNone(["SYS_ADMIN"])`, nameless, "not_applicable unknown"},
		{"the rule is not meant for it", `{applies: name == "other", declared: "false", actual: process.pid < 0}`, web(), "not_applicable not_applicable"},
		{"whether it is meant cannot be told", `{applies: declared.privileged, declared: "true", actual: process.pid > 0}`, bare(), "unknown unknown"},
		{"it goes wrong", `declared: 1 / declared.oci.uid > 0 || 1 / (declared.oci.uid - 1000) > 0`, web(), "unknown not_applicable"},
	} {
		rule := strings.TrimSuffix(strings.TrimPrefix(row.rule, "{"), "}")
		lines := []string{rule}
		if rule != row.rule {
			lines = strings.Split(rule, ", ")
		}
		result := judge(t, aRule(t, lines...), nil, time.Time{}, nil, row.container).Results[0]
		if got := fmt.Sprint(result.Declared.Verdict, " ", result.Actual.Verdict); got != row.want {
			t.Errorf("%s: %s is %s (%s; %s), want %s", row.what, row.rule, got, result.Declared.Reason, result.Actual.Reason, row.want)
		}
	}
}

// TestThreadsThatWereNotRead: what a process with more than one thread holds is
// then not known.
func TestThreadsThatWereNotRead(t *testing.T) {
	p, err := Compile([]Pack{aRule(t, `actual: process.caps.bounding.hasNone(["SYS_MODULE"])`)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	report := drift.Report{Node: *node, Containers: []drift.Container{*web(), *privileged()}}
	report.Containers[1].Processes[0].ThreadCount = 1
	report.Containers[1].Processes[0].Caps = all(defaults)
	report.Coverage.Threads.Skipped = 1
	j := p.Judge(report, time.Time{})
	if many, one := j.Results[0].Actual.Verdict, j.Results[1].Actual.Verdict; many != Unknown || one != Pass {
		t.Errorf("with threads it is %s, without %s", many, one)
	}
}

// TestSandboxesAreNotJudged: no pod spec declares them.
func TestSandboxesAreNotJudged(t *testing.T) {
	pause := web()
	pause.Sandbox = true
	if j := judge(t, aRule(t, `declared: "false"`), nil, time.Time{}, nil, pause, web()); len(j.Results) != 1 || j.Results[0].Container.Sandbox {
		t.Errorf("%d results", len(j.Results))
	}
}

// TestEvidence: which field, which process, which bits.
func TestEvidence(t *testing.T) {
	pack := aRule(t, `declared: declared.add.all(c, c in ["CHOWN"]) && "NET_RAW" in declared.drop`,
		`actual: process.userNamespace.nested || process.caps.bounding.isSubsetOf(["CHOWN", "DAC_OVERRIDE", "NET_BIND_SERVICE", "SETUID"])`)
	c := web()
	c.Declared.Pod.Add = []string{"CHOWN", "SYS_TIME"}
	r := judge(t, pack, nil, time.Time{}, nil, c).Results[0]

	var declared []string
	for _, e := range r.Declared.Evidence {
		declared = append(declared, fmt.Sprintf("%s=%s %s", e.Field, e.Value, e.Capabilities))
	}
	if got, want := strings.Join(declared, "; "), `declared.add=["CHOWN", "SYS_TIME"] cap_sys_time; declared.drop=["ALL"] `; got != want {
		t.Errorf("declared: got %s, want %s", got, want)
	}
	var actual []string
	for _, e := range r.Actual.Evidence {
		actual = append(actual, fmt.Sprintf("%d/%d %s %s=%s %s", e.Task.PID, e.Task.TID, e.Task.Name, e.Field, e.Value, e.Capabilities))
	}
	want := "100/0 nginx process.userNamespace.nested=false ; 100/0 nginx process.caps.bounding=0000000000002483 cap_net_raw; " +
		"100/101 worker process.userNamespace.nested=false ; 100/101 worker process.caps.bounding=0000000000082483 cap_net_raw,cap_sys_ptrace"
	if got := strings.Join(actual, "; "); got != want {
		t.Errorf("actual: got\n%s, want\n%s", got, want)
	}
	if r.Actual.Failing != 2 || len(r.Actual.Tasks) != 2 || r.Actual.Capabilities != set("NET_RAW", "SYS_PTRACE") {
		t.Errorf("%d fail: %v, with %s", r.Actual.Failing, r.Actual.Tasks, r.Actual.Capabilities)
	}
}

// TestEvidenceIsBounded: of a thousand processes all are counted, and all that
// offends is in the sum.
func TestEvidenceIsBounded(t *testing.T) {
	c := web()
	c.Processes = nil
	for i := range 1000 {
		caps := set("CHOWN")
		if i == 999 {
			caps = set("SYS_ADMIN")
		}
		c.Processes = append(c.Processes, drift.Process{PID: i + 1, UID: uint32(i), Caps: all(caps), Observation: drift.Observed})
	}
	o := judge(t, aRule(t, `actual: process.uid < 0 || process.caps.bounding.hasNone(["ALL"])`), nil, time.Time{}, nil, c).Results[0].Actual
	if o.Failing != 1000 || len(o.Tasks) != maxTasks || len(o.Evidence) != 2*maxWitnesses || o.Capabilities != set("CHOWN", "SYS_ADMIN") {
		t.Errorf("%d fail, %d are named, %d fields are shown, %s offend", o.Failing, len(o.Tasks), len(o.Evidence), o.Capabilities)
	}
}

// TestJudgementIsBounded: rules that take long on a node of many are unknown there,
// in the end all of them.
func TestJudgementIsBounded(t *testing.T) {
	many := web()
	many.Processes = make([]drift.Process, 2_000)
	for i := range many.Processes {
		many.Processes[i] = drift.Process{PID: i, Observation: drift.Observed}
	}
	p, err := Compile([]Pack{aRule(t, `actual: processes.all(a, processes.all(b, a.pid + b.pid >= 0))`)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	report := drift.Report{Node: *node, Containers: []drift.Container{*many, *web(), *many, *web()}}
	if j := p.judgeWithin(report, time.Time{}, maxJudgement); j.Results[0].Actual.Verdict != Unknown || j.Results[1].Actual.Verdict != Pass {
		t.Errorf("a large container is %s, a small one after it %s", j.Results[0].Actual.Verdict, j.Results[1].Actual.Verdict)
	}
	for i, r := range p.judgeWithin(report, time.Time{}, maxSteps/2).Results {
		if r.Actual.Verdict != Unknown || !strings.Contains(r.Actual.Reason, "too long") {
			t.Fatalf("container %d: %s (%s)", i, r.Actual.Verdict, r.Actual.Reason)
		}
	}
}

// TestControls: a control is met by who meets all its rules, and disagreements and
// what was accepted are counted.
func TestControls(t *testing.T) {
	control := "  controls: [{benchmark: B, versions: ['1', '2'], id: '5', source: s}]\n"
	rule := func(id, conditions string) string {
		return "- id: " + id + "\n  title: a\n  severity: low\n  rationale: b\n  remedy: c\n" + control + conditions
	}
	pack, err := LoadPack("own.yaml", []byte("pack: own\ntitle: own\nrules:\n"+
		rule("one", "  declared: '!declared.privileged'\n  actual: process.uid != 1000\n")+
		rule("two", "  declared: declared.runAsUser == 1000\n")))
	if err != nil {
		t.Fatal(err)
	}
	j := judge(t, pack, nil, time.Time{}, nil, web(), privileged(), bare())
	if len(j.Controls) != 2 || j.Controls[0].Version != "1" || j.Controls[1].Version != "2" {
		t.Fatalf("controls: %+v", j.Controls)
	}
	c := j.Controls[0]
	if c.Declared != (Tally{Pass: 2, Unknown: 1}) || c.Actual != (Tally{Fail: 1, Pass: 1, Unknown: 1}) || c.Disagreements != 1 || len(c.Rules) != 2 {
		t.Errorf("%+v", c)
	}
}

// TestPolicyIsShared: one policy, many goroutines.
func TestPolicyIsShared(t *testing.T) {
	p, err := Compile(Embedded(), accepts(t, "rules: [cis-root]"))
	if err != nil {
		t.Fatal(err)
	}
	report := drift.Report{Node: *node, Containers: []drift.Container{*web(), *bare(), *privileged()}}
	want := fmt.Sprint(p.Judge(report, time.Time{}).Controls)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 5 {
				if got := fmt.Sprint(p.Judge(report, time.Time{}).Controls); got != want {
					t.Errorf("another judgement: %s", got)
				}
			}
		})
	}
	group.Wait()
}

// TestRulesThatAskTheSame: what was asked before is answered as if it were asked again, and a
// rule that is not meant for a container answers for none.
func TestRulesThatAskTheSame(t *testing.T) {
	own, err := LoadPack("own.yaml", []byte(`
pack: own
title: own
rules:
- {id: not-meant, title: a, severity: high, rationale: b, remedy: c, applies: name == "other", declared: declared.privileged, actual: process.uid == 12345}
- {id: meant, title: a, severity: high, rationale: b, remedy: c, declared: declared.privileged, actual: process.uid == 12345}
- {id: meant-too, title: a, severity: high, rationale: b, remedy: c, applies: name == "web", declared: declared.privileged, actual: process.uid == 12345}
`))
	if err != nil {
		t.Fatal(err)
	}
	p, err := Compile(append([]Pack{own}, Embedded()...), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*drift.Container{web(), bare(), partial(), starting(), &largeNode().Containers[0], &largeNode().Containers[1]} {
		for i, result := range p.JudgeContainer(node, nil, c, true) {
			steps := maxSingle
			alone := newBench(p.subject(c, node, nil), true, &steps).judge(p.Rules()[i])
			if !reflect.DeepEqual(result, alone) {
				t.Errorf("%s of %s: %+v, and alone %+v", result.Rule.ID, c.Name, result, alone)
			}
		}
	}
	if same := p.asked[2]; same.declared != 1 || same.actual != 1 {
		t.Errorf("else nothing was asked before: %v", p.asked[:3])
	}
}
