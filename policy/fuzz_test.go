package policy

import (
	"errors"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/capdrift/capdrift/drift"
)

// FuzzFilter: whatever the expression, it is refused with its place, or true,
// false, unknown, wrong or too costly; soon, without a panic and without blaming
// ourselves.
func FuzzFilter(f *testing.F) {
	page, err := os.ReadFile("../docs/filter.md")
	if err != nil {
		f.Fatal(err)
	}
	for _, block := range regexp.MustCompile("(?s)```cel\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		for example := range strings.Lines(block[1]) {
			f.Add(strings.TrimSpace(example))
		}
	}
	for _, seed := range []string{
		``, `name = "x"`, `caps.efective`, `pod == null`, `[[1]] == [[1]]`, `processes.all(a, processes.all(b, a.pid != b.pid))`, `{"a": 1}`,
		`processes[0] in processes`, `capabilities([name, "ALL"]) == caps.effective`, `1 / 0 > 0 || known(1 / 0)`, `"é" + name == "\u0000"`,
		`size(processes) > 1 ? caps == caps : process == process`, `has(pod)`, "name ==\n\t\"x\" &&", `severity("x") < severity(name)`,
		`caps.effective.contains(declared.pod.add[0])`, `(((((((((((((((((((((((((((((((((`, `finding.capabilities.size() % 0 == -9223372036854775808`,
	} {
		f.Add(seed)
	}
	c, half := web(), partial()
	many := web()
	many.Processes = make([]drift.Process, 300)
	for i := range many.Processes {
		many.Processes[i] = drift.Process{PID: i, Name: "worker", Observation: drift.Observed}
	}
	f.Fuzz(func(t *testing.T, expression string) {
		tooLate := time.AfterFunc(15*time.Second, func() { panic("does not end: " + expression) })
		defer tooLate.Stop()
		filter, err := CompileFilter(expression)
		var wrong *FilterError
		if err != nil {
			if filter != nil || !errors.As(err, &wrong) || wrong.Line < 1 || wrong.Column < 1 {
				t.Fatalf("refused with %#v", err)
			}
		}
		if strings.Contains(errorText(err), "internal error") {
			t.Fatal(err)
		}
		for _, subject := range []Subject{
			{},
			{Container: c, Process: &c.Processes[1], Finding: finding(), Node: node},
			{Container: half, Node: node},
			{Container: bare()},
			{Container: many, Node: node},
		} {
			if filter == nil {
				break
			}
			matches, err := filter.Match(subject)
			var unknown *UnknownError
			switch {
			case err == nil, errors.As(err, &unknown), errors.Is(err, ErrCost):
			case !errors.As(err, &wrong) || strings.Contains(err.Error(), "internal error"):
				t.Fatalf("%v", err)
			}
			if err != nil && matches {
				t.Fatal("true, and an error")
			}
		}
	})
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// FuzzLoadPack: a pack is loaded or refused with a place, and whatever is loaded
// tests and judges to an end.
func FuzzLoadPack(f *testing.F) {
	f.Add([]byte(one))
	f.Add([]byte(laughs()))
	f.Add([]byte("pack: a\ntitle: a\nrules:\n- {id: a, title: a, severity: low, rationale: a, remedy: a, applies: sandbox, actual: 'caps.effective.size() > 0'}\n"))
	report := drift.Report{Node: *node, Containers: []drift.Container{*web(), *bare(), *partial(), *starting(), *privileged()}}
	f.Fuzz(func(t *testing.T, text []byte) {
		tooLate := time.AfterFunc(15*time.Second, func() { panic("does not end") })
		defer tooLate.Stop()
		pack, err := LoadPack("fuzz.yaml", text)
		if err != nil {
			var wrong *LoadError
			if !errors.As(err, &wrong) || wrong.File != "fuzz.yaml" || wrong.Line < 1 || wrong.Column < 1 || wrong.Message == "" || pack.Rules != nil {
				t.Fatalf("refused with %#v", err)
			}
			return
		}
		pack.Test()
		p, err := Compile([]Pack{pack}, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range p.judgeWithin(report, time.Time{}, maxSteps).Results {
			for _, o := range []Outcome{r.Declared, r.Actual} {
				if (o.Verdict == Unknown) != (o.Reason != "") || strings.Contains(o.Reason, "internal error") {
					t.Fatalf("%s: %q", o.Verdict, o.Reason)
				}
			}
			if r.Container.Observation == drift.Unreadable && r.Actual.Verdict == Pass {
				t.Fatal("what was not seen passes")
			}
		}
	})
}

// FuzzLoadExceptions: exceptions are loaded or refused with a place, and hide nothing
// that they do not name.
func FuzzLoadExceptions(f *testing.F) {
	f.Add([]byte(exception))
	f.Add([]byte("exceptions:\n- {id: a, containers: 'true', kinds: [bounding_excess], rules: [cis-root], capabilities: [ALL], owner: a, reason: b, expires: 2027-01-01T00:00:00+02:00}\n"))
	report := drift.Report{
		Node: *node, Containers: []drift.Container{*web(), *bare(), *privileged()},
		Findings: []drift.Finding{*finding(), {ID: "b", Kind: drift.UsernsEscape, Severity: drift.Critical, ContainerID: web().ID}},
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := LoadExceptions("fuzz.yaml", text)
		if err != nil {
			var wrong *LoadError
			if !errors.As(err, &wrong) || wrong.File != "fuzz.yaml" || wrong.Line < 1 || wrong.Column < 1 || wrong.Message == "" || list != nil {
				t.Fatalf("refused with %#v", err)
			}
			return
		}
		p, err := Compile(Embedded(), list)
		if err != nil {
			return
		}
		now := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
		j := p.judgeWithin(report, now, maxSteps)
		for _, r := range j.Results {
			if e := r.Excepted; e != nil && (!slices.Contains(e.Rules, r.Rule.ID) || e.Owner == "" || !now.Before(e.Expires) || !r.Fails()) {
				t.Fatalf("%s hides %s", e.ID, r.Rule.ID)
			}
		}
		for _, one := range j.Findings {
			if e := one.Excepted; e != nil && (!slices.Contains(e.Kinds, one.Kind) || !e.AllCapabilities && !one.Capabilities.Within(e.Capabilities)) {
				t.Fatalf("%s hides %s", e.ID, one.Kind)
			}
		}
	})
}

