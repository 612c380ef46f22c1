package policy

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/capdrift/capdrift/drift"
)

// TestPage compiles and evaluates every example of docs/filter.md, and holds the
// page's table of fields against the language.
func TestPage(t *testing.T) {
	page, err := os.ReadFile("../docs/filter.md")
	if err != nil {
		t.Fatal(err)
	}
	c := web()
	subject := Subject{Container: c, Process: &c.Processes[0], Finding: finding(), Node: node, Runtime: &drift.Runtime{Name: "containerd", Version: "v2.4.2"}}
	examples := 0
	for _, block := range regexp.MustCompile("(?s)```cel\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		for example := range strings.Lines(block[1]) {
			example = strings.TrimSpace(example)
			examples++
			f, err := CompileFilter(example)
			if err != nil {
				t.Errorf("%v", err)
				continue
			}
			var unknown *UnknownError
			if _, err := f.Match(subject); err != nil && !errors.As(err, &unknown) {
				t.Errorf("%s\n%v", example, err)
			}
			if _, err := f.Match(Subject{Container: bare(), Node: node}); err != nil && !errors.As(err, &unknown) {
				t.Errorf("%s\n%v", example, err)
			}
		}
	}
	if examples < 20 {
		t.Errorf("only %d examples were found", examples)
	}

	named := regexp.MustCompile("`([A-Za-z.]+)(?:\\[\\])?`")
	documented := make(map[string][]string)
	table := string(page)[strings.Index(string(page), "| *the container*"):]
	for row := range strings.Lines(table[:strings.Index(table, "\n\n")+1]) {
		cells := strings.Split(row, "|")
		var fields []string
		for _, match := range named.FindAllStringSubmatch(cells[2], -1) {
			fields = append(fields, match[1])
		}
		for _, match := range named.FindAllStringSubmatch(cells[1], -1) {
			documented[match[1]] = fields
		}
		if strings.Contains(cells[1], "*the container*") {
			documented[""] = fields
		}
	}
	for name, typ := range map[string]string{
		"pod": "pod", "declared": "declared", "declared.pod": "podSecurity", "declared.pod.podLevel": "podLevel", "declared.cri": "criConfig", "declared.oci": "ociSpec", "declared.bundle": "ociSpec",
		"caps": "caps", "processes": "process", "process": "process", "threads": "thread", "finding": "finding", "node": "node", "runtime": "runtime", "kubernetes": "kubernetes",
	} {
		var want []string
		for field := range newNouns()[typ] {
			if field == "userNamespace" && typ == "process" {
				want = append(want, "userNamespace.relation", "userNamespace.nested", "userNamespace.inode")
				continue
			}
			want = append(want, field)
		}
		got := slices.Sorted(slices.Values(documented[name]))
		if slices.Sort(want); !slices.Equal(got, want) {
			t.Errorf("the page says that %s has %v; it has %v", name, got, want)
		}
	}
	for name := range variables {
		_, noun := documented[name]
		if !noun && !slices.Contains(documented[""], name) {
			t.Errorf("the page does not name %s", name)
		}
	}
}

// TestFieldNames: the language's names are those of the published JSON.
func TestFieldNames(t *testing.T) {
	schema, err := os.ReadFile("../docs/capdrift.node.v1.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	notPublished := []string{"caps", "process", "finding", "node", "nested", "kubernetes", "minor"} // nouns by themselves, and what is concluded
	check := func(name string) {
		if !strings.Contains(string(schema), `"`+name+`": {`) && !slices.Contains(notPublished, name) {
			t.Errorf("%s is not in the schema", name)
		}
	}
	for name := range variables {
		check(name)
	}
	for _, fields := range newNouns() {
		for name := range fields {
			check(name)
		}
	}
}

// TestPolicyPage loads every example of docs/policy.md, runs its tests, and holds the
// page's table of packs against those that are built in.
func TestPolicyPage(t *testing.T) {
	page, err := os.ReadFile("../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	var packs []Pack
	var exceptions []Exception
	for _, block := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		if strings.HasPrefix(block[1], "exceptions:") {
			list, err := LoadExceptions("policy.md", []byte(block[1]))
			if err != nil {
				t.Error(err)
			}
			exceptions = append(exceptions, list...)
			continue
		}
		pack, err := LoadPack("policy.md", []byte(block[1]))
		if err != nil {
			t.Fatal(err)
		}
		for _, result := range pack.Test() {
			if result.Err != nil {
				t.Errorf("%s: %v", result.Test, result.Err)
			}
		}
		packs = append(packs, pack)
	}
	if _, err := Compile(packs, exceptions); err != nil || len(packs) == 0 || len(exceptions) == 0 {
		t.Errorf("%d packs, %d exceptions: %v", len(packs), len(exceptions), err)
	}

	var rows []string
	for _, match := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\| ([0-9]+) \\|").FindAllStringSubmatch(string(page), -1) {
		rows = append(rows, match[1]+" "+match[2])
	}
	var want []string
	for _, pack := range Embedded() {
		want = append(want, fmt.Sprintf("%s %d", pack.Name, len(pack.Rules)))
	}
	slices.Sort(rows)
	if !slices.Equal(rows, want) {
		t.Errorf("the page has the packs %q, built in are %q", rows, want)
	}

	for _, field := range []string{"id", "title", "severity", "rationale", "remedy", "references", "controls", "applies", "declared", "actual", "tests"} {
		if !regexp.MustCompile("(?m)^\\|[^|]*`" + field + "`[^|]*\\|").Match(page) {
			t.Errorf("the page does not explain the field %s of a rule", field)
		}
	}
}
