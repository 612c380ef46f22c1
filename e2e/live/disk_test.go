//go:build linux

package live

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/capdrift/capdrift/e2e/node"
)

// aDisk is a small file system with the journal of an agent on it.
type aDisk struct {
	*anAgent
	dir     string
	journal string // its directory
	c       *node.Container
}

// onDisk mounts one for the test, with an agent that is not started yet, and a container.
func onDisk(t *testing.T) *aDisk {
	t.Helper()
	onNode(t)
	d := &aDisk{dir: t.TempDir()}
	if err := unix.Mount("tmpfs", d.dir, "tmpfs", 0, "size=2m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(d.dir, 0); err != nil { // the agent has ended, so nobody holds it
			t.Error(err)
		}
	})
	d.journal = filepath.Join(d.dir, "journal")
	d.anAgent = anAgentBeside(t)
	d.metrics = freeAddress(t)
	d.configure(theNode.Endpoint())
	t.Cleanup(func() { d.end(syscall.SIGTERM) })
	d.c = run(t, node.Pod{Security: dropAll()})[0]
	return d
}

// anAgentBeside is an agent that is neither configured nor started.
func anAgentBeside(t *testing.T) *anAgent {
	dir := t.TempDir()
	return &anAgent{t: t, config: filepath.Join(dir, "agent.yaml"), socket: filepath.Join(dir, "run", "agent.sock")}
}

