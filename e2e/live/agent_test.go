//go:build linux

package live

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/capdrift/capdrift/e2e/node"
)

// anAgent is a running `capdrift agent`. It runs as it is deployed: as root without a
// capability.
type anAgent struct {
	t       testing.TB
	config  string
	socket  string
	metrics string // where they are served; empty for nowhere
	cmd     *exec.Cmd
}

// startAgent starts one on the node, with a journal of its own. Settings are further lines of
// its configuration.
func startAgent(t testing.TB, settings ...string) *anAgent {
	t.Helper()
	dir := t.TempDir()
	a := &anAgent{t: t, config: filepath.Join(dir, "agent.yaml"), socket: filepath.Join(dir, "run", "agent.sock"), metrics: freeAddress(t)}
	a.configure(theNode.Endpoint(), settings...)
	a.start()
	t.Cleanup(func() { a.end(syscall.SIGTERM) })
	return a
}

// configure writes what the agent is started with next.
func (a *anAgent) configure(endpoint string, settings ...string) {
	a.t.Helper()
	lines := append([]string{
		fmt.Sprintf("runtime: {endpoint: %q}", endpoint),
		fmt.Sprintf("api: {socket: %q}", a.socket),
		fmt.Sprintf("journal: {dir: %q}", filepath.Join(filepath.Dir(a.config), "journal")),
		fmt.Sprintf("metrics: {address: %q}", a.metrics),
	}, settings...)
	if err := os.WriteFile(a.config, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		a.t.Fatal(err)
	}
}

func (a *anAgent) start() {
	a.t.Helper()
	a.cmd = exec.Command(filepath.Join(programs, "actor"), "bound=0", "exec="+filepath.Join(programs, "capdrift"), "agent", "--config", a.config)
	a.cmd.Stderr = a.t.Output()
	if err := a.cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	a.await("it has looked at its node", func() bool {
		_, _, status, err := a.ask("get", "findings", "-o", "json")
		return err == nil && status == 0
	})
}

// end ends it; one that is told to ends with status 0.
func (a *anAgent) end(how syscall.Signal) {
	if a.cmd == nil {
		return
	}
	_ = a.cmd.Process.Signal(how)
	if err := a.cmd.Wait(); err != nil && how == syscall.SIGTERM {
		a.t.Errorf("the agent ended with %v", err)
	}
	a.cmd = nil
}

// ask runs a client of it.
func (a *anAgent) ask(args ...string) (stdout, stderr string, status int, err error) {
	return capdrift(append(args, "--agent", "unix://"+a.socket)...)
}

// freeAddress is one of loopback that nobody listens on.
func freeAddress(t testing.TB) string {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer free.Close()
	return free.Addr().String()
}

// scrape is the text of its metrics.
func (a *anAgent) scrape() string {
	a.t.Helper()
	answer, err := http.Get("http://" + a.metrics + "/metrics")
	if err != nil {
		a.t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		a.t.Fatalf("%s, %v", answer.Status, err)
	}
	return string(text)
}

// metric is the value of a metric, 0 when it is not told.
func (a *anAgent) metric(name string) float64 {
	a.t.Helper()
	for line := range strings.Lines(a.scrape()) {
		if told, ok := strings.CutPrefix(line, name+" "); ok {
			value, err := strconv.ParseFloat(strings.TrimSpace(told), 64)
			if err != nil {
				a.t.Fatalf("%v in %s", err, line)
			}
			return value
		}
	}
	return 0
}

// await asks for a condition often.
func (a *anAgent) await(what string, holds func() bool) {
	a.t.Helper()
	a.awaitFor(30*time.Second, what, holds)
}

// awaitFor is await for what takes longer.
func (a *anAgent) awaitFor(limit time.Duration, what string, holds func() bool) {
	a.t.Helper()
	ctx, cancel := theNode.Within(a.t.Context(), limit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-ctx.Done():
			a.t.Fatalf("waiting until %s: %v", what, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// findings about a container that are open and above info, "severity kind pid".
func (a *anAgent) findings(id string) (list []string) {
	a.t.Helper()
	stdout, stderr, status, err := a.ask("get", "findings", "-o", "jsonl")
	if err != nil || status != 0 {
		a.t.Fatalf("get findings: status %d, %v: %s", status, err, stderr)
	}
	for line := range strings.Lines(stdout) {
		var record struct {
			Finding *finding
			finding
		}
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			a.t.Fatalf("%v in %s", err, line)
		}
		f := record.finding
		if record.Finding != nil {
			f = *record.Finding
		}
		if f.ContainerID == id && f.Severity != "info" {
			list = append(list, fmt.Sprintf("%s %s %d", f.Severity, f.Kind, f.Pid))
		}
	}
	slices.Sort(list)
	return list
}

// TestAgent: what an exec above the ceiling holds is told without being asked for, stays
// known when the agent is killed, and is over with its process.
func TestAgent(t *testing.T) {
	onNode(t)
	a := startAgent(t)
	c := run(t, node.Pod{Security: dropAll()})[0]
	watched := make(chan string, 1)
	go func() {
		stdout, stderr, status, err := a.ask("watch", "--until-finding", "critical", "-o", "jsonl", "--timeout", "60s")
		watched <- fmt.Sprintf("%d %v %s %s", status, err, stdout, stderr)
	}()
	pid, err := theNode.RuncExec(t.Context(), c, []string{"CAP_SYS_ADMIN"}, "name=debug", "ready", "sleep")
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if told := <-watched; !strings.HasPrefix(told, "3 ") || !strings.Contains(told, "_excess") {
		t.Fatalf("watch: %s", told)
	}
	t.Logf("told after %v", time.Since(began))
	want := []string{fmt.Sprintf("critical bounding_excess %d", pid), fmt.Sprintf("critical permitted_excess %d", pid)}
	a.await("both are open", func() bool { return slices.Equal(a.findings(c.ID), want) })

	a.end(syscall.SIGKILL)
	a.start()
	if got := a.findings(c.ID); !slices.Equal(got, want) {
		t.Errorf("after it was killed: %q, want %q", got, want)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	a.await("they are over", func() bool { return a.findings(c.ID) == nil })
}
