package main

import (
	"os"
	"strings"
	"testing"
)

// TestDependenciesAreExplained holds docs/dependencies.md and go.mod together:
// each direct dependency has its line, and no line is left of one that is gone.
func TestDependenciesAreExplained(t *testing.T) {
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../../docs/dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	direct := make(map[string]bool)
	for line := range strings.Lines(string(mod)) {
		fields := strings.Fields(line)
		if strings.HasPrefix(line, "\t") && len(fields) == 2 {
			direct[fields[0]] = true
			if !strings.Contains(string(doc), "| "+fields[0]+" |") {
				t.Errorf("%s has no line in docs/dependencies.md", fields[0])
			}
		}
	}
	for line := range strings.Lines(string(doc)) {
		fields := strings.Fields(line)
		if len(fields) > 2 && fields[0] == "|" && strings.Contains(fields[1], "/") && !direct[fields[1]] {
			t.Errorf("docs/dependencies.md explains %s, which is no direct dependency", fields[1])
		}
	}
}
