package proc_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/proc"
)

// TestLiveRest: a container of which nothing ran keeps the processes that it is given
// with, which shows by a name that none of them has; and none as soon as one ran, came,
// went, or was exchanged for another.
func TestLiveRest(t *testing.T) {
	needRoot(t)
	for version, where := range hierarchies(t) {
		t.Run(version, func(t *testing.T) {
			root, tree := where[0], where[1]
			name := fmt.Sprintf("capdrift-rest-%d", os.Getpid())
			trees := []string{tree}
			if version == "v1" {
				trees = append(trees, "/sys/fs/cgroup/cpuacct")
			}
			var dirs []string
			for _, tree := range trees {
				dirs = append(dirs, made(t, filepath.Join(tree, name)))
			}
			into := func(dirs []string, pid int) {
				for _, dir := range dirs {
					enter(t, dir, pid)
				}
			}
			a, b := sleeping(t), sleeping(t)
			t.Cleanup(func() { into(trees, a.pid); into(trees, b.pid) })
			into(dirs, a.pid)

			leaders := proc.New(root, proc.Options{LeadersOnly: true})
			threads := leaders.With(proc.Options{Threads: -1})
			fs := leaders
			const mark = "as it was given"
			given := drift.Container{ID: "a", CgroupPath: "/" + name}
			look := func() drift.Container {
				t.Helper()
				sweep, err := fs.Sweep(context.Background(), []drift.Container{given})
				if err != nil {
					t.Fatal(err)
				}
				c := sweep.Containers[0]
				if c.Observation != drift.Observed {
					t.Fatalf("%s: %s", c.Observation, c.Reason)
				}
				given.Processes = c.Processes
				for i := range given.Processes {
					given.Processes[i].Observation = drift.Observed
				}
				return c
			}
			rested := func() bool {
				t.Helper()
				c := look()
				if len(c.Processes) == 0 {
					t.Fatal("nobody is there")
				}
				kept := c.Processes[0].Name == mark
				given.Processes[0].Name = mark
				return kept
			}
			settle := func() {
				t.Helper()
				for n := 0; !rested(); n++ {
					if n > 1000 {
						t.Fatal("it never is at rest")
					}
				}
			}
			settle()
			c := look()
			for n := 0; c.Processes[0].Age == 0 && n < 100_000; n++ { // it is younger than a tick of the clock
				c = look()
			}
			if len(c.Processes) != 1 || c.Processes[0].PID != a.pid || c.Processes[0].StartTime == 0 || c.Processes[0].Age == 0 {
				t.Errorf("at rest: %+v", c.Processes)
			}
			for what, do := range map[string]func(){
				"one joins asleep":         func() { into(dirs, b.pid) },
				"one leaves asleep":        func() { into(dirs, b.pid); settle(); into(trees, b.pid) },
				"one is exchanged asleep":  func() { into(trees, a.pid); into(dirs, b.pid) },
				"nobody is told":           func() { given.Processes = nil },
				"another one is told":      func() { given.Processes[0].PID = os.Getpid() },
				"its maps are not written": func() { given.Processes[0].UserNamespace.UIDMap = nil },
				"it was just starting":     func() { given.Processes[0].Observation = drift.Starting },
			} {
				into(trees, b.pid)
				into(dirs, a.pid)
				settle()
				do()
				if rested() {
					t.Errorf("%s, and nobody was read", what)
				}
			}
			into(trees, b.pid)
			into(dirs, a.pid)
			fs = threads
			settle()
			fs = leaders
			settle()
			if _, err := io.WriteString(a.wake, "\n"); err != nil {
				t.Fatal(err)
			}
			for n := 0; rested(); n++ { // until it ran
				if n > 100_000 {
					t.Fatal("it woke, and was never read")
				}
				runtime.Gosched()
			}
			settle()
			fs = threads
			if rested() {
				t.Error("it ran since its threads were read, and they were not")
			}
			settle()
		})
	}
}
