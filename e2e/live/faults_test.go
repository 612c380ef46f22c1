//go:build linux

package live

import (
	"encoding/json"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/capdrift/capdrift/e2e/node"
)

// scale is how much trouble the tests of faults make: in full, as `make faults` does, or
// some of it.
func scale[T any](some, full T) T {
	if os.Getenv("CAPDRIFT_FAULTS") == "full" {
		return full
	}
	return some
}

// onFastNode is onNode, but for an emulated machine, on which trouble takes twenty times as long
// and shows nothing that it does not show elsewhere.
func onFastNode(t *testing.T) *node.Node {
	t.Helper()
	if os.Getenv("CAPDRIFT_E2E_SLOW") != "" {
		t.Skip("this machine is emulated; the test runs on the one around it")
	}
	return onNode(t)
}

// works tells whether a part of the agent fares well, by what get says of it.
func (a *anAgent) works(name string) bool {
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
		Coverage struct{ Complete bool }
	}
	if err := json.Unmarshal([]byte(stdout), &of); err != nil {
		a.t.Fatal(err)
	}
	for _, part := range of.Components {
		if part.Name == name {
			if !part.OK && of.Coverage.Complete {
				a.t.Errorf("%s fails (%s), and the coverage is complete", name, part.Why)
			}
			return part.OK
		}
	}
	return false // nobody has tried it
}

func (a *anAgent) fails(name string) bool { return !a.works(name) }

// change is what a watcher was told of a finding; Change is empty in a snapshot.
type change struct {
	Change  string
	Finding struct {
		ID string
		finding
	}
}

func changes(t *testing.T, told string) (list []change) {
	t.Helper()
	for line := range strings.Lines(told) {
		if !strings.HasSuffix(line, "\n") {
			break // it is being written
		}
		var of change
		if err := json.Unmarshal([]byte(line), &of); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		list = append(list, of)
	}
	return list
}

// opened counts, by their ids, how often a watcher was told that findings are opened.
func opened(t *testing.T, told string) map[string]int {
	t.Helper()
	count := map[string]int{}
	for _, of := range changes(t, told) {
		if of.Change == "opened" {
			count[of.Finding.ID]++
		}
	}
	return count
}

// intruders are the processes that a watcher was told to hold too much.
func intruders(t *testing.T, told string) map[int]bool {
	t.Helper()
	pids := map[int]bool{}
	for _, of := range changes(t, told) {
		if of.Finding.alarming() {
			pids[of.Finding.Pid] = true
		}
	}
	return pids
}

// TestRuntimeTrouble: while the runtime is away, hangs or is slow, the agent says so, and
// what is known is watched all the same; and then all is as before.
func TestRuntimeTrouble(t *testing.T) {
	n := onFastNode(t)
	quick := "cadence: {list: 1s}"
	for _, row := range []struct {
		name     string
		endpoint func(*testing.T) string
		begin    func() error
		end      func() error
		says     bool // that the runtime does not answer
	}{
		{
			name:  "away", // for a minute, and back with another socket
			begin: func() error { return n.StopRuntime(t.Context()) }, end: func() error { return n.StartRuntime(t.Context()) }, says: true,
		},
		{
			name:  "hangs",
			begin: func() error { return syscall.Kill(n.RuntimePid(), syscall.SIGSTOP) },
			end:   func() error { return syscall.Kill(n.RuntimePid(), syscall.SIGCONT) }, says: true,
		},
		{name: "slow", endpoint: slowly},
	} {
		t.Run(row.name, func(t *testing.T) {
			endpoint := n.Endpoint()
			if row.endpoint != nil {
				endpoint = row.endpoint(t)
			}
			a := startAgent(t, quick)
			a.end(syscall.SIGTERM)
			a.configure(endpoint, quick)
			a.start()
			told := a.watch()
			both := run(t, node.Pod{Security: dropAll()}, node.Pod{Security: dropAll()})
			c, meanwhile := both[0], both[1]
			a.await("both containers are seen", func() bool { return a.sees(c.ID) && a.sees(meanwhile.ID) })
			before := a.intrude(c)
			if row.begin != nil {
				if err := row.begin(); err != nil {
					t.Fatal(err)
				}
				ended := false
				end := func() {
					if !ended {
						ended = true
						if err := row.end(); err != nil {
							t.Fatal(err)
						}
					}
				}
				defer end()
				a.await("it says that the runtime does not answer", func() bool { return a.fails("runtime") })
				long := time.After(scale(time.Second, time.Minute)) // which is what is tested
				a.expel(a.intrude(meanwhile))
				<-long
				if !a.tells(before) || !a.fails("runtime") {
					t.Errorf("after that %q are open", a.findings(c.ID))
				}
				end()
			}
			a.await("all is well", func() bool { return a.works("runtime") && a.sees(c.ID) })
			a.expel(before)
			second := run(t, node.Pod{Security: dropAll()})[0]
			a.await("a new container is seen", func() bool { return a.sees(second.ID) })
			a.expel(a.intrude(second))
			for id, times := range opened(t, told()) {
				if times > 1 {
					t.Errorf("%s was opened %d times", id, times)
				}
			}
			for _, each := range []*node.Container{c, meanwhile, second} {
				if open := a.findings(each.ID); open != nil {
					t.Errorf("in the end %q are open", open)
				}
			}
		})
	}
}

