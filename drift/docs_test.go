package drift_test

import (
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/capdrift/capdrift/drift"
)

// TestEveryKindIsDocumented: docs/semantics.md has a section for each kind and no other,
// and docs/output.md a row for each that a look can find.
func TestEveryKindIsDocumented(t *testing.T) {
	kinds := drift.Kinds()
	looked := slices.DeleteFunc(drift.Kinds(), func(k drift.Kind) bool { return k == drift.Redundant })
	for file, page := range map[string]struct {
		entry *regexp.Regexp
		kinds []drift.Kind
	}{
		"../docs/semantics.md": {regexp.MustCompile("(?m)^### `([a-z_]+)`$"), kinds},
		"../docs/output.md":    {regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| (?:critical|high|medium|low|info|the rule's)"), looked},
	} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var documented []drift.Kind
		for _, match := range page.entry.FindAllSubmatch(text, -1) {
			documented = append(documented, drift.Kind(match[1]))
		}
		want := slices.Clone(page.kinds)
		slices.Sort(documented)
		slices.Sort(want)
		if !slices.Equal(documented, want) {
			t.Errorf("%s has %v, there are %v", file, documented, want)
		}
	}
}
