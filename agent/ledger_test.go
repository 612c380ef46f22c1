package agent

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

const (
	sysAdmin capdecode.Set = 1 << 21
	netAdmin capdecode.Set = 1 << 12
)

// script is a ledger at a simulated time, and what it has told.
type script struct {
	*ledger
	begun, at time.Time
	told      []string
}

func newScript(open ...drift.Finding) *script {
	begun := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	return &script{ledger: newLedger(250*time.Millisecond, open, begun), begun: begun, at: begun}
}

// shows is what a process shows above its ceiling.
func shows(pid int) drift.Finding {
	return drift.Finding{
		ID: "permitted", Kind: drift.PermittedExcess, Severity: drift.Critical, ContainerID: "c1", Container: "app", PID: pid, StartTime: uint64(pid),
		Processes: 1, Capabilities: sysAdmin, Message: fmt.Sprintf("process %d holds too much", pid),
	}
}

func with(f drift.Finding, change func(*drift.Finding)) drift.Finding {
	change(&f)
	return f
}

func (s *script) note(changes []Change) {
	for _, change := range changes {
		f := change.Finding
		s.told = append(s.told, strings.TrimSpace(fmt.Sprintf("%s %s %d %s", change.Kind, f.Kind, f.PID, change.Resolved)))
	}
}

// look takes a sample in which the processes with these pids are gone. As the loop does,
// it then tells what all of them show.
func (s *script) look(gone []int, found ...drift.Finding) {
	var kept []drift.Finding
	if gone != nil {
		kept = found
	}
	s.note(s.take(sample{at: s.at, asked: s.at, found: found, kept: kept, partial: true, over: func(f drift.Finding) string {
		if slices.Contains(gone, f.PID) {
			return ResolvedEnded
		}
		return ""
	}}))
}

// reads takes a sample that read one process again, which shows nothing.
func (s *script) reads(pid int) {
	s.note(s.take(sample{at: s.at, over: func(f drift.Finding) string {
		if f.PID == pid {
			return ResolvedExplained
		}
		return ""
	}}))
}

func (s *script) wait(d time.Duration) {
	for end := s.at.Add(d); s.at.Before(end); {
		s.at = s.at.Add(min(250*time.Millisecond, end.Sub(s.at)))
		s.note(s.pass(s.at))
	}
}

func (s *script) limit() string {
	var list []string
	for _, limit := range s.transients.limits() {
		if !limit.Blind || limit.Why == "" {
			return "a limit that is not blind, or does not say why"
		}
		list = append(list, limit.What)
	}
	return strings.Join(list, "; ")
}

