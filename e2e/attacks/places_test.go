//go:build linux

package attacks

import (
	"context"
	"path"
	"slices"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/e2e/cgroup"
	"github.com/capdrift/capdrift/e2e/node"
)

// mover is a pod that may have CAP_SYS_ADMIN, whose child is in another cgroup.
func (s *scene) mover(name, to string, pid cri.NamespaceMode) *node.Container {
	s.t.Helper()
	return s.attacked(name, &cri.LinuxContainerSecurityContext{
		Capabilities:     &cri.Capability{AddCapabilities: []string{"SYS_ADMIN"}},
		NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: pid},
	}, "move="+to, "name=moved", "ready", "sleep")
}

// needsV1 skips a test where a container's own cgroup namespace keeps it from others' cgroups.
func needsV1(t *testing.T) {
	t.Helper()
	all, err := cgroup.Hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(all, func(h cgroup.Hierarchy) bool { return !h.V2() }) {
		t.Skip("containers of cgroup v2 have a cgroup namespace of their own, from which nobody is moved")
	}
}

// TestRow10Moved: a container with declared CAP_SYS_ADMIN mounts the cgroup trees and moves its child
// into another pod's cgroup. The mover is blamed and not who was given the child.
func TestRow10Moved(t *testing.T) {
	onNode(t)
	needsV1(t)
	t.Parallel()
	s := begin(t)
	victim := s.innocent("victim", nil)
	to, err := cgroup.Of(victim.Pid)
	if err != nil {
		t.Fatal(err)
	}
	c := s.mover("mover", to, cri.NamespaceMode_CONTAINER)
	s.await("the child is in the other pod's cgroup", func() bool {
		return slices.ContainsFunc(tasksOf(t, victim), func(one task) bool { return one.name == "moved" && one.permitted&sysAdmin != 0 })
	})
	if f := s.finds(c, "high"); !strings.Contains(f.Message, "moved") {
		t.Errorf("it does not say that it was moved: %v", f)
	}
	s.scanFinds(c, "high")
}

// TestRow10MovedOut: such a container on the host's pids moves its child to the root of the trees,
// where no container is. The child is still the container's.
func TestRow10MovedOut(t *testing.T) {
	onNode(t)
	needsV1(t)
	t.Parallel()
	s := begin(t)
	c := s.mover("leaver", "/", cri.NamespaceMode_NODE)
	isIts := func(r report) bool {
		for _, of := range r.Containers {
			for _, p := range of.Processes {
				if of.ID == c.ID && p.Name == "moved" {
					return true
				}
			}
		}
		return false
	}
	s.await("the child has left the container's cgroup", func() bool {
		return !slices.ContainsFunc(tasksOf(t, c), func(one task) bool { return one.name == "moved" })
	})
	s.await("the agent still counts the child to the container", func() bool { return isIts(s.look()) })
	if !isIts(s.scan()) {
		t.Error("scan does not count the child to the container")
	}
}

// TestRow11SameID: somebody who has containerd's socket runs a container in another namespace of
// containerd, by the id of a pod's container. Both are there, and neither hides the other.
func TestRow11SameID(t *testing.T) {
	t.Parallel()
	s := begin(t)
	c := s.attacked("twin", nil)
	twin, err := theNode.RunMobyAs(t.Context(), c.ID, "ready", "sleep")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := theNode.Remove(context.Background(), twin); err != nil {
			t.Error(err)
		}
	})
	s.guilty[twin.ReportedID()] = "no pod explains it"
	owners.Store(twin.ReportedID(), s)
	s.await("the agent finds the other container", func() bool {
		_, found := about(s.told.open(), twin.ReportedID(), "medium", []string{"unmanaged_container"})
		return found
	})
	s.intrude(c, "name=debug", "ready", "sleep")
	s.finds(c, "critical", "permitted_excess")
	both := func(who string, r report) {
		_, twinFound := about(r.Findings, twin.ReportedID(), "medium", []string{"unmanaged_container"})
		_, found := about(r.Findings, c.ID, "critical", nil)
		if !twinFound || !found {
			t.Errorf("%s has the other container: %t, and the intruder in the pod's: %t", who, twinFound, found)
		}
	}
	both("the agent", s.look())
	both("scan", s.scan())
}

