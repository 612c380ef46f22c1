package agent_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

const (
	bind     capdecode.Set = 1 << 10
	sysAdmin capdecode.Set = 1 << 21
)

var whole = []drift.IDRange{{Inside: 0, Outside: 0, Length: 1<<32 - 1}}

// host is a node whose looks are written down beforehand; the last one repeats.
type host struct {
	looks []drift.Sweep
	taken int
	node  error
	sweep error
}

func (h *host) Node() (drift.Node, []drift.Limit, error) {
	return drift.Node{BootID: "boot", CapLastCap: 40, UserNamespace: drift.UserNamespace{UIDMap: whole}},
		[]drift.Limit{{What: "identity of user namespaces", Why: "no CAP_SYS_PTRACE"}}, h.node
}

func (h *host) Sweep(_ context.Context, given []drift.Container) (drift.Sweep, error) {
	if h.sweep != nil {
		return drift.Sweep{}, h.sweep
	}
	look := h.looks[min(h.taken, len(h.looks)-1)]
	h.taken++
	look.Containers = slices.Clone(look.Containers)
	for i := range look.Containers {
		if i < len(given) {
			given[i].Processes = look.Containers[i].Processes
			look.Containers[i] = given[i]
		}
	}
	return look, nil
}

func (h *host) Process(int) (drift.Process, error) { return drift.Process{}, errors.New("not read") }

type runtime struct {
	inventory drift.Inventory
	err       error
}

func (r runtime) Inventory(context.Context) (drift.Inventory, error) { return r.inventory, r.err }

func restricted() drift.Container {
	managed := true
	return drift.Container{ID: "c1", Name: "app", Managed: &managed, Observation: drift.Observed, InitPID: 10, Declared: drift.Declared{
		OCI: &drift.OCI{UID: 1000, Sets: capdecode.Sets{Bounding: bind, Permitted: bind, Effective: bind}},
	}}
}

func sees(processes ...drift.Process) drift.Sweep {
	managed := false
	return drift.Sweep{
		Containers: []drift.Container{{ID: "c1", Managed: &managed, Origin: "cgroup /c1", Observation: drift.Observed, Processes: processes}},
		Processes:  drift.ProcessCoverage{Observed: len(processes)},
	}
}

func process(pid int, bounding capdecode.Set) drift.Process {
	return drift.Process{
		PID: pid, StartTime: 7, ParentPID: 1, Name: "app", UID: 1000, Age: time.Hour, Caps: capdecode.Sets{Bounding: bounding},
		UserNamespace: drift.UserNamespace{UIDMap: whole},
	}
}

func misses(s drift.Sweep) drift.Sweep {
	s.Limits = []drift.Limit{{What: "processes", Why: "they came and went", Blind: true, Code: drift.GapMissed}}
	return s
}

func later(p drift.Process) drift.Process {
	p.StartTime++
	return p
}

func stage(pid int, bounding capdecode.Set) drift.Process {
	p := process(pid, bounding)
	p.Name, p.Age, p.Forked = "runc:[2:INIT]", time.Millisecond, true
	p.ParentPID, p.Lineage = 3, &drift.Lineage{Ancestors: []drift.Ancestor{{PID: 3, Name: "runc", Outside: true}}}
	return p
}

func scanner(h *host, r agent.Runtime) (agent.Scanner, *int) {
	waits := new(int)
	return agent.Scanner{
		Host: h, Runtime: r, Between: time.Second,
		Now:  func() time.Time { return time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC) },
		Wait: func(ctx context.Context, _ time.Duration) error { *waits++; return ctx.Err() },
	}, waits
}

