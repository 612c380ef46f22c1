package drift

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestGapsAreWhatMakesAReportIncomplete holds the list of gaps against what Cover says, on
// reports of every kind.
func TestGapsAreWhatMakesAReportIncomplete(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	few := func() int { return max(0, random.IntN(6)-4) }
	for range 20_000 {
		var r Report
		for range random.IntN(4) {
			c := Container{ID: string(rune('a' + random.IntN(26))), Sandbox: random.IntN(4) == 0, Ended: random.IntN(5) == 0, RuntimeHandler: []string{"", "runsc"}[random.IntN(2)]}
			c.Observation = []Observation{Observed, Observed, Partial, Unreadable, UnsupportedRuntime}[random.IntN(5)]
			for range random.IntN(3) {
				c.Processes = append(c.Processes, Process{Observation: []Observation{Observed, Starting, Helper}[random.IntN(3)]})
			}
			r.Containers = append(r.Containers, c)
		}
		r.Coverage.Processes.Unreadable, r.Coverage.Threads.Skipped = few(), few()
		for range few() {
			r.Coverage.Limits = append(r.Coverage.Limits, Limit{What: "x", Blind: random.IntN(2) == 0})
		}
		r.Cover()
		if gaps := r.Gaps(nil); r.Coverage.Complete != (len(gaps) == 0) {
			t.Fatalf("complete %v, gaps %v of %+v", r.Coverage.Complete, gaps, r)
		}
		// Nor where somebody hands on the counts without the containers.
		r.Containers = nil
		if gaps := r.Gaps(nil); r.Coverage.Complete != (len(gaps) == 0) {
			t.Fatalf("without containers: complete %v, gaps %v of %+v", r.Coverage.Complete, gaps, r)
		}
	}
}

func TestGaps(t *testing.T) {
	guest := Container{ID: "g", Name: "box", Observation: UnsupportedRuntime, RuntimeHandler: "runsc", Reason: "gVisor"}
	second := guest
	second.ID = "h"
	part := Container{ID: "p", Name: "app", Pod: &Pod{Namespace: "shop", Name: "web-0"}, Observation: Partial, Reason: "cut"}
	probed := Container{ID: "e", Name: "probed", Observation: Observed, Processes: []Process{{Observation: Starting}}}
	unread := Container{ID: "u", Observation: Observed}
	hidden := Limit{What: "processes of other users", Why: "hidepid", Blind: true, Code: GapHidden}
	for name, row := range map[string]struct {
		containers []Container
		limits     []Limit
		of         func(*Container) bool
		want       []string
	}{
		"processes that no container tells of": {[]Container{unread}, nil, nil, []string{"processes_unreadable node"}},
		"processes of a container in part":     {[]Container{unread, part}, nil, nil, []string{"container_partial container/shop/web-0/app"}},
		"nothing is missing":                   {nil, []Limit{{What: "weaker"}}, nil, nil},
		"a handler is one gap":                 {[]Container{guest, second}, nil, nil, []string{"guest handler/runsc"}},
		"a container by its names":             {[]Container{part}, nil, nil, []string{"container_partial container/shop/web-0/app"}},
		"a probe that starts":                  {[]Container{probed}, nil, nil, []string{"starting container/probed"}},
		"a limit by its code":                  {nil, []Limit{hidden}, nil, []string{"processes_hidden node"}},
		"a limit without a code":               {nil, []Limit{{What: "x", Blind: true}}, nil, []string{"other node"}},
		"only what is asked for":               {[]Container{guest, part}, nil, func(c *Container) bool { return c.ID == "p" }, []string{"container_partial container/shop/web-0/app"}},
		"nothing that is asked for":            {[]Container{guest, part}, nil, func(c *Container) bool { return c.ID == "x" }, nil},
		"the node's own is always asked":       {[]Container{guest}, []Limit{hidden}, func(*Container) bool { return false }, []string{"processes_hidden node"}},
	} {
		unreadable := 0
		if slices.ContainsFunc(row.containers, func(c Container) bool { return c.ID == unread.ID }) {
			unreadable = 2
		}
		r := Report{Node: Node{Name: "worker-1"}, Containers: row.containers, Coverage: Coverage{Limits: row.limits, Processes: ProcessCoverage{Unreadable: unreadable}}}
		r.Cover()
		var got []string
		for _, gap := range r.Gaps(row.of) {
			if got = append(got, string(gap.Code)+" "+gap.Object); gap.Node != "worker-1" {
				t.Errorf("%s: the gap is of node %q", name, gap.Node)
			}
		}
		if !slices.Equal(got, row.want) {
			t.Errorf("%s: %q, want %q", name, got, row.want)
		}
	}
}

func TestReportDisagrees(t *testing.T) {
	part := Container{ID: "p", Observation: Partial, Processes: []Process{{Observation: Starting}}}
	r := Report{Containers: []Container{part}}
	r.Coverage.Processes.Unreadable = 1
	r.Cover()
	if r.Disagrees() {
		t.Errorf("the coverage is of these very containers: %+v", r.Coverage)
	}
	for name, change := range map[string]func(*Coverage){
		"more is starting": func(c *Coverage) { c.Processes.Starting++ },
		"more were made":   func(c *Coverage) { c.Containers.Running++ },
	} {
		other := r
		if change(&other.Coverage); !other.Disagrees() {
			t.Errorf("%s: it agrees: %+v", name, other.Coverage)
		}
	}
	r.Containers = []Container{{ID: "p", Observation: Observed}}
	r.Coverage.Containers, r.Coverage.Processes.Starting = ContainerCoverage{Running: 1, Observed: 1}, 0
	if !r.Disagrees() {
		t.Error("a process could not be read in no container, and it agrees")
	}
	if r.Coverage.Complete = true; r.Disagrees() {
		t.Error("a complete report disagrees")
	}
}

func TestPendingContainers(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, row := range map[string]struct {
		first, next Container
		want        bool
	}{
		"one that was just made":           {Container{Observation: Unreadable}, Container{Observation: Unreadable, Created: now.Add(-time.Second)}, true},
		"one that was made long ago":       {Container{Observation: Unreadable}, Container{Observation: Unreadable, Created: now.Add(-time.Hour)}, false},
		"one that nobody knows the age of": {Container{Observation: Partial}, Container{Observation: Partial}, false},
		"one that can be read now":         {Container{Observation: Partial}, Container{Observation: Observed, Created: now}, false},
		"one that its runtime starts":      {Container{Observation: Partial}, Container{Observation: Partial, Reason: beingStarted}, true},
		"a guest's":                        {Container{Observation: Partial}, Container{Observation: UnsupportedRuntime, Created: now}, false},
	} {
		p := PendingOf([]Container{row.first})
		if !p.Any() {
			t.Errorf("%s: no second look is asked for", name)
		}
		if got := p.After([]Container{row.next}, now).Any(); got != row.want {
			t.Errorf("%s: pending %v, want %v", name, got, row.want)
		}
	}
	if PendingOf([]Container{{Observation: UnsupportedRuntime}, {Observation: Partial, Sandbox: true}}).Any() {
		t.Error("what no look can read is awaited")
	}
}
