package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/cri/fake"
	"github.com/capdrift/capdrift/drift"
)

// drawn is a process of a drawn node. It holds everything unless holds says otherwise.
type drawn struct {
	pid, parent int
	name        string
	cgroup      string
	holds       string
	mount       int // 30 is the node's; 0 is 30
	inner       int // the pid in a pid namespace below; 0 and less is none
	forked      bool
	uid         int
	sealed      bool // it has no_new_privs
	bounds      string
	inherits    string
	ambient     string
	mapped      int // the host's id of uid 0 in a user namespace of its own; 0 is none
	namespace   int // which of those with the same ids it is in
}

func (f *fixture) draw(p drawn) {
	holds, mount := p.holds, p.mount
	if holds == "" {
		holds = "000001ffffffffff"
	}
	if mount == 0 {
		mount = 30
	}
	told := strings.Replace(status(p.name, p.pid, p.uid, holds), "PPid:\t0", fmt.Sprintf("PPid:\t%d", p.parent), 1)
	for set, value := range map[string]string{"CapBnd": p.bounds, "CapInh": p.inherits, "CapAmb": p.ambient} {
		if value != "" {
			told = regexp.MustCompile(set+":\t.*").ReplaceAllString(told, set+":\t"+value)
		}
	}
	ids := "         0          0 4294967295\n"
	if p.mapped != 0 {
		ids = fmt.Sprintf("%10d %10d %10d\n", 0, p.mapped, 65536)
	}
	if p.inner > 0 {
		told = strings.Replace(told, fmt.Sprintf("NSpid:\t%d", p.pid), fmt.Sprintf("NSpid:\t%d\t%d", p.pid, p.inner), 1)
	}
	if p.sealed {
		told = strings.Replace(told, "NoNewPrivs:\t0", "NoNewPrivs:\t1", 1)
	}
	flags := 4194560
	if p.forked {
		flags |= 0x40
	}
	f.add(p.pid, map[string]string{
		"status": told, "uid_map": ids,
		"stat":      fmt.Sprintf("%d (x) S %d %[1]d %[1]d 0 -1 %[3]d 0 0 0 0 0 0 0 0 20 0 1 0 %[4]d 0 0\n", p.pid, p.parent, flags, 400000+p.pid),
		"mountinfo": fmt.Sprintf("%d 1 0:1 / / rw - ext4 x rw\n", mount),
	}, p.cgroup)
	if p.mapped != 0 { // all processes of a container are in one
		link := filepath.Join(f.root, fmt.Sprintf("proc/%d/ns/user", p.pid))
		if err := errors.Join(os.Remove(link), os.Symlink(fmt.Sprintf("user:[%d]", 4026550000+p.mapped+p.namespace), link)); err != nil {
			f.fail(err)
		}
	}
}