func TestScan(t *testing.T) {
	fine, excess, overfull := process(10, bind), process(11, bind|sysAdmin), process(11, bind|sysAdmin)
	overfull.Caps.Permitted = sysAdmin
	for name, row := range map[string]struct {
		looks    []drift.Sweep
		waits    int
		kinds    []drift.Kind
		complete bool
	}{
		"nothing suspicious is looked at once":              {[]drift.Sweep{sees(fine)}, 0, nil, true},
		"a suspicion that stays is a finding":               {[]drift.Sweep{sees(fine, excess)}, 1, []drift.Kind{drift.BoundingExcess}, true},
		"one that was given up is said":                     {[]drift.Sweep{sees(fine, excess), sees(fine, process(11, bind))}, 1, nil, false},
		"one whose process ended is said":                   {[]drift.Sweep{sees(fine, excess), sees(fine)}, 1, nil, false},
		"another process confirms it":                       {[]drift.Sweep{sees(fine, excess), sees(fine, process(12, bind|sysAdmin)), sees(fine)}, 1, []drift.Kind{drift.BoundingExcess}, true},
		"one that appears in the second look gets a third":  {[]drift.Sweep{sees(fine, stage(12, bind)), sees(fine, excess)}, 2, []drift.Kind{drift.BoundingExcess}, true},
		"a finding confirmed stays though its process ends": {[]drift.Sweep{sees(excess), sees(excess, stage(12, bind)), sees(process(12, bind))}, 2, []drift.Kind{drift.BoundingExcess}, true},
		"two that only one look saw each are a finding":     {[]drift.Sweep{sees(fine, excess), sees(fine, process(12, bind|sysTime)), sees(fine)}, 2, []drift.Kind{drift.TransientDrift}, false},
		"one that only the last look saw counts too":        {[]drift.Sweep{sees(fine, excess), sees(fine, stage(12, bind)), sees(fine, excess)}, 2, []drift.Kind{drift.TransientDrift}, false},
		"two of one process in one look are one":            {[]drift.Sweep{sees(fine, overfull), sees(fine)}, 1, nil, false},
		"a runtime's stage is awaited":                      {[]drift.Sweep{sees(fine, stage(11, bind|sysAdmin)), sees(fine, process(11, bind))}, 1, nil, true},
		"a stage that never ends is said":                   {[]drift.Sweep{sees(fine, stage(11, bind|sysAdmin))}, 5, nil, false},
		"a stage that takes three looks is awaited":         {[]drift.Sweep{sees(fine, stage(11, sysAdmin)), sees(fine, stage(11, sysAdmin)), sees(fine, stage(11, sysAdmin)), sees(fine)}, 3, nil, true},
		"probes at every look are not awaited for ever":     {[]drift.Sweep{sees(fine, stage(11, sysAdmin)), sees(fine, stage(12, sysAdmin))}, 2, nil, true},
		"a pid that comes again is another process":         {[]drift.Sweep{sees(fine, stage(11, sysAdmin)), sees(fine, later(stage(11, sysAdmin)))}, 2, nil, true},
		"processes that one look missed":                    {[]drift.Sweep{misses(sees(fine)), sees(fine)}, 1, nil, true},
		"processes that every look misses":                  {[]drift.Sweep{misses(sees(fine))}, 2, nil, false},
		"a probe that begins beside a suspicion":            {[]drift.Sweep{sees(fine, excess), sees(fine, excess, stage(12, sysAdmin))}, 2, []drift.Kind{drift.BoundingExcess}, true},
	} {
		t.Run(name, func(t *testing.T) {
			s, waits := scanner(&host{looks: row.looks}, runtime{inventory: drift.Inventory{Containers: []drift.Container{restricted()}}})
			report, err := s.Scan(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var kinds []drift.Kind
			for _, f := range report.Findings {
				kinds = append(kinds, f.Kind)
			}
			if !slices.Equal(kinds, row.kinds) || *waits != row.waits || report.Coverage.Complete != row.complete {
				t.Errorf("findings %v, want %v; %d waits, want %d; complete %v, want %v (%+v)",
					kinds, row.kinds, *waits, row.waits, report.Coverage.Complete, row.complete, report.Coverage)
			}
		})
	}
}

// While a container starts, its runtime and its hooks are in its cgroup with all
// capabilities, for longer than two looks if a hook is slow.
func TestAContainerThatStartsIsNoStranger(t *testing.T) {
	h := &host{looks: []drift.Sweep{sees(process(10, sysAdmin))}}
	s, waits := scanner(h, runtime{inventory: drift.Inventory{Starting: []string{"c1"}}})
	report, err := s.Scan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Findings) != 0 || *waits != 5 || report.Coverage.Complete || report.Coverage.Containers.Partial != 1 {
		t.Errorf("findings %v, %d waits, coverage %+v", report.Findings, *waits, report.Coverage)
	}
}

