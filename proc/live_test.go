package proc_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/proc"
)

// actorVariable makes this test binary play a process to be read.
const actorVariable = "CAPDRIFT_PROC_ACTOR"

func init() {
	if os.Getenv(actorVariable) != "" {
		runtime.LockOSThread() // main stays on the leader
	}
}

func TestMain(m *testing.M) {
	if part, acting := os.LookupEnv(actorVariable); acting {
		if err := act(part); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	code := m.Run()
	if theCrowd != nil {
		for _, end := range theCrowd.end {
			end()
		}
	}
	os.Exit(code)
}

// act plays a part: it says one line when ready and ends with its input.
func act(part string) error {
	if part == "sleep" {
		fmt.Fprintln(os.Stdout, "ready")
		_, err := io.Copy(io.Discard, os.Stdin)
		return err
	}
	if root, ok := strings.CutPrefix(part, "node "); ok {
		_, limits, err := proc.New(root, proc.Options{}).Node()
		return errors.Join(err, json.NewEncoder(os.Stdout).Encode(limits))
	}
	// A thread without capabilities, with no_new_privs and with a seccomp filter of its own,
	// beside a leader as we were started, who in one part leaves his threads alone.
	told, ended := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		err := errors.Join(
			unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
			unix.Capset(&header, &make([]unix.CapUserData, 2)[0]),
			filter(),
		)
		fmt.Fprintln(os.Stdout, unix.Gettid())
		told <- err
		_, _ = io.Copy(io.Discard, os.Stdin)
		if part == "headless" {
			os.Exit(0)
		}
		close(ended)
	}()
	if err := <-told; err != nil {
		return err
	}
	if part == "headless" {
		_, _, _ = syscall.Syscall(unix.SYS_EXIT, 0, 0, 0) // of this thread alone
	}
	<-ended
	return nil
}

// filter puts a seccomp filter that allows everything upon this thread alone, seccomp(2).
func filter() error {
	program := unix.SockFprog{Len: 1, Filter: &unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&program))); errno != 0 {
		return errno
	}
	return nil
}

// actor starts the test binary in a part and returns it with the line it said.
func actor(t *testing.T, part string, attributes *syscall.SysProcAttr) (*exec.Cmd, string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(self)
	c.Env = append(os.Environ(), actorVariable+"="+part)
	c.Stderr = os.Stderr
	c.SysProcAttr = attributes
	in, err1 := c.StdinPipe()
	out, err2 := c.StdoutPipe()
	if err := errors.Join(err1, err2, c.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close(); _ = c.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the actor %q said nothing: %v", part, err)
	}
	return c, strings.TrimSpace(line)
}

// cannot skips a test that this machine does not allow, unless it should.
func cannot(t *testing.T, why string, err error) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf("%s: %v", why, err)
	}
	t.Skipf("%s: %v", why, err)
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		cannot(t, "not root", os.ErrPermission)
	}
}

