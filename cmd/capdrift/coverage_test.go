package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/cri/fake"
)

// TestCoverageCountsSandboxes: a sandbox that has a process and could not be seen is a place to
// hide in, so nothing is complete without it, and the reason is told.
func TestCoverageCountsSandboxes(t *testing.T) {
	const spec = `"runtimeType":"io.containerd.runc.v2","runtimeSpec":{"process":{"capabilities":{}},"linux":{"cgroupsPath":"/pods/pause"}}`
	for what, row := range map[string]struct {
		info  string
		drawn bool
		want  []string
	}{
		"without a process":                {`{"runtimeSpec":{}}`, false, []string{"Coverage: complete: 1 of 1 container seen"}},
		"seen":                             {`{"pid":400,` + spec + `}`, true, []string{"Coverage: complete: 1 of 1 container seen"}},
		"its cgroup is nowhere":            {`{"pid":400,` + spec + `}`, false, []string{"Coverage: INCOMPLETE: 1 of 1 container seen", "1 pod sandboxes unreadable", "Not seen: town/web/pause: no cgroup of it was found"}},
		"the runtime does not tell of it":  {`{"pid":`, true, []string{"Coverage: INCOMPLETE", "1 pod sandboxes unreadable", "Not seen: town/web/pause:"}},
		"the runtime tells its pid and no": {`{"pid":400}`, true, []string{"Coverage: INCOMPLETE", "1 pod sandboxes seen in part", "In part: town/web/pause: the runtime gives no OCI spec"}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			v := newVillage(t, "containerd 2.1.3")
			v.join(resident{name: "web", bounding: 0xa80425fb, processes: []drawn{{pid: 300, name: "web", holds: "00000000a80425fb"}}})
			v.node.Sandboxes[0].Info = row.info
			if row.drawn {
				v.draw(drawn{pid: 400, name: "pause", cgroup: "/pods/pause", holds: strings.Repeat("0", 16), inner: 1})
			}
			table, _, _ := capture(t, "scan", "--cri-endpoint", fake.Serve(t, v.node).Endpoint, "--host-root", v.root)
			for _, says := range row.want {
				if !strings.Contains(unbroken(table), says) {
					t.Errorf("it does not say %q:\n%s", says, table)
				}
			}
		})
	}
}

// TestUnseenContainersAreBounded: the table names a few.
func TestUnseenContainersAreBounded(t *testing.T) {
	v := newVillage(t, "cri-o 1.17.4")
	for i := range 8 {
		v.join(resident{name: fmt.Sprint("web-", i), bare: true, processes: []drawn{{pid: 300 + i, name: "web"}}})
	}
	table, _, _ := capture(t, "scan", "--cri-endpoint", fake.Serve(t, v.node).Endpoint, "--host-root", v.root)
	if strings.Count(table, "In part: ") != 5 || !strings.Contains(table, "The same of 3 more") {
		t.Error(table)
	}
}

// TestLongCgroupsDoNotWidenTables: a container that only its cgroup tells is called by the end of
// the path, and the message has all of it.
func TestLongCgroupsDoNotWidenTables(t *testing.T) {
	v := newVillage(t, "containerd 2.1.3")
	cgroup := "/user.slice/user-1234567.slice/user@1234567.service/app.slice/app-org.example.Engine.slice/engine.service"
	v.draw(drawn{pid: 300, name: "engine", cgroup: cgroup, inner: 2})
	table, _, _ := capture(t, "scan", "--cri-endpoint", fake.Serve(t, v.node).Endpoint, "--host-root", v.root, "--wide")
	rows, _, _ := strings.Cut(table, "unmanaged_container: ")
	if strings.Contains(rows, "app.slice") || !strings.Contains(rows, " …/engine.service ") || !strings.Contains(table, cgroup) {
		t.Error(table)
	}
	for id, want := range map[string]string{
		"/kubepods/podx":                                     "/kubepods/podx",
		"/" + strings.Repeat("a", 60):                        "…" + strings.Repeat("a", 40),
		"/x.slice/" + strings.Repeat("b", 30) + "/c.service": "…/c.service",
		strings.Repeat("0", 64):                              "000000000000",
		"moby/" + strings.Repeat("0", 64):                    "moby/000000000000",
		"/" + strings.Repeat("ü", 60):                        "…" + strings.Repeat("ü", 20),
	} {
		if got := cellID(id); got != want {
			t.Errorf("%s: %q, want %q", id, got, want)
		}
	}
}

// TestRemediesAreInTheRuntimesWords: what is to be looked at has the name that it has there.
func TestRemediesAreInTheRuntimesWords(t *testing.T) {
	const path = "/run/test/io.containerd.grpc.v1.cri"
	for name, row := range map[string]struct{ config, bundle, want string }{
		"containerd 2.1.3": {`{"stateDir":"` + path + `"}`, "run/test/io.containerd.runtime.v2.task/k8s.io/ID/config.json", "BinaryName of its handler in containerd's config.toml, and hooks of its base_runtime_spec"},
		"cri-o 1.33.0":     {`{}`, "run/containers/storage/overlay-containers/ID/userdata/config.json", "runtime_path of its handler in crio.conf, and hooks in hooks_dir"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newVillage(t, name)
			v.node.Config = row.config
			v.join(resident{name: "web", bounding: 0x21, processes: []drawn{{pid: 300, name: "web"}}})
			id := v.node.Containers[0].Status.GetId()
			v.write(strings.ReplaceAll(row.bundle, "ID", id), `{"process":{"capabilities":{"bounding":`+everyName(t)+`,"permitted":`+everyName(t)+`}}}`)
			table, _, _ := capture(t, "scan", "--cri-endpoint", fake.Serve(t, v.node).Endpoint, "--host-root", v.root)
			if text := unbroken(table); !strings.Contains(text, row.want) || strings.Contains(text, "tasks pause") != strings.HasPrefix(name, "containerd") {
				t.Error(table)
			}
		})
	}
}

func everyName(t *testing.T) string {
	text, err := json.Marshal(capdecode.Full(40).Names())
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
