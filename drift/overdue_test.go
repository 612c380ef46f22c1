package drift_test

import (
	"strings"
	"testing"
	"time"

	"github.com/capdrift/capdrift/drift"
)

func TestCostlyToRead(t *testing.T) {
	const long = 11 * time.Minute
	for name, row := range map[string]struct {
		overdue *drift.Overdue
		found   bool
	}{
		"read in full":                                     {nil, false},
		"overdue since a minute":                           {&drift.Overdue{PIDs: make([]int, 760), Read: 40, Took: 640 * time.Millisecond, For: time.Minute}, false},
		"overdue again and again, each read in time":       {&drift.Overdue{PIDs: make([]int, 760), Read: 40, Took: 640 * time.Millisecond, For: long, Oldest: 6 * time.Minute}, true},
		"one not read for long":                            {&drift.Overdue{PIDs: make([]int, 760), Read: 40, Took: 640 * time.Millisecond, For: long, Oldest: long}, true},
		"ordinary processes that others leave no time for": {&drift.Overdue{PIDs: make([]int, 500), Read: 100, Took: 5 * time.Millisecond, For: long, Oldest: long}, false},
		"one process that costs all of the time":           {&drift.Overdue{PIDs: []int{2}, Read: 1, Took: 500 * time.Millisecond, For: long}, true},
	} {
		c := drift.Container{ID: "c1", Name: "app", Pod: &drift.Pod{Namespace: "shop", Name: "web"}, Observation: drift.Observed, Overdue: row.overdue}
		found := drift.Compare(drift.Node{}, c)
		if got := len(found) == 1 && found[0].Kind == drift.CostlyToRead && found[0].Severity == drift.High && strings.Contains(found[0].Message, "shop/web/app"); got != row.found || !got && len(found) > 0 {
			t.Errorf("%s: %+v", name, found)
		}
	}
}

func TestStale(t *testing.T) {
	c := drift.Container{}
	if c.Stale(5) {
		t.Error("stale where all were read")
	}
	c.Overdue = &drift.Overdue{PIDs: []int{3, 5, 9}}
	if !c.Stale(5) || c.Stale(4) {
		t.Error("5 is overdue and 4 is not")
	}
}