// configure writes what the agent is started with next. Settings are further lines of it.
func (d *aDisk) configure(endpoint string, settings ...string) {
	d.t.Helper()
	text := fmt.Sprintf("runtime: {endpoint: %q}\napi: {socket: %q}\njournal: {dir: %q}\nmetrics: {address: %q}\n", endpoint, d.socket, d.journal, d.metrics)
	text += strings.Join(settings, "\n")
	if err := os.WriteFile(d.config, []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

// start starts it and waits until there are findings to be asked for.
func (d *aDisk) start() {
	d.t.Helper()
	d.anAgent.start()
	d.await("it tells of findings", func() bool {
		_, _, status, err := d.ask("get", "findings", "-o", "jsonl")
		return err == nil && status == 0
	})
}

// fill leaves no room on the disk, and says how to make it again.
func (d *aDisk) fill() (empty func()) {
	d.t.Helper()
	name := filepath.Join(d.dir, "ballast")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	for page := make([]byte, 4096); err == nil; {
		_, err = f.Write(page)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		d.t.Fatal(err)
	}
	return func() {
		if err := os.Remove(name); err != nil {
			d.t.Fatal(err)
		}
	}
}

// remount makes the disk writable or not, at a moment when nobody writes to it.
func (d *aDisk) remount(flags uintptr) {
	d.t.Helper()
	d.await("the disk is mounted anew", func() bool {
		err := unix.Mount("", d.dir, "", unix.MS_REMOUNT|flags, "")
		if err != nil && !errors.Is(err, unix.EBUSY) {
			d.t.Fatal(err)
		}
		return err == nil
	})
}

// journalFails tells why the journal fails, by what get says of the agent's parts, or that
// it does not.
func (a *anAgent) journalFails() (why string, fails bool) {
	a.t.Helper()
	stdout, stderr, status, err := a.ask("get", "node", "-o", "json")
	if err != nil || status != 0 {
		a.t.Fatalf("get node: status %d, %v: %s", status, err, stderr)
	}
	var of struct {
		Components []struct {
			Name, Why string
			OK        bool
		}
	}
	if err := json.Unmarshal([]byte(stdout), &of); err != nil {
		a.t.Fatal(err)
	}
	for _, part := range of.Components {
		if part.Name == "journal" {
			return part.Why, !part.OK
		}
	}
	return "nobody has tried it", true
}

// mustFail waits until the journal fails for a reason, in the metrics too.
func (d *aDisk) mustFail(reason string) {
	d.t.Helper()
	d.busy("the journal fails: "+reason, func() bool {
		why, fails := d.journalFails()
		return fails && strings.Contains(why, reason)
	})
	if text := d.scrape(); !strings.Contains(text, `capdrift_component_healthy{component="journal"} 0`) || strings.Contains(text, "capdrift_journal_failures_total 0") {
		d.t.Errorf("the metrics do not say that the journal fails:\n%s", text)
	}
}

// mustRecover waits until it is written again.
func (d *aDisk) mustRecover() {
	d.t.Helper()
	d.busy("the journal is written again", func() bool {
		_, fails := d.journalFails()
		return !fails
	})
	if text := d.scrape(); !strings.Contains(text, `capdrift_component_healthy{component="journal"} 1`) {
		d.t.Errorf("the metrics do not say that the journal is well:\n%s", text)
	}
}

// An intruder is a process above its container's ceiling. What it shows is a finding about
// the container, whichever process shows it. So a container has one intruder at a time, and
// one that comes within a minute after another opens a finding that ends a minute late.
type intruder struct {
	c   *node.Container
	pid int
}

// intrude starts one and waits until it is told.
func (a *anAgent) intrude(c *node.Container) intruder {
	a.t.Helper()
	pid, err := theNode.RuncExec(a.t.Context(), c, []string{"CAP_SYS_ADMIN"}, "name=debug", "ready", "sleep")
	if err != nil {
		a.t.Fatal(err)
	}
	i := intruder{c, pid}
	a.await("the intruder is told of", func() bool { return a.tells(i) })
	return i
}

// intrudeAnew is intrude into a new container.
func (a *anAgent) intrudeAnew() intruder {
	a.t.Helper()
	return a.intrude(run(a.t, node.Pod{Security: dropAll()})[0])
}

// tells tells whether the findings about an intruder are what is open about its container.
func (a *anAgent) tells(i intruder) bool {
	a.t.Helper()
	return slices.Equal(a.findings(i.c.ID), []string{fmt.Sprintf("critical bounding_excess %d", i.pid), fmt.Sprintf("critical permitted_excess %d", i.pid)})
}

// expel ends an intruder and waits until that is told.
func (a *anAgent) expel(i intruder) {
	a.t.Helper()
	i.kill(a.t)
	a.await("the intruder is gone", func() bool { return a.findings(i.c.ID) == nil })
}

func (i intruder) kill(t testing.TB) {
	t.Helper()
	if err := syscall.Kill(i.pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// busy waits for a condition while intruders come and go, each in a container of its own:
// an agent writes only when something happens.
func (d *aDisk) busy(what string, holds func() bool) {
	d.t.Helper()
	d.await(what, func() bool {
		if holds() {
			return true
		}
		d.expel(d.intrudeAnew())
		return holds()
	})
}

// ids of all findings that are open, "id pid".
func (a *anAgent) ids() (list []string) {
	a.t.Helper()
	stdout, stderr, status, err := a.ask("get", "findings", "-o", "jsonl")
	if err != nil || status != 0 {
		a.t.Fatalf("get findings: status %d, %v: %s", status, err, stderr)
	}
	for line := range strings.Lines(stdout) {
		var of struct {
			Finding struct {
				ID  string
				Pid int
			}
		}
		if err := json.Unmarshal([]byte(line), &of); err != nil || of.Finding.ID == "" {
			a.t.Fatalf("%v in %s", err, line)
		}
		list = append(list, fmt.Sprintf("%s %d", of.Finding.ID, of.Finding.Pid))
	}
	slices.Sort(list)
	return list
}

// watch starts a watcher that lasts as long as the test, and tells what it printed.
func (a *anAgent) watch() (printed func() string) {
	a.t.Helper()
	out, err := os.Create(filepath.Join(a.t.TempDir(), "watched"))
	if err != nil {
		a.t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(programs, "capdrift"), "watch", "findings", "-o", "jsonl", "--agent", "unix://"+a.socket)
	cmd.Stdout, cmd.Stderr = out, a.t.Output()
	if err := cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		out.Close()
	})
	return func() string {
		text, err := os.ReadFile(out.Name())
		if err != nil {
			a.t.Fatal(err)
		}
		return string(text)
	}
}

// mustRemember kills the agent and looks at what its journal kept: first without a
// runtime, so that nothing is seen but that, then as before.
func (d *aDisk) mustRemember(intruders ...intruder) {
	d.t.Helper()
	open := d.ids()
	for _, i := range intruders {
		if !d.tells(i) {
			d.t.Errorf("open are %q, want those of %d", d.findings(i.c.ID), i.pid)
		}
	}
	d.end(syscall.SIGKILL)
	d.configure("unix://" + filepath.Join(d.dir, "no.sock"))
	d.start()
	if kept := d.ids(); !slices.Equal(kept, open) {
		d.t.Errorf("the journal kept %q, want %q", kept, open)
	}
	d.end(syscall.SIGTERM)
	d.configure(theNode.Endpoint())
	d.start()
	if kept := d.ids(); !slices.Equal(kept, open) {
		d.t.Errorf("after another start %q are open, want %q", kept, open)
	}
}

// TestDiskWhileRunning: an agent whose disk gets full, and read-only, tells what it finds
// and what is wrong, and its journal is right again when the disk is.
func TestDiskWhileRunning(t *testing.T) {
	d := onDisk(t)
	d.start()
	early, steady := d.intrude(d.c), d.intrudeAnew()
	empty := d.fill()
	d.mustFail("no space left on device")

	watched := d.watch()
	late := d.intrudeAnew()
	d.await("a watcher is told", func() bool { return strings.Contains(watched(), fmt.Sprintf(`"pid":%d,`, late.pid)) })
	d.expel(early)

	// Nobody holds the disk's files, so that it can be mounted anew.
	d.remount(unix.MS_RDONLY)
	d.mustFail("read-only file system")
	d.remount(0)
	d.mustFail("no space left on device")
	empty()
	d.mustRecover()
	d.mustRemember(steady, late)
}

// TestDiskAtStart: an agent that cannot open its journal watches without it, says why, and
// opens it as soon as it can, with what was open in it.
func TestDiskAtStart(t *testing.T) {
	for _, row := range []struct {
		name, reason string
		spoil        func(d *aDisk) (mend func())
	}{
		{"full", "no space left on device", (*aDisk).fill},
		{"read-only", "read-only file system", func(d *aDisk) func() {
			d.remount(unix.MS_RDONLY)
			return func() { d.remount(0) }
		}},
		{"no directory to make it in", "no such file or directory", func(d *aDisk) func() {
			d.journal = filepath.Join(d.dir, "missing", "journal")
			d.configure(theNode.Endpoint())
			return func() {
				if err := os.Mkdir(filepath.Dir(d.journal), 0o700); err != nil {
					d.t.Fatal(err)
				}
			}
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			d := onDisk(t)
			mend := row.spoil(d)
			d.start()
			steady := d.intrude(d.c)
			d.mustFail(row.reason)
			mend()
			d.mustRecover()
			d.mustRemember(steady)
		})
	}

	t.Run("read-only with a journal", func(t *testing.T) {
		d := onDisk(t)
		d.start()
		early, steady := d.intrude(d.c), d.intrudeAnew()
		open := d.ids()
		d.end(syscall.SIGKILL)
		d.remount(unix.MS_RDONLY)
		d.configure("unix://" + filepath.Join(d.dir, "no.sock"))
		d.start()
		if kept := d.ids(); !slices.Equal(kept, open) {
			t.Errorf("open are %q, want %q", kept, open)
		}
		d.end(syscall.SIGTERM)
		d.configure(theNode.Endpoint())
		d.start()
		d.expel(early)
		d.mustFail("read-only file system")
		d.remount(0)
		d.mustRecover()
		d.mustRemember(steady)
	})

	t.Run("another agent runs", func(t *testing.T) {
		d := onDisk(t)
		d.start()
		_, stderr, status, err := capdrift("agent", "--cri-endpoint", theNode.Endpoint(), "--socket", filepath.Join(t.TempDir(), "agent.sock"), "--data-dir", d.journal)
		if err != nil || status == 0 || !strings.Contains(stderr, "another agent runs on this node") {
			t.Errorf("status %d, %v: %s", status, err, stderr)
		}
	})
}
