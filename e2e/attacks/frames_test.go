//go:build linux

package attacks

import (
	"path"
	"slices"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/e2e/cgroup"
	"github.com/capdrift/capdrift/e2e/node"
)

// The tests of this file are of intruders who would have another accused.

// TestNamedCgroups: cgroups below a container's own are named after another pod's container, as a pod's
// directory, as that of CRI-O's monitor, and one lies deeper than any runtime makes one. Who is in them is
// found in the container that they lie in.
func TestNamedCgroups(t *testing.T) {
	onNode(t)
	needsV1(t)
	t.Parallel()
	s := begin(t)
	victim := s.innocent("victim", nil)
	var attacked []*node.Container
	for name, below := range map[string]string{
		"named-victim":  victim.ID,
		"named-pod":     "kubepods/besteffort/pod" + strings.Repeat("1", 36) + "/" + victim.ID,
		"named-monitor": "crio-conmon-" + victim.ID,
		"named-deep":    strings.Repeat("d/", 60) + "cri-containerd-" + victim.ID + ".scope",
	} {
		c := s.attacked(name, nil)
		own, err := cgroup.Of(c.Pid)
		if err != nil {
			t.Fatal(err)
		}
		pid := s.intrude(c, "name=debug", "ready", "sleep")
		at := own
		for name := range strings.SplitSeq(below, "/") { // each is made on the way
			if at = path.Join(at, name); cgroup.Put(at, pid) != nil {
				t.Fatalf("it cannot be put into %s", at)
			}
		}
		if at, err := cgroup.Of(pid); err != nil || at != path.Join(own, below) {
			t.Fatalf("it is in %s, %v", at, err)
		}
		attacked = append(attacked, c)
	}
	s.look() // which sees them there
	s.findsAll(attacked)
	s.restart(func() {}) // which has seen them nowhere else
	s.findsAll(attacked)
}

// TestFlapping: an intruder goes back and forth between his container's cgroup and another pod's, faster
// than anybody reads. He is found, or what a scan could not read of him is said, and the other pod is not accused.
// While it moves it may be of unknown origin, which accuses no container.
func TestFlapping(t *testing.T) {
	s := begin(t)
	s.guilty[""] = "the node"
	victim := s.innocent("victim", nil)
	c := s.attacked("flapping", nil)
	there, err := cgroup.Of(victim.Pid)
	if err != nil {
		t.Fatal(err)
	}
	here, err := cgroup.Of(c.Pid)
	if err != nil {
		t.Fatal(err)
	}
	pid := s.intrude(c, "name=debug", "ready", "sleep")
	stop, stopped := make(chan struct{}), make(chan struct{})
	moves := 0
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				for _, to := range []string{there, here} {
					if err := cgroup.Put(to, pid); err != nil {
						t.Error(err)
						return
					}
					moves++
				}
			}
		}
	}()
	defer func() {
		close(stop)
		<-stopped
		if moves < 100 {
			t.Errorf("the attack is not one: it moved %d times", moves)
		}
	}()
	s.finds(c, "critical")
	for range 5 {
		s.look()
	}
	if r := s.scan(); r.Coverage.Containers.Partial == 0 {
		if _, found := about(r.Findings, c.ID, "critical", nil); !found {
			t.Errorf("scan neither finds it nor says that it saw a part only: %v, %+v", r.Findings, r.Coverage)
		}
	}
}

// TestSharedPids: the containers of a pod share a pid namespace, whose first process adopts the orphans of
// all. One container's orphans hold nothing too much, and accuse nobody; an intruder in another, who is
// an orphan too, is found there.
func TestSharedPids(t *testing.T) {
	t.Parallel()
	s := begin(t)
	pod := func(name string, steps ...string) *node.Container {
		return s.run(node.Pod{Container: name, Shared: true, Group: t.Name(), Args: steps, Security: &cri.LinuxContainerSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_POD},
		}})
	}
	beside := pod("beside", "ready", "sleep")
	c := pod("intruded", "ready", "sleep")
	s.guilty[c.ID] = "intruded"
	plain := pod("plain", "ready", "sleep")
	if _, err := theNode.RuncExec(t.Context(), plain, nil, "orphan", "name=plain-orphan", "ready", "sleep"); err != nil {
		t.Fatal(err)
	}
	s.intrude(c, "orphan", "name=debug", "ready", "sleep")
	orphan := s.holder(c, "the intruder is another's child", func(one task) bool { return one.name == "debug" && one.parent != c.Pid })
	if slices.ContainsFunc(tasksOf(t, beside), func(one task) bool { return one.pid == orphan.parent }) {
		t.Fatal("another container adopted it")
	}
	s.finds(c, "critical")
	s.keeps(c, "critical")
	s.scanFinds(c, "critical")
}

