//go:build linux

package live

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/capdrift/capdrift/e2e/node"
	"github.com/capdrift/capdrift/e2e/suite"
)

// TestClock: whoever sets the clock by hours, back or forward, makes no finding open, end or
// wait, and an agent that starts by the wrong clock knows the processes again.
func TestClock(t *testing.T) {
	onNode(t)
	if !suite.InVM() {
		t.Skip("sets the machine's clock: TestMicroVM runs it where nobody else needs that")
	}
	setBack(t)
	a := onDisk(t)
	a.configure(theNode.Endpoint(), "cadence: {confirm: 3s}")
	a.start()
	steady := a.intrude(a.c)
	watched := a.watch()
	a.await("the watcher knows what is open", func() bool { return strings.Contains(watched(), "snapshot_end") })
	stay, told := []intruder{steady}, []string(nil)
	for _, by := range []time.Duration{-5 * time.Hour, 12 * time.Hour, -7 * time.Hour} {
		before := a.position()
		c := run(t, node.Pod{Security: dropAll()})[0]
		a.await("the container is seen", func() bool { return a.sees(c.ID) })
		pid, err := theNode.RuncExec(t.Context(), c, []string{"CAP_SYS_ADMIN"}, "name=debug", "ready", "sleep")
		if err != nil {
			t.Fatal(err)
		}
		a.await("the process is seen", func() bool {
			stdout, _, _, _ := a.ask("get", "container", c.ID, "-o", "jsonl")
			return strings.Contains(stdout, fmt.Sprintf(`{"pid":%d,`, pid))
		})
		step(t, by) // while the agent waits for its second look at it
		stays := intruder{c, pid}
		a.await("the process is told of", func() bool { return a.tells(stays) })
		stay = append(stay, stays)
		other := a.intrudeAnew() // the cadences go on
		a.expel(other)
		told = append(told, fmt.Sprint("opened ", pid), fmt.Sprint("opened ", other.pid), fmt.Sprint("resolved ", other.pid))
		if after := a.position(); after <= before {
			t.Errorf("by the step of %v the sequence went from %d to %d", by, before, after)
		}
	}
	a.await("the watcher knows it all", func() bool { return strings.HasSuffix(strings.Join(excesses(t, watched()), "\n"), told[len(told)-1]) })
	if got := excesses(t, watched()); !slices.Equal(got, told) {
		t.Errorf("the watcher was told %q, want %q", got, told)
	}
	open := a.ids()
	if why, fails := a.journalFails(); fails {
		t.Errorf("the journal fails: %s", why)
	}
	step(t, -20*time.Hour)
	a.end(unix.SIGKILL)
	a.start()
	if now := a.ids(); !slices.Equal(now, open) {
		t.Errorf("after another start %q are open, want %q", now, open)
	}
	for _, each := range stay {
		a.expel(each)
	}
}

// setBack lets the clock be right again when the test is over.
func setBack(t *testing.T) {
	began := time.Now()
	t.Cleanup(func() {
		now := began.Add(time.Since(began)) // by the monotonic clock
		step(t, now.Round(0).Sub(time.Now().Round(0)))
	})
}

// step sets the clock.
func step(t *testing.T, by time.Duration) {
	t.Helper()
	at := unix.NsecToTimespec(time.Now().Add(by).UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &at); err != nil {
		t.Fatal(err)
	}
}

// position of the newest view in the stream of changes.
func (a *anAgent) position() uint64 {
	a.t.Helper()
	stdout, stderr, status, err := a.ask("get", "node", "-o", "json")
	if err != nil || status != 0 {
		a.t.Fatalf("get node: status %d, %v: %s", status, err, stderr)
	}
	var of struct{ Position struct{ Sequence uint64 } }
	if err := json.Unmarshal([]byte(stdout), &of); err != nil {
		a.t.Fatal(err)
	}
	return of.Position.Sequence
}

// excesses are the changes, after what it began with, that a watcher was told of processes
// above their ceiling, each pair of findings about one process as one.
func excesses(t *testing.T, told string) (list []string) {
	t.Helper()
	_, told, _ = strings.Cut(told, `"type":"snapshot_end"`)
	_, told, _ = strings.Cut(told, "\n")
	for line := range strings.Lines(told) {
		if !strings.HasSuffix(line, "\n") {
			break // it is being written
		}
		var of struct {
			Change  string
			Finding finding
		}
		if err := json.Unmarshal([]byte(line), &of); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		if strings.HasSuffix(of.Finding.Kind, "_excess") {
			list = append(list, fmt.Sprint(of.Change, " ", of.Finding.Pid))
		}
	}
	return slices.Compact(list)
}
