package policy

import (
	"strings"
	"testing"
)

// TestChoose: a pack that is given takes the place of the built-in one of its name.
func TestChoose(t *testing.T) {
	own := Pack{Name: "cis", Title: "ours"}
	all, err := Choose([]Pack{own})
	if err != nil || len(all) != len(Embedded()) || all[0].Title != "ours" {
		t.Errorf("%d packs, %v", len(all), err)
	}
	two, err := Choose([]Pack{own}, "hygiene", "cis")
	if err != nil || len(two) != 2 || two[0].Name != "hygiene" || two[1].Title != "ours" {
		t.Errorf("%v, %v", two, err)
	}
	if _, err := Choose(nil, "hygien"); err == nil || !strings.Contains(err.Error(), "did you mean hygiene?") {
		t.Errorf("a pack that is none: %v", err)
	}
}

// TestEmbeddedPacks: each rule has tests of its own, which pass; one of them fails
// the rule, and one passes it.
func TestEmbeddedPacks(t *testing.T) {
	if len(Embedded()) == 0 {
		t.Fatal("no pack is built in")
	}
	if _, err := Compile(Embedded(), nil); err != nil {
		t.Error(err)
	}
	for _, pack := range Embedded() {
		for _, result := range pack.Test() {
			if result.Err != nil {
				t.Errorf("%s:%d: %s: %s: %v", pack.File, result.Line, result.Rule, result.Test, result.Err)
			}
		}
		for _, rule := range pack.Rules {
			asked := make(map[string]bool)
			for _, f := range rule.fixtures {
				if f.declared != nil {
					asked["declared "+f.declared.String()] = true
				}
				if f.actual != nil {
					asked["actual "+f.actual.String()] = true
				}
			}
			for side, condition := range map[string]*Filter{"declared": rule.Declared, "actual": rule.Actual} {
				for _, verdict := range []Verdict{Pass, Fail} {
					if what := side + " " + verdict.String(); condition != nil && !asked[what] {
						t.Errorf("%s has no test for: %s", rule.ID, what)
					}
				}
			}
		}
	}
}