func TestLiveSelf(t *testing.T) {
	fs := proc.New("/", proc.Options{Threads: -1})
	p, err := fs.Process(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if p.PID != os.Getpid() || p.ParentPID != os.Getppid() || p.UID != uint32(os.Geteuid()) || p.StartTime == 0 || p.Age < 0 || p.ThreadCount < 2 || len(p.UserNamespace.UIDMap) == 0 {
		t.Errorf("%+v", p)
	}
	if len(p.Threads) != 0 {
		t.Errorf("threads that differ: %+v", p.Threads)
	}
	node, _, err := fs.Node()
	name, _ := os.Hostname()
	if err != nil || node.Name != name || len(node.BootID) != 36 || node.CapLastCap < 36 || !slices.Contains([]string{"v1", "hybrid", "v2"}, node.CgroupMode) {
		t.Errorf("%+v, %v", node, err)
	}
}

func TestLiveThreads(t *testing.T) {
	c, said := actor(t, "thread", nil)
	p, err := proc.New("/", proc.Options{Threads: -1}).Process(c.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	self, err := proc.New("/", proc.Options{}).Process(os.Getpid())
	if err != nil || p.Caps != self.Caps || *p.NoNewPrivileges != *self.NoNewPrivileges {
		t.Errorf("leader %+v, want as we are, %v", p, err)
	}
	if *p.Seccomp != *self.Seccomp {
		t.Errorf("the leader's seccomp mode is %d, want ours, %d", *p.Seccomp, *self.Seccomp)
	}
	if len(p.Threads) != 1 || strconv.Itoa(p.Threads[0].TID) != said || !*p.Threads[0].NoNewPrivileges || *p.Threads[0].Seccomp != 2 || !p.Threads[0].Caps.Permitted.Empty() || p.Threads[0].Caps.Bounding != p.Caps.Bounding {
		t.Errorf("threads %+v, want one, %s", p.Threads, said)
	}
}

func TestLiveLeaderThatEnded(t *testing.T) {
	c, said := actor(t, "headless", nil)
	fs := listed(t, c.Process.Pid)
	for {
		sweep, err := fs.Sweep(context.Background(), []drift.Container{{ID: idA, CgroupPath: "/x"}})
		if err != nil || len(sweep.Containers[0].Processes) != 1 {
			t.Fatalf("%+v, %v", sweep, err)
		}
		p := sweep.Containers[0].Processes[0]
		if p.State != "Z" {
			continue // the leader is about to end
		}
		if !slices.ContainsFunc(p.Threads, func(thread drift.Thread) bool { return strconv.Itoa(thread.TID) == said }) {
			t.Errorf("threads %+v, want %s among them", p.Threads, said)
		}
		return
	}
}

func TestLiveZombieAndVanished(t *testing.T) {
	c := exec.Command("true")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Waitid(unix.P_PID, c.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	fs := listed(t, c.Process.Pid)
	container := []drift.Container{{ID: idA, CgroupPath: "/x", InitPID: c.Process.Pid}}
	if p, err := fs.Process(c.Process.Pid); err != nil || p.State != "Z" {
		t.Errorf("zombie: %+v, %v", p, err)
	}
	if sweep, err := fs.Sweep(context.Background(), container); err != nil || told(sweep.Containers[0]) != "A observed" {
		t.Errorf("zombie: %q, %v", tell(sweep), err)
	}
	if err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := fs.Process(c.Process.Pid); !errors.Is(err, proc.ErrVanished) {
		t.Errorf("ended: %v", err)
	}
	// The picture of its cgroup lists it still: then it did not end, we do not see it.
	if sweep, err := fs.Sweep(context.Background(), container); err != nil || told(sweep.Containers[0]) != "A unreadable" || !strings.Contains(sweep.Containers[0].Reason, "hidepid") {
		t.Errorf("listed but not shown: %+v, %v", sweep, err)
	}
}

// listed returns a root where /proc is the live one and one cgroup, /x, lists the pids.
func listed(t *testing.T, pids ...int) *proc.FS {
	t.Helper()
	p := picture{t, t.TempDir()}
	p.write("sys/fs/cgroup/cgroup.controllers", "")
	p.cgroup("x", pids...)
	if err := os.Symlink("/proc", filepath.Join(p.root, "proc")); err != nil {
		t.Fatal(err)
	}
	return proc.New(p.root, proc.Options{Threads: -1})
}

func TestLiveUserNamespace(t *testing.T) {
	c, _ := actor(t, "sleep", &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWPID,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	})
	fs := listed(t)
	sweep, err := fs.Sweep(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, container := range sweep.Containers {
		for _, p := range container.Processes {
			if p.PID != c.Process.Pid {
				continue
			}
			want, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", p.PID))
			if err != nil {
				t.Fatal(err)
			}
			u := p.UserNamespace
			if u.Inode != 0 && fmt.Sprintf("user:[%d]", u.Inode) != want || !slices.Equal(u.UIDMap, []drift.IDRange{{Inside: 0, Outside: uint32(os.Geteuid()), Length: 1}}) {
				t.Errorf("%+v, want %s", u, want)
			}
			if !slices.Equal(p.NamespacePIDs, []int{p.PID, 1}) || !strings.HasPrefix(container.Origin, "pid namespace of its own, cgroup /") || *container.Managed {
				t.Errorf("%+v in %+v", p, container)
			}
			return
		}
	}
	t.Errorf("the process in namespaces of its own was not found: %q", tell(sweep))
}

// ownCgroup makes a cgroup in the live tree, in the hierarchy that a sweep looks at first.
func ownCgroup(t *testing.T, name string) (dir string) {
	t.Helper()
	needRoot(t)
	for _, hierarchy := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		if _, err := os.Stat(filepath.Join(hierarchy, "cgroup.procs")); err != nil {
			continue
		}
		dir = filepath.Join(hierarchy, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			cannot(t, "no cgroup can be made", err)
		}
		t.Cleanup(func() {
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		})
		return dir
	}
	t.Fatal("no cgroup hierarchy")
	return ""
}

func enter(t *testing.T, dir string, pid int) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
		t.Fatal(err)
	}
}