func TestLedger(t *testing.T) {
	const look = 250 * time.Millisecond
	const once = "what became of suspicions seen in one look only (%d): container app"
	info := func(pid int) drift.Finding {
		return with(shows(pid), func(f *drift.Finding) { f.ID, f.Kind, f.Severity = "nested", drift.NestedUserns, drift.Info })
	}
	stranger := func(pid int) drift.Finding {
		return with(shows(pid), func(f *drift.Finding) {
			f.ID, f.Kind, f.Severity = "stranger", drift.UnmanagedContainer, drift.Medium
		})
	}
	opened := "finding_opened permitted_excess "
	for name, row := range map[string]struct {
		run   func(s *script)
		want  []string
		limit string
	}{
		"one process that two looks see": {func(s *script) {
			s.look(nil, shows(1))
			s.wait(look)
			s.look(nil, shows(1))
		}, []string{opened + "1"}, ""},
		"two looks that are too close": {func(s *script) {
			s.look(nil, shows(1))
			s.wait(look / 2)
			s.look(nil, shows(1))
		}, nil, ""},
		"a chain of pids is confirmed by the successor, and told once a minute": {func(s *script) {
			s.look(nil, shows(1))
			for pid := 2; pid < 250; pid++ { // for a minute
				s.wait(look)
				s.look([]int{pid - 1}, shows(pid))
			}
		}, []string{opened + "2", "finding_updated permitted_excess 242"}, ""},
		"a chain with a look between in which nobody shows it": {func(s *script) {
			s.look(nil, shows(1))
			s.wait(look)
			s.look([]int{1})
			s.wait(look)
			s.look(nil, shows(2))
		}, []string{opened + "2"}, ""},
		"a chain whose links give it up and live on": {func(s *script) {
			s.look(nil, shows(1))
			s.wait(look)
			s.reads(1)
			s.look(nil, shows(2))
		}, []string{opened + "2"}, ""},
		"other capabilities in each look are confirmed when one comes again": {func(s *script) {
			other := func(f *drift.Finding) { f.Capabilities = netAdmin }
			s.look(nil, shows(1))
			s.wait(look)
			s.look([]int{1}, with(shows(2), other))
			s.wait(look)
			s.look([]int{2}, shows(3))
		}, []string{opened + "3"}, ""},
		"what is held for 900 ms is found": {func(s *script) {
			s.look(nil, shows(1))
			s.wait(look)
			s.look(nil, shows(1))
			s.wait(650 * time.Millisecond)
			s.look([]int{1})
		}, []string{opened + "1", "finding_resolved permitted_excess 1 ended"}, ""},
		"what is held for one look is counted": {func(s *script) {
			s.look(nil, shows(1))
			s.wait(look)
			s.look([]int{1})
			s.wait(3 * time.Second)
		}, nil, fmt.Sprintf(once, 1)},
		"what was given up between two looks is counted": {func(s *script) {
			s.look(nil, shows(1))
			s.wait(look)
			s.reads(1)
			s.wait(3 * time.Second)
		}, nil, fmt.Sprintf(once, 1)},
		"two findings of one process in one look are counted once": {func(s *script) {
			s.look(nil, shows(1), with(shows(1), func(f *drift.Finding) { f.ID, f.Kind = "bounding", drift.BoundingExcess }))
			s.look([]int{1})
			s.wait(3 * time.Second)
		}, nil, fmt.Sprintf(once, 1)},
		"a container that does it again is a finding, until an hour has passed": {func(s *script) {
			for pid := range 3 {
				s.look([]int{pid}, shows(pid+1))
				s.wait(10 * time.Minute)
				s.look([]int{pid + 1})
				s.wait(10 * time.Minute)
			}
			s.wait(59 * time.Minute)
		}, []string{"finding_opened transient_drift 0", "finding_resolved transient_drift 0 ended"}, ""},
		"a container that does it again after more than an hour is none": {func(s *script) {
			s.look(nil, shows(1))
			s.look([]int{1})
			s.wait(61 * time.Minute)
			s.look(nil, shows(2))
			s.look([]int{2})
			s.wait(time.Minute)
		}, nil, fmt.Sprintf(once, 1)},
		"the end of the container resolves it, and what became of the suspicions stays unknown": {func(s *script) {
			for pid := 1; pid < 3; pid++ {
				s.look(nil, shows(pid))
				s.look([]int{pid})
				s.wait(time.Minute)
			}
			s.note(s.end(s.at, ResolvedEnded, func(f drift.Finding) bool { return f.ContainerID == "c1" }))
			s.wait(time.Minute)
		}, []string{"finding_opened transient_drift 0", "finding_resolved transient_drift 0 ended"}, fmt.Sprintf(once, 2)},
		"stages of a runtime are never found, and so never counted": {func(s *script) {
			for range 100 {
				s.look(nil)
				s.wait(look)
			}
		}, nil, ""},
		"what an earlier look read confirms nothing": {func(s *script) {
			s.look(nil, shows(1))
			for range 10 {
				s.wait(look)
				s.note(s.take(sample{at: s.at, kept: []drift.Finding{shows(1)}, over: func(drift.Finding) string { return ResolvedExplained }}))
				s.note(s.take(sample{
					at: s.at, found: []drift.Finding{shows(1)}, read: func(drift.Finding) bool { return false },
					over: func(drift.Finding) string { return ResolvedExplained },
				}))
			}
		}, nil, ""},
		"what an earlier look read keeps a finding open": {func(s *script) {
			s.look(nil, shows(1))
			s.wait(look)
			s.look(nil, shows(1))
			s.wait(look)
			s.note(s.take(sample{at: s.at, kept: []drift.Finding{shows(2)}, over: func(drift.Finding) string { return ResolvedEnded }}))
			s.wait(time.Hour)
		}, []string{opened + "1"}, ""},
		"one that comes back within a minute ends only after a minute": {func(s *script) {
			for range 40 { // for a minute
				s.look(nil, shows(1))
				s.wait(look)
				s.look(nil, shows(1))
				s.wait(look)
				s.look([]int{1})
				s.wait(time.Second)
			}
			s.wait(time.Minute)
		}, []string{opened + "1", "finding_resolved permitted_excess 1 ended", opened + "1", "finding_resolved permitted_excess 1 ended"}, ""},
		"one that comes back after more than a minute ends at once": {func(s *script) {
			for range 2 {
				s.look(nil, shows(1))
				s.wait(look)
				s.look(nil, shows(1))
				s.look([]int{1})
				s.wait(61 * time.Second)
			}
		}, []string{opened + "1", "finding_resolved permitted_excess 1 ended", opened + "1", "finding_resolved permitted_excess 1 ended"}, ""},
		"what is worse is told at once, and stays as bad": {func(s *script) {
			better := func(f *drift.Finding) { f.Severity, f.Message = drift.High, "undecided" }
			s.look(nil, with(shows(1), better))
			s.wait(look)
			s.look(nil, with(shows(1), better))
			for range 500 {
				s.note(s.take(sample{at: s.at, found: []drift.Finding{shows(1)}, over: func(drift.Finding) string { return "" }}))
				s.note(s.take(sample{at: s.at, found: []drift.Finding{with(shows(1), better)}, over: func(drift.Finding) string { return "" }}))
				s.wait(look)
			}
			if f := s.findings()[0]; f.Severity != drift.Critical || f.Message != shows(1).Message {
				s.told = append(s.told, "it became "+f.Message)
			}
		}, []string{opened + "1", "finding_updated permitted_excess 1"}, ""},
		"a suspicion is as bad as its worst look": {func(s *script) {
			s.look(nil, shows(1))
			for range 2 {
				s.wait(look / 2)
				s.look(nil, with(shows(1), func(f *drift.Finding) { f.Severity = drift.High }))
			}
			s.told = append(s.told, s.findings()[0].Severity.String())
		}, []string{opened + "1", "critical"}, ""},
		"processes of no weight that come and go are one finding": {func(s *script) {
			for pid := 1; pid < 600; pid++ { // for two and a half minutes, with looks in which none is there
				s.look([]int{pid - 1}, info(pid))
				s.look([]int{pid})
				s.wait(look)
			}
			s.wait(2 * time.Minute)
		}, []string{"finding_opened nested_userns 1", "finding_updated nested_userns 241", "finding_updated nested_userns 481", "finding_resolved nested_userns 599 ended"}, ""},
		"the oldest process of a container that nobody named changes": {func(s *script) {
			over := func(drift.Finding) string { return "" }
			for pid := range 5 {
				s.note(s.take(sample{at: s.at, asked: s.at, found: []drift.Finding{stranger(9 - pid)}, over: over}))
				s.wait(15 * time.Second)
			}
		}, []string{"finding_opened unmanaged_container 8"}, ""},
		"a container that its runtime names at last is not counted": {func(s *script) {
			s.look(nil, stranger(1))
			s.note(s.take(sample{at: s.at, over: func(drift.Finding) string { return ResolvedExplained }}))
			s.wait(time.Minute)
		}, nil, ""},
		"one that ended before anybody named it is counted": {func(s *script) {
			s.look(nil, stranger(1))
			s.note(s.end(s.at, ResolvedEnded, func(drift.Finding) bool { return true }))
		}, nil, fmt.Sprintf(once, 1)},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript()
			row.run(s)
			if !slices.Equal(s.told, row.want) {
				t.Errorf("told\n%s\nwant\n%s", strings.Join(s.told, "\n"), strings.Join(row.want, "\n"))
			}
			if got := s.limit(); got != row.limit {
				t.Errorf("limits %q, want %q", got, row.limit)
			}
		})
	}
}

