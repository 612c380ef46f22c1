package drift_test

import (
	"testing"

	"github.com/capdrift/capdrift/drift"
)

func TestAdmit(t *testing.T) {
	stage, program := drift.Process{PID: 10, Observation: drift.Starting}, drift.Process{PID: 11, Observation: drift.Observed}
	pod := &drift.Pod{Namespace: "shop", Name: "web-1"}
	stranger := func(pod *drift.Pod, processes ...drift.Process) drift.Container {
		return drift.Container{ID: "c1", Origin: "cgroup /c1", Managed: new(false), Observation: drift.Observed, Pod: pod, Processes: processes}
	}
	given := stranger(pod, stage)
	given.Origin = ""
	unasked := stranger(pod, stage)
	unasked.Managed = nil
	for name, row := range map[string]struct {
		c        drift.Container
		starting []string
		admitted bool
	}{
		"one that its runtime lists as starting is":               {stranger(nil, program), []string{"c0", "c1"}, true},
		"one that the list does not show is not":                  {stranger(nil, program), []string{"c0"}, false},
		"a stage that is in no container's cgroup yet is":         {stranger(nil, stage), []string{"c0"}, true},
		"stages below a known pod are, before the list shows it":  {stranger(pod, stage, stage), nil, true},
		"a program beside a stage below a known pod is not":       {stranger(pod, stage, program), nil, false},
		"a cgroup below a known pod that nobody is in is not":     {stranger(pod), nil, false},
		"one that the runtime named stays as it is":               {given, []string{"c1"}, false},
		"nothing is known of one while no runtime could be asked": {unasked, []string{"c1"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := row.c
			drift.Admit(&c, row.starting)
			admitted := c.Managed != nil && *c.Managed && c.Observation == drift.Partial && c.Reason != ""
			unchanged := c.Managed == row.c.Managed && c.Observation == row.c.Observation && c.Reason == row.c.Reason
			if admitted != row.admitted || !row.admitted && !unchanged {
				t.Errorf("admitted %v, want %v: %+v", admitted, row.admitted, c)
			}
		})
	}
}
