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
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/capdrift/capdrift/e2e/cluster"
	"github.com/capdrift/capdrift/e2e/node"
	"github.com/capdrift/capdrift/e2e/suite"
)

// start brings up a cluster, and returns what closes it and fails the test if anything is left.
func start(t *testing.T) (*cluster.Cluster, func()) {
	t.Helper()
	c, err := suite.Cluster(t.Context(), cluster.Config{})
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
		seen := strings.Join(leftBy(t, c.Root()), "\n")
		for _, what := range []string{"process", "cgroup", "interface", "folder"} {
			if !strings.Contains(seen, what) {
				t.Errorf("no %s of the running cluster was found in:\n%s", what, seen)
			}
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		nothingLeft(t, c.Root())
	}
	t.Cleanup(closeOnce)
	return c, closeOnce
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("CI must run this as root")
		}
		t.Skip("needs root; run: sudo make cluster-test")
	}
}

func nothingLeft(t *testing.T, root string) {
	t.Helper()
	// The kernel ends a network namespace, with its interfaces, after its last process.
	await(t, "nothing is left of the cluster", func() (bool, string) {
		left := leftBy(t, root)
		return len(left) == 0, strings.Join(left, "\n")
	})
}

// leftBy lists what belongs to the cluster of a folder: that, processes, mounts, cgroups, interfaces.
func leftBy(t *testing.T, root string) (left []string) {
	t.Helper()
	if _, err := os.Stat(root); !errors.Is(err, fs.ErrNotExist) {
		left = append(left, "folder "+root)
	}
	name := filepath.Base(root) // which is that of cgroups too, and its end that of the interface
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range commands {
		command, _ := os.ReadFile(file)
		cgroups, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "cgroup"))
		if bytes.Contains(command, []byte(name)) || bytes.Contains(cgroups, []byte(name)) {
			left = append(left, fmt.Sprintf("process %s %q", file, command))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, name) {
			left = append(left, "mount "+line)
		}
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range interfaces {
		if strings.HasSuffix(i.Name, name[strings.LastIndexByte(name, '-'):]) {
			left = append(left, "interface "+i.Name)
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		groups, err := filepath.Glob(pattern + name)
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range groups {
			left = append(left, "cgroup "+g)
		}
	}
	return left
}

// await asks for a condition often, for two minutes, and tells what was seen last.
func await(t *testing.T, what string, holds func() (ok bool, seen string)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var last string
	err := node.Until(ctx, what, func() (ok bool, err error) {
		ok, last = holds()
		return ok, nil
	})
	if err != nil {
		t.Fatalf("%v; last seen:\n%s", err, last)
	}
}

// kubectl runs a command as the administrator and returns what it prints.
func kubectl(t *testing.T, c *cluster.Cluster, stdin string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	return output(t, c.Kubectl(ctx, args...), stdin)
}

func output(t *testing.T, command *exec.Cmd, stdin string) string {
	t.Helper()
	var out, errs bytes.Buffer
	command.Stdin, command.Stdout, command.Stderr = strings.NewReader(stdin), &out, &errs
	if err := command.Run(); err != nil {
		t.Fatalf("%q: %v\n%s%s", command.Args, err, out.String(), errs.String())
	}
	return out.String()
}

// TestCluster is what people do with a cluster, on one.
func TestCluster(t *testing.T) {
	needRoot(t)
	c, closeCluster := start(t)
	for _, test := range []struct {
		name string
		run  func(t *testing.T, c *cluster.Cluster)
	}{
		{"nodes", testNodes},
		{"workloads", testWorkloads},
		{"static_pod", testStaticPod},
		{"hopeless_pod", testHopelessPod},
		{"debug", testDebug},
		{"user_namespace", testUserNamespace},
		{"network", testNetwork},
		{"runc_exec", testRuncExec},
		{"users", testUsers},
		{"kubelet_port", testKubeletPort},
		{"kubelet_killed", testKubeletKilled},
		{"containerd_killed", testContainerdKilled},
		{"node_killed", testNodeKilled},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, c) })
	}
	closeCluster() // with all that still runs
}

