package policy

import (
	"slices"
	"testing"
	"time"

	"github.com/capdrift/capdrift/drift"
)

// TestContainersOneByOne: each by itself gets the results that it gets in a report, and what
// accepts them is the same for as long as it has not expired.
func TestContainersOneByOne(t *testing.T) {
	report := largeNode()
	report.Containers = report.Containers[:12]
	exceptions := accepts(t,
		`rules: [cis-privileged], capabilities: [ALL], containers: 'name == "app-0"'`,
		`rules: [cis-privileged], capabilities: [ALL], containers: 'true', expires: 2020-01-01`,
		`rules: [cis-privileged], containers: 'true'`,
		`rules: [cis-privileged], capabilities: [ALL], containers: 'declared.bundle.uid == 0'`,
		`kinds: [bounding_excess], capabilities: [NET_ADMIN], containers: 'name == "app-1"'`)
	p, err := Compile(Embedded(), exceptions)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
	whole := p.Judge(report, now)
	at, accepted := 0, 0
	for i := range report.Containers {
		for _, r := range p.JudgeContainer(&report.Node, report.Runtime, &report.Containers[i], true) {
			want := whole.Results[at]
			if r.ID() != want.ID() || r.Declared.Verdict != want.Declared.Verdict || r.Actual.Verdict != want.Actual.Verdict || r.Excepted != nil {
				t.Fatalf("%s of %s: %+v, in the report %+v", r.Rule.ID, r.Container.Name, r, want)
			}
			accepting := p.Accepting(&report.Node, report.Runtime, &r)
			if slices.Contains(accepting, want.Excepted) != (want.Excepted != nil) {
				t.Errorf("%s of %s is accepted by %v, in the report by %v", r.Rule.ID, r.Container.Name, accepting, want.Excepted)
			}
			for _, e := range accepting {
				if !r.Fails() || e.ID != "e-1" && e.ID != "e-0" || e.ID == "e-0" && r.Container.Name != "app-0" {
					t.Errorf("%s accepts %s of %s", e.ID, r.Rule.ID, r.Container.Name)
				}
				accepted++
			}
			at++
		}
	}
	if at != len(whole.Results) || accepted != 3 { // two are privileged: one by its name, both by what has expired
		t.Errorf("%d results of %d, %d times accepted", at, len(whole.Results), accepted)
	}
	for i, f := range whole.Findings[:12] {
		list := p.AcceptingFinding(&report.Node, report.Runtime, &report.Containers[i], &f.Finding)
		if (len(list) == 1) != (f.Excepted != nil) || len(list) > 1 || len(list) == 1 && list[0] != f.Excepted {
			t.Errorf("the finding of %s is accepted by %v, in the report by %v", report.Containers[i].Name, list, f.Excepted)
		}
	}
	if results := p.JudgeContainer(&report.Node, report.Runtime, &drift.Container{Sandbox: true}, true); results != nil {
		t.Errorf("a sandbox has %v", results)
	}
}

// TestExceptionsMayBeNone, as after the last of them was removed, and accept no kind that
// stands for every rule.
func TestExceptionsMayBeNone(t *testing.T) {
	if list, err := LoadExceptions("exceptions.yaml", []byte("exceptions: []\n")); err != nil || list != nil {
		t.Errorf("%v, %v", list, err)
	}
	_, err := LoadExceptions("e.yaml", []byte("exceptions:\n- {id: a, containers: 'true', kinds: [policy_violation], owner: a, reason: b, expires: 2099-01-01}\n"))
	if err == nil || err.Error() != "e.yaml:2:39: what fails a rule is accepted by the rule's id: name it in rules" {
		t.Error(err)
	}
}
