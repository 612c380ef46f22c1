package main

import (
	"bufio"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	rpcstatus "google.golang.org/grpc/status"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/drift"
)

// growing is text that is written and read at the same time.
type growing struct {
	mu   sync.Mutex
	text strings.Builder
}

func (g *growing) Write(text []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.text.Write(text)
}

func (g *growing) String() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.text.String()
}

// watching is a watch that runs.
type watching struct {
	t         *testing.T
	out, errs growing
	interrupt context.CancelFunc
	status    chan int
}

func startWatch(t *testing.T, args ...string) *watching {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w := &watching{t: t, interrupt: cancel, status: make(chan int, 1)}
	go func() { w.status <- run(ctx, args, &w.out, &w.errs) }()
	t.Cleanup(cancel)
	return w
}

func (w *watching) prints(text string) {
	w.t.Helper()
	until(w.t, "it prints "+text, func() bool { return strings.Contains(w.out.String(), text) })
}

func (w *watching) says(text string) {
	w.t.Helper()
	until(w.t, "it says "+text, func() bool { return strings.Contains(w.errs.String(), text) })
}

// ends waits for its end and returns what it printed.
func (w *watching) ends(want int) string {
	w.t.Helper()
	if status := <-w.status; status != want {
		w.t.Errorf("it ended with %d, want %d: %s%s", status, want, w.out.String(), w.errs.String())
	}
	return w.out.String()
}

func TestWatchTellsWhatIsAndWhatChanges(t *testing.T) {
	leakless(t)
	report := shop()
	feed := newTold(report)
	w := startWatch(t, "watch", "--agent", agentSocketOf(t, feed))
	w.prints("open                 critical  shop/web-0/nginx                         11       bounding_excess      CAP_NET_RAW CAP_SYS_ADMIN\n")
	w.prints("(handler crun)")
	until(t, "it is watched", feed.watched)

	opened := report.Findings[0]
	opened.ID, opened.PID, opened.Container, opened.Incident = "new", 12, "ngi\x1b[2Jnx", ""
	after := *report
	after.Findings = append(slices.Clone(report.Findings), opened)
	feed.publish(after, agent.Change{Kind: agent.FindingOpened, Finding: &opened})
	w.prints("2026-01-02T03:04:00.001Z opened               critical  shop/web-0/ngi\\x1b[2Jnx")
	feed.publish(*report, agent.Change{Kind: agent.FindingResolved, Finding: &opened, Resolved: "ended"})
	w.prints("2026-01-02T03:04:00.002Z resolved (ended)     critical")
	feed.publish(*report, agent.Change{Kind: agent.StatusChanged, Component: &agent.Component{Name: "runtime", Why: "it hangs"}})
	w.says("node status: the agent's runtime is not well: it hangs")
	feed.publish(*report, agent.Change{Kind: agent.StatusChanged, Component: &agent.Component{Name: "runtime", OK: true}})
	w.says("the agent's runtime is well again")
	blind := drift.Coverage{Limits: []drift.Limit{{What: "/proc", Why: "hidepid", Blind: true}}}
	feed.publish(*report, agent.Change{Kind: agent.StatusChanged, Coverage: &blind})
	w.says("does not see all of its node: /proc: hidepid")
	w.interrupt()
	if text := w.ends(exitDone); strings.Count(text, "\n") != 1+5+2 || strings.Contains(text, "\x1b") || !strings.HasPrefix(text, "TIME ") {
		t.Errorf("it printed\n%s", text)
	}
}

