package policy

import (
	"slices"
	"testing"
	"time"

	"github.com/capdrift/capdrift/drift"
)

func TestParseVersion(t *testing.T) {
	for text, want := range map[string]Version{"1.0": 0, "v1.34": 34, "1.34.2": 34, "v1.100.1": 100, "latest": LatestVersion} {
		if got, err := ParseVersion(text); err != nil || got != want {
			t.Errorf("%q is %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "1", "34", "2.0", "1.34-eks", "1.034", "1.-1", "1.1000", "Latest", "v1.34 "} {
		if got, err := ParseVersion(text); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}

// TestVersionsOfRules: a rule judges by the version that the policy is told, and its
// evidence is what it read in that version.
func TestVersionsOfRules(t *testing.T) {
	pack, err := LoadPack("own.yaml", []byte(`
pack: own
title: own
rules:
- id: changed
  title: a
  severity: high
  rationale: b
  remedy: c
  declared: "kubernetes.minor >= 30 ? (kubernetes.minor >= 34 ? declared.hostPID : declared.hostIPC) : declared.hostNetwork"
`))
	if err != nil {
		t.Fatal(err)
	}
	p, err := Compile([]Pack{pack}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := drift.Container{Declared: drift.Declared{Pod: &drift.PodSecurity{PodFields: &drift.PodFields{}}}}
	report := drift.Report{Containers: []drift.Container{c}}
	for version, want := range map[Version]string{
		LatestVersion: "declared.hostPID", 34: "declared.hostPID", 33: "declared.hostIPC", 30: "declared.hostIPC", 29: "declared.hostNetwork", 0: "declared.hostNetwork",
	} {
		at := p.At(version)
		result := at.Judge(report, time.Time{}).Results[0]
		var read []string
		for _, e := range result.Declared.Evidence {
			read = append(read, e.Field)
		}
		if result.Declared.Verdict != Fail || !slices.Equal(read, []string{want}) || at.Version() != version {
			t.Errorf("%s: %s, by %q, want %s", version, result.Declared.Verdict, read, want)
		}
	}
	if p.Version() != LatestVersion {
		t.Errorf("the policy itself judges by %s", p.Version())
	}
}

// TestFieldsThatNobodyTold: where only a runtime was asked, or an agent that does not know
// the fields, no rule about them passes.
func TestFieldsThatNobodyTold(t *testing.T) {
	packs, err := Choose(nil, "pss-baseline", "pss-restricted")
	if err != nil {
		t.Fatal(err)
	}
	p, err := Compile(packs, nil)
	if err != nil {
		t.Fatal(err)
	}
	told := []string{"privileged", "capabilities", "seccomp", "privilege-escalation", "run-as-non-root", "run-as-user"} // by other fields
	for what, declared := range map[string]drift.Declared{
		"a runtime": {CRI: &drift.CRI{}, OCI: &drift.OCI{}}, "an older agent": {Pod: &drift.PodSecurity{}}, "nobody": {},
	} {
		asked := 0
		for _, r := range p.Judge(drift.Report{Containers: []drift.Container{{Declared: declared}}}, time.Time{}).Results {
			if slices.ContainsFunc(told, func(end string) bool { return r.Rule.ID == r.Rule.Pack+"-"+end }) {
				continue
			}
			asked++
			if r.Declared.Verdict != Unknown {
				t.Errorf("%s: %s is %s", what, r.Rule.ID, r.Declared.Verdict)
			}
		}
		if asked != 18 {
			t.Errorf("%d rules are about fields of a pod spec", asked)
		}
	}
}