// TestOwnMounts: an intruder whose parent is of the node goes into a mount namespace of its own, so that
// nothing ties it to the container but its cgroup, where anybody who may write cgroups could have put it.
// It is critical, of the container or of unknown origin, and no other container is accused.
func TestOwnMounts(t *testing.T) { unknownOrigin(t, "own-mounts") }

// TestOwnMountsAndPids: the same of the child of such a one, in a pid namespace of its own too.
func TestOwnMountsAndPids(t *testing.T) { unknownOrigin(t, "apart=pid,mnt") }

func unknownOrigin(t *testing.T, step string) {
	s := begin(t)
	s.innocent("neighbor", nil)
	c := s.attacked("of-nobody", nil)
	s.guilty[""] = "the node"
	s.intrude(c, step, "name=debug", "ready", "sleep")
	intruder := s.holder(c, "the intruder", func(one task) bool { return one.name == "debug" })
	found := func(findings []finding) bool {
		return slices.ContainsFunc(findings, func(f finding) bool {
			return f.Pid == intruder.pid && f.Severity == "critical" && (f.ContainerID == c.ID || f.ContainerID == "" && f.Kind == "unknown_origin")
		})
	}
	s.await("the agent finds it", func() bool { return found(s.told.open()) })
	if r := s.scan(); !found(r.Findings) {
		t.Errorf("scan does not find it, but %v", r.Findings)
	}
}

// TestMountsOfAnother: an intruder in a pod on the node's pids goes into the mount namespace of another
// pod's container, and stays in its own cgroup. It joined that container, where it is found; the finding
// tells of the cgroup that it joined from, which is the way to who did it. A third pod is not accused.
func TestMountsOfAnother(t *testing.T) {
	t.Parallel()
	s := begin(t)
	s.innocent("neighbor", nil)
	joined := s.attacked("joined", nil)
	c := s.attacked("joiner", &cri.LinuxContainerSecurityContext{
		NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_NODE},
	})
	own, err := cgroup.Of(c.Pid)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := theNode.RuncExec(t.Context(), c, []string{"CAP_SYS_ADMIN", "CAP_SYS_PTRACE"}, "name=debug", "mounts-of="+pidOf(joined), "ready", "sleep")
	if err != nil {
		t.Fatal(err)
	}
	tells := func(findings []finding) bool {
		return slices.ContainsFunc(findings, func(f finding) bool {
			return f.Pid == pid && f.Severity == "critical" && (f.ContainerID == c.ID || f.ContainerID == joined.ID && strings.Contains(f.Message, path.Dir(own)))
		})
	}
	var told report
	defer func() { t.Logf("told was %v and %v", told.about(c.ID), told.about(joined.ID)) }()
	s.await("the agent tells where it came from", func() bool {
		told = s.look()
		return tells(told.Findings)
	})
	if r := s.scan(); !tells(r.Findings) {
		t.Errorf("scan does not tell where it came from, but %v", r.Findings)
	}
}

// TestMountsShared: the first process of a pod on the node's pids goes into the mount namespace of
// another pod's container, so that mounts do not tell the two apart. An intruder in the other is found there.
func TestMountsShared(t *testing.T) {
	t.Parallel()
	s := begin(t)
	s.innocent("neighbor", nil)
	victim := s.attacked("victim", nil)
	joiner := s.innocent("joiner", &cri.LinuxContainerSecurityContext{
		Capabilities:     &cri.Capability{AddCapabilities: []string{"SYS_ADMIN", "SYS_PTRACE"}},
		NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_NODE},
	}, "mounts-of="+pidOf(victim), "ready", "sleep")
	if mountsOf(t, joiner.Pid) != mountsOf(t, victim.Pid) {
		t.Fatal("the attack is not one")
	}
	s.intrude(victim, "name=debug", "ready", "sleep")
	s.finds(victim, "critical")
	s.scanFinds(victim, "critical")
}
