//go:build linux

package cluster_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/capdrift/capdrift/e2e/cluster"
	"github.com/capdrift/capdrift/e2e/node"
	"github.com/capdrift/capdrift/e2e/provision"
)

// start brings up a node and a cluster on it. What it returns closes the
// cluster, and fails the test if anything is left of it.
func start(t *testing.T, apiServer bool) (*cluster.Cluster, func()) {
	t.Helper()
	needRoot(t)
	return startFrom(t, apiServer, outside(t))
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("CI must run this as root")
		}
		t.Skip("needs root; run: sudo make test")
	}
}

// startFrom is start where it has been like before outside of the cluster's folders.
func startFrom(t *testing.T, apiServer bool, before string) (*cluster.Cluster, func()) {
	t.Helper()
	slow := 1.0
	if s := os.Getenv("CAPDRIFT_E2E_SLOW"); s != "" {
		var err error
		if slow, err = strconv.ParseFloat(s, 64); err != nil {
			t.Fatal("CAPDRIFT_E2E_SLOW:", err)
		}
	}
	programs, err := provision.KubernetesFromEnv(t.Context(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	n, err := node.Start(t.Context(), node.Config{Programs: programs, Parent: os.Getenv("CAPDRIFT_E2E_ROOT"), Slow: slow})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	c, err := cluster.Start(t.Context(), n, cluster.Config{Programs: programs, Slow: slow, APIServer: apiServer})
	if err != nil {
		t.Fatal(err)
	}
	closed := false
	closeOnce := func() {
		if closed {
			return
		}
		closed = true
		// Else a look that sees nothing would prove nothing.
		seen := strings.Join(leftBy(t, n), "\n")
		for _, what := range []string{"process", "mount", "cgroup", "folder"} {
			if !strings.Contains(seen, what) {
				t.Errorf("no %s of the running cluster was found", what)
			}
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		for _, left := range leftBy(t, n) {
			t.Errorf("left after Close: %s", left)
		}
		if after := outside(t); after != before {
			t.Errorf("outside of its folders it was:\n%s\nand is after Close:\n%s", before, after)
		}
	}
	t.Cleanup(closeOnce)
	return c, closeOnce
}

// leftBy lists what belongs to a cluster on n: processes, mounts, cgroups, files.
func leftBy(t *testing.T, n *node.Node) (left []string) {
	t.Helper()
	dir := filepath.Join(n.Root, "cluster")
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range commands {
		command, err := os.ReadFile(file)
		if err == nil && bytes.Contains(command, []byte(dir)) {
			left = append(left, fmt.Sprintf("process %s %q", file, command))
		}
		// The processes of pods do not name the folder, nor do those on their behalf.
		cgroups, err := os.ReadFile(filepath.Join(filepath.Dir(file), "cgroup"))
		if err == nil && bytes.Contains(cgroups, []byte(n.Cgroup+"/cluster")) {
			left = append(left, fmt.Sprintf("process %s %q in its cgroup", file, command))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir) || strings.Contains(line, n.Root) && strings.Contains(line, "overlay") {
			left = append(left, "mount "+line)
		}
	}
	err = filepath.WalkDir("/sys/fs/cgroup", func(path string, _ fs.DirEntry, err error) error {
		if strings.Contains(path, n.Cgroup+"/cluster") {
			left = append(left, "cgroup "+path)
			return filepath.SkipDir
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // somebody else's, gone meanwhile
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		left = append(left, "folder "+dir)
	}
	return left
}

// outside is what a kubelet changes elsewhere.
func outside(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, dir := range []string{"/var/log/containers", "/var/log/pods", "/var/lib/kubelet", "/usr/libexec/kubernetes", "/etc/kubernetes", "/run/capdrift-e2e-kubelet.json"} {
		names, err := filepath.Glob(dir + "/*")
		if err != nil {
			t.Fatal(err)
		}
		_, err = os.Stat(dir)
		fmt.Fprintln(&b, dir, err == nil, names)
	}
	for _, setting := range []string{
		"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
		"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
	} {
		value, err := os.ReadFile("/proc/sys/" + setting)
		fmt.Fprintf(&b, "%s %s %v\n", setting, bytes.TrimSpace(value), err)
	}
	return b.String()
}

// The pod's volume is one that the kubelet mounts: memory.
var podManifest = []byte(`
apiVersion: v1
kind: Pod
metadata:
  name: mixed
spec:
  hostNetwork: true
  volumes:
  - name: memory
    emptyDir: {medium: Memory}
  initContainers:
  - name: prepare
    image: ` + node.Image + `
    imagePullPolicy: Never
    args: [exit]
    securityContext:
      capabilities: {add: [NET_ADMIN]}
  - name: sidecar
    image: ` + node.Image + `
    imagePullPolicy: Never
    restartPolicy: Always
    securityContext:
      capabilities: {drop: [ALL]}
  containers:
  - name: main
    image: ` + node.Image + `
    imagePullPolicy: Never
    volumeMounts: [{name: memory, mountPath: /tmp}]
    securityContext:
      runAsUser: 1000
      allowPrivilegeEscalation: false
`)

const debugger = `{"name": "debugger", "image": "` + node.Image + `", "imagePullPolicy": "Never",
	"targetContainerName": "main", "securityContext": {"privileged": true}}`

// What the tests read of a pod.
type pod struct {
	Metadata struct{ Namespace, Name, UID string }
	Spec     struct {
		InitContainers, Containers, EphemeralContainers []struct {
			Name            string
			SecurityContext struct {
				Privileged, AllowPrivilegeEscalation *bool

				RunAsUser    *int
				Capabilities struct{ Add, Drop []string }
			}
		}
	}
	Status struct {
		Phase string

		InitContainerStatuses, ContainerStatuses, EphemeralContainerStatuses []struct{ Name, ContainerID string }
	}
}

func TestAPIServer(t *testing.T) {
	c, closeCluster := start(t, true)
	ctx := t.Context()
	if err := c.CreateNamespace(ctx, "team"); err != nil {
		t.Fatal(err)
	}
	name, err := c.CreatePod(ctx, "team", podManifest)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.AwaitRunning(ctx, "team", name); err != nil {
		t.Fatal(err)
	}
	if err := c.AddEphemeral(ctx, "team", name, []byte(debugger)); err != nil {
		t.Fatal(err)
	}
	fromAPI, err := c.AwaitRunning(ctx, "team", name)
	if err != nil {
		t.Fatal(err)
	}
	checkMixed(t, "the API", fromAPI)

	list, err := c.KubeletPods(ctx)
	if err != nil {
		t.Fatal(err)
	}
	checkMixed(t, "the kubelet", only(t, list))

	certificate, err := tls.LoadX509KeyPair(c.AdminCertificate())
	if err != nil {
		t.Fatal(err)
	}
	for _, way := range []struct {
		name        string
		token       string
		certificate []tls.Certificate
		status      int
	}{
		{"the administrator's token", c.AdminToken(), nil, http.StatusOK},
		{"the administrator's certificate", "", []tls.Certificate{certificate}, http.StatusOK},
		{"the token of an account with the role", account(t, c, "reader", true), nil, http.StatusOK},
		{"the token of an account without a role", account(t, c, "stranger", false), nil, http.StatusForbidden},
		{"another token", "wrong", nil, http.StatusUnauthorized},
		{"nothing", "", nil, http.StatusUnauthorized},
	} {
		status, body := secure(t, c, way.token, way.certificate)
		if status != way.status {
			t.Errorf("the kubelet's secure port with %s answers %d: %s", way.name, status, body)
		} else if status == http.StatusOK {
			checkMixed(t, "the kubelet's secure port", only(t, body))
		}
	}
	if err := c.DeletePod(ctx, "team", name); err != nil {
		t.Fatal(err)
	}
	// And once more with a pod that still runs.
	if name, err = c.CreatePod(ctx, "default", podManifest); err != nil {
		t.Fatal(err)
	}
	if _, err := c.AwaitRunning(ctx, "default", name); err != nil {
		t.Fatal(err)
	}
	closeCluster()
}

func TestStaticPodAlone(t *testing.T) {
	c, closeCluster := start(t, false)
	ctx := t.Context()
	if err := c.WriteStatic("mixed", podManifest); err != nil {
		t.Fatal(err)
	}
	name := "mixed-" + c.NodeName()
	b, err := c.AwaitRunning(ctx, "default", name)
	if err != nil {
		t.Fatal(err)
	}
	var p pod
	if err := json.Unmarshal(b, &p); err != nil {
		t.Fatal(err)
	}
	if len(p.Status.ContainerStatuses) != 1 || !strings.HasPrefix(p.Status.ContainerStatuses[0].ContainerID, "containerd://") {
		t.Errorf("statuses of containers: %+v", p.Status.ContainerStatuses)
	}
	certificate, err := tls.LoadX509KeyPair(c.AdminCertificate())
	if err != nil {
		t.Fatal(err)
	}
	if status, body := secure(t, c, "", []tls.Certificate{certificate}); status != http.StatusOK {
		t.Errorf("the secure port answers %d: %s", status, body)
	}
	if status, body := secure(t, c, "", nil); status != http.StatusUnauthorized {
		t.Errorf("the secure port answers %d without a certificate: %s", status, body)
	}
	if err := c.WriteStatic("short", bytes.Replace(podManifest, []byte("name: mixed"), []byte("name: short"), 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.AwaitRunning(ctx, "default", "short-"+c.NodeName()); err != nil {
		t.Fatal(err)
	}
	if err := c.RemoveStatic("short"); err != nil {
		t.Fatal(err)
	}
	if err := c.AwaitGone(ctx, "default", "short-"+c.NodeName()); err != nil {
		t.Fatal(err)
	}
	closeCluster()
}

// A pod that cannot run is told at once, with the reason.
func TestHopelessPod(t *testing.T) {
	c, _ := start(t, false)
	manifest := bytes.Replace(podManifest, []byte(node.Image), []byte("capdrift.test/absent:1"), 1)
	if err := c.WriteStatic("hopeless", manifest); err != nil {
		t.Fatal(err)
	}
	_, err := c.AwaitRunning(t.Context(), "default", "mixed-"+c.NodeName())
	if err == nil || errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "ErrImageNeverPull") {
		t.Errorf("got %v, want the kubelet's ErrImageNeverPull", err)
	}
}

// What a killed owner left, the next one removes.
func TestKilledOwner(t *testing.T) {
	needRoot(t)
	const dies = "CAPDRIFT_E2E_CLUSTER_DIES"
	if os.Getenv(dies) != "" {
		c, _ := start(t, false)
		if err := c.WriteStatic("mixed", podManifest); err != nil {
			t.Fatal(err)
		}
		if _, err := c.AwaitRunning(t.Context(), "default", "mixed-"+c.NodeName()); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	before := outside(t)
	owner := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^"+t.Name()+"$")
	owner.Env = append(os.Environ(), dies+"=1")
	if out, err := owner.CombinedOutput(); err == nil || owner.ProcessState.ExitCode() != -1 {
		t.Fatalf("the owner was not killed: %v\n%s", err, out)
	}
	if outside(t) == before {
		t.Error("the killed owner left nothing")
	}
	_, closeCluster := startFrom(t, false, before)
	closeCluster()
}

// only is the one pod of a list.
func only(t *testing.T, list []byte) []byte {
	t.Helper()
	var pods struct{ Items []json.RawMessage }
	if err := json.Unmarshal(list, &pods); err != nil {
		t.Fatal(err)
	}
	if len(pods.Items) != 1 {
		t.Fatalf("got %d pods, want one: %s", len(pods.Items), list)
	}
	return pods.Items[0]
}

func checkMixed(t *testing.T, from string, b []byte) {
	t.Helper()
	var p pod
	if err := json.Unmarshal(b, &p); err != nil {
		t.Fatal(err)
	}
	if p.Metadata.Namespace != "team" || p.Metadata.Name != "mixed" || p.Status.Phase != "Running" {
		t.Errorf("%s tells of pod %+v, phase %s", from, p.Metadata, p.Status.Phase)
	}
	if len(p.Spec.InitContainers) != 2 || len(p.Spec.Containers) != 1 || len(p.Spec.EphemeralContainers) != 1 {
		t.Fatalf("%s tells of containers %+v", from, p.Spec)
	}
	if add := p.Spec.InitContainers[0].SecurityContext.Capabilities.Add; len(add) != 1 || add[0] != "NET_ADMIN" {
		t.Errorf("%s: the init container adds %v", from, add)
	}
	if drop := p.Spec.InitContainers[1].SecurityContext.Capabilities.Drop; len(drop) != 1 || drop[0] != "ALL" {
		t.Errorf("%s: the sidecar drops %v", from, drop)
	}
	if user := p.Spec.Containers[0].SecurityContext.RunAsUser; user == nil || *user != 1000 {
		t.Errorf("%s: the main container runs as %v", from, user)
	}
	if privileged := p.Spec.EphemeralContainers[0].SecurityContext.Privileged; privileged == nil || !*privileged {
		t.Errorf("%s: the ephemeral container is not privileged", from)
	}
	if len(p.Status.InitContainerStatuses) != 2 || len(p.Status.ContainerStatuses) != 1 || len(p.Status.EphemeralContainerStatuses) != 1 {
		t.Errorf("%s tells of statuses %+v", from, p.Status)
	}
}

// account makes a service account, which may read the kubelet's pods or nothing, and
// returns a token of it.
func account(t *testing.T, c *cluster.Cluster, name string, reads bool) (token string) {
	t.Helper()
	post := func(path, body string) (answer []byte) {
		answer, err := c.Request(t.Context(), http.MethodPost, path, []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	const accounts, roles = "/api/v1/namespaces/team/serviceaccounts", "/apis/rbac.authorization.k8s.io/v1/clusterroles"
	post(accounts, `
apiVersion: v1
kind: ServiceAccount
metadata: {name: `+name+`}
`)
	if reads {
		post(roles, `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: `+name+`}
rules:
- {apiGroups: [""], resources: [nodes/pods], verbs: [get]}
`)
		post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: `+name+`}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: `+name+`}
subjects:
- {kind: ServiceAccount, namespace: team, name: `+name+`}
`)
	}
	var request struct{ Status struct{ Token string } }
	answer := post(accounts+"/"+name+"/token", `{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}`)
	if err := json.Unmarshal(answer, &request); err != nil || request.Status.Token == "" {
		t.Fatalf("no token: %v in %s", err, answer)
	}
	return request.Status.Token
}

// secure asks the kubelet's authenticated port for the pods.
func secure(t *testing.T, c *cluster.Cluster, token string, certificates []tls.Certificate) (status int, body []byte) {
	t.Helper()
	ca, err := os.ReadFile(c.CA())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: certificates}}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.KubeletSecureURL()+"/pods", nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	answer, err := (&http.Client{Transport: transport}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if body, err = io.ReadAll(answer.Body); err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, body
}