func TestLiveCgroup(t *testing.T) {
	parent := fmt.Sprintf("capdrift-test-%d", os.Getpid())
	ownCgroup(t, parent)
	dir := ownCgroup(t, parent+"/"+idA)
	inner := ownCgroup(t, parent+"/"+idA+"/"+idB)
	a, _ := actor(t, "sleep", nil)
	b, _ := actor(t, "sleep", nil)
	enter(t, dir, a.Process.Pid)
	enter(t, inner, b.Process.Pid)
	t.Cleanup(func() { // the cgroups are removed before the actors end
		for _, pid := range []int{a.Process.Pid, b.Process.Pid} {
			enter(t, filepath.Join(dir, "../.."), pid)
		}
	})
	pids := []int{a.Process.Pid, b.Process.Pid}
	slices.Sort(pids)
	want := fmt.Sprintf("A observed %d %d", pids[0], pids[1])

	fs := proc.New("/", proc.Options{})
	given := drift.Container{ID: idA, InitPID: a.Process.Pid}
	byPath := given
	byPath.CgroupPath = "/" + parent + "/" + idA
	for how, containers := range map[string][]drift.Container{"path": {byPath}, "name": {given}, "nobody": nil} {
		sweep, err := fs.Sweep(context.Background(), containers)
		if err != nil {
			t.Fatal(err)
		}
		at := slices.IndexFunc(sweep.Containers, func(c drift.Container) bool { return c.ID == idA })
		if at < 0 || told(sweep.Containers[at]) != want || (sweep.Containers[at].Managed == nil) != (containers != nil) {
			t.Errorf("by %s: %q, want %q", how, tell(sweep), want)
		}
	}
}

// TestLiveChurn reads a container whose processes come and go all the time: none
// is ever unreadable, and whatever is told of one is told of it alone.
func TestLiveChurn(t *testing.T) {
	name := fmt.Sprintf("capdrift-churn-%d", os.Getpid())
	dir := ownCgroup(t, name)
	churn := exec.Command("sh", "-c", `echo $$ >"$1/cgroup.procs" && echo ready && while :; do /bin/true; done`, "sh", dir)
	out, err := churn.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := churn.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		enter(t, filepath.Dir(dir), churn.Process.Pid)
		_ = churn.Process.Kill()
		_ = churn.Wait()
		waitEmpty(t, dir)
	})
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	fs := proc.New("/", proc.Options{Threads: -1})
	starts := map[uint64]bool{}
	for range 200 {
		sweep, err := fs.Sweep(context.Background(), []drift.Container{{ID: "churn", CgroupPath: "/" + name, InitPID: churn.Process.Pid}})
		if err != nil {
			t.Fatal(err)
		}
		c := sweep.Containers[0]
		if c.Observation != drift.Observed || len(c.Processes) == 0 {
			t.Fatalf("%s: %s", told(c), c.Reason)
		}
		for _, p := range c.Processes {
			if p.PID != churn.Process.Pid && p.ParentPID != churn.Process.Pid {
				t.Fatalf("process %d (%s) of parent %d is not the container's", p.PID, p.Name, p.ParentPID)
			}
			if p.PID == churn.Process.Pid {
				starts[p.StartTime] = true
			}
		}
	}
	if len(starts) != 1 {
		t.Errorf("start times of the shell: %v, want one", starts)
	}
}

// waitEmpty waits until the last process has left a cgroup.
func waitEmpty(t *testing.T, dir string) {
	t.Helper()
	for {
		text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			t.Fatal(err)
		}
		if len(text) == 0 {
			return
		}
		runtime.Gosched()
	}
}

func TestLiveHidepid(t *testing.T) {
	needRoot(t)
	root, err := os.MkdirTemp("/tmp", "capdrift-hidepid-") // where everybody may look
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	mounted := filepath.Join(root, "proc")
	if err := errors.Join(os.Chmod(root, 0o755), os.Mkdir(mounted, 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("proc", mounted, "proc", 0, "hidepid=2,gid=4242"); err != nil {
		cannot(t, "no /proc can be mounted", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mounted, 0); err != nil {
			t.Error(err)
		}
	})
	binary, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	self := filepath.Join(root, "actor") // the test binary lies where only its owner may go
	if err := os.WriteFile(self, binary, 0o755); err != nil {
		t.Fatal(err)
	}
	for group, hidden := range map[uint32]bool{65534: true, 4242: false} {
		c := exec.Command(self)
		c.Env = []string{actorVariable + "=node " + root}
		c.Dir = "/"
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: group}}
		out, err := c.Output()
		if err != nil {
			t.Fatal(err)
		}
		if said := strings.Contains(string(out), "hidepid=invisible; run with the group 4242"); said != hidden {
			t.Errorf("group %d: %s", group, out)
		}
	}
}
