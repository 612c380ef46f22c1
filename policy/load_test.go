package policy

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// one is a rule that is right, to be made wrong.
const one = `pack: own
title: own
rules:
  - id: one
    title: a
    severity: high
    rationale: b
    remedy: c
    controls: [{benchmark: B, id: "5", source: s}]
    declared: "!declared.privileged"
    actual: process.uid != 0
    tests: [{name: t, declared: pass, container: {declared: {pod: {}}, processes: [{pid: 1, caps: [CHOWN]}]}}]
`

const exception = `exceptions:
  - id: one
    containers: name == "web"
    rules: [cis-root]
    owner: team
    reason: r
    expires: 2027-03-31
`

// TestRefusedAtLoad: hostile and mistaken files, and the place of what is wrong.
func TestRefusedAtLoad(t *testing.T) {
	if _, err := LoadPack("own.yaml", []byte(one)); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadExceptions("own.yaml", []byte(exception)); err != nil {
		t.Fatal(err)
	}
	numbers := "[" + strings.TrimSuffix(strings.Repeat("1,", 300), ",") + "]"
	packs := []struct{ what, from, to, place, says string }{
		{"CEL that would run for ever", `process.uid != 0`, `processes.all(a, processes.all(b, processes.all(c, a.pid + b.pid > c.pid)))`, "11:13", "too long"},
		{"loops in loops", `process.uid != 0`, numbers + `.all(a, ` + numbers + `.all(b, ` + numbers + `.all(c, ` + numbers + `.all(d, caps.effective.size() > d))))`, "", ""},
		{"a pattern that is too large", `"!declared.privileged"`, `name.matches("((a{100}){10}){10}")`, "10:28", ""},
		{"an unknown field", "title: a\n", "tite: a\n", "5:5", "did you mean title?"},
		{"an unknown field of the pack", "title: own\n", "title: own\nextends: cis\n", "3:1", `no field "extends"`},
		{"a field that is there twice", "    remedy: c\n", "    remedy: c\n    remedy: d\n", "", "remedy"},
		{"two rules of one name", "rules:\n", "rules:\n  - {id: one, title: a, severity: low, rationale: b, remedy: c, declared: \"true\"}\n", "5:5", "another rule one"},
		{"no remedy", "    remedy: c\n", "", "4:5", "no remedy"},
		{"no condition", "    declared: \"!declared.privileged\"\n    actual: process.uid != 0\n", "", "4:5", "neither"},
		{"a severity that is none", "severity: high", "severity: severe", "6:15", "critical, high"},
		{"an id with spaces", "id: one", "id: one two", "4:9", "hyphens"},
		{"a number without quotes", `id: "5"`, "id: 5.2", "9:35", "quotes"},
		{"a control without a source", `, source: s`, "", "9:16", "no source"},
		{"a misspelt field of a condition", `!declared.privileged`, `!declared.priviledged`, "10:26", "did you mean privileged?"},
		{"in a block", `    actual: process.uid != 0`, "    actual: |\n      process.uid != 0 &&\n        process.gid != 0", "13:17", "there is no field 'gid'"},
		{"in a folded text its own place has to do", `    actual: process.uid != 0`, "    actual: >-\n      process.uid != 0\n      && process.gid != 0", "11:13", "there is no field 'gid'"},
		{"processes on paper", `"!declared.privileged"`, `caps.effective.hasNone(["ALL"])`, "10:15", "cannot read caps"},
		{"paper in the kernel", `process.uid != 0`, `declared.privileged`, "11:13", "none of process"},
		{"findings", `process.uid != 0`, `finding.severity > severity("low")`, "11:13", "cannot read finding"},
		{"a condition that is no truth", `process.uid != 0`, `process.uid`, "11:13", "is a int"},
		{"a test that asks nothing", `declared: pass, `, ``, "12:13", "no verdict"},
		{"a verdict that is none", `declared: pass`, `declared: ok`, "12:33", "pass, fail"},
		{"a field that no container has", `pid: 1`, `pidd: 1`, "12:85", "pidd"},
		{"a capability that is none", `[CHOWN]`, `[CHOWNN]`, "12:100", "did you mean CHOWN?"},
		{"no rules", one[strings.Index(one, "rules:"):], "rules: []\n", "3:8", "is empty"},
		{"a list", one, "- a\n", "1:1", "a pack is a list"},
		{"two documents", one, one + "---\n" + one, "", "one document"},
		{"an alias", "title: a\n", "title: &a a\n    remedy: *a\n", "6:13", "an alias"},
		{"no YAML", one, "pack: [\n", "", ""},
		{"nothing", one, "", "1:1", "empty"},
		{"no text", one, "\xff\xfe", "1:1", "UTF-8"},
		{"megabytes", one, "# " + strings.Repeat("x", 2<<20), "1:1", "at most"},
		{"a laughing matter", one, laughs(), "", ""},
		{"more expressions than it takes a second to compile", one, manyConditions(), "", "together"},
	}
	for _, row := range packs {
		text := strings.Replace(one, row.from, row.to, 1)
		if text == one {
			t.Errorf("%s: nothing was changed", row.what)
		}
		_, err := LoadPack("own.yaml", []byte(text))
		refused(t, row.what, err, row.place, row.says)
	}
	for _, row := range []struct{ what, from, to, place, says string }{
		{"no owner", "    owner: team\n", "", "2:5", "no owner"},
		{"an empty owner", "owner: team", "owner: ''", "5:12", "owner is empty"},
		{"no expiry", "    expires: 2027-03-31\n", "", "2:5", "no expires"},
		{"never", "expires: 2027-03-31", "expires: never", "7:14", "want a date"},
		{"a day that is none", "expires: 2027-03-31", "expires: 2027-02-30", "7:14", "want a date"},
		{"a time without a zone", "expires: 2027-03-31", "expires: 2027-03-31T18:00:00", "7:14", "want a date"},
		{"a number", "expires: 2027-03-31", "expires: 20270331", "7:14", "want a date"},
		{"no reason", "    reason: r\n", "", "2:5", "no reason"},
		{"nothing that is accepted", "    rules: [cis-root]\n", "", "2:5", "neither rules nor kinds"},
		{"no containers", "    containers: name == \"web\"\n", "", "2:5", "no containers"},
		{"a selector of processes", `name == "web"`, `process.pid == 1`, "3:17", "cannot read process"},
		{"a selector that is wrong", `name == "web"`, `nam == "web"`, "3:17", "did you mean name"},
		{"a kind that is none", "rules: [cis-root]", "kinds: [bounding_exces]", "4:13", "did you mean bounding_excess?"},
		{"a capability that is none", "owner: team", "owner: team\n    capabilities: [NET_RAWW]", "6:20", "did you mean NET_RAW?"},
		{"two of one name", "exceptions:\n", "exceptions:\n  - {id: one, containers: 'true', rules: [cis-root], owner: a, reason: b, expires: 2027-01-01}\n", "3:5", "another exception one"},
		{"an unknown field", "owner: team", "owner: team\n    severity: low", "6:5", "no field"},
	} {
		text := strings.Replace(exception, row.from, row.to, 1)
		if text == exception {
			t.Errorf("%s: nothing was changed", row.what)
		}
		_, err := LoadExceptions("own.yaml", []byte(text))
		refused(t, row.what, err, row.place, row.says)
	}
}

