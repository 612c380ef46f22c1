//go:build linux

package attacks

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/e2e/node"
)

// TestRow05IdentityMaps: a pod makes a user namespace whose uids, gids and project ids are mapped as
// in the initial one. Its process holds everything in there and nothing outside: that is information.
// A process that was injected stays critical when its parent has ended, beside such a one too.
func TestRow05IdentityMaps(t *testing.T) {
	t.Parallel()
	s := begin(t)
	twin := []string{"userns=identity", "projects", "ready", "sleep"}
	nested := s.innocent("nested", nil, twin...)
	s.identical(nested)
	s.look()
	s.scan()
	attacked := []*node.Container{s.attacked("injected", nil), s.attacked("beside", nil, twin...)}
	for _, c := range attacked {
		s.intrude(c, "orphan", "name=debug", "ready", "sleep")
		s.await("the intruder is an orphan", func() bool {
			for _, one := range tasksOf(t, c) {
				if one.name == "debug" && one.parent == c.Pid {
					return true
				}
			}
			return false
		})
	}
	s.findsAll(attacked)
	for _, c := range attacked {
		s.keeps(c, "critical", "permitted_excess", "bounding_excess")
	}
}

// identical asserts that a process of c is in another user namespace of the initial one's maps.
func (s *scene) identical(c *node.Container) {
	s.t.Helper()
	own, err := os.Readlink("/proc/self/ns/user")
	if err != nil {
		s.t.Fatal(err)
	}
	for _, one := range tasksOf(s.t, c) {
		dir := fmt.Sprintf("/proc/%d/", one.pid)
		if its, err := os.Readlink(dir + "ns/user"); err != nil || its == own {
			continue
		}
		for _, name := range []string{"uid_map", "gid_map", "projid_map"} {
			text, err := os.ReadFile(dir + name)
			if err != nil || strings.Join(strings.Fields(string(text)), " ") != "0 0 4294967295" {
				s.t.Fatalf("the %s is %q, %v", name, text, err)
			}
		}
		return
	}
	s.t.Fatal("no process is in another user namespace")
}

// setuid is a pod of uid 1000 whose program becomes root by a setuid binary, and goes on with these
// steps.
func (s *scene) setuid(name string, steps ...string) *node.Container {
	s.t.Helper()
	return s.attacked(name, &cri.LinuxContainerSecurityContext{RunAsUser: &cri.Int64Value{Value: 1000}},
		append([]string{"exec=/bin/actor-setuid"}, steps...)...)
}

// TestRow09Thread: a program that a setuid binary made root sets its leader's uids back to 1000,
// while its other threads stay root. It is found that it became root, and stays found.
func TestRow09Thread(t *testing.T) {
	t.Parallel()
	s := begin(t, "cadence: {sweep: 2s, threads: 2s}") // threads are read once a minute else
	c := s.setuid("root-thread", "caps=0", "leader=1000:1000:1000", "ready", "sleep")
	hidden := false
	for _, one := range tasksOf(t, c) {
		switch {
		case one.pid == one.tid && one.uids != [3]string{"1000", "1000", "1000"}:
			t.Fatalf("the leader is %+v", one)
		case one.pid != one.tid && one.uids[1] == "0":
			hidden = true
		}
	}
	if !hidden {
		t.Fatal("no thread stayed root")
	}
	s.foundRoot(c)
}

// TestRow09SavedUID: such a program keeps uid 0 as its saved uid alone, from which it is root again
// whenever it likes. That is found too.
func TestRow09SavedUID(t *testing.T) {
	t.Parallel()
	s := begin(t)
	c := s.setuid("root-saved", "uids=1000:1000:0", "caps=0", "ready", "sleep")
	for _, one := range tasksOf(t, c) {
		if one.uids != [3]string{"1000", "1000", "0"} {
			t.Fatalf("a thread is %+v", one)
		}
	}
	s.foundRoot(c)
}

func (s *scene) foundRoot(c *node.Container) {
	s.t.Helper()
	s.finds(c, "medium", "became_root")
	s.keeps(c, "medium", "became_root")
	s.scanFinds(c, "medium", "became_root")
}

// TestRow13BelowHome: the first process of a pod with hostUsers: false goes into a user namespace below
// the pod's own, where an intruder stays behind. He is compared all the same.
func TestRow13BelowHome(t *testing.T) {
	t.Parallel()
	s := begin(t)
	ids := []*cri.IDMapping{{HostId: 100000, Length: 65536}}
	c := s.attacked("below", &cri.LinuxContainerSecurityContext{NamespaceOptions: &cri.NamespaceOption{
		Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER,
		UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids},
	}}, "await", "below", "ready", "sleep")
	pid := s.intrude(c, "name=debug", "ready", "sleep")
	if err := syscall.Kill(c.Pid, syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	s.await("the first process is below the intruder", func() bool {
		first, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", c.Pid))
		if err != nil {
			t.Fatal(err)
		}
		home, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", pid))
		return err == nil && first != home
	})
	s.scanFinds(c, "critical", "permitted_excess", "bounding_excess")
	s.restart(func() {}) // it has not seen the pod as it was before
	s.keeps(c, "critical", "permitted_excess", "bounding_excess")
}

// TestRow24Worker: the leader of a root container gave up everything, and a worker thread still holds
// CAP_NET_BIND_SERVICE. That one is not given up.
func TestRow24Worker(t *testing.T) {
	t.Parallel()
	s := begin(t)
	c := s.innocent("worker", nil, "worker=400", "ready", "sleep")
	if !slices.ContainsFunc(tasksOf(t, c), func(one task) bool { return one.tid != one.pid && one.permitted == 0x400 }) {
		t.Fatal("no thread holds it")
	}
	for who, r := range map[string]report{"the agent": s.look(), "scan": s.scan()} {
		for _, f := range r.about(c.ID) {
			if f.Kind == "dropped" && slices.Contains(f.Capabilities, "CAP_NET_BIND_SERVICE") {
				t.Errorf("%s: %v", who, f)
			}
		}
	}
}