// TestHostileCRIO draws what happens on a node of CRI-O, as its captures show it, and what a
// program in a pod may do there: what is found above info, and about whom.
func TestHostileCRIO(t *testing.T) {
	const (
		recorded = "cri-o-1.37.0"
		initPID  = 20405 // of the captured container "restricted"
		shim     = 20392 // its conmon
	)
	home := cgroupOf(t, recorded, "restricted")
	pod, id := path.Dir(home), strings.TrimPrefix(path.Base(home), "crio-")
	crio := drawn{pid: 900, parent: 1, name: "crio", cgroup: "/system.slice/crio.service"}
	// An exec with monitor_exec_cgroup = "container": all three are in the container's cgroup.
	monitor := drawn{pid: 30001, parent: 1, name: "conmon", cgroup: home}
	calls := drawn{pid: 30002, parent: 30001, name: "runc", cgroup: home}
	stage := drawn{pid: 30003, parent: 30002, name: "runc:[2:INIT]", cgroup: home, mount: 500, inner: 7, forked: true}
	inContainer := func(n *fake.Node) {
		n.Config = strings.ReplaceAll(n.Config, `"MonitorExecCgroup": ""`, `"MonitorExecCgroup": "container"`)
	}
	excess := []string{"critical bounding_excess restricted", "critical permitted_excess restricted", "high became_root restricted", "high nnp_missing restricted"}
	for name, row := range map[string]struct {
		change    func(*fake.Node)
		processes []drawn
		want      []string
	}{
		"an exec, its monitor in the container's cgroup":        {inContainer, []drawn{crio, monitor, calls, stage}, nil},
		"the same with crun":                                    {inContainer, []drawn{crio, monitor, {pid: 30002, parent: 30001, name: "crun", cgroup: home}, {pid: 30003, parent: 30002, name: "crun", cgroup: home, mount: 500, inner: 7, forked: true}}, nil},
		"the monitor alone, its exec running":                   {inContainer, []drawn{crio, monitor, {pid: 30003, parent: 30001, name: "sh", cgroup: home, mount: 500, inner: 7, holds: "0000000000000400", uid: 1000, sealed: true}}, nil},
		"a monitor where the configuration puts none":           {nil, []drawn{crio, monitor}, excess},
		"a program in the container that calls itself conmon":   {inContainer, []drawn{crio, {pid: 30001, parent: shim, name: "conmon", cgroup: home, mount: 500, inner: 9}}, excess},
		"a child of the monitor that calls itself a stage":      {inContainer, []drawn{crio, monitor, {pid: 30003, parent: 30001, name: "runc:[2:INIT]", cgroup: home, mount: 500, inner: 7, forked: true}}, excess},
		"a clone beside the exec's program":                     {inContainer, []drawn{crio, monitor, calls, {pid: 30003, parent: 30002, name: "sh", cgroup: home, mount: 500, inner: 7, holds: "0000000000000400", uid: 1000, sealed: true}, {pid: 30004, parent: 30002, name: "runc:[2:INIT]", cgroup: home, mount: 500, inner: 8, forked: true}}, excess},
		"a stage of the OCI runtime outside":                    {nil, []drawn{crio, {pid: 30002, parent: shim, name: "runc", cgroup: "/system.slice/crio.service"}, {pid: 30003, parent: 30002, name: "runc:[2:INIT]", cgroup: home, mount: 500, inner: 7, forked: true}}, nil},
		"conmon and runc in the monitor's own scope":            {nil, []drawn{crio, {pid: 30001, parent: 1, name: "conmon", cgroup: pod + "/crio-conmon-" + id}, {pid: 30002, parent: 30001, name: "runc", cgroup: pod + "/crio-conmon-" + id}}, nil},
		"a cgroup that is only named like a monitor's":          {nil, []drawn{crio, {pid: 30001, parent: shim, name: "x", cgroup: pod + "/a-conmon-b", mount: 500, inner: 9}}, excess},
		"a container that CRI-O is making":                      {nil, []drawn{crio, {pid: 30001, parent: 1, name: "conmon", cgroup: "/system.slice/crio.service"}, {pid: 30002, parent: 30001, name: "runc", cgroup: "/system.slice/crio.service"}, {pid: 30003, parent: 30002, name: "runc:[2:INIT]", cgroup: pod + "/crio-" + strings.Repeat("ab", 32), mount: 600, inner: 1, forked: true}}, nil},
		"the same, once its program runs and no list shows it":  {nil, []drawn{crio, {pid: 30003, parent: 1, name: "app", cgroup: pod + "/crio-" + strings.Repeat("ab", 32), mount: 600, inner: 1}}, []string{"medium unmanaged_container "}},
		"an intruder that outlives the container":               {ended(id), []drawn{crio, {pid: 30001, parent: 1, name: "x", cgroup: home, mount: 500, inner: 9}}, []string{excess[0], excess[1], "medium became_root restricted", excess[3]}},
		"a process of the node in the container's mounts alone": {nil, []drawn{crio, {pid: 30001, parent: 1, name: "x", cgroup: "/user.slice/session-7.scope", mount: 500}}, excess},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := capturedNode(t, recorded, "hybrid")
			f.write("proc/1/mountinfo", "30 1 0:1 / / rw - ext4 x rw\n")
			f.write(fmt.Sprintf("proc/%d/mountinfo", initPID), "500 1 0:1 / / rw - overlay x rw\n")
			for _, p := range row.processes {
				f.draw(p)
			}
			node := load(t, recorded)
			if row.change != nil {
				row.change(node)
			}
			server := fake.Serve(t, node)
			stdout, stderr, _ := capture(t, "scan", "--cri-endpoint", server.Endpoint, "--host-root", f.root, "-o", "json")
			var report drift.Report
			if err := json.Unmarshal([]byte(stdout), &report); err != nil {
				t.Fatalf("%v: %s", err, stderr)
			}
			var got []string
			for _, finding := range report.Findings {
				if finding.Layer == drift.LayerKernel && finding.Severity > drift.Info {
					got = append(got, fmt.Sprintf("%s %s %s", finding.Severity, finding.Kind, finding.Container))
				}
			}
			slices.Sort(got)
			want := slices.Sorted(slices.Values(row.want))
			if !slices.Equal(got, want) {
				t.Errorf("found %q, want %q", got, want)
			}
		})
	}
}