// sees tells whether the agent has seen all of a container.
func (a *anAgent) sees(id string) bool {
	stdout, _, _, _ := a.ask("get", "container", id, "-o", "json")
	return strings.Contains(stdout, `"observation": "observed"`)
}

// slowly is an endpoint at which the runtime answers late, each time.
func slowly(t *testing.T) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "slow.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(func() { listener.Close(); all.Wait() })
	pass := func(from, to net.Conn) {
		defer to.Close()
		for buffer := make([]byte, 64<<10); ; {
			n, err := from.Read(buffer)
			<-time.After(200 * time.Millisecond) // which is what is tested
			if _, failed := to.Write(buffer[:n]); err != nil || failed != nil {
				return
			}
		}
	}
	all.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			runtime, err := net.Dial("unix", strings.TrimPrefix(theNode.Endpoint(), "unix://"))
			if err != nil {
				client.Close()
				continue
			}
			all.Go(func() { pass(client, runtime) })
			all.Go(func() { pass(runtime, client) })
		}
	})
	return "unix://" + socket
}

// TestKilledOften: the agent is killed again and again while findings open and resolve. What
// it has told of is open under the same id after the next start, as long as its process is
// there, and not told to be opened again; nothing is open for a process that is gone.
func TestKilledOften(t *testing.T) {
	onFastNode(t)
	a := startAgent(t)
	containers := run(t, pod(dropAll()), pod(restricted()))
	lasting := a.intrude(containers[0])
	var want []string // "id pid", of those that last
	for _, each := range a.ids() {
		if strings.HasSuffix(each, " "+strconv.Itoa(lasting.pid)) {
			want = append(want, each)
		}
	}
	var coming atomic.Pointer[string]
	stop := make(chan struct{})
	var intruders errgroup.Group
	intruders.Go(func() error {
		for {
			select {
			case <-stop:
				return nil
			default:
			}
			pid, err := theNode.RuncExec(t.Context(), containers[1], []string{"CAP_SYS_TIME"}, "name=debug", "ready", "sleep")
			if err != nil {
				return err
			}
			name := strconv.Itoa(pid)
			coming.Store(&name)
			select {
			case <-time.After(300*time.Millisecond + rand.N(time.Second)):
			case <-stop:
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				return err
			}
		}
	})
	kills := scale(10, 100)
	told := a.watch() // it connects again each time
	for i := range kills {
		// From before its first look until findings were opened and resolved.
		moment := time.After(rand.N(2 * time.Second))
		<-moment
		a.end(syscall.SIGKILL)
		a.start()
		open := a.ids()
		for _, each := range want {
			if !slices.Contains(open, each) {
				t.Errorf("after kill %d, %s is not open: %q", i, each, open)
			}
		}
		ids := map[string]bool{}
		for _, each := range open {
			id, _, _ := strings.Cut(each, " ")
			if ids[id] {
				t.Errorf("after kill %d, %s is open twice", i, id)
			}
			ids[id] = true
		}
	}
	close(stop)
	if err := intruders.Wait(); err != nil {
		t.Fatal(err)
	}
	// What comes again and again ends when it was gone for a minute.
	a.awaitFor(2*time.Minute, "nothing is open for a process that is gone", func() bool { return a.findings(containers[1].ID) == nil })
	if coming.Load() == nil {
		t.Error("nobody came")
	}
	again := opened(t, told())
	for _, each := range want {
		if id, _, _ := strings.Cut(each, " "); again[id] > 0 {
			t.Errorf("%s was open all the time, and opened again", id)
		}
	}
	a.expel(lasting)
	t.Logf("killed %d times; %d others were opened", kills, len(again))
}