// TestWatchShowsAnIncidentOnce: what one process shows is told by the worst of it, and the
// rest in short below; the incident ends with the last of its findings.
func TestWatchShowsAnIncidentOnce(t *testing.T) {
	leakless(t)
	report := shop()
	feed := newTold(report)
	at := agentSocketOf(t, feed)
	lines, wide := startWatch(t, "watch", "--agent", at, "--no-headers"), startWatch(t, "watch", "--agent", at, "-o", "wide")
	until(t, "both watch", func() bool {
		feed.mu.Lock()
		defer feed.mu.Unlock()
		return len(feed.watchers) == 2
	})
	wide.prints(`it holds more than declared · process 11 (7 in its container) started 2026-01-02T03:04:05Z; its program is "/memfd:\x1b[2J (deleted)"`)
	publish := func(kind agent.ChangeKind, f drift.Finding, why string) {
		feed.publish(*report, agent.Change{Kind: kind, Finding: &f, Resolved: why})
	}
	worst, milder := report.Findings[0], report.Findings[1]
	other := func(id string, kind drift.Kind, severity drift.Severity) drift.Finding {
		f := milder
		f.ID, f.Kind, f.Severity, f.Incident, f.PID = id, kind, severity, "other", 12
		return f
	}
	publish(agent.FindingOpened, other("o1", drift.NNPMissing, drift.High), "")
	publish(agent.FindingOpened, other("o2", drift.PermittedExcess, drift.Critical), "")
	publish(agent.FindingOpened, other("o3", drift.ThreadExcess, drift.Critical), "")
	publish(agent.FindingUpdated, other("o2", drift.PermittedExcess, drift.Critical), "")
	publish(agent.FindingUpdated, other("o1", drift.NNPMissing, drift.High), "")
	publish(agent.FindingResolved, worst, "ended")
	publish(agent.FindingResolved, milder, "ended")
	until(t, "the last change is told", func() bool {
		return strings.Count(lines.out.String(), "resolved") == 2 && strings.Count(wide.out.String(), "resolved") == 2
	})
	lines.interrupt()
	wide.interrupt()
	var told []string
	for line := range strings.Lines(lines.ends(exitDone)) {
		if strings.Contains(line, "inheritable_excess") || strings.Contains(line, " 11 ") || strings.Contains(line, " 12 ") {
			told = append(told, strings.Join(strings.Fields(line)[1:], " "))
		}
	}
	want := []string{
		"open critical shop/web-0/nginx 11 bounding_excess CAP_NET_RAW CAP_SYS_ADMIN",
		"also inheritable_excess",
		"opened high shop/web-0/nginx 12 nnp_missing CAP_SYS_ADMIN",
		"opened critical shop/web-0/nginx 12 permitted_excess CAP_SYS_ADMIN",
		"also 12 thread_excess CAP_SYS_ADMIN",
		"updated critical shop/web-0/nginx 12 permitted_excess CAP_SYS_ADMIN",
		"updated 12 nnp_missing CAP_SYS_ADMIN",
		"resolved (ended) 11 bounding_excess CAP_NET_RAW CAP_SYS_ADMIN",
		"resolved (ended) critical shop/web-0/nginx 11 bounding_excess CAP_NET_RAW CAP_SYS_ADMIN",
	}
	if !slices.Equal(told, want) {
		t.Errorf("it told\n%s\nwant\n%s", strings.Join(told, "\n"), strings.Join(want, "\n"))
	}
	if text := wide.ends(exitDone); strings.Contains(text, " also ") || strings.Count(text, "inheritable_excess") != 2 {
		t.Errorf("a wide watch tells each finding:\n%s", text)
	}
}

