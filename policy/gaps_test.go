package policy

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/capdrift/capdrift/drift"
)

const acceptedGaps = `exceptions: []
coverage:
  - {id: sandboxes, gaps: [guest], node: "worker-*", object: handler/runsc, owner: us@ours.example, reason: gVisor., expires: 2030-12-31}
  - {id: hidepid, gaps: [processes_hidden, container_partial], node: edge-1, object: "*", owner: us@ours.example, reason: R, expires: 2030-12-31}
  - {id: old, gaps: [no_agent], node: "*", object: node, owner: us@ours.example, reason: R, expires: 2020-01-01}
`

// TestAcceptGaps: an acceptance takes the gaps that it names, and no others.
func TestAcceptGaps(t *testing.T) {
	accepted, err := LoadGaps("gaps.yaml", []byte(acceptedGaps))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, row := range map[string]struct {
		gap  drift.Gap
		by   string // the one that accepts it
		when time.Time
	}{
		"the handler that is named":           {drift.Gap{Code: "guest", Node: "worker-1", Object: "handler/runsc"}, "sandboxes", now},
		"another handler":                     {drift.Gap{Code: "guest", Node: "worker-1", Object: "handler/runsc-2"}, "", now},
		"another node":                        {drift.Gap{Code: "guest", Node: "a-worker-1", Object: "handler/runsc"}, "", now},
		"another gap of the same name":        {drift.Gap{Code: "container_partial", Node: "worker-1", Object: "handler/runsc"}, "", now},
		"the last moment of the last day":     {drift.Gap{Code: "guest", Node: "worker-1", Object: "handler/runsc"}, "sandboxes", time.Date(2030, 12, 31, 23, 59, 59, 0, time.UTC)},
		"the first moment after it":           {drift.Gap{Code: "guest", Node: "worker-1", Object: "handler/runsc"}, "", time.Date(2031, 1, 1, 0, 0, 0, 0, time.UTC)},
		"any object where a * says so":        {drift.Gap{Code: "container_partial", Node: "edge-1", Object: "container/shop/web\n/x"}, "hidepid", now},
		"what an expired one would accept":    {drift.Gap{Code: "no_agent", Node: "worker-1", Object: "node"}, "", now},
		"a name is no pattern but for the *":  {drift.Gap{Code: "processes_hidden", Node: "edge.1", Object: "node"}, "", now},
		"what passes by itself is not listed": {drift.Gap{Code: "starting", Node: "edge-1", Object: "container/x"}, "", now},
	} {
		left, states := AcceptGaps(accepted, []drift.Gap{row.gap}, row.when)
		by := ""
		if at := slices.Index(states, ExceptionUsed); at >= 0 {
			by = accepted[at].ID
		}
		if by != row.by || (len(left) == 0) != (row.by != "") {
			t.Errorf("%s: accepted by %q, want %q; left %v", name, by, row.by, left)
		}
		if states[2] != ExceptionExpired {
			t.Errorf("%s: what expired in 2020 is %s", name, states[2])
		}
	}
}

func TestLoadGapsRefuses(t *testing.T) {
	one := func(from, to string) string {
		text := `coverage: [{id: a, gaps: [guest], node: n, object: o, owner: us, reason: R, expires: 2030-12-31}]`
		if !strings.Contains(text, from) {
			t.Fatalf("no %q", from)
		}
		return strings.Replace(text, from, to, 1)
	}
	if _, err := LoadGaps("f", []byte(one("guest", "guest"))); err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct{ text, want string }{
		"no owner":                  {one("owner: us, ", ""), "an accepted gap has no owner"},
		"no end":                    {one(", expires: 2030-12-31", ""), "has no expires"},
		"no object":                 {one("object: o, ", ""), "has no object"},
		"no node":                   {one("node: n, ", ""), "has no node"},
		"a misspelt code":           {one("[guest]", "[gest]"), `called "gest"; did you mean guest?`},
		"what passes by itself":     {one("[guest]", "[starting]"), "no gap that can be accepted"},
		"what nobody knows by name": {one("[guest]", "[other]"), "no gap that can be accepted"},
		"every code":                {one("[guest]", `["*"]`), "want one of guest, "},
		"no code":                   {one("[guest]", "[]"), "gaps is empty"},
		"an id that is there twice": {"exceptions: [{id: a, containers: 'true', kinds: [moved], owner: us, reason: R, expires: 2030-12-31}]\n" + one("guest", "guest"), "there is another exception a"},
		"nothing at all":            {"{}", "no exceptions and no coverage"},
	} {
		if _, err := LoadGaps("f", []byte(row.text)); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, want %q", name, err, row.want)
		}
		if _, err := LoadExceptions("f", []byte(row.text)); err == nil {
			t.Errorf("%s: it is taken as a file of exceptions", name)
		}
	}
}

// TestDistance: a slip of the hand is one, whatever it is.
func TestDistance(t *testing.T) {
	for words, want := range map[[2]string]int{
		{"shop", "shop"}: 0, {"shpo", "shop"}: 1, {"shp", "shop"}: 1, {"shoop", "shop"}: 1, {"shap", "shop"}: 1, {"ngnix", "nginx"}: 1,
		{"", "shop"}: 4, {"shop", ""}: 4, {"", ""}: 0, {"abcd", "badc"}: 2, {"ca", "abc"}: 3,
	} {
		if got := distance(words[0], words[1]); got != want {
			t.Errorf("%q is %d, want %d", words, got, want)
		}
	}
}
