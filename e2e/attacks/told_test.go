//go:build linux

package attacks

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"sync"
	"syscall"
)

// The published forms as far as the tests read them.

type report struct {
	Coverage   coverage
	Containers []struct {
		ID, Observation string
		Processes       []struct {
			Pid               int
			Name, Observation string
		}
	}
	Findings []finding
}

type coverage struct {
	Complete   bool
	Containers struct{ Running, Observed, Partial, Unreadable int }
	Processes  struct{ Observed, Starting, Vanished, Unreadable int }
	Limits     []struct {
		What, Why string
		Blind     bool
	}
}

type finding struct {
	ID, Kind, Severity     string
	ContainerID, Container string
	Pid, Tid               int
	Set                    string
	Capabilities           []string
	Message, Remedy        string
}

func (f finding) String() string {
	return fmt.Sprintf("%s %s about %s, process %d: %.300s", f.Severity, f.Kind, f.Container, f.Pid, f.Message)
}

var severities = []string{"info", "low", "medium", "high", "critical"}

func rank(severity string) int { return slices.Index(severities, severity) }

// about finds one about a container, of this severity or a worse one and one of the kinds.
func about(findings []finding, id, least string, kinds []string) (finding, bool) {
	for _, f := range findings {
		if f.ContainerID == id && rank(f.Severity) >= rank(least) && (len(kinds) == 0 || slices.Contains(kinds, f.Kind)) {
			return f, true
		}
	}
	return finding{}, false
}

// about returns all about a container.
func (r report) about(id string) (list []finding) {
	for _, f := range r.Findings {
		if f.ContainerID == id {
			list = append(list, f)
		}
	}
	return list
}

// change is one line of `capdrift watch -o jsonl`.
type change struct {
	Type, Change, Resolved string
	Finding                finding
	Coverage               *coverage
}

// watch is what a watching client was told.
type watch struct {
	cmd   *exec.Cmd
	ended chan struct{}

	mu       sync.Mutex
	changes  []change // those of findings above info, and lost ones
	now      map[string]finding
	infos    map[string]int // how many of severity info, by container
	coverage coverage
	snapshot bool  // one has come
	err      error // why what it printed could not be read
}

// watch starts a client that watches until the test ends, and waits until it knows what is.
// Arguments are further ones of `capdrift watch`.
func (s *scene) watch(args ...string) *watch {
	s.t.Helper()
	w := &watch{
		ended: make(chan struct{}), now: map[string]finding{}, infos: map[string]int{},
		cmd: exec.Command(binary, append([]string{"watch", "-o", "jsonl", "--agent", "unix://" + s.socket()}, args...)...),
	}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	w.cmd.Stderr = s.t.Output()
	if err := w.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func() {
		defer close(w.ended)
		lines := bufio.NewReader(out)
		for {
			line, err := lines.ReadBytes('\n')
			if err != nil {
				return // the client has ended
			}
			w.take(line)
		}
	}()
	s.t.Cleanup(func() {
		_ = w.cmd.Process.Signal(syscall.SIGCONT)
		_ = w.cmd.Process.Signal(syscall.SIGTERM)
		<-w.ended
		_ = w.cmd.Wait()
		if w.err != nil {
			s.t.Error(w.err)
		}
	})
	s.await("a watch has its snapshot", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.snapshot
	})
	return w
}

func (w *watch) take(line []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var c change
	if err := json.Unmarshal(line, &c); err != nil {
		w.err = fmt.Errorf("watch printed %.200s: %w", line, err)
		return
	}
	if c.Coverage != nil {
		w.coverage = *c.Coverage
	}
	switch c.Type {
	case "snapshot_begin":
		clear(w.now)
	case "snapshot_end":
		w.snapshot = true
	case "lost":
		w.changes = append(w.changes, c)
	case "finding":
		f := c.Finding
		if c.Change == "resolved" {
			delete(w.now, f.ID)
		} else {
			w.now[f.ID] = f
		}
		if f.Severity == "info" {
			w.infos[f.ContainerID]++
			return
		}
		w.changes = append(w.changes, c)
	}
}

// open are the findings that are open.
func (w *watch) open() []finding {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Collect(maps.Values(w.now))
}

// everFound are all findings above info that were told, open or not.
func (w *watch) everFound() (list []finding) {
	for _, c := range w.history() {
		if c.Type == "finding" {
			list = append(list, c.Finding)
		}
	}
	return list
}

// history is what was told of findings above info, and that something was lost.
func (w *watch) history() []change {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.changes)
}

// covers is the newest coverage.
func (w *watch) covers() coverage {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.coverage
}

// informed reports whether any finding about a container was told.
func (w *watch) informed(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.infos[id] > 0 || slices.ContainsFunc(w.changes, func(c change) bool { return c.Finding.ContainerID == id })
}

// lives reports whether the client still watches.
func (w *watch) lives() bool {
	select {
	case <-w.ended:
		return false
	default:
		return true
	}
}