// Each node is one to whoever looks at it from within.
func testNodes(t *testing.T, c *cluster.Cluster) {
	list := kubectl(t, c, "", "get", "nodes", "--no-headers")
	if ready := regexp.MustCompile(`(?m)^worker-[12] +Ready `).FindAllString(list, -1); len(ready) != 2 {
		t.Errorf("nodes:\n%s", list)
	}
	seen := map[string]string{} // which node has it
	for _, n := range c.Nodes {
		read := func(command ...string) string {
			return strings.TrimSpace(output(t, n.Command(t.Context(), command[0], command[1:]...), ""))
		}
		if name := read("cat", "/proc/sys/kernel/hostname"); name != n.Name {
			t.Errorf("the host name of %s is %s", n.Name, name)
		}
		for _, own := range []string{
			read("cat", "/proc/sys/kernel/random/boot_id"), read("cat", "/etc/machine-id"),
			read("readlink", "/proc/1/ns/mnt"), read("readlink", "/proc/1/ns/net"), read("readlink", "/proc/1/ns/pid"),
			read("readlink", "/proc/1/ns/uts"), read("readlink", "/proc/1/ns/ipc"), read("readlink", "/proc/1/ns/cgroup"),
		} {
			if other, ok := seen[own]; ok {
				t.Errorf("%s and %s have the same %s", n.Name, other, own)
			}
			seen[own] = n.Name
		}
		// The node's first process is the machine's, and all others are its own.
		processes := read("sh", "-c", `for p in /proc/[0-9]*; do echo "$(readlink $p/exe) $(cat $p/cgroup 2>/dev/null | grep ^1:)"; done`)
		if n := strings.Count(processes, "/opt/programs/kubelet"); n != 1 {
			t.Errorf("%d kubelets in:\n%s", n, processes)
		}
		if n := strings.Count(processes, "/opt/programs/containerd "); n != 1 {
			t.Errorf("%d containerds in:\n%s", n, processes)
		}
		if strings.Contains(processes, "..") || strings.Contains(processes, "etcd") {
			t.Errorf("%s sees processes of other cgroups:\n%s", n.Name, processes)
		}
		if name := read("sh", "-c", "cat /proc/1/cgroup | cut -d: -f3 | sort -u"); name != "/services" {
			t.Errorf("the cgroup of pid 1 is %q", name)
		}
	}
}

func pod(name, spec string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata: {name: " + name + "}\nspec: " + spec + "\n"
}

func actor(name string, more string, args ...string) string {
	return fmt.Sprintf("{name: %s, image: %q, imagePullPolicy: Never, args: [%s]%s}", name, node.Image, strings.Join(args, ", "), more)
}

// The manifests are YAML's flow form, in which one line of Go makes a container.
var workloads = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      affinity:
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
          - {topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: web}}}
      initContainers:
      - ` + actor("prepare", "", "exit") + `
      containers:
      - ` + actor("main", ", readinessProbe: {tcpSocket: {port: 8080}}", "listen=8080", "sleep") + `
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: web-pods}
spec: {selector: {app: web}, clusterIP: None}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: everywhere}
spec:
  selector: {matchLabels: {app: everywhere}}
  template:
    metadata: {labels: {app: everywhere}}
    spec:
      hostPID: true
      hostNetwork: true
      terminationGracePeriodSeconds: 1
      containers:
      - ` + actor("main", ", livenessProbe: {exec: {command: [/bin/actor, exit]}}", "name=everywhere", "sleep") + `
