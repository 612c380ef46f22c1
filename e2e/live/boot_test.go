//go:build linux

package live

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/capdrift/capdrift/e2e/suite"
)

// TestBoot: what was open when the node went down is over after it, and the journal says
// so for good.
func TestBoot(t *testing.T) {
	d := onDisk(t)
	d.start()
	former := d.intrude(d.c)
	d.end(syscall.SIGKILL)
	former.kill(t)
	d.startBooted("6f1d7e5a-0000-4000-8000-000000000002")
	d.mustEndByBoot()
	d.expel(d.intrudeAnew())
	d.end(syscall.SIGKILL)
	d.startBooted("6f1d7e5a-0000-4000-8000-000000000002")
	if text := d.scrape(); strings.Contains(text, `why="boot"`) {
		t.Errorf("it ends by the boot twice:\n%s", text)
	}
}

// mustEndByBoot asserts that the two findings about one process ended with the node's last
// boot, and that nothing else is open.
func (d *aDisk) mustEndByBoot() {
	d.t.Helper()
	d.await("the findings ended with the last boot", func() bool {
		text := d.scrape()
		return strings.Contains(text, `capdrift_findings_resolved_total{kind="bounding_excess",why="boot"} 1`) &&
			strings.Contains(text, `capdrift_findings_resolved_total{kind="permitted_excess",why="boot"} 1`)
	})
	if open := d.findings(d.c.ID); open != nil {
		d.t.Errorf("open are %q", open)
	}
}

// startBooted starts the agent in a mount namespace of its own, where the node's boot has
// another id.
func (a *anAgent) startBooted(id string) {
	a.t.Helper()
	file := filepath.Join(a.t.TempDir(), "boot_id")
	if err := os.WriteFile(file, []byte(id+"\n"), 0o444); err != nil {
		a.t.Fatal(err)
	}
	a.cmd = exec.Command(filepath.Join(programs, "capdrift"), "agent", "--config", a.config)
	a.cmd.Stderr = a.t.Output()
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // until it ends: nothing else may run in the namespace
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			started <- err
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			started <- err
			return
		}
		if err := unix.Mount(file, "/proc/sys/kernel/random/boot_id", "", unix.MS_BIND, ""); err != nil {
			started <- err
			return
		}
		started <- a.cmd.Start()
	}()
	if err := <-started; err != nil {
		a.t.Fatal(err)
	}
	a.await("it has looked at its node", func() bool {
		stdout, _, status, err := a.ask("get", "node", "-o", "json")
		return err == nil && status == 0 && strings.Contains(stdout, id)
	})
}

// TestReboot boots a machine twice on the same disk. It goes down with an agent killed and
// findings open, and comes up with none of them.
func TestReboot(t *testing.T) {
	onNode(t)
	if suite.InVM() {
		inReboot(t, os.Getenv("CAPDRIFT_E2E_BOOT"))
		return
	}
	disk := filepath.Join(t.TempDir(), "disk")
	for _, boot := range []string{"first", "second"} {
		suite.RunInVM(t, suite.Guest{
			Programs: programs, Disk: disk, Args: []string{"-test.timeout=10m", "-test.run=^TestReboot$"}, Env: []string{"CAPDRIFT_E2E_BOOT=" + boot},
		})
		if t.Failed() {
			t.Fatalf("in the %s boot", boot)
		}
	}
}

// inReboot is what happens on the machine.
func inReboot(t *testing.T, boot string) {
	if boot == "" {
		t.Skip("this is inside a machine that does not boot again")
	}
	d := onDisk(t)
	d.journal = "/var/lib/capdrift"
	d.configure(theNode.Endpoint())
	d.start()
	if boot == "first" {
		d.intrude(d.c)
		d.end(syscall.SIGKILL)
		unix.Sync() // the file system's own; the journal's are on the disk
		return
	}
	d.mustEndByBoot()
}