// TestLedgerOverRestarts: what was open when the agent ended is over for a reason that
// somebody saw.
func TestLedgerOverRestarts(t *testing.T) {
	for name, row := range map[string]struct {
		run  func(s *script)
		want []string
	}{
		"it is there still": {func(s *script) {
			s.look(nil, shows(1))
			s.wait(time.Minute)
		}, nil},
		"it ends before this run has seen it": {func(s *script) { s.look([]int{1}) }, []string{"finding_resolved permitted_excess 1 unknown"}},
		"it ends after this run has seen it": {func(s *script) {
			s.look(nil, shows(1))
			s.look([]int{1})
		}, []string{"finding_resolved permitted_excess 1 ended"}},
		"the very process does not show it any more": {func(s *script) { s.reads(1) }, []string{"finding_resolved permitted_excess 1 explained"}},
		"the node booted": {func(s *script) {
			s.note(s.end(s.at, ResolvedBoot, func(drift.Finding) bool { return true }))
		}, []string{"finding_resolved permitted_excess 1 boot"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript(shows(1))
			row.run(s)
			if !slices.Equal(s.told, row.want) {
				t.Errorf("told %q, want %q", s.told, row.want)
			}
		})
	}
	s := newScript(drift.Transient(shows(1), sysAdmin))
	s.wait(59 * time.Minute)
	if len(s.told) > 0 {
		t.Errorf("told %q", s.told)
	}
	if s.wait(2 * time.Minute); !slices.Equal(s.told, []string{"finding_resolved transient_drift 0 unknown"}) {
		t.Errorf("told %q", s.told)
	}
}

