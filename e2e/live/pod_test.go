//go:build linux

package live

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/e2e/agentpod"
	"github.com/capdrift/capdrift/e2e/node"
)

// agentPod is how capdrift is meant to be deployed, but on the host's pids.
func agentPod(n *node.Node, proc string, user int64) node.Pod {
	return agentpod.Pod(n, filepath.Join(programs, "capdrift"), proc, user)
}

// scanFrom runs the scan inside a pod.
func scanFrom(t *testing.T, c *node.Container) (r report, stderr string, status int) {
	t.Helper()
	stdout, errs, err := theNode.Exec(t.Context(), c, agentpod.Program, "scan", "-o", "json", "--host-root", agentpod.HostRoot)
	var exit *node.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if exit != nil {
		status = exit.Code
	}
	if len(stdout) == 0 {
		t.Fatalf("exit status %d and no report: %s", status, errs)
	}
	return parse(t, string(stdout)), string(errs), status
}

func TestFromPod(t *testing.T) {
	n := onNode(t)
	containers := run(t,
		pod(nil),
		pod(restricted()),
		pod(dropAll()),
		pod(userNamespace(&cri.LinuxContainerSecurityContext{})),
		agentPod(n, "/proc", 0),
		agentPod(n, "/proc", 65534),
		agentPod(n, hidingProc(t, n), 0),
		agentPod(n, hidingProc(t, n), 65534),
		agentpod.OwnPids(agentPod(n, "/proc", 0)),
	)
	plain, victim, userns := containers[0], containers[2], containers[3]
	injected, err := n.Inject(t.Context(), victim, "ready", "sleep")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(injected.Stop)
	byRoot, byNobody, hiddenFromRoot, hiddenFromNobody, withoutHostPID := containers[4], containers[5], containers[6], containers[7], containers[8]
	host := scan(t)

	// all asserts that a look from a pod saw what the look from the host saw.
	all := func(t *testing.T, r report) {
		t.Helper()
		for _, want := range host.Containers {
			got := r.container(t, want.ID)
			if got.Observation != "observed" {
				t.Errorf("%s: %s", want.Name, got.Observation)
			}
			for _, p := range want.Processes {
				seen := got.process(t, p.Pid)
				if seen.Caps.Permitted.Hex != p.Caps.Permitted.Hex || seen.UserNamespace.Relation != p.UserNamespace.Relation {
					t.Errorf("process %d: %+v, from the host %+v", p.Pid, seen, p)
				}
			}
		}
		alarms := func(r report) (list []finding) {
			for _, f := range r.Findings {
				if f.alarming() {
					list = append(list, finding{Kind: f.Kind, Pid: f.Pid, Set: f.Set, ContainerID: f.ContainerID})
				}
			}
			return list
		}
		same := func(a, b finding) bool {
			return a.Kind == b.Kind && a.Pid == b.Pid && a.Set == b.Set && a.ContainerID == b.ContainerID
		}
		if got, want := alarms(r), alarms(host); !slices.EqualFunc(got, want, same) || len(want) != 2 {
			t.Errorf("alarms %+v, from the host %+v, want the two of the injected process", got, want)
		}
	}

	t.Run("root_without_capabilities", func(t *testing.T) {
		r, stderr, status := scanFrom(t, byRoot)
		if status != 0 {
			t.Errorf("exit status %d: %s", status, stderr)
		}
		all(t, r)
		if !r.Coverage.Complete {
			t.Errorf("coverage %+v", r.Coverage)
		}
		// What it cannot read, it says and does without.
		for _, c := range []*node.Container{plain, userns} {
			p := r.container(t, c.ID).process(t, c.Pid)
			if p.UserNamespace.Inode != nil || p.UserNamespace.Relation != "same" {
				t.Errorf("user namespace %+v, want one judged by its maps", p.UserNamespace)
			}
		}
		if !limited(r, "user namespaces", false) {
			t.Errorf("limits do not tell of user namespaces: %+v", r.Coverage.Limits)
		}
	})
	t.Run("without_hostPID", func(t *testing.T) {
		// cgroup.procs tells such a reader zeros, or numbers of its own pid namespace.
		r, stderr, status := scanFrom(t, withoutHostPID)
		if status != 0 {
			t.Errorf("exit status %d: %s", status, stderr)
		}
		all(t, r)
		if !limited(r, "hostPID", false) {
			t.Errorf("limits do not tell of the pid namespace: %+v", r.Coverage.Limits)
		}
	})
	t.Run("cgroup_namespace", func(t *testing.T) {
		own, err := os.Readlink("/proc/" + strconv.Itoa(byRoot.Pid) + "/ns/cgroup")
		if err != nil {
			t.Fatal(err)
		}
		ours, err := os.Readlink("/proc/self/ns/cgroup")
		if err != nil {
			t.Fatal(err)
		}
		mustHave(t, own != ours, "private cgroup namespaces of containers (cgroup v2)")
	})
	t.Run("apparmor", func(t *testing.T) {
		mustHave(t, agentpod.AppArmor(), "AppArmor")
		profile, err := os.ReadFile("/proc/" + strconv.Itoa(byRoot.Pid) + "/attr/current")
		if err != nil || !strings.Contains(string(profile), "(enforce)") {
			t.Errorf("the agent's profile is %q, %v; want one enforced", profile, err)
		}
	})
	t.Run("nobody", func(t *testing.T) {
		// The runtime's socket is root's. The processes are still there to see.
		r, stderr, status := scanFrom(t, byNobody)
		withoutRuntime(t, r, stderr, status)
		c := r.container(t, plain.ID)
		if c.process(t, plain.Pid).Caps.Effective.Hex != "00000000a80425fb" {
			t.Errorf("processes %+v", c.Processes)
		}
	})
	t.Run("hidepid_root", func(t *testing.T) {
		// hidepid spares the group that owns the mount, and that is root's.
		r, stderr, status := scanFrom(t, hiddenFromRoot)
		if status != 0 {
			t.Errorf("exit status %d: %s", status, stderr)
		}
		all(t, r)
	})
	t.Run("hidepid_nobody", func(t *testing.T) {
		r, stderr, status := scanFrom(t, hiddenFromNobody)
		withoutRuntime(t, r, stderr, status)
		if !limited(r, "hidepid", true) {
			t.Errorf("limits do not tell of hidepid: %+v", r.Coverage.Limits)
		}
	})
}

