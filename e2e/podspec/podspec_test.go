//go:build linux

// Package podspec runs `capdrift scan` beside a real kubelet and API server, and asserts
// that the pod specs' layer is joined and compared as it should be.
package podspec

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/e2e/cluster"
	"github.com/capdrift/capdrift/e2e/node"
	"github.com/capdrift/capdrift/e2e/suite"
)

var (
	theCluster *cluster.Cluster // nil without root on a machine that is not CI
	theNode    *cluster.Node    // its only one
)

func TestMain(m *testing.M) {
	suite.Run(m, 0, func(ctx context.Context) (_ io.Closer, err error) {
		if theCluster, err = suite.Cluster(ctx, cluster.Config{Nodes: 1}); err != nil {
			return nil, err
		}
		theNode = theCluster.Nodes[0]
		return theCluster, nil
	})
}

func onCluster(t *testing.T) {
	t.Helper()
	suite.NeedsRoot(t, theCluster != nil)
}

// The published form, as far as these tests read it.
type report struct {
	Coverage struct {
		Complete bool
		Limits   []struct {
			What, Why string
			Blind     bool
		}
	}
	Containers []struct {
		ID, Name string
		Sandbox  bool
		Pod      *struct{ Namespace, Name, UID string }
		Declared struct {
			Pod *declared
			CRI *struct{}
			OCI *struct{}
		}
		Processes []struct{ Pid int }
	}
	Findings []finding
}

type finding struct {
	Kind, Severity, Cause, Message string
	From, Layer                    string
	ContainerID, Container         string
	Pod                            *struct{ Name string }
}

type declared struct {
	Role, Source             string
	Add, Drop                []string
	Privileged               bool
	AllowPrivilegeEscalation *bool
	RunAsUser                *int64
	RunAsNonRoot             bool
	HostUsers                *bool
}

// source is a place of pod specs, by the flags that name it.
type source struct {
	name  string
	flags []string
}