// laughs is a billion laughs in YAML.
func laughs() string {
	text := "pack: own\ntitle: own\na0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]\n"
	for i := range 9 {
		text += fmt.Sprintf("a%d: &a%d [%s]\n", i+1, i+1, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i), 9), ","))
	}
	return text + "rules: *a9\n"
}

func manyConditions() string {
	text := "pack: own\ntitle: own\nrules:\n"
	for i := range 900 {
		text += fmt.Sprintf("- {id: r-%d, title: a, severity: low, rationale: b, remedy: c, declared: 'name != \"%s\"'}\n", i, strings.Repeat("x", 1000))
	}
	return text
}

func refused(t *testing.T, what string, err error, place, says string) {
	t.Helper()
	var wrong *LoadError
	switch {
	case !errors.As(err, &wrong):
		t.Errorf("%s: accepted, or refused with another error: %v", what, err)
	case wrong.File != "own.yaml" || wrong.Line < 1 || wrong.Column < 1 || place != "" && fmt.Sprintf("%d:%d", wrong.Line, wrong.Column) != place:
		t.Errorf("%s: refused at %s:%d:%d, want %s: %v", what, wrong.File, wrong.Line, wrong.Column, place, err)
	case !strings.Contains(err.Error(), says) || len(err.Error()) > 1200:
		t.Errorf("%s: does not say %q, or too much: %v", what, says, err)
	}
}

// TestRefusedTogether: what shows only when files come together.
func TestRefusedTogether(t *testing.T) {
	load := func(file, text string) Pack {
		pack, err := LoadPack(file, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return pack
	}
	first, same := load("a.yaml", one), load("own.yaml", strings.Replace(one, "pack: own", "pack: other", 1))
	if _, err := Compile([]Pack{first, first}, nil); err == nil || !strings.Contains(err.Error(), "two packs are named own") {
		t.Errorf("two packs of one name: %v", err)
	}
	_, err := Compile([]Pack{first, same}, nil)
	refused(t, "two rules of one name", err, "4:1", "another rule one in a.yaml")

	exceptions, err := LoadExceptions("own.yaml", []byte(exception))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Compile([]Pack{first}, exceptions); err != nil {
		t.Errorf("an exception from a rule that is built in: %v", err)
	}
	_, err = Compile([]Pack{first}, append(exceptions, exceptions...))
	refused(t, "two exceptions of one name", err, "2:1", "another exception one")
	unknown, err := LoadExceptions("own.yaml", []byte(strings.Replace(exception, "cis-root", "cis-rot", 1)))
	if err != nil {
		t.Fatal(err)
	}
	_, err = Compile([]Pack{first}, unknown)
	refused(t, "an exception from no rule", err, "2:1", `"cis-rot", which is in no pack`)
}

// TestOwnTests: what policy test says of a rule that is wrong.
func TestOwnTests(t *testing.T) {
	pack, err := LoadPack("own.yaml", []byte(strings.Replace(one, "declared: pass", "declared: fail, actual: pass", 1)))
	if err != nil {
		t.Fatal(err)
	}
	results := pack.Test()
	if len(results) != 1 || results[0].Err == nil || results[0].Rule != "one" || results[0].Test != "t" || results[0].Line != 12 ||
		!strings.Contains(results[0].Err.Error(), "it is pass, want fail") {
		t.Errorf("%+v", results)
	}
}