// TestTransientsAreBounded: containers are as many as somebody makes, and those that do it
// again are not forgotten for those that did it once.
func TestTransientsAreBounded(t *testing.T) {
	s := newScript()
	about := func(id string) drift.Finding {
		return with(shows(1), func(f *drift.Finding) { f.ID, f.ContainerID, f.Container = id, id, "" })
	}
	for range 2 {
		s.look(nil, about("again"))
		s.look([]int{1})
		s.wait(time.Minute)
	}
	for i := range 3 * maxTransients {
		s.look(nil, about(fmt.Sprint("once", i)))
	}
	s.look([]int{1})
	s.wait(time.Minute)
	limits := s.transients.limits()
	if len(s.transients.of) != maxTransients || len(limits) != maxTold+1 || !s.transients.repeats("again") ||
		limits[0].What != "what became of suspicions seen in one look only (2): container again" ||
		limits[maxTold].What != fmt.Sprintf("what became of suspicions seen in one look only (%d): %d more containers", maxTransients-maxTold, maxTransients-maxTold) {
		t.Errorf("%d remembered, %d limits: %+v", len(s.transients.of), len(limits), limits)
	}
	if n := s.transients.counts[drift.PermittedExcess]; n != 2+3*maxTransients {
		t.Errorf("%d counted", n)
	}
}

// TestRereads: what one container has read again makes no other wait.
func TestRereads(t *testing.T) {
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	var r rereads
	many := make([]int, 3*maxReread)
	for i := range many {
		many[i] = i
	}
	r.add(now, "costly", many)
	r.add(now, "costly", many[:5]) // which wait already
	r.add(now, "other", []int{1000})
	r.add(now.Add(time.Second), "later", []int{2000})
	var turns []string
	for range 3 {
		for _, one := range r.due(now) {
			turns = append(turns, fmt.Sprint(one.containerID, " ", len(one.pids)))
			r.add(now.Add(time.Second), one.containerID, one.pids[:1]) // and is to be read once more
		}
	}
	if want := []string{"costly 64", "other 1", "costly 64", "costly 64"}; !slices.Equal(turns, want) {
		t.Errorf("turns %q, want %q", turns, want)
	}
	if at, waits := r.next(); !waits || !at.Equal(now.Add(time.Second)) || len(r.due(now)) != 0 {
		t.Errorf("the next at %v, %v", at, waits)
	}
}