// sources are all places where these pod specs can be had.
func sources(t *testing.T) []source {
	t.Helper()
	list, err := theCluster.Request(t.Context(), "GET", "/api/v1/pods", nil)
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig, err := os.ReadFile(theCluster.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(theCluster.CA())
	if err != nil {
		t.Fatal(err)
	}
	return []source{
		{"the API server", []string{"--kubeconfig", onNode(t, "kubeconfig", kubeconfig)}},
		{"the kubelet", []string{
			"--kubelet", theNode.KubeletSecureURL(), "--kubelet-token-file", onNode(t, "token", []byte(theCluster.AdminToken()+"\n")),
			"--kubelet-ca-file", onNode(t, "ca.crt", ca),
		}},
		{"the kubelet's read-only port", []string{"--kubelet", theNode.KubeletURL()}},
		{"a file", []string{"--pods", onNode(t, "pods.json", list)}},
	}
}

// onNode writes a file and returns its path as it is on the node.
func onNode(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := "/tmp/" + name
	if err := os.WriteFile(theNode.Path(path), content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// scan scans on the node, whose processes and cgroups are there alone.
func scan(t *testing.T, flags ...string) report {
	t.Helper()
	args := append([]string{"scan", "-o", "json"}, flags...)
	var out, errs bytes.Buffer
	cmd := theNode.Command(t.Context(), "capdrift", args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("capdrift %q: %v\n%s", args, err, errs.String())
	}
	var r report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatalf("%v in %s", err, out.String())
	}
	return r
}

// about are the findings of one kind, in one pod's containers or everywhere.
func (r report) about(kind, pod string) (list []finding) {
	for _, f := range r.Findings {
		if f.Kind == kind && (pod == "" || f.Pod != nil && f.Pod.Name == pod) {
			list = append(list, f)
		}
	}
	return list
}

// in returns the containers of a pod by name.
func (r report) in(pod string) map[string]declared {
	found := make(map[string]declared)
	for _, c := range r.Containers {
		if c.Pod != nil && c.Pod.Name == pod && !c.Sandbox && c.Declared.Pod != nil {
			found[c.Name] = *c.Declared.Pod
		}
	}
	return found
}

// securityContext is a container's security context as a manifest has it.
type securityContext map[string]any

// contexts are all combinations of a container's fields that the kubelet maps, but for
// those that the API server refuses.
func contexts() (all []securityContext) {
	for _, capabilities := range []any{nil, map[string]any{"add": []string{"NET_ADMIN"}}, map[string]any{"drop": []string{"ALL"}}, map[string]any{"add": []string{"CAP_CHOWN", "sys_time"}, "drop": []string{"NET_RAW", "KILL"}}} {
		for _, privileged := range []any{nil, false, true} {
			for _, escalation := range []any{nil, true, false} {
				for _, user := range []any{nil, 0, 1000} {
					if privileged == true && escalation == false {
						continue
					}
					c := securityContext{}
					for key, value := range map[string]any{"capabilities": capabilities, "privileged": privileged, "allowPrivilegeEscalation": escalation, "runAsUser": user} {
						if value != nil {
							c[key] = value
						}
					}
					all = append(all, c)
				}
			}
		}
	}
	return all
}

func containerOf(name string, security securityContext) map[string]any {
	return map[string]any{
		"name": name, "image": node.Image, "imagePullPolicy": "Never", "args": []string{"ready", "sleep"}, "securityContext": security,
	}
}

// makePods makes pods at once, waits until they run, and deletes them after the test.
func makePods(t *testing.T, specs map[string]map[string]any) {
	t.Helper()
	var group errgroup.Group
	group.SetLimit(4)
	for name, spec := range specs {
		spec["restartPolicy"], spec["terminationGracePeriodSeconds"], spec["automountServiceAccountToken"] = "Always", 1, false
		manifest, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": name}, "spec": spec})
		if err != nil {
			t.Fatal(err)
		}
		group.Go(func() error {
			if _, err := theCluster.CreatePod(t.Context(), "default", manifest); err != nil {
				return fmt.Errorf("pod %s: %w", name, err)
			}
			_, err := theCluster.AwaitRunning(t.Context(), "default", name)
			return err
		})
	}
	t.Cleanup(func() {
		var group errgroup.Group
		group.SetLimit(4)
		for name := range specs {
			group.Go(func() error { return theCluster.DeletePod(context.Background(), "default", name) })
		}
		if err := group.Wait(); err != nil {
			t.Error(err)
		}
	})
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

// TestEveryCombination: whatever a security context says, the kubelet makes of it what we
// say, and no source raises a false cri_mismatch.
func TestEveryCombination(t *testing.T) {
	onCluster(t)
	containers := contexts()
	full := os.Getenv("CAPDRIFT_CONFORMANCE") == "full"
	specs := make(map[string]map[string]any)
	turn := 0
	for _, user := range []any{nil, 0, 1000} {
		for _, hostUsers := range []any{nil, true, false} {
			// All of them under each pod, in pods of a size that the kubelet ends soon; or each
			// of them under one.
			for part := range 9 {
				if !full && part != turn {
					continue
				}
				spec := map[string]any{}
				if user != nil {
					spec["securityContext"] = map[string]any{"runAsUser": user}
				}
				if hostUsers != nil {
					spec["hostUsers"] = hostUsers
				}
				var list []any
				for i, security := range containers {
					if i%9 == part {
						list = append(list, containerOf(fmt.Sprintf("c%d", i), security))
					}
				}
				spec["containers"] = list
				specs[fmt.Sprintf("combination-%d-%d", turn, part)] = spec
			}
			turn++
		}
	}
	makePods(t, specs)
	for _, from := range sources(t) {
		r := scan(t, from.flags...)
		for _, kind := range []string{"cri_mismatch", "oci_mismatch", "unmanaged_container", "userns_escape", "bounding_excess", "permitted_excess", "nnp_missing"} {
			if found := r.about(kind, ""); len(found) > 0 {
				t.Errorf("from %s: %d %s: %+v", from.name, len(found), kind, found[0])
			}
		}
		joined := 0
		for name, spec := range specs {
			joined += len(r.in(name))
			if got, want := len(r.in(name)), len(spec["containers"].([]any)); got != want {
				t.Errorf("from %s: %s has %d containers with a pod spec's layer, want %d", from.name, name, got, want)
			}
		}
		if !r.Coverage.Complete {
			t.Errorf("from %s: %+v", from.name, r.Coverage)
		}
		t.Logf("from %s: %d containers in %d pods, no mismatch", from.name, joined, len(specs))
	}
}

// TestRoles: init, sidecar and ephemeral containers, and static pods, have their layer from
// their own list.
func TestRoles(t *testing.T) {
	onCluster(t)
	drop := func(names ...string) securityContext {
		return securityContext{"capabilities": map[string]any{"drop": names}}
	}
	sidecar := containerOf("sidecar", drop("KILL"))
	sidecar["restartPolicy"] = "Always"
	setup := containerOf("setup", drop("CHOWN")) // which goes on as long as it is not killed
	makePods(t, map[string]map[string]any{
		"roles": {"hostNetwork": true, "initContainers": []any{sidecar}, "containers": []any{containerOf("app", drop("NET_RAW"))}},
	})
	debug, err := json.Marshal(containerOf("debug", securityContext{"capabilities": map[string]any{"add": []string{"SYS_PTRACE"}}}))
	if err != nil {
		t.Fatal(err)
	}
	if err := theCluster.AddEphemeral(t.Context(), "default", "roles", debug); err != nil {
		t.Fatal(err)
	}
	if _, err := theCluster.AwaitRunning(t.Context(), "default", "roles"); err != nil {
		t.Fatal(err)
	}
	initializing(t, setup)
	static, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": "fixed", "namespace": "default"},
		"spec": map[string]any{"hostNetwork": true, "terminationGracePeriodSeconds": 1, "containers": []any{containerOf("app", drop("SETUID"))}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := theNode.WriteStatic("fixed", static); err != nil {
		t.Fatal(err)
	}
	fixed := "fixed-" + theNode.Name
	t.Cleanup(func() {
		if err := errors.Join(theNode.RemoveStatic("fixed"), theCluster.AwaitGone(context.Background(), "default", fixed)); err != nil {
			t.Error(err)
		}
	})
	if _, err := theCluster.AwaitRunning(t.Context(), "default", fixed); err != nil {
		t.Fatal(err)
	}
	for _, from := range sources(t) {
		r := scan(t, from.flags...)
		for pod, roles := range map[string]map[string]string{
			"roles":        {"sidecar": "sidecar [] [KILL]", "app": "container [] [NET_RAW]", "debug": "ephemeral [SYS_PTRACE] []"},
			"initializing": {"setup": "init [] [CHOWN]"},
			fixed:          {"app": "container [] [SETUID]"},
		} {
			got := make(map[string]string)
			for name, d := range r.in(pod) {
				got[name] = fmt.Sprintf("%s %v %v", d.Role, d.Add, d.Drop)
			}
			for name, want := range roles {
				if got[name] != want {
					t.Errorf("from %s: %s/%s: %q, want %q", from.name, pod, name, got[name], want)
				}
			}
		}
		if found := slices.Concat(r.about("cri_mismatch", ""), r.about("unmanaged_container", "")); len(found) > 0 {
			t.Errorf("from %s: %+v", from.name, found)
		}
	}
}

// initializing makes a pod that stays with its init container.
func initializing(t *testing.T, setup map[string]any) {
	t.Helper()
	manifest, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": "initializing"},
		"spec": map[string]any{
			"hostNetwork": true, "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false,
			"initContainers": []any{setup}, "containers": []any{containerOf("app", nil)},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := theCluster.CreatePod(t.Context(), "default", manifest); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := theCluster.DeletePod(context.Background(), "default", "initializing"); err != nil {
			t.Error(err)
		}
	})
	await(t, "its init container runs", func() bool {
		pod, err := theCluster.Pod(t.Context(), "default", "initializing")
		return err == nil && bytes.Contains(pod, []byte(`"running":{"startedAt"`))
	})
}

// await asks for a condition often, for a minute.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for tick := time.NewTicker(50 * time.Millisecond); ; {
		if holds() {
			tick.Stop()
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("waiting until %s: %v", what, ctx.Err())
		case <-tick.C:
		}
	}
}

// TestIntruder: a container that somebody made at the runtime's socket, in a pod of the
// kubelet's, is in no pod spec. (One that takes the name of another container the kubelet
// soon ends; package live has one with other orders than its pod spec.)
func TestIntruder(t *testing.T) {
	onCluster(t)
	makePods(t, map[string]map[string]any{"victim": {"hostNetwork": true, "containers": []any{containerOf("app", securityContext{"capabilities": map[string]any{"drop": []string{"ALL"}}})}}})
	var sandbox, uid string
	for _, c := range scan(t).Containers {
		if c.Sandbox && c.Pod != nil && c.Pod.Name == "victim" {
			sandbox, uid = c.ID, c.Pod.UID
		}
	}
	stranger, err := intrude(t.Context(), sandbox, uid)
	if err != nil {
		t.Fatal(err)
	}
	for _, from := range sources(t) {
		r := scan(t, from.flags...)
		found := r.about("unmanaged_container", "victim")
		if from.name == "a file" { // which may be older than the container, and says so
			if len(found) > 0 || r.Coverage.Complete {
				t.Errorf("from %s: %+v, coverage %+v", from.name, found, r.Coverage)
			}
			continue
		}
		if len(found) != 1 || found[0].ContainerID != stranger || found[0].Cause != "direct_cri_client" || found[0].From != "pod" || found[0].Layer != "cri" {
			t.Errorf("from %s: %+v", from.name, found)
		} else if from.name == "the kubelet" && !strings.Contains(found[0].Message, "no container of this name") {
			t.Errorf("from %s: %s", from.name, found[0].Message)
		}
	}
}

// intrude starts a container in the pod "victim", as whoever may open the runtime's socket can.
func intrude(ctx context.Context, sandbox, uid string) (id string, err error) {
	conn, err := grpc.NewClient(theNode.Endpoint(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	runtime := cri.NewRuntimeServiceClient(conn)
	created, err := runtime.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: sandbox,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "miner"},
			Image:    &cri.ImageSpec{Image: node.Image},
			Args:     []string{"sleep"},
			Labels: map[string]string{
				"io.kubernetes.container.name": "miner",
				"io.kubernetes.pod.namespace":  "default", "io.kubernetes.pod.name": "victim", "io.kubernetes.pod.uid": uid,
			},
			LogPath: "miner.log",
			Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
				Capabilities:     &cri.Capability{AddCapabilities: []string{"SYS_ADMIN"}},
				NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER},
			}},
		},
		SandboxConfig: &cri.PodSandboxConfig{
			Metadata:     &cri.PodSandboxMetadata{Namespace: "default", Name: "victim", Uid: uid},
			LogDirectory: "/tmp",
			Linux:        &cri.LinuxPodSandboxConfig{CgroupParent: "/intruders"},
		},
	})
	if err != nil {
		return "", fmt.Errorf("create a container in a pod of the kubelet's: %w", err)
	}
	_, err = runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: created.ContainerId})
	return created.ContainerId, err
}