// TestManyProcesses: a container of ten thousand processes, and one that makes and ends some
// five hundred a second, hide nobody, in themselves or elsewhere, and nothing false is found.
func TestManyProcesses(t *testing.T) {
	onFastNode(t)
	a := startAgent(t)
	told := a.watch()
	crowded := "crowd=" + strconv.Itoa(scale(3_000, 10_000))
	containers := run(t,
		pod(dropAll()),
		pod(dropAll(), crowded, "ready", "sleep"),
		pod(dropAll(), "churn=5:10ms", "ready", "sleep"),
	)
	for _, c := range containers {
		a.await("it is seen", func() bool { return strings.Contains(a.names(), c.ID) })
	}
	came := map[int]bool{}
	for range scale(2, 10) {
		for _, c := range containers {
			each := a.intrude(c)
			each.kill(t)
			came[each.pid] = true
		}
	}
	a.awaitFor(2*time.Minute, "all intruders are gone", func() bool {
		return !slices.ContainsFunc(containers, func(c *node.Container) bool { return a.findings(c.ID) != nil })
	})
	for _, c := range containers[1:] {
		if err := theNode.Remove(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	a.await("it sees everything again", func() bool {
		_, _, status, err := a.ask("scan", "-o", "json")
		return err == nil && status == 0
	})
	pids := intruders(t, told())
	for pid := range pids {
		if !came[pid] {
			t.Errorf("process %d was found to hold too much, and is none of the intruders", pid)
		}
	}
	if len(pids) < len(containers) {
		t.Errorf("a watcher was told of %d intruders, want those who came first into %d containers", len(pids), len(containers))
	}
}

// names of all containers that the agent knows.
func (a *anAgent) names() string {
	stdout, _, _, _ := a.ask("get", "containers", "-o", "jsonl")
	return stdout
}

// TestManyContainers: two thousand of them.
func TestManyContainers(t *testing.T) {
	onFastNode(t)
	a := startAgent(t)
	told := a.watch()
	pods := slices.Repeat([]node.Pod{pod(dropAll())}, scale(50, 2_000))
	for i := range pods {
		pods[i].Group = strconv.Itoa(i / 100)
	}
	containers := run(t, pods...)
	a.await("all are seen", func() bool {
		seen := a.names()
		return !slices.ContainsFunc(containers, func(c *node.Container) bool { return !strings.Contains(seen, c.ID) })
	})
	for _, c := range []*node.Container{containers[0], containers[len(containers)/2], containers[len(containers)-1]} {
		a.expel(a.intrude(c))
	}
	u := usage(t, a.cmd.Process.Pid)
	t.Logf("%d containers: %d MiB, %d descriptors, %v of processor time", len(containers), u.Resident>>20, u.Descriptors, u.CPU)
	for _, of := range changes(t, told()) { // while they started, the runtime's answers were often old
		if of.Finding.Kind == "unmanaged_container" && slices.ContainsFunc(containers, func(c *node.Container) bool { return c.ID == of.Finding.ContainerID }) {
			t.Errorf("%s: a pod's container was a stranger: %+v", of.Change, of.Finding)
		}
	}
	if pids := intruders(t, told()); len(pids) != 3 {
		t.Errorf("%v were found to hold too much, want three", pids)
	}
}
