package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestDocumentedPodHoldsNothing: the pod that docs/agent.md shows declares what the page
// says of it, on every runtime.
func TestDocumentedPodHoldsNothing(t *testing.T) {
	page, err := os.ReadFile("../../docs/agent.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "```yaml\n")
	manifest, _, found := strings.Cut(rest, "```")
	if !found {
		t.Fatal("docs/agent.md has no manifest")
	}
	name := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(name, []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, runtime := range []string{"containerd", "cri-o", "docker"} {
		stdout, stderr, status := capture(t, "predict", "-f", name, "--runtime", runtime, "-o", "json", "--fail-on", "info")
		sets := regexp.MustCompile(`"hex": "([0-9a-f]+)"`).FindAllStringSubmatch(stdout, -1)
		holds := slices.ContainsFunc(sets, func(set []string) bool { return strings.Trim(set[1], "0") != "" })
		if status != 0 || len(sets) < 5 || holds {
			t.Errorf("%s: status %d, %s%s", runtime, status, stdout, stderr)
		}
	}
}