func TestWatchContainers(t *testing.T) {
	leakless(t)
	report := shop()
	feed := newTold(report)
	at := agentSocketOf(t, feed)
	lines := startWatch(t, "get", "containers", "-w", "-n", "shop", "--agent", at, "--filter", `image != "left"`)
	objects := startWatch(t, "watch", "c", "-o", "jsonl", "--agent", at)
	lines.prints("present              shop/web-0/nginx                         cccccccccccc   observed     2\n")
	objects.prints("node_status")
	changed := report.Containers[0]
	changed.Processes = changed.Processes[:1]
	feed.publish(*report, agent.Change{Kind: agent.ContainerChanged, Container: &changed})
	lines.prints("changed              shop/web-0/nginx                         cccccccccccc   observed     1\n")
	other := report.Containers[3]
	feed.publish(*report, agent.Change{Kind: agent.ContainerRemoved, Container: &other})
	left := changed
	left.Image = "left"
	feed.publish(*report, agent.Change{Kind: agent.ContainerChanged, Container: &left})
	lines.prints("left                 shop/web-0/nginx")
	objects.prints(`"image":"left"`)
	lines.interrupt()
	objects.interrupt()
	if text := lines.ends(exitDone); strings.Contains(text, "data/") {
		t.Errorf("it is of one namespace:\n%s", text)
	}
	var story []string
	for line := range strings.Lines(objects.ends(exitDone)) {
		var record watchRecord
		if err := json.Unmarshal([]byte(line), &record); err != nil || record.Schema != watchSchema {
			t.Fatalf("%s: %v", line, err)
		}
		if record.Container != nil {
			record.Type += " " + record.Change
			if record.ID == "" && len(record.Container.Processes) == 0 && !record.Container.Sandbox {
				t.Errorf("it has no processes: %s", line)
			}
		}
		story = append(story, record.Type)
	}
	want := []string{
		"snapshot_begin", "container present", "container present", "container present", "container present", "snapshot_end", "node_status",
		"container changed", "container removed", "container changed",
	}
	if !slices.Equal(story, want) {
		t.Errorf("got %q, want %q", story, want)
	}
}

// TestWatchGoesOn: it comes back to an agent that was away, where it was; and says
// when that cannot be.
func TestWatchGoesOn(t *testing.T) {
	leakless(t)
	report := shop()
	feed := newTold(report)
	path := filepath.Join(socketDir(t), "agent.sock")
	stop := serveAgent(t, feed, listenUnix(t, path))
	lines := startWatch(t, "watch", "--agent", "unix://"+path)
	objects := startWatch(t, "watch", "-o", "jsonl", "--agent", "unix://"+path)
	lines.prints("(handler crun)")
	objects.prints("node_status")

	stop()
	lines.says("connecting again")
	objects.prints(`"type":"disconnected"`)
	opened := report.Findings[0]
	opened.ID, opened.Incident = "while-away", ""
	after := *report
	after.Findings = append(slices.Clone(report.Findings), opened)
	feed.publish(after, agent.Change{Kind: agent.FindingOpened, Finding: &opened})
	stop = serveAgent(t, feed, listenUnix(t, path))
	lines.prints("2026-01-02T03:04:00.001Z opened ")
	objects.prints(`"change":"opened"`)
	if text := lines.out.String(); strings.Count(text, " open ") != 4 || strings.Contains(lines.errs.String(), "lost") {
		t.Errorf("it did not resume:\n%s%s", text, lines.errs.String())
	}

	stop()
	feed.publish(*report)
	feed.restart()
	serveAgent(t, feed, listenUnix(t, path))
	lines.says("lost: an unknown number of changes, for the agent was started anew; what is there now follows")
	lines.prints("gone                 critical")
	objects.prints(`"reason":"other_epoch"`)
	until(t, "another snapshot ends", func() bool { return strings.Count(objects.out.String(), "snapshot_end") == 2 })
	lines.interrupt()
	objects.interrupt()
	if text := lines.ends(exitDone); strings.Count(text, " open ") != 8 || strings.Count(text, " gone ") != 1 || strings.Count(text, "TIME") != 1 {
		t.Errorf("it printed\n%s", text)
	}
	objects.ends(exitDone)
}

