package policy

import (
	"reflect"
	"testing"
	"time"

	"github.com/capdrift/capdrift/drift"
)

// TestMerge: judging node by node says the same as judging all containers at once.
func TestMerge(t *testing.T) {
	now := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	exceptions, err := LoadExceptions("e.yaml", []byte(`exceptions:
- {id: used, owner: us, reason: r, expires: 2027-01-01, containers: 'name == "second"', rules: [one], capabilities: [SYS_ADMIN]}
- {id: unused, owner: us, reason: r, expires: 2027-01-01, containers: 'name == "nobody"', rules: [one], capabilities: [SYS_ADMIN]}
- {id: expired, owner: us, reason: r, expires: 2026-01-01, containers: 'name == "second"', rules: [one], capabilities: [SYS_ADMIN]}
`))
	if err != nil {
		t.Fatal(err)
	}
	pack := aRule(t, `actual: process.caps.bounding.hasNone(["SYS_ADMIN"])`, `declared: '!declared.privileged'`, `controls: [{benchmark: B, id: "1", source: s}]`)
	first, second := web(), web()
	second.ID, second.Name = "second", "second"
	found := []drift.Finding{{ID: "f", Kind: drift.DropIgnored, Severity: drift.High, ContainerID: second.ID}}
	whole := judge(t, pack, exceptions, now, found, first, second)
	parts := Merge([]Judgement{judge(t, pack, exceptions, now, nil, first), judge(t, pack, exceptions, now, found, second)})
	if len(parts.Results) != 2 || !parts.Results[0].Fails() || parts.Results[1].Excepted == nil {
		t.Fatalf("the test shows nothing: %+v", parts.Results)
	}
	for i := range whole.Results {
		if got, want := parts.Results[i], whole.Results[i]; got.ID() != want.ID() || got.Actual.Verdict != want.Actual.Verdict || (got.Excepted == nil) != (want.Excepted == nil) {
			t.Errorf("result %d: got %+v, want %+v", i, got, want)
		}
	}
	if !reflect.DeepEqual(parts.Controls, whole.Controls) || !reflect.DeepEqual(parts.Findings, whole.Findings) || !parts.At.Equal(whole.At) {
		t.Errorf("got %+v, want %+v", parts, whole)
	}
	for i, want := range whole.Exceptions {
		got := parts.Exceptions[i]
		if got.ID != want.ID || got.State != want.State || got.Results != want.Results || got.Findings != want.Findings || got.Unknown != want.Unknown {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	if none := Merge(nil); len(none.Results)+len(none.Controls)+len(none.Exceptions) != 0 {
		t.Errorf("of nothing: %+v", none)
	}
}
