//go:build linux

package attacks

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/capdrift/capdrift/e2e/cgroup"
	"github.com/capdrift/capdrift/e2e/node"
)

// What is here reads /proc by itself: it says whether an attack happens.

// task is a thread as its status tells it.
type task struct {
	pid, tid, parent int
	name             string
	permitted        uint64
	uids             [3]string // real, effective, saved
	age              time.Duration
}

const sysAdmin = 1 << 21

// tasksOf are the threads of all processes in a container's cgroup.
func tasksOf(t testing.TB, c *node.Container) (list []task) {
	t.Helper()
	pids, err := cgroup.Beside(c.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		list = append(list, tasksIn(fmt.Sprintf("/proc/%d", pid))...)
	}
	return list
}

// tasksIn are the threads of one process.
func tasksIn(dir string) (list []task) {
	files, _ := filepath.Glob(dir + "/task/*/status")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		one := task{age: ageOf(filepath.Join(filepath.Dir(file), "stat"))}
		for line := range strings.Lines(string(text)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
			fields := strings.Fields(value)
			if len(fields) == 0 {
				continue
			}
			switch key {
			case "Name":
				one.name = strings.TrimSpace(value)
			case "Tgid":
				one.pid, _ = strconv.Atoi(fields[0])
			case "Pid":
				one.tid, _ = strconv.Atoi(fields[0])
			case "PPid":
				one.parent, _ = strconv.Atoi(fields[0])
			case "Uid":
				copy(one.uids[:], fields)
			case "CapPrm":
				one.permitted, _ = strconv.ParseUint(fields[0], 16, 64)
			}
		}
		list = append(list, one)
	}
	return list
}

// ageOf is how long a thread lives, by field 22 of its stat, proc_pid_stat(5).
func ageOf(stat string) time.Duration {
	text, err := os.ReadFile(stat)
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	uptime, err := os.ReadFile("/proc/uptime")
	if err != nil || len(fields) < 20 {
		return 0
	}
	since, _ := strconv.ParseFloat(strings.Fields(string(uptime))[0], 64)
	start, _ := strconv.ParseFloat(fields[19], 64)
	return time.Duration((since - start/100) * float64(time.Second)) // USER_HZ is 100
}

// forks counts the processes and threads since the boot, proc_stat(5).
func forks(t testing.TB) int {
	t.Helper()
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), "\nprocesses ")
	n, err := strconv.Atoi(strings.SplitN(after, "\n", 2)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// holders waits until that many processes above the ceiling have been seen in a container, one
// after the other: the attack goes on.
func (s *scene) holders(c *node.Container, count int) {
	s.t.Helper()
	seen := map[int]bool{}
	s.await("processes follow each other in "+c.Pod.Container, func() bool {
		for _, one := range tasksOf(s.t, c) {
			if one.permitted&sysAdmin != 0 {
				seen[one.pid] = true
			}
		}
		return len(seen) >= count
	})
}

// mountsOf names the mount namespace of a process.
func mountsOf(t testing.TB, pid int) string {
	t.Helper()
	name, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		t.Fatal(err)
	}
	return name
}