---
apiVersion: batch/v1
kind: Job
metadata: {name: once}
spec:
  completions: 2
  template:
    spec:
      restartPolicy: Never
      containers:
      - ` + actor("main", "", "ready", "exit") + `
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {matchLabels: {app: nothing}}, policyTypes: [Ingress]}
`

// podsOf are the pods with a label, by node.
func podsOf(t *testing.T, c *cluster.Cluster, label string) map[string]string {
	t.Helper()
	list := kubectl(t, c, "", "get", "pods", "-l", label, "-o", `jsonpath={range .items[*]}{.spec.nodeName} {.metadata.name}{"\n"}{end}`)
	found := map[string]string{}
	for line := range strings.Lines(list) {
		on, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		found[on] = name
	}
	return found
}

func testWorkloads(t *testing.T, c *cluster.Cluster) {
	kubectl(t, c, workloads, "apply", "-f", "-")
	kubectl(t, c, "", "rollout", "status", "deployment/web", "--timeout=2m")
	kubectl(t, c, "", "rollout", "status", "daemonset/everywhere", "--timeout=2m")
	kubectl(t, c, "", "wait", "job/once", "--for=condition=Complete", "--timeout=2m")
	for _, label := range []string{"app=web", "app=everywhere"} {
		if pods := podsOf(t, c, label); len(pods) != 2 || pods["worker-1"] == "" || pods["worker-2"] == "" {
			t.Errorf("pods of %s by node: %v", label, pods)
		}
	}
	if log := kubectl(t, c, "", "logs", "job/once"); log != "ready\n" {
		t.Errorf("the job's log is %q", log)
	}
}

func testStaticPod(t *testing.T, c *cluster.Cluster) {
	for _, n := range c.Nodes {
		if err := n.WriteStatic("fixed", []byte(pod("fixed", "{hostNetwork: true, containers: ["+actor("main", "", "sleep")+"]}"))); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range c.Nodes {
		if _, err := c.AwaitRunning(t.Context(), "default", "fixed-"+n.Name); err != nil {
			t.Fatal(err)
		}
		if err := n.RemoveStatic("fixed"); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range c.Nodes {
		if err := c.AwaitGone(t.Context(), "default", "fixed-"+n.Name); err != nil {
			t.Fatal(err)
		}
	}
}

// A pod that cannot run is told at once, with the reason.
func testHopelessPod(t *testing.T, c *cluster.Cluster) {
	manifest := strings.ReplaceAll(pod("hopeless", "{containers: ["+actor("main", "", "sleep")+"]}"), node.Image, "capdrift.test/absent:1")
	name, err := c.CreatePod(t.Context(), "default", []byte(manifest))
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.AwaitRunning(t.Context(), "default", name)
	if err == nil || errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "ErrImageNeverPull") {
		t.Errorf("got %v, want the kubelet's ErrImageNeverPull", err)
	}
	if err := c.DeletePod(t.Context(), "default", name); err != nil {
		t.Error(err)
	}
}

// kubectl debug gives whoever may use it a container with everything.
func testDebug(t *testing.T, c *cluster.Cluster) {
	for on, name := range podsOf(t, c, "app=web") {
		kubectl(t, c, "", "debug", name, "--profile=sysadmin", "--image="+node.Image, "--container=debugger", "--target=main", "--", "/bin/actor", "name=debugger", "ready", "sleep")
		b, err := c.AwaitRunning(t.Context(), "default", name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(b, []byte(`"privileged":true`)) {
			t.Errorf("the debugger is not privileged: %s", b)
		}
		holds := output(t, nodeNamed(c, on).Command(t.Context(), "sh", "-c", "grep -l '^Name:.debugger' /proc/[0-9]*/status | xargs grep CapEff; grep CapEff /proc/1/status"), "")
		if all := strings.Fields(holds); len(all) != 4 || all[1] != all[3] {
			t.Errorf("the debugger on %s and its pid 1 hold:\n%s", on, holds)
		}
	}
}

func nodeNamed(c *cluster.Cluster, name string) *cluster.Node {
	return c.Nodes[slices.IndexFunc(c.Nodes, func(n *cluster.Node) bool { return n.Name == name })]
}

func testUserNamespace(t *testing.T, c *cluster.Cluster) {
	name, err := c.CreatePod(t.Context(), "default", []byte(pod("apart", "{hostUsers: false, terminationGracePeriodSeconds: 1, containers: ["+actor("main", "", "sleep")+"]}")))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.AwaitRunning(t.Context(), "default", name); err != nil {
		t.Fatal(err)
	}
	if err := c.DeletePod(t.Context(), "default", name); err != nil {
		t.Error(err)
	}
}

// Every pod reaches every other, and people reach pods through the API.
func testNetwork(t *testing.T, c *cluster.Cluster) {
	web := podsOf(t, c, "app=web")
	call := func(caller, address string) string {
		return kubectl(t, c, "", "exec", caller, "-c", "main", "--", "/bin/actor", "call="+address, "exit")
	}
	for from, caller := range web {
		for on, name := range web {
			address := kubectl(t, c, "", "get", "pod", name, "-o", "jsonpath={.status.podIP}")
			if told, want := call(caller, address+":8080"), "hello from "+name+"\n"; told != want {
				t.Errorf("from %s a call of the pod on %s is told %q, want %q", from, on, told, want)
			}
		}
	}
	for on, name := range web {
		if told, want := forward(t, c, name), "hello from "+name+"\n"; told != want {
			t.Errorf("through the API the pod on %s tells %q, want %q", on, told, want)
		}
		for _, service := range []string{"web:80", "web-pods.default.svc.cluster.local:8080"} {
			if told := call(name, service); !strings.HasPrefix(told, "hello from web-") {
				t.Errorf("from %s the service %s tells %q", on, service, told)
			}
		}
		// To who is silent the API server says nothing.
		if told := call(name, "kubernetes.default.svc:443"); told != "" {
			t.Errorf("from %s the API server tells %q", on, told)
		}
	}
}

// forward calls a pod by kubectl port-forward.
func forward(t *testing.T, c *cluster.Cluster, name string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	command := c.Kubectl(ctx, "port-forward", name, ":8080")
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		_ = command.Wait() // killed
	}()
	var address string
	if _, err := fmt.Fscanf(out, "Forwarding from %s", &address); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	told, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	return string(told)
}

// The tests put processes into containers behind the kubelet's back.
func testRuncExec(t *testing.T, c *cluster.Cluster) {
	for on, name := range podsOf(t, c, "app=web") {
		id := kubectl(t, c, "", "get", "pod", name, "-o", "jsonpath={.status.containerStatuses[0].containerID}")
		id = strings.TrimPrefix(id, "containerd://")
		n := nodeNamed(c, on)
		// Its output is nobody's: who waited for its end would wait for the intruder's.
		if err := n.Command(t.Context(), "runc", "--root", cluster.RuncRoot, "exec", "--detach", "--cap", "CAP_SYS_TIME", id, "/bin/actor", "name=intruder", "sleep").Run(); err != nil {
			t.Fatal(err)
		}
		holds := output(t, n.Command(t.Context(), "sh", "-c", "grep -l '^Name:.intruder' /proc/[0-9]*/status | xargs grep CapEff"), "")
		effective, err := strconv.ParseUint(strings.TrimSpace(strings.TrimPrefix(holds, "CapEff:")), 16, 64)
		if err != nil || effective&(1<<25) == 0 {
			t.Errorf("the intruder holds %q, want CAP_SYS_TIME, bit 25", holds)
		}
	}
}

func testUsers(t *testing.T, c *cluster.Cluster) {
	kubeconfig, err := c.User("jane", "readers")
	if err != nil {
		t.Fatal(err)
	}
	get := func(what string) (string, error) {
		out, err := c.KubectlAs(t.Context(), kubeconfig, "get", what).CombinedOutput()
		return string(out), err
	}
	if out, err := get("pods"); err == nil || !strings.Contains(out, `User "jane" cannot list resource "pods"`) {
		t.Errorf("before she has a role jane gets: %v %s", err, out)
	}
	kubectl(t, c, "", "create", "role", "reader", "--verb=get,list", "--resource=pods")
	kubectl(t, c, "", "create", "rolebinding", "reader", "--role=reader", "--group=readers")
	// The API server learns of roles as everybody else does.
	await(t, "jane may list pods", func() (bool, string) {
		out, err := get("pods")
		return err == nil, out
	})
	if out, err := get("secrets"); err == nil {
		t.Errorf("jane gets secrets: %s", out)
	}
}

// The kubelet asks who calls, and the API what they may do.
func testKubeletPort(t *testing.T, c *cluster.Cluster) {
	kubectl(t, c, "", "create", "serviceaccount", "reader")
	kubectl(t, c, "", "create", "serviceaccount", "stranger")
	kubectl(t, c, "", "create", "clusterrole", "pods-of-kubelets", "--verb=get", "--resource=nodes/pods")
	kubectl(t, c, "", "create", "clusterrolebinding", "pods-of-kubelets", "--clusterrole=pods-of-kubelets", "--serviceaccount=default:reader")
	token := func(account string) string { return kubectl(t, c, "", "create", "token", account) }
	for _, way := range []struct {
		name   string
		token  string
		status int
	}{
		{"the administrator's token", c.AdminToken(), http.StatusOK},
		{"the token of an account with the role", token("reader"), http.StatusOK},
		{"the token of an account without a role", token("stranger"), http.StatusForbidden},
		{"another token", "wrong", http.StatusUnauthorized},
		{"nothing", "", http.StatusUnauthorized},
	} {
		for _, n := range c.Nodes {
			if status, body := secure(t, c, n, strings.TrimSpace(way.token)); status != way.status {
				t.Errorf("the kubelet of %s with %s answers %d: %s", n.Name, way.name, status, body)
			} else if status == http.StatusOK && !json.Valid(body) {
				t.Errorf("the kubelet of %s answers %s", n.Name, body)
			}
		}
	}
}

// secure asks a kubelet's authenticated port for the pods.
func secure(t *testing.T, c *cluster.Cluster, n *cluster.Node, token string) (status int, body []byte) {
	t.Helper()
	ca, err := os.ReadFile(c.CA())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, n.KubeletSecureURL()+"/pods", nil)
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

// restarts tells how often a pod's container was started again, and whether it runs.
func restarts(t *testing.T, c *cluster.Cluster, name string) (count int, runs bool) {
	t.Helper()
	b, err := c.Pod(t.Context(), "default", name)
	if err != nil {
		t.Fatal(err)
	}
	var p struct {
		Status struct {
			ContainerStatuses []struct {
				RestartCount int
				Ready        bool
			}
		}
	}
	if err := json.Unmarshal(b, &p); err != nil || len(p.Status.ContainerStatuses) == 0 {
		t.Fatalf("pod %s: %v in %s", name, err, b)
	}
	return p.Status.ContainerStatuses[0].RestartCount, p.Status.ContainerStatuses[0].Ready
}

// endContainer kills the first process of the DaemonSet's container on a node, as a fault does of
// which nobody tells.
func endContainer(t *testing.T, c *cluster.Cluster, n *cluster.Node) (pod string) {
	t.Helper()
	pod = podsOf(t, c, "app=everywhere")[n.Name]
	uid := kubectl(t, c, "", "get", "pod", pod, "-o", "jsonpath={.metadata.uid}")
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range commands {
		command, _ := os.ReadFile(file)
		cgroups, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "cgroup"))
		if !bytes.Contains(cgroups, []byte("pod"+uid)) || string(command) != "/bin/actor\x00name=everywhere\x00sleep\x00" {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		return pod
	}
	t.Fatalf("no process of pod %s", pod)
	return ""
}

func awaitRestarted(t *testing.T, c *cluster.Cluster, name string, before int) {
	t.Helper()
	await(t, "pod "+name+" is started again", func() (bool, string) {
		count, runs := restarts(t, c, name)
		return count > before && runs, fmt.Sprintf("%d restarts, ready: %v", count, runs)
	})
}

func testKubeletKilled(t *testing.T, c *cluster.Cluster) {
	n := c.Nodes[0]
	if err := n.StopKubelet(t.Context()); err != nil {
		t.Fatal(err)
	}
	before, _ := restarts(t, c, podsOf(t, c, "app=everywhere")[n.Name])
	name := endContainer(t, c, n)
	if err := n.AwaitReady(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if err := n.StartKubelet(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitRestarted(t, c, name, before)
}

func testContainerdKilled(t *testing.T, c *cluster.Cluster) {
	n := c.Nodes[0]
	if err := n.StopContainerd(t.Context()); err != nil {
		t.Fatal(err)
	}
	before, _ := restarts(t, c, podsOf(t, c, "app=everywhere")[n.Name])
	name := endContainer(t, c, n)
	if err := n.StartContainerd(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitRestarted(t, c, name, before)
	if err := n.AwaitReady(t.Context(), true); err != nil {
		t.Fatal(err)
	}
}

func testNodeKilled(t *testing.T, c *cluster.Cluster) {
	n := c.Nodes[1]
	boot := func() string {
		return kubectl(t, c, "", "get", "node", n.Name, "-o", "jsonpath={.status.nodeInfo.bootID}")
	}
	first := boot()
	name := podsOf(t, c, "app=everywhere")[n.Name]
	before, _ := restarts(t, c, name)
	if err := n.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.Command(t.Context(), "true").Run(); err == nil {
		t.Error("a node without power carries out a command")
	}
	if err := n.AwaitReady(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if err := n.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitRestarted(t, c, name, before)
	if again := boot(); again == first {
		t.Errorf("the boot id is %s as before", again)
	}
	// Its pods have a network again.
	kubectl(t, c, "", "rollout", "status", "deployment/web", "--timeout=2m")
	web := podsOf(t, c, "app=web")[n.Name]
	await(t, "the node's pod answers", func() (bool, string) {
		told := forward(t, c, web)
		return told == "hello from "+web+"\n", told
	})
}

// A killed owner takes the machines along; the next one removes the rest.
func TestKilledOwner(t *testing.T) {
	needRoot(t)
	const dies = "CAPDRIFT_E2E_CLUSTER_DIES"
	if note := os.Getenv(dies); note != "" {
		c, _ := start(t)
		if err := os.WriteFile(note, []byte(c.Root()), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	note := filepath.Join(t.TempDir(), "root")
	owner := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^"+t.Name()+"$")
	owner.Env = append(os.Environ(), dies+"="+note)
	if out, err := owner.CombinedOutput(); err == nil || owner.ProcessState.ExitCode() != -1 {
		t.Fatalf("the owner was not killed: %v\n%s", err, out)
	}
	noted, err := os.ReadFile(note)
	if err != nil {
		t.Fatal(err)
	}
	root := string(noted)
	await(t, "only files and cgroups are left", func() (bool, string) {
		left := slices.DeleteFunc(leftBy(t, root), func(l string) bool {
			return strings.HasPrefix(l, "folder") || strings.HasPrefix(l, "cgroup")
		})
		return len(left) == 0, strings.Join(left, "\n")
	})
	if len(leftBy(t, root)) == 0 {
		t.Error("the killed owner left nothing")
	}
	next, err := node.NewFolder(t.Context(), os.Getenv("CAPDRIFT_E2E_ROOT"))
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	nothingLeft(t, root)
}
