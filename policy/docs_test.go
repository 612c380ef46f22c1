package policy

import (
	"errors"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestPage compiles and evaluates every example of docs/filter.md, and holds the
// page's table of fields against the language.
func TestPage(t *testing.T) {
	page, err := os.ReadFile("../docs/filter.md")
	if err != nil {
		t.Fatal(err)
	}
	c := web()
	subject := Subject{Container: c, Process: &c.Processes[0], Finding: finding(), Node: node}
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
		"pod": "pod", "declared.pod": "podSecurity", "declared.cri": "criConfig", "declared.oci": "ociSpec", "declared.bundle": "ociSpec",
		"caps": "caps", "processes": "process", "process": "process", "threads": "thread", "finding": "finding", "node": "node",
	} {
		var want []string
		for field := range newNouns()[typ] {
			if field == "userNamespace" && typ == "process" {
				want = append(want, "userNamespace.relation", "userNamespace.inode")
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
		if !noun && name != "declared" && !slices.Contains(documented[""], name) {
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
	notPublished := []string{"caps", "process", "finding", "node"} // nouns by themselves
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