func TestNoRuntimeIsSaidAndNothingIsCalledFine(t *testing.T) {
	refused := errors.New("cannot open the socket; run as root")
	withClient, _ := scanner(&host{looks: []drift.Sweep{sees(process(10, sysAdmin))}}, runtime{err: refused})
	without, _ := scanner(&host{looks: []drift.Sweep{sees(process(10, sysAdmin))}}, nil)
	without.NoRuntime = refused
	for name, s := range map[string]agent.Scanner{"it fails while asked": withClient, "it could not be reached": without} {
		report, err := s.Scan(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if report.Runtime != nil || report.Coverage.Complete || len(report.Findings) != 0 {
			t.Errorf("%s: runtime %v, complete %v, findings %v", name, report.Runtime, report.Coverage.Complete, report.Findings)
		}
		if len(report.Containers) != 1 || report.Containers[0].Managed != nil || report.Containers[0].Declared.OCI != nil || len(report.Containers[0].Processes) != 1 {
			t.Errorf("%s: %+v", name, report.Containers)
		}
		if !slices.ContainsFunc(report.Coverage.Limits, func(l drift.Limit) bool { return l.Blind && l.Why == refused.Error() }) {
			t.Errorf("%s: the limits do not say why: %+v", name, report.Coverage.Limits)
		}
	}
}

// dying answers once.
type dying struct {
	runtime
	asked int
}

func (d *dying) Inventory(ctx context.Context) (drift.Inventory, error) {
	if d.asked++; d.asked > 1 {
		return drift.Inventory{}, errors.New("it is gone")
	}
	return d.runtime.Inventory(ctx)
}

// A suspicion that could not be confirmed because the runtime died is said.
func TestARuntimeThatDiesBetweenLooks(t *testing.T) {
	s, _ := scanner(&host{looks: []drift.Sweep{sees(process(11, bind|sysAdmin))}}, &dying{runtime: runtime{inventory: drift.Inventory{Containers: []drift.Container{restricted()}}}})
	report, err := s.Scan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	seenOnce := slices.ContainsFunc(report.Coverage.Limits, func(l drift.Limit) bool {
		return l.Blind && l.What == "what became of suspicions seen in one look only (1): container app"
	})
	if report.Runtime != nil || len(report.Findings) != 0 || !seenOnce {
		t.Errorf("%+v", report)
	}
}

func TestScanFailsOnlyWhereThereIsNothingToReport(t *testing.T) {
	broken := errors.New("broken")
	for name, h := range map[string]*host{"node": {node: broken}, "sweep": {sweep: broken}} {
		s, _ := scanner(h, runtime{})
		if _, err := s.Scan(t.Context()); !errors.Is(err, broken) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s, _ := scanner(&host{looks: []drift.Sweep{sees(process(11, sysAdmin))}}, runtime{inventory: drift.Inventory{Containers: []drift.Container{restricted()}}})
	if _, err := s.Scan(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled scan returned %v", err)
	}
}

// A container that ended keeps what was declared for it for as long as a process is left in
// its cgroup, and is not spoken of after that.
func TestAContainerThatEndedIsHeldAgainstItsDeclaration(t *testing.T) {
	for name, row := range map[string]struct {
		left       []drift.Process
		containers int
		kinds      []drift.Kind
	}{
		"an intruder lives on":   {[]drift.Process{process(11, bind|sysAdmin)}, 1, []drift.Kind{drift.BoundingExcess}},
		"nobody is left in it":   {nil, 0, nil},
		"what it may be is left": {[]drift.Process{process(11, bind)}, 1, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := scanner(&host{looks: []drift.Sweep{sees(row.left...)}}, runtime{inventory: drift.Inventory{Ended: []drift.Container{restricted()}}})
			report, err := s.Scan(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var kinds []drift.Kind
			for _, f := range report.Findings {
				kinds = append(kinds, f.Kind)
			}
			if len(report.Containers) != row.containers || !slices.Equal(kinds, row.kinds) || !report.Coverage.Complete {
				t.Errorf("containers %+v, findings %v, coverage %+v", report.Containers, kinds, report.Coverage)
			}
			for _, c := range report.Containers {
				if !c.Ended || c.InitPID != 0 || !*c.Managed {
					t.Errorf("%+v", c)
				}
			}
		})
	}
}