// withoutRuntime asserts what a report says when the runtime could not be asked. Of some
// containers an agent's journal tells what was declared, for there are findings about them.
func withoutRuntime(t *testing.T, r report, stderr string, status int, kept ...*node.Container) {
	t.Helper()
	if status != 1 || stderr == "" {
		t.Errorf("exit status %d with %q, want 1 and a reason", status, stderr)
	}
	if r.Runtime != nil || r.Coverage.Complete {
		t.Errorf("runtime %+v, coverage %+v; want none, and not complete", r.Runtime, r.Coverage)
	}
	for _, c := range r.Containers {
		known := slices.ContainsFunc(kept, func(k *node.Container) bool { return k.ID == c.ID })
		if known != (c.Declared.OCI != nil) || known != (c.Declared.CRI != nil) || c.Managed != nil {
			t.Errorf("container %s: declared %+v, known from a journal %v, managed %v; want what is in a journal, and else unknown", c.ID, c.Declared, known, c.Managed)
		}
	}
	noAlarms(t, r)
}

// limited tells whether the report names a limit with this word.
func limited(r report, word string, blind bool) bool {
	for _, l := range r.Coverage.Limits {
		if l.Blind == blind && strings.Contains(l.What+" "+l.Why, word) {
			return true
		}
	}
	return false
}

// hidingProc mounts a /proc of the host's pids that hides processes from other users.
func hidingProc(t *testing.T, n *node.Node) string {
	t.Helper()
	dir, err := os.MkdirTemp(n.Root, "proc-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("proc", dir, "proc", 0, "hidepid=2"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}