// TestWhatCRIOSaysOfItself: its configuration tells which handlers are guests and which
// default capabilities it gives. A handler's name tells neither.
func TestWhatCRIOSaysOfItself(t *testing.T) {
	const recorded = "cri-o-1.37.0"
	home := cgroupOf(t, recorded, "restricted")
	intruder := drawn{pid: 30001, parent: 1, name: "x", cgroup: home, mount: 500, inner: 9}
	excess := []string{"critical bounding_excess restricted", "critical permitted_excess restricted", "high became_root restricted", "high nnp_missing restricted"}
	all := func(handler string, replace ...string) func(*fake.Node) {
		return func(n *fake.Node) {
			n.Config = strings.NewReplacer(replace...).Replace(n.Config)
			for _, sandbox := range n.Sandboxes {
				sandbox.RuntimeHandler = handler
			}
		}
	}
	for name, row := range map[string]struct {
		change    func(*fake.Node)
		processes []drawn
		want      []string
	}{
		"gVisor behind another name":          {all("secure"), []drawn{intruder}, nil},
		"runc behind the name of a guest":     {all("kata-fake", `"secure"`, `"kata-fake"`, "runsc-w", "runc"), []drawn{intruder}, excess},
		"a wider default is told once":        {all("runc", `"KILL"`, `"KILL", "NET_RAW", "SYS_ADMIN"`), nil, []string{"medium oci_mismatch "}},
		"so is one that fills inheritable":    {all("runc", `"AddInheritableCapabilities": false`, `"AddInheritableCapabilities": true`), nil, []string{"medium oci_mismatch "}},
		"the recorded configuration is usual": {all("crun"), nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := capturedNode(t, recorded, "hybrid")
			f.write("proc/1/mountinfo", "30 1 0:1 / / rw - ext4 x rw\n")
			f.write("proc/20405/mountinfo", "500 1 0:1 / / rw - overlay x rw\n")
			for _, p := range row.processes {
				f.draw(p)
			}
			node := load(t, recorded)
			row.change(node)
			server := fake.Serve(t, node)
			stdout, stderr, _ := capture(t, "scan", "--cri-endpoint", server.Endpoint, "--host-root", f.root, "-o", "json")
			var report drift.Report
			if err := json.Unmarshal([]byte(stdout), &report); err != nil {
				t.Fatalf("%v: %s", err, stderr)
			}
			var got []string
			for _, finding := range report.Findings {
				if finding.Severity > drift.Info {
					got = append(got, fmt.Sprintf("%s %s %s", finding.Severity, finding.Kind, finding.Container))
				}
			}
			slices.Sort(got)
			if !slices.Equal(got, slices.Sorted(slices.Values(row.want))) {
				t.Errorf("found %q, want %q", got, row.want)
			}
		})
	}
}

// ended has the runtime say that a container has ended.
func ended(id string) func(*fake.Node) {
	return func(n *fake.Node) {
		for _, c := range n.Containers {
			if c.Status.GetId() == id {
				c.Status.State = runtimeapi.ContainerState_CONTAINER_EXITED
			}
		}
	}
}