func TestWatchUntilFinding(t *testing.T) {
	leakless(t)
	report := shop()
	quiet := *report
	quiet.Findings = report.Findings[3:]
	feed := newTold(&quiet)
	path := filepath.Join(socketDir(t), "agent.sock")
	stop := serveAgent(t, feed, listenUnix(t, path))
	waits := startWatch(t, "watch", "--until-finding", "high", "--agent", "unix://"+path)
	elsewhere := startWatch(t, "watch", "--until-finding", "high", "-n", "data", "--agent", "unix://"+path)
	waits.prints("(handler crun)")
	elsewhere.prints("(handler crun)")
	feed.publish(*report, agent.Change{Kind: agent.FindingOpened, Finding: &report.Findings[2]})
	feed.publish(*report, agent.Change{Kind: agent.FindingOpened, Finding: &report.Findings[1]})
	if text := waits.ends(exitFindings); !strings.Contains(text, "inheritable_excess") || !strings.Contains(waits.errs.String(), "severity high is open, at or above --until-finding=high") {
		t.Errorf("%s%s", text, waits.errs.String())
	}
	elsewhere.prints("unmanaged_container")
	elsewhere.interrupt()
	elsewhere.ends(exitFailed)

	// What is open already counts.
	if _, stderr, status := capture(t, "watch", "--until-finding", "critical", "--agent", "unix://"+path); status != exitFindings {
		t.Errorf("status %d, %s", status, stderr)
	}
	// A time without any is well, and no time without an agent.
	if _, stderr, status := capture(t, "watch", "--until-finding", "high", "-n", "data", "--timeout", "300ms", "--agent", "unix://"+path); status != exitDone {
		t.Errorf("status %d, %s", status, stderr)
	}
	alone := startWatch(t, "watch", "--until-finding", "high", "-n", "data", "--timeout", "2s", "--agent", "unix://"+path)
	alone.prints("unmanaged_container")
	stop()
	alone.ends(exitFailed)
	if !strings.Contains(alone.errs.String(), "nobody knows what is open") {
		t.Error(alone.errs.String())
	}
}

// TestWatchNoticesSilence: a connection that nothing comes from is made again.
func TestWatchNoticesSilence(t *testing.T) {
	leakless(t)
	feed := newTold(shop())
	at := agentSocketOf(t, feed)
	ctx, cancel := context.WithCancel(t.Context())
	var out, errs growing
	o := &watchOptions{client: clientOptions{agent: at}, format: "table"}
	w := watcher{watchOptions: o, client: o.client, resource: "finding", patience: 1, out: watchOutput{Writer: &out, errs: &errs, resource: "finding", known: map[string]watchLine{}}}
	w.whole = true // it was there before
	ended := make(chan error, 1)
	go func() { ended <- w.run(ctx) }()
	until(t, "it says so", func() bool { return strings.Contains(errs.String(), "gone silent for 1ns; connecting again") })
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestWatchEndsWithASignal sends one to the real program.
func TestWatchEndsWithASignal(t *testing.T) {
	at := agentSocketOf(t, newTold(shop()))
	for _, signal := range []os.Signal{syscall.SIGINT, syscall.SIGTERM} {
		program := exec.CommandContext(t.Context(), "capdrift", "watch", "--agent", at)
		stdout, err := program.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := program.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(stdout)
		if !lines.Scan() {
			t.Error("it printed nothing")
		}
		if err := program.Process.Signal(signal); err != nil {
			t.Error(err)
		}
		for lines.Scan() { // to its end
			continue
		}
		if err := program.Wait(); err != nil {
			t.Errorf("after %v it ended with %v", signal, err)
		}
	}
}

// TestWatchDoesNotAskAgainWhatIsTooCostly: a busy agent is asked again, one that gave up on
// the filter is not.
func TestWatchDoesNotAskAgainWhatIsTooCostly(t *testing.T) {
	busy := rpcstatus.New(codes.ResourceExhausted, "too many watches")
	costly, err := busy.WithDetails(&errdetails.ErrorInfo{Reason: "FILTER_TOO_COSTLY"})
	if err != nil {
		t.Fatal(err)
	}
	w := &watcher{}
	if !w.mayGoOn(busy.Err()) || w.mayGoOn(costly.Err()) {
		t.Errorf("busy %v, too costly %v", w.mayGoOn(busy.Err()), w.mayGoOn(costly.Err()))
	}
}
