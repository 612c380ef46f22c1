package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/capdrift/capdrift/drift"
)

func TestAnAnswerThatIsOldSaysSo(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for want, row := range map[string]struct {
		node string
		age  time.Duration
	}{
		"": {"", 30 * time.Second},
		"capdrift: warning: the node was looked at 2m7s ago\n":           {"", 127 * time.Second},
		"capdrift: warning: node work\\x1b[2Jer was looked at 31s ago\n": {"work\x1b[2Jer", 31 * time.Second},
	} {
		var errs strings.Builder
		tellAge(&errs, row.node, now.Add(-row.age), now)
		if errs.String() != want {
			t.Errorf("after %v it says %q, want %q", row.age, errs.String(), want)
		}
	}
	var errs strings.Builder
	tellAge(&errs, "", time.Time{}, now)
	tellAge(&errs, "", now.Add(time.Hour), now)
	if errs.Len() > 0 {
		t.Errorf("of no look, and of one by a clock that is ahead, it says %s", &errs)
	}
}

// TestEveryCommandTellsTheAgeOfAnAnswer: on standard error, and to programs as takenAt.
func TestEveryCommandTellsTheAgeOfAnAnswer(t *testing.T) {
	leakless(t)

	old, fresh := shop(), shop()
	for _, row := range []struct {
		report *drift.Report
		age    time.Duration
		old    bool
	}{{old, 127*time.Second + 500*time.Millisecond, true}, {fresh, -time.Hour, false}} {

		for _, args := range []string{"get node", "get findings", "get containers -o json", "get finding 1111 -o json", "scan -o json", "audit -o json"} {
			row.report.TakenAt = time.Now().Add(-row.age)
			at := agentSocketOf(t, newTold(row.report))
			stdout, stderr, _ := capture(t, append(strings.Fields(args), "--agent", at)...)
			if got := strings.Contains(stderr, "was looked at "); got != row.old || row.old && strings.Count(stderr, " ago\n") != 1 {
				t.Errorf("%s of a look %v ago: %s, want it to be said: %v", args, row.age, stderr, row.old)
			}
			var answer struct{ TakenAt time.Time }
			if !strings.HasSuffix(args, "json") {
				continue
			}
			if err := json.Unmarshal([]byte(stdout), &answer); err != nil || !answer.TakenAt.Equal(row.report.TakenAt) {
				t.Errorf("%s: taken at %v, want %v: %v", args, answer.TakenAt, row.report.TakenAt, err)
			}
		}
	}
}

// TestFindingsShowTheirAge: since they were opened, an incident since its first one was.
func TestFindingsShowTheirAge(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) *time.Time { return new(now.Add(-d)) }
	finding := func(id, incident string, severity drift.Severity, opened *time.Time) subject {
		return subject{finding: &drift.Finding{ID: id, Kind: drift.NNPMissing, Severity: severity, Incident: incident, ContainerID: "c", OpenedAt: opened}}
	}
	items := []subject{
		finding("worst", "both", drift.Critical, ago(2*time.Minute)), finding("first", "both", drift.High, ago(3*time.Hour)),
		finding("alone", "", drift.High, ago(41*time.Second)), finding("untold", "", drift.High, nil),
	}
	for name, row := range map[string]struct {
		items []subject
		wide  bool
		want  map[string]string // by the id, "" for the heading
	}{
		"an incident is as old as its first": {items, false, map[string]string{"": "AGE", "worst": "3h", "alone": "41s", "untold": "?"}},
		"wide has the age of each":           {items, true, map[string]string{"": "AGE", "worst": "2m", "first": "3h", "alone": "41s", "untold": "?"}},
		"no agent told when":                 {items[3:], false, map[string]string{"": "", "untold": ""}},
	} {
		var out strings.Builder
		w := getWriter{Writer: &out, format: "table", now: now, table: table{wide: row.wide}}
		if err := w.list("finding", row.items, 0, nil); err != nil {
			t.Fatal(err)
		}
		got := make(map[string]string)
		for line := range strings.Lines(out.String()) {
			fields := strings.Fields(line)
			for i, field := range fields {
				_, known := row.want[field]
				if heading := field == "ID" && fields[i-1] == "CAPABILITIES"; !known && !heading {
					continue
				} else if heading {
					field = ""
				}
				got[field] = ""
				if i+1 < len(fields) {
					got[field] = fields[i+1]
				}
			}
		}
		for id, want := range row.want {
			if found, ok := got[id]; !ok || found != want {
				t.Errorf("%s: of %q it says %q, want %q:\n%s", name, id, found, want, &out)
			}
		}
	}
	order := func(a, b subject) int { return orders["age"].compare(a, b) }
	if order(items[2], items[0]) >= 0 || order(items[0], items[3]) >= 0 {
		t.Error("--sort-by age does not begin with the youngest, or end with what is not known")
	}
}
