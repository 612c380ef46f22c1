package kube

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestFieldsOfPods: what the Pod Security Standards judge is read of the pod and of each
// container, wherever a manifest states it.
func TestFieldsOfPods(t *testing.T) {
	const pod = `
    metadata:
      annotations:
        container.apparmor.security.beta.kubernetes.io/other: localhost/mine
        seccomp.security.alpha.kubernetes.io/pod: runtime/default
        container.seccomp.security.alpha.kubernetes.io/app: localhost/b
        secret: hunter2
    spec:
      hostNetwork: true
      hostPID: true
      hostIPC: true
      volumes:
      - {name: a, hostPath: {path: /hunter2}}
      - {name: b, emptyDir: {}, hostPath: null}
      - {name: c, emptyDir: {}}
      - {name: d, csi: {driver: x}, nfs: {}}
      - {name: e}
      securityContext:
        sysctls: [{name: z, value: hunter2}, {name: a}, {name: z}]
        appArmorProfile: {type: Unconfined}
        seLinuxOptions: {type: spc_t, level: s0}
      containers:
      - name: app
        env: [{name: A, value: hunter2}]
        ports: [{containerPort: 1}, {hostPort: 90}, {hostPort: 80}, {hostPort: 90}]
        livenessProbe: {httpGet: {host: b.example, path: /hunter2}}
        readinessProbe: {tcpSocket: {host: a.example}}
        startupProbe: {httpGet: {port: 1}, exec: {command: [hunter2]}}
        lifecycle: {postStart: {httpGet: {host: d.example}}, preStop: {tcpSocket: {host: c.example}}}
        securityContext:
          procMount: Unmasked
          appArmorProfile: {type: RuntimeDefault}
          seLinuxOptions: {user: u, role: r, type: spc_t}
          windowsOptions: {hostProcess: true}
      - name: plain
`
	const shared = `"hostNetwork":true,"hostPID":true,"hostIPC":true,"os":"","volumeTypes":["csi+nfs","emptyDir","hostPath","unknown"],"sysctls":["a","z"],`
	want := []string{
		`{` + shared + `"hostPorts":[80,90],"probeHosts":["a.example","b.example","c.example","d.example"],"procMount":"Unmasked","windowsHostProcess":true,` +
			`"appArmorProfiles":["RuntimeDefault","Unconfined"],"appArmorAnnotations":["localhost/mine"],"seccompAnnotations":["localhost/b","runtime/default"],` +
			`"seLinuxTypes":["spc_t"],"seLinuxUsers":["u"],"seLinuxRoles":["r"]}`,
		`{` + shared + `"hostPorts":[],"probeHosts":[],"procMount":null,"windowsHostProcess":false,` +
			`"appArmorProfiles":["Unconfined"],"appArmorAnnotations":["localhost/mine"],"seccompAnnotations":["runtime/default"],` +
			`"seLinuxTypes":["spc_t"],"seLinuxUsers":[],"seLinuxRoles":[]}`,
	}
	for what, head := range map[string]string{
		"a template":        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, annotations: {container.apparmor.security.beta.kubernetes.io/a: unconfined}}\nspec:\n  template:",
		"a custom resource": "apiVersion: x.example/v1\nkind: Set\nmetadata: {name: web, annotations: {container.apparmor.security.beta.kubernetes.io/a: unconfined}}\nspec:\n  worker:",
	} {
		all, err := ReadManifests(strings.NewReader(head+pod), "in.yaml")
		if err != nil || len(all.Objects) != 1 {
			t.Fatalf("%s: %d objects, %v", what, len(all.Objects), err)
		}
		for i, c := range all.Objects[0].Pod.Containers {
			got, err := json.Marshal(c.Security.PodFields)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != want[i] {
				t.Errorf("%s: %s has\n%s, want\n%s", what, c.Name, got, want[i])
			}
		}
	}
}

// TestFieldsAreBounded: many volumes cost little, and what there is too much of to keep
// is never kept in part.
func TestFieldsAreBounded(t *testing.T) {
	list := func(n int, item string) string {
		var items []string
		for i := range n {
			items = append(items, fmt.Sprintf(item, i))
		}
		return "[" + strings.Join(items, ", ") + "]"
	}
	all, err := ReadManifests(strings.NewReader(aPod("  volumes: "+list(10_000, "{name: v%d, emptyDir: {}}"))), "in.yaml")
	if err != nil || !slices.Equal(all.Objects[0].Pod.Containers[0].Security.VolumeTypes, []string{"emptyDir"}) {
		t.Errorf("10,000 volumes: %+v, %v", all.Objects, err)
	}
	for what, stream := range map[string]string{
		"sysctls":     aPod("  securityContext: {sysctls: " + list(1025, "{name: s%d}") + "}"),
		"ports":       aPod("    ports: " + list(1025, "{hostPort: 1%d}")),
		"annotations": strings.Replace(aPod(), "name: web", "name: web\n  annotations: {"+strings.Trim(list(1025, "container.apparmor.security.beta.kubernetes.io/%[1]d: p%[1]d"), "[]")+"}", 1),
	} {
		all, err := ReadManifests(strings.NewReader(stream), "in.yaml")
		if want := "more than 1024 different " + what; err == nil || !strings.Contains(err.Error(), want) || len(all.Objects) > 0 {
			t.Errorf("%d objects, %v, want an error: %s", len(all.Objects), err, want)
		}
	}
}

// TestVolumeSourcesAreKubernetes holds our list against Kubernetes' own type.
func TestVolumeSourcesAreKubernetes(t *testing.T) {
	var want []string
	for i, kind := 0, reflect.TypeFor[corev1.VolumeSource](); i < kind.NumField(); i++ {
		name, _, _ := strings.Cut(kind.Field(i).Tag.Get("json"), ",")
		want = append(want, name)
	}
	if slices.Sort(want); !slices.Equal(volumeSources, want) {
		t.Errorf("a volume has the sources\n%q, we know\n%q", want, volumeSources)
	}
}

// TestFormsOfOtherKinds: a custom resource may have a field of its own under the name of
// a pod's. Where that decides what a rule judges, it is said.
func TestFormsOfOtherKinds(t *testing.T) {
	all, err := ReadManifests(strings.NewReader(aResource("x.example", "Set",
		"{volumes: {data: 1Gi}, hostPID: maybe, hostUsers: many, containers: [{name: a, image: i, ports: 80, livenessProbe: {httpGet: {host: h}}}]}")), "in.yaml")
	if err != nil || len(all.Objects) != 1 {
		t.Fatalf("%d objects, %v", len(all.Objects), err)
	}
	var got []string
	for _, u := range all.Unjudged {
		got = append(got, u.Path)
	}
	if slices.Sort(got); !slices.Equal(got, []string{"spec.containers[0].ports", "spec.hostPID", "spec.volumes"}) {
		t.Errorf("not judged are %q", got)
	}
	if hosts := all.Objects[0].Pod.Containers[0].Security.ProbeHosts; !slices.Equal(hosts, []string{"h"}) {
		t.Errorf("the probes' hosts are %q", hosts)
	}
}