// TestRow16Joined: somebody on the host enters a container's namespaces from a login session, whose
// cgroup is none of a container's. He is found in the container that he joined, and not as a container
// of his own.
func TestRow16Joined(t *testing.T) {
	s := begin(t)
	s.innocent("neighbor", nil)
	session := theNode.Cgroup + "/user.slice/user-0.slice/session-7.scope"
	if err := cgroup.Make(session); err != nil {
		t.Fatal(err)
	}
	s.guilty[session] = "the session"
	s.guilty[""] = "who joined a pid namespace, and nobody can tell whose"
	owners.Store("", s)
	var joined []*node.Container
	var unnamed *node.Process
	for name, namespaces := range map[string]string{"joined-all": "ipc,uts,net,pid,mnt", "joined-mounts": "mnt", "joined-pids": "pid"} {
		c := s.attacked(name, nil)
		p := s.host("ns="+pidOf(c)+":"+namespaces, "name="+name, "ready", "sleep")
		if err := cgroup.Put(session, p.Pid); err != nil {
			t.Fatal(err)
		}
		if namespaces == "pid" {
			unnamed = p
			continue
		}
		joined = append(joined, c)
	}
	s.findsAll(joined)
	s.await("the node's one critical names who joined a pid namespace alone", func() bool {
		return slices.ContainsFunc(s.told.open(), func(f finding) bool {
			return f.ContainerID == "" && f.Severity == "critical" && f.Pid == unnamed.Pid
		})
	})
}

// TestRow22NamedAsMonitor: cgroups below a pod's have "-conmon-" in their names, as that of CRI-O's
// monitor has. Who is in them is looked at: one who joined a container of the pod, and one who did not.
func TestRow22NamedAsMonitor(t *testing.T) {
	s := begin(t)
	s.innocent("neighbor", nil)
	c := s.attacked("monitored", nil)
	s.guilty[c.Sandbox] = "its pod"
	own, err := cgroup.Of(c.Pid)
	if err != nil {
		t.Fatal(err)
	}
	is := func(p *node.Process, least string) func(finding) bool {
		return func(f finding) bool { return f.Pid == p.Pid && rank(f.Severity) >= rank(least) }
	}
	place := func(name string, p *node.Process) {
		t.Helper()
		hidden := path.Join(path.Dir(own), name)
		s.guilty[hidden] = name
		if err := cgroup.Make(hidden); err != nil {
			t.Fatal(err)
		}
		if err := cgroup.Put(hidden, p.Pid); err != nil {
			t.Fatal(err)
		}
	}
	inside, outside := s.host("ns="+pidOf(c), "name=inside", "ready", "sleep"), s.host("name=outside", "ready", "sleep")
	place("not-conmon-at-all", inside)
	place("nor-conmon-this", outside)
	missing := func(findings []finding) (who []string) {
		if !slices.ContainsFunc(findings, is(inside, "high")) {
			who = append(who, "who joined the container")
		}
		if !slices.ContainsFunc(findings, is(outside, "medium")) {
			who = append(who, "who did not")
		}
		return who
	}
	var unseen []string
	defer func() {
		if unseen != nil {
			t.Errorf("the agent does not find %q", unseen)
		}
	}()
	s.await("the agent finds who is in them", func() bool {
		unseen = missing(s.look().Findings)
		return unseen == nil
	})
	if r := s.scan(); missing(r.Findings) != nil {
		t.Errorf("scan does not find %q, but %v", missing(r.Findings), r.Findings)
	}
}
