package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/cri/fake"
	"github.com/capdrift/capdrift/drift"
)

// TestFieldScripts runs the situations of testdata/field that are manifests or texts.
func TestFieldScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/field", Cmds: map[string]func(*testscript.TestScript, bool, []string){"status": expectStatus},
	})
}

// TestFieldIsListed: testdata/field/README.md names each script, and tests that are there.
func TestFieldIsListed(t *testing.T) {
	page, err := os.ReadFile("testdata/field/README.md")
	if err != nil {
		t.Fatal(err)
	}
	scripts, err := filepath.Glob("testdata/field/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("%d scripts, %v", len(scripts), err)
	}
	for _, script := range scripts {
		if !strings.Contains(string(page), "`"+filepath.Base(script)+"`") {
			t.Errorf("%s is not listed", script)
		}
	}
	var sources strings.Builder
	for _, room := range []string{".", "../../proc", "../../drift", "../../kube", "../../policy", "../../cri"} {
		files, err := filepath.Glob(filepath.Join(room, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			sources.Write(text)
		}
	}
	named := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(string(page), -1)
	if len(named) < 5 {
		t.Errorf("%d tests are named", len(named))
	}
	for _, name := range named {
		if !strings.Contains(sources.String(), "func "+name[1]+"(t *testing.T)") {
			t.Errorf("%s is not there", name[1])
		}
	}
}

// village is a node on which people's situations are drawn: what its runtime says, and what its
// kernel shows.
type village struct {
	*fixture
	node   *fake.Node
	prefix string // of the names of cgroups
}

// settle makes a node of a runtime such as "cri-o 1.30.0" with cgroup v2.
func newVillage(t *testing.T, runtime string) *village {
	name, version, _ := strings.Cut(runtime, " ")
	v := &village{fixture: newFixture(t, t.TempDir(), "v2"), node: &fake.Node{Name: name, Version: version}, prefix: "crio"}
	if name == "containerd" {
		v.prefix, v.node.Tasks = "cri-containerd", map[string][]*fake.Task{}
	}
	v.write("proc/1/mountinfo", "30 1 0:1 / / rw - ext4 x rw\n")
	return v
}

// resident is a pod with one container of the same name.
type resident struct {
	name, handler string
	bounding      capdecode.Set
	uid           int
	mapped        int    // host id of its uid 0 in a user namespace of its own; 0: none
	order         string // containerd's security_context, as JSON
	privileged    bool
	sealed, bare  bool // no_new_privs; without an OCI spec
	cgroup, spec  string
	processes     []drawn
}

// join puts a pod on the node. Processes without a cgroup are in the container's.
func (v *village) join(r resident) {
	id := fmt.Sprintf("%x", sha256.Sum256([]byte(r.name)))
	slice := fmt.Sprintf("kubepods-besteffort-pod%s_1_2_3.slice", id[:8])
	if r.spec == "" {
		r.spec = slice + ":" + v.prefix + ":" + id
		r.cgroup = "/kubepods.slice/kubepods-besteffort.slice/" + slice + "/" + v.prefix + "-" + id + ".scope"
	}
	r.spec, r.cgroup = strings.ReplaceAll(r.spec, "ID", id), strings.ReplaceAll(r.cgroup, "ID", id)
	namespaces, mappings := `[{"type":"pid"}]`, ""
	if r.mapped != 0 {
		namespaces, mappings = `[{"type":"pid"},{"type":"user"}]`, fmt.Sprintf(`,"uidMappings":[{"containerID":0,"hostID":%d,"size":65536}]`, r.mapped)
	}
	names, _ := json.Marshal(r.bounding.Names())
	info := fmt.Sprintf(`{"pid":%d,"privileged":%t`, r.processes[0].pid, r.privileged)
	if v.node.Name == "containerd" {
		info = fmt.Sprintf(`{"pid":%d,"runtimeType":"io.containerd.runc.v2","config":{"linux":{"security_context":{%s}}}`, r.processes[0].pid, r.order)
	}
	if !r.bare {
		info += fmt.Sprintf(`,"runtimeSpec":{"process":{"user":{"uid":%d},"noNewPrivileges":%t,"capabilities":{"bounding":%s,"permitted":%[3]s,"effective":%[3]s}},"linux":{"cgroupsPath":%q,"namespaces":%s%s}}`,
			r.uid, r.sealed, names, r.spec, namespaces, mappings)
	}
	sandbox := fmt.Sprintf("%x", sha256.Sum256([]byte("sandbox of "+r.name)))
	v.node.Sandboxes = append(v.node.Sandboxes, &fake.Sandbox{
		RuntimeHandler: r.handler, Info: `{"runtimeSpec":{}}`,
		Status: &runtimeapi.PodSandboxStatus{Id: sandbox, State: runtimeapi.PodSandboxState_SANDBOX_READY, CreatedAt: 1, Metadata: &runtimeapi.PodSandboxMetadata{Namespace: "town", Name: r.name, Uid: id[:8] + "-1-2-3"}},
	})
	v.node.Containers = append(v.node.Containers, &fake.Container{
		SandboxID: sandbox, Info: info + "}",
		Status: &runtimeapi.ContainerStatus{Id: id, Metadata: &runtimeapi.ContainerMetadata{Name: r.name}, State: runtimeapi.ContainerState_CONTAINER_RUNNING, CreatedAt: 1, Image: &runtimeapi.ImageSpec{Image: "registry.test/" + r.name}},
	})
	for i, p := range r.processes {
		if p.cgroup = strings.ReplaceAll(p.cgroup, "ID", id); p.cgroup == "" || strings.HasPrefix(p.cgroup, "+") {
			p.cgroup = r.cgroup + strings.TrimPrefix(p.cgroup, "+")
		}
		if p.inner == 0 && i == 0 {
			p.inner = 1
		}
		if p.mapped == 0 && r.mapped != 0 {
			p.mapped, p.namespace = r.mapped, r.processes[0].pid
		}
		v.draw(p)
	}
}

// TestFieldNodes are the situations that are nodes: what is found above info (and, with info, all of
// it), and what the table says. Their numbers are those of testdata/field/README.md.
func TestFieldNodes(t *testing.T) {
	const (
		usual    = 0xa80425fb // containerd's own
		nine     = 0x5fb      // CRI-O's own
		all      = 0x1ffffffffff
		nothing  = "0000000000000000"
		ofNine   = "00000000000005fb"
		ofUsual  = "00000000a80425fb"
		session  = "/user.slice/user-0.slice/session-5.scope"
		excess   = "critical bounding_excess "
		permits  = "critical permitted_excess "
		ofTriple = "/system.slice/containerd.service/pods.slice:cri-containerd:ID"
	)
	for name, row := range map[string]struct {
		runtime  string
		draw     func(v *village)
		args     []string
		want     []string
		info     bool // the findings of severity info are wanted too
		says     []string
		tells    string // in JSON
		complete bool
	}{
		"03 the most privileged pod has the node's pids, in a cgroup with colons": {
			runtime: "containerd 1.7.27", complete: true,
			draw: func(v *village) {
				v.join(resident{name: "exporter", bounding: usual, spec: "pods.slice:cri-containerd:ID", cgroup: ofTriple, processes: []drawn{{pid: 410, name: "exporter", holds: ofUsual, inner: -1}, {pid: 411, name: "sh", inner: -1}}})
			},
			want: []string{excess + "exporter", permits + "exporter"},
		},
		"04 nsenter from a session, into all namespaces": {
			runtime: "containerd 2.1.3", complete: true,
			draw: func(v *village) {
				v.join(resident{name: "till", uid: 77, sealed: true, order: `"no_new_privs":true,"capabilities":{"drop_capabilities":["ALL"]},"run_as_user":{"value":77}`, processes: []drawn{{pid: 510, name: "till", uid: 77, holds: nothing, sealed: true, mount: 60}}})
				v.draw(drawn{pid: 520, parent: 1, name: "nsenter", cgroup: session})
				v.draw(drawn{pid: 521, parent: 520, name: "bash", cgroup: session, mount: 60, inner: 9})
			},
			want: []string{excess + "till", permits + "till", "high became_root till", "high nnp_missing till"},
		},
		"04 nsenter into the pids alone, and nobody may read whose": {
			runtime: "containerd 2.1.3", complete: true,
			draw: func(v *village) {
				v.join(resident{name: "till", order: `"capabilities":{"drop_capabilities":["ALL"]}`, processes: []drawn{{pid: 510, name: "till", holds: nothing}}})
				v.draw(drawn{pid: 520, parent: 1, name: "nsenter", cgroup: session})
				v.draw(drawn{pid: 521, parent: 520, name: "bash", cgroup: session, inner: 9})
			},
			want: []string{"critical unknown_origin "}, says: []string{"town/till/till"},
		},
		"05 an OCI runtime that gives root everything": {
			runtime: "cri-o 1.33.0", complete: true,
			draw: func(v *village) {
				v.node.Config = `{"crio":{"DefaultRuntime":"runc","Runtimes":{"runc":{"RuntimePath":"/bin/runc"},"sysbox-runc":{"RuntimePath":"/bin/sysbox-runc"}}}}`
				for i, bounding := range []capdecode.Set{nine, 0} {
					pid := 610 + 10*i
					v.join(resident{name: fmt.Sprint("builder-", i), handler: "sysbox-runc", bounding: bounding, mapped: 500000, processes: []drawn{{pid: pid, name: "init", uid: 500000, cgroup: "+/init.scope"}, {pid: pid + 1, name: "dockerd", uid: 500000, cgroup: "+/docker.service"}}})
				}
				v.join(resident{name: "plain", handler: "sysbox-runc", uid: 9, mapped: 500000, sealed: true, processes: []drawn{{pid: 650, name: "plain", uid: 500009, holds: nothing, sealed: true}}})
			},
			want: []string{"medium permitted_excess "}, says: []string{`runtime handler "sysbox-runc"`, "user namespace"},
		},
		"08 an exec with ambient capabilities, within what the spec allows": {
			runtime: "cri-o 1.34.2", complete: true, info: true,
			draw: func(v *village) {
				v.join(resident{name: "desk", bounding: nine, uid: 12, mapped: 300000, processes: []drawn{
					{pid: 710, name: "desk", uid: 300012, holds: nothing, bounds: ofNine},
					{pid: 711, name: "tool", uid: 300012, holds: ofNine, inherits: ofNine, ambient: ofNine, inner: 2},
				}})
			},
			want: []string{"info gained_within_ceiling desk"}, tells: "through its ambient set, which an exec or its parent gave it",
		},
		"16 the kernel has a capability that the runtime has no name for": {
			runtime: "containerd 2.4.2", complete: true,
			draw: func(v *village) {
				v.write("proc/sys/kernel/cap_last_cap", "41\n")
				v.process(os.Getpid(), status("containerd", os.Getpid(), 0, "000003ffffffffff"), "/system.slice/containerd.service")
				v.join(resident{name: "proxy", bounding: all, order: `"privileged":true`, processes: []drawn{{pid: 810, name: "proxy"}}})
				v.join(resident{name: "mesh", bounding: all, order: `"capabilities":{"add_capabilities":["ALL"]}`, processes: []drawn{{pid: 820, name: "mesh"}}})
				v.join(resident{name: "page", bounding: usual, processes: []drawn{{pid: 830, name: "page", holds: ofUsual}}})
			},
			info: true, says: []string{"CAP_41"},
		},
		"21 the defaults were narrowed under pods that run on": {
			runtime: "cri-o 1.24.6", complete: true, draw: func(v *village) { narrowed(v, 2, 4) }, args: []string{"--pods", "pods.json"},
			want: []string{"high oci_mismatch shop-0", "high oci_mismatch shop-1"}, says: []string{"made under another configuration of the runtime"},
		},
		"21 the same, and the operator says that the old ones are meant": {
			runtime: "cri-o 1.24.6", complete: true, draw: func(v *village) { narrowed(v, 2, 3) }, args: []string{"--pods", "pods.json", "--assume", "default-caps=0x425fb"},
			want: []string{"low oci_mismatch shop-2", "low oci_mismatch shop-3", "low oci_mismatch shop-4"},
		},
		"22 a runtime that tells the pid and no OCI spec": {
			runtime: "cri-o 1.17.4",
			draw: func(v *village) {
				v.join(resident{name: "mesh", bare: true, processes: []drawn{{pid: 910, name: "mesh", holds: ofUsual, inherits: ofUsual}}})
				v.draw(drawn{pid: 911, name: "conmon", cgroup: "/x.slice/crio-conmon-" + strings.Repeat("ab", 32) + ".scope"})
			},
			info: true, says: []string{"In part: town/mesh/mesh: the runtime gives no OCI spec"},
		},
		"24 the engine of a user, with capabilities in his own user namespace": {
			runtime: "containerd 2.0.1", complete: true,
			draw: func(v *village) {
				v.draw(drawn{pid: 1010, name: "dockerd", cgroup: "/user.slice/user-9.slice/docker.service", inner: 4, mapped: 9})
			},
			want: []string{"medium unmanaged_container "}, says: []string{"in a user namespace below the node's"},
		},
		"26 a node in a container whose runtime holds 38 of 40": {
			runtime: "containerd 1.4.3", complete: true, info: true,
			draw: func(v *village) {
				v.write("proc/sys/kernel/cap_last_cap", "39\n")
				v.join(resident{name: "proxy", bounding: 1<<38 - 1, order: `"privileged":true`, processes: []drawn{{pid: 1110, name: "proxy", holds: "0000003fffffffff"}}})
				v.join(resident{name: "every", bounding: 1<<38 - 1, order: `"capabilities":{"add_capabilities":["ALL"]}`, processes: []drawn{{pid: 1120, name: "every", holds: "0000003fffffffff"}}})
			},
			says: []string{"taken from 2 of its containers"},
		},
		"27 a static pod's file is newer than what runs": {
			runtime: "containerd 2.1.3", complete: true,
			draw: func(v *village) {
				v.join(resident{name: "store-node-a", bounding: usual, processes: []drawn{{pid: 1210, name: "store", holds: ofUsual}}})
				v.write("static.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: store, namespace: town}\nspec:\n  containers:\n  - name: store-node-a\n    securityContext: {capabilities: {drop: [ALL]}}\n")
			},
			args: []string{"--pods", "static.yaml", "--node-name", "node-a"},
			want: []string{"medium cri_mismatch store-node-a"}, says: []string{"it may be another version than what runs"},
		},
		"27 a mirror pod of another version is another pod": {
			runtime: "containerd 2.1.3",
			draw: func(v *village) {
				v.join(resident{name: "store", bounding: usual, processes: []drawn{{pid: 1210, name: "store", holds: ofUsual}}})
				v.write("mirror.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: store, namespace: town, uid: u-7, annotations: {kubernetes.io/config.hash: h-7, kubernetes.io/config.mirror: h-7}}\nspec: {nodeName: node-a, containers: [{name: store, securityContext: {capabilities: {drop: [ALL]}}}]}\n")
			},
			args: []string{"--pods", "mirror.yaml"}, info: true, says: []string{"the pod specs of 1 containers"},
		},
		"33 unshare in a container": {
			runtime: "containerd 2.1.3", complete: true, info: true,
			draw: func(v *village) {
				v.join(resident{name: "yard", bounding: 0x21, order: `"capabilities":{"add_capabilities":["CHOWN","KILL"],"drop_capabilities":["ALL"]}`, processes: []drawn{
					{pid: 1310, name: "yard", holds: "0000000000000021"}, {pid: 1311, parent: 1310, name: "unshare", mapped: 7, inner: 8},
				}})
			},
			want: []string{"info nested_userns yard"},
		},
		"34 the monitor in a cgroup of the container's id": {
			runtime: "cri-o 1.30.0", complete: true, info: true,
			draw: func(v *village) {
				v.join(resident{name: "cache", bounding: nine, spec: "pod_7-8/crio-ID", cgroup: "/pod_7-8/crio-ID", processes: []drawn{{pid: 1410, name: "cache", holds: ofNine, cgroup: "+/container"}, {pid: 1411, name: "conmon", cgroup: "/pod_7-8/crio-conmon-ID"}}})
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newVillage(t, row.runtime)
			row.draw(v)
			args := []string{"scan", "--cri-endpoint", fake.Serve(t, v.node).Endpoint, "--host-root", v.root}
			for _, arg := range row.args {
				if strings.HasSuffix(arg, ".json") || strings.HasSuffix(arg, ".yaml") {
					arg = filepath.Join(v.root, arg)
				}
				args = append(args, arg)
			}
			text, _, _ := capture(t, append(args, "-o", "json")...)
			var report drift.Report
			if err := json.Unmarshal([]byte(text), &report); err != nil {
				t.Fatal(err)
			}
			got := []string{}
			for _, finding := range report.Findings {
				if finding.Severity > drift.Info || row.info {
					got = append(got, fmt.Sprintf("%s %s %s", finding.Severity, finding.Kind, finding.Container))
				}
			}
			slices.Sort(got)
			if want := slices.Sorted(slices.Values(row.want)); !slices.Equal(got, want) {
				t.Errorf("found %q, want %q", got, want)
			}
			if report.Coverage.Complete != row.complete {
				t.Errorf("coverage %+v", report.Coverage)
			}
			table, _, _ := capture(t, append(args, "--wide")...)
			for _, says := range row.says {
				if !strings.Contains(unbroken(table), says) {
					t.Errorf("it does not say %q: %s", says, table)
				}
			}
			if !strings.Contains(text, row.tells) {
				t.Errorf("it does not tell %q: %s", row.tells, text)
			}
		})
	}
}

// narrowed draws pods that were made when NET_RAW and SYS_CHROOT were among the defaults, and
// pods from after.
func narrowed(v *village, before, after int) {
	var items []string
	for i := range before + after {
		bounding := capdecode.Set(0x5fb)
		if i < before {
			bounding |= 1<<13 | 1<<18
		}
		name := fmt.Sprint("shop-", i)
		v.join(resident{name: name, bounding: bounding, processes: []drawn{{pid: 2000 + i, name: "shop", holds: bounding.Hex()}}})
		uid := fmt.Sprintf("%x", sha256.Sum256([]byte(name)))[:8] + "-1-2-3"
		items = append(items, fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":%q,"namespace":"town","uid":%q},"spec":{"containers":[{"name":%[1]q}]}}`, name, uid))
	}
	v.write("pods.json", `{"apiVersion":"v1","kind":"List","items":[`+strings.Join(items, ",")+`]}`)
}

// unbroken is a text without its line breaks.
func unbroken(text string) string { return strings.Join(strings.Fields(text), " ") }
