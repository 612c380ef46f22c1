//go:build linux

package live

import (
	"os"
	"testing"

	"github.com/capdrift/capdrift/e2e/node"
)

// The names of cgroups are the only tie between a process and its container. Pods are put
// where the kubelet puts them, and containers under the names that systemd gives them.
func TestCgroupLayouts(t *testing.T) {
	n := onNode(t)
	if os.Getenv("CAPDRIFT_E2E_CGROUP_DRIVER") == "systemd" {
		t.Skip("this node's cgroups are made by systemd, so all tests show its layout; these names are for the other driver")
	}
	parents := []string{
		"/kubepods/pod6f1cd6a2-47c5-4b53-a6d6-b5a7d3c9e001",
		"/kubepods/burstable/pod6f1cd6a2-47c5-4b53-a6d6-b5a7d3c9e002",
		"/kubepods/besteffort/pod6f1cd6a2-47c5-4b53-a6d6-b5a7d3c9e003",
		"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod6f1cd6a2_47c5_4b53_a6d6_b5a7d3c9e004.slice",
	}
	var pods []node.Pod
	for _, parent := range parents {
		pods = append(pods, node.Pod{CgroupParent: parent})
	}
	managed := run(t, pods...)

	// Of these no runtime tells: their names alone say that they are containers.
	names := []string{
		"/docker/ID",
		"/system.slice/docker-ID.scope",
		"/machine.slice/libpod-ID.scope/container",
		"/kubepods.slice/kubepods-pod6f1cd6a2_47c5_4b53_a6d6_b5a7d3c9e005.slice/crio-ID.scope/container",
		"/kubepods.slice/kubepods-pod6f1cd6a2_47c5_4b53_a6d6_b5a7d3c9e005.slice/cri-containerd-ID.scope",
	}
	alone := make([]*node.Container, len(names))
	removeAfter(t, alone)
	inParallel(t, names, func(i int, name string) (err error) {
		alone[i], err = n.RunAlone(t.Context(), node.Alone{Cgroup: name, Args: []string{"spawn=1", "ready", "sleep"}})
		return err
	})
	monitor := make([]*node.Container, 1)
	removeAfter(t, monitor)
	var err error
	if monitor[0], err = n.RunAlone(t.Context(), node.Alone{
		Cgroup: "/kubepods.slice/kubepods-pod6f1cd6a2_47c5_4b53_a6d6_b5a7d3c9e005.slice/crio-conmon-ID.scope",
		Args:   []string{"ready", "sleep"},
	}); err != nil {
		t.Fatal(err)
	}

	r := scan(t)
	noAlarms(t, r)
	for i, c := range managed {
		got := r.container(t, c.ID)
		if got.Observation != "observed" || len(got.Processes) != 1 || got.Processes[0].Pid != c.Pid {
			t.Errorf("in %s: %s with processes %+v", parents[i], got.Observation, got.Processes)
		}
	}
	for i, c := range alone {
		got := r.container(t, c.ID)
		if got.Managed == nil || *got.Managed || len(got.Processes) != 2 {
			t.Errorf("in %s: managed %v with processes %+v", names[i], got.Managed, got.Processes)
		}
	}
	for _, c := range r.Containers {
		if c.ID == monitor[0].ID {
			t.Error("CRI-O's monitor process is taken for a container")
		}
	}
}

// The virtual machine is there for what most nodes are and a build machine may not be.
func TestMachine(t *testing.T) {
	onNode(t)
	r := scan(t)
	t.Logf("kernel %s, cgroups %s, root holds %016x", r.Node.Kernel, r.Node.CgroupMode, held())
	t.Run("cgroup_v2", func(t *testing.T) { mustHave(t, r.Node.CgroupMode == "v2", "cgroup v2 alone") })
	t.Run("all_capabilities", func(t *testing.T) { mustHave(t, held() == 1<<41-1, "a root with all 41 capabilities") })
	if r.Runtime == nil || r.Runtime.Name != "containerd" {
		t.Errorf("runtime %+v", r.Runtime)
	}
}