// FuzzLoadGaps: acceptances are loaded or refused with a place, and accept no gap that they do
// not name.
func FuzzLoadGaps(f *testing.F) {
	f.Add([]byte(acceptedGaps), "worker-1", "handler/runsc")
	f.Add([]byte("coverage:\n- {id: a, gaps: [guest], node: '*-[1]', object: '.*', owner: a, reason: b, expires: 2999-01-01}\n"), "a-[1]", ".x")
	f.Fuzz(func(t *testing.T, text []byte, node, object string) {
		gaps, err := LoadGaps("fuzz.yaml", text)
		if err != nil {
			var wrong *LoadError
			if !errors.As(err, &wrong) || wrong.File != "fuzz.yaml" || wrong.Line < 1 || wrong.Message == "" || gaps != nil {
				t.Fatalf("refused with %#v", err)
			}
			return
		}
		now := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
		for _, code := range append(drift.AcceptableGaps(), drift.GapStarting, drift.GapOther, drift.GapRuntimeSilent) {
			gap := drift.Gap{Code: code, Node: node, Object: object}
			left, states := AcceptGaps(gaps, []drift.Gap{gap}, now)
			for i, g := range gaps {
				names := slices.Contains(g.Codes, code) && (g.Node == node || strings.Contains(g.Node, "*")) && (g.Object == object || strings.Contains(g.Object, "*"))
				if states[i] == ExceptionUsed && (!names || g.Owner == "" || g.Reason == "" || !now.Before(g.Expires)) {
					t.Fatalf("%+v accepts %+v", g, gap)
				}
			}
			if used := slices.Contains(states, ExceptionUsed); used == (len(left) == 1) || used && !slices.Contains(drift.AcceptableGaps(), code) {
				t.Fatalf("%+v is left %v, used %v", gap, left, used)
			}
		}
	})
}
