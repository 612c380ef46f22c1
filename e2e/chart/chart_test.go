//go:build linux

// Package chart installs the chart on a real cluster of two nodes, and uses what runs there. A reader who
// has a clean clone runs every command of README.md, docs/kubernetes.md, docs/kubectl.md and
// docs/security.md (page_test.go, reader_test.go).
package chart

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/capdrift/capdrift/e2e/cluster"
	"github.com/capdrift/capdrift/e2e/node"
)

// TestChart is the life of an installation, from its image to what it leaves.
func TestChart(t *testing.T) {
	in := start(t)
	for _, step := range []struct {
		name string
		run  func(*testing.T, *installation)
	}{
		{"plugin", testPlugin},
		{"kubernetes_page", testKubernetesPage},
		{"install", testInstall},
		{"four_layers", testFourLayers},
		{"watch", testWatch},
		{"audit", testAudit},
		{"policy", testPolicy},
		{"upgrade", testUpgrade},
		{"certificates", testCertificates},
		{"runtime_away", testRuntimeAway},
		{"eviction", testEviction},
		{"rollback", testRollback},
		{"kubectl_page", testKubectlPage},
		{"readme", testReadme},
		{"users", testUsers},
		{"uninstall", testUninstall},
		{"pages", testPages},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.run(t, in) }) {
			in.showLogs(t)
			return // each goes on from the one before
		}
	}
}

func testInstall(t *testing.T, in *installation) {
	in.walk(t, readme, "Install it")
	if agents := in.agents(t); len(agents) != 2 || agents["worker-1"].UID == "" || agents["worker-2"].UID == "" {
		t.Errorf("agents by node: %v", agents)
	}
	told, status := in.capdrift(t, "get", "nodes", "-o", "json")
	answers := parse[agentView](t, told)
	if status != 0 || !answers.Complete || len(answers.Nodes) != 2 {
		t.Fatalf("status %d: %s", status, told)
	}
	for _, n := range answers.Nodes {
		for _, component := range n.Answer.Components {
			if !component.OK {
				t.Errorf("on %s %s fails: %s", n.NodeName, component.Name, component.Why)
			}
		}
	}
}

func actor(name, more string) string {
	return fmt.Sprintf("{name: %s, image: %q, imagePullPolicy: Never, args: [name=%[1]s, sleep]%[3]s}", name, node.Image, more)
}

var workloads = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      initContainers:
      - ` + actor("sidecar", ", restartPolicy: Always, securityContext: {capabilities: {drop: [ALL]}}") + `
      containers:
      - ` + actor("main", ", securityContext: {capabilities: {drop: [ALL]}}") + `
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: everywhere, namespace: shop}
spec:
  selector: {matchLabels: {app: everywhere}}
  template:
    metadata: {labels: {app: everywhere}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - ` + actor("main", "") + `
---
apiVersion: batch/v1
kind: Job
metadata: {name: once, namespace: shop}
spec:
  template:
    metadata: {labels: {app: once}}
    spec:
      terminationGracePeriodSeconds: 1
      restartPolicy: Never
      containers:
      - ` + actor("main", "") + `
`

func testFourLayers(t *testing.T, in *installation) {
	if err := in.CreateNamespace(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	static := "apiVersion: v1\nkind: Pod\nmetadata: {name: fixed, namespace: shop}\nspec: {terminationGracePeriodSeconds: 1, containers: [" + actor("main", "") + "]}\n"
	if err := in.Nodes[0].WriteStatic("fixed", []byte(static)); err != nil {
		t.Fatal(err)
	}
	in.kubectl(t, workloads, "apply", "-f", "-")
	in.kubectl(t, "", "rollout", "status", "-n", "shop", "deployment/web", "--timeout=2m")
	in.kubectl(t, "", "rollout", "status", "-n", "shop", "daemonset/everywhere", "--timeout=2m")
	web, everywhere, once := in.podsOf(t, "web"), in.podsOf(t, "everywhere"), in.podsOf(t, "once")
	if len(web) != 1 || len(everywhere) != 2 || len(once) != 1 {
		t.Fatalf("pods by node: %v, %v, %v", web, everywhere, once)
	}
	want := []string{"fixed-worker-1/main", everywhere["worker-1"] + "/main", everywhere["worker-2"] + "/main"}
	for _, pod := range web {
		in.kubectl(t, "", "debug", "-n", "shop", pod, "--profile=sysadmin", "--image="+node.Image, "--container=debugger", "--target=main", "--", "/bin/actor", "sleep")
		want = append(want, pod+"/sidecar", pod+"/main", pod+"/debugger")
	}
	for _, pod := range once {
		want = append(want, pod+"/main")
	}
	for _, name := range want {
		pod, _, _ := strings.Cut(name, "/")
		if _, err := in.AwaitRunning(t.Context(), "shop", pod); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(want)
	await(t, "each container has all layers and processes", func() (bool, string) {
		told, _ := in.capdrift(t, "get", "containers", "-n", "shop", "-o", "json")
		var whole []string
		for _, n := range parse[list](t, told).Nodes {
			for _, c := range n.Answer.Containers {
				if d := c.Declared; c.Pod != nil && d.Pod != nil && d.CRI != nil && d.OCI != nil && len(c.Processes) > 0 {
					whole = append(whole, c.Pod.Name+"/"+c.Name)
				}
			}
		}
		slices.Sort(whole)
		return slices.Equal(whole, want), fmt.Sprintf("whole are %q, want %q of:\n%s", whole, want, told)
	})
}

// intrude puts a process into the main container of a pod, behind the kubelet's back, and returns
// the ids of what is then critical about it.
func (in *installation) intrude(t *testing.T, n *cluster.Node, pod string) (ids []string) {
	t.Helper()
	in.exceed(t, n, pod)
	await(t, "the intruder is found", func() (bool, string) {
		ids = in.critical(t, pod)
		return len(ids) == 2, fmt.Sprintf("critical: %q", ids) // bounding_excess and permitted_excess
	})
	return ids
}

func (in *installation) exceed(t *testing.T, n *cluster.Node, pod string) {
	t.Helper()
	id := in.kubectl(t, "", "get", "pod", "-n", "shop", pod, "-o", "jsonpath={.status.containerStatuses[0].containerID}")
	// Its output is nobody's: who waited for its end would wait for the intruder's.
	exec := n.Command(t.Context(), "runc", "--root", cluster.RuncRoot, "exec", "--detach", "--cap", "CAP_SYS_ADMIN",
		strings.TrimPrefix(id, "containerd://"), "/bin/actor", "name=intruder", "sleep")
	if err := exec.Run(); err != nil {
		t.Fatal(err)
	}
}

// critical are the ids of the critical findings about a pod.
func (in *installation) critical(t *testing.T, pod string) (ids []string) {
	t.Helper()
	told, status := in.capdrift(t, "get", "findings", "-n", "shop", "-o", "json")
	if status != 0 {
		return nil
	}
	for _, n := range parse[list](t, told).Nodes {
		ids = append(ids, critical(n.Answer.Findings, pod)...)
	}
	slices.Sort(ids)
	return ids
}

func critical(of []*finding, pod string) (ids []string) {
	for _, f := range of {
		if f.about(pod) && f.Severity == "critical" {
			ids = append(ids, f.ID)
		}
	}
	slices.Sort(ids)
	return ids
}

func testWatch(t *testing.T, in *installation) {
	w := in.watch(t)
	on, pod := only(t, in.podsOf(t, "once"))
	began := time.Now()
	in.exceed(t, in.node(on), pod)
	var told record
	await(t, "the intruder is told of", func() (found bool, seen string) {
		for _, r := range w.records(t) {
			if r.NodeName == on && r.Change == "opened" && r.Finding.about(pod) && r.Finding.Severity == "critical" {
				told, found = r, true
			}
		}
		return found, w.text(t)
	})
	t.Logf("the intruder on %s was told of after %s", on, time.Since(began).Round(time.Millisecond))
	in.kubectl(t, "", "delete", "job", "-n", "shop", "once", "--cascade=foreground")
	await(t, "it is resolved", func() (bool, string) {
		return slices.ContainsFunc(w.records(t), func(r record) bool {
			return r.Change == "resolved" && r.Resolved == "ended" && r.Finding != nil && r.Finding.ID == told.Finding.ID
		}), w.text(t)
	})
}

// The agents pass the audit that they make.
func testAudit(t *testing.T, in *installation) {
	told, status := in.capdrift(t, "audit", "--pack", "pss-restricted", "--exceptions", in.exceptions(), "-n", "capdrift", "--fail-on", "info", "-o", "json")
	if status != 0 {
		t.Fatalf("status %d: %s", status, told)
	}
	for _, n := range parse[report](t, told).Nodes {
		passed, excepted := 0, 0
		for _, result := range n.Answer.Results {
			if result.Declared.Verdict == "pass" && result.Actual.Verdict == "pass" {
				passed++
			}
			if result.Exception != nil {
				excepted++
			}
		}
		if len(n.Answer.Containers) == 0 || passed == 0 || excepted == 0 {
			t.Errorf("on %s %d containers, %d results passed by both verdicts, %d excepted", n.NodeName, len(n.Answer.Containers), passed, excepted)
		}
	}
}

func testPolicy(t *testing.T, in *installation) {
	before := in.agents(t)
	in.helm(t, "upgrade", "capdrift", in.chart(), "--reuse-values", "--set", "agent.policy.packs={pss-restricted}",
		"--set-file", "agent.policy.exceptionFiles.agent="+in.exceptions(), "--wait")
	// The kubelet takes its time to write the ConfigMap anew.
	await(t, "rules judge on both nodes, and accept the agents", func() (bool, string) {
		told, _ := in.capdrift(t, "get", "findings", "-o", "json")
		judged := 0
		for _, n := range parse[list](t, told).Nodes {
			violates := slices.ContainsFunc(n.Answer.Findings, func(f *finding) bool {
				return f.Kind == "policy_violation" && f.Pod != nil && f.Pod.Namespace == "shop"
			})
			blames := slices.ContainsFunc(n.Answer.Findings, func(f *finding) bool {
				return f.Pod != nil && f.Pod.Namespace == "capdrift" && f.Kind == "policy_violation"
			})
			if violates && !blames && n.Answer.Accepted > 0 {
				judged++
			}
		}
		return judged == 2, told
	})
	if after := in.agents(t); after["worker-1"] != before["worker-1"] || after["worker-2"] != before["worker-2"] {
		t.Errorf("the agents were %v, and are %v", before, after)
	}
}

// What is open stays open under its ids when other agents come, by whatever way they come. This one
// is a later release, whose chart asks for other things, and TCP comes on with it.
func testUpgrade(t *testing.T, in *installation) {
	pod := in.podsOf(t, "everywhere")["worker-1"]
	in.kept = in.intrude(t, in.Nodes[0], pod)
	in.follow = in.watch(t)
	in.authority = newAuthority(t, authorityName)
	in.putSecret(t, in.authority, serverOf(t, in.authority))
	in.client = in.newClient(t, in.authority, in.authority)
	image := in.kubectl(t, "", "get", "daemonset", "-n", "capdrift", "capdrift-agent", "-o", "jsonpath={.spec.template.spec.containers[0].image}")
	in.replaceAgents(t, pod, "upgrade", "capdrift", in.laterChart(t), "--reset-then-reuse-values",
		"--set", "image.tag="+image[strings.LastIndexByte(image, ':')+1:], // the only image that there is
		"--set", "agent.api.tcp.enabled=true,agent.api.tcp.secretName="+tlsSecret, "--wait")
	if spec := in.templateOfAgents(t); spec != "99.0.0 later 20" {
		t.Errorf("the agents are made of %q", spec)
	}
	for _, n := range in.Nodes {
		if told, problems, status := in.ask(t, in.client, n.Name, "get", "node"); status != 0 {
			t.Errorf("%s over TCP: status %d, %s %s", n.Name, status, told, problems)
		}
	}
}

func testRollback(t *testing.T, in *installation) {
	in.replaceAgents(t, in.podsOf(t, "everywhere")["worker-1"], "rollback", "capdrift", "--wait")
	if spec := in.templateOfAgents(t); strings.Contains(spec, "99.0.0") || strings.Contains(spec, "later") || !strings.HasSuffix(spec, " 30") {
		t.Errorf("the agents are made of %q", spec)
	}
	in.kubectl(t, "", "delete", "secret", "-n", "capdrift", tlsSecret)
}

// replaceAgents has helm do what replaces all agents.
func (in *installation) replaceAgents(t *testing.T, pod string, change ...string) {
	t.Helper()
	before := in.agents(t)
	in.helm(t, change...)
	in.awaitRollout(t)
	if after := in.agents(t); after["worker-1"].UID == before["worker-1"].UID || after["worker-2"].UID == before["worker-2"].UID {
		t.Errorf("helm %s left agents: %v, and now %v", change[0], before, after)
	}
	in.mustKeep(t, pod)
}

// laterChart is the chart as a later release may have it: another version, something in the pods
// that was not there, and another default.
func (in *installation) laterChart(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "chart")
	if err := os.CopyFS(dir, os.DirFS(in.chart())); err != nil {
		t.Fatal(err)
	}
	for _, change := range []struct{ file, pattern, by string }{
		{"Chart.yaml", `(?m)^(version|appVersion): .*$`, "$1: 99.0.0"},
		{"templates/daemonset.yaml", `(?m)^( +)checksum/config: `, "${1}capdrift.test/release: later\n$0"},
		{"values.yaml", `terminationGracePeriodSeconds: 30`, "terminationGracePeriodSeconds: 20"},
	} {
		file := filepath.Join(dir, change.file)
		was, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		is := regexp.MustCompile(change.pattern).ReplaceAll(was, []byte(change.by))
		if bytes.Equal(is, was) {
			t.Fatalf("%s has no %s", change.file, change.pattern)
		}
		if err := os.WriteFile(file, is, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// templateOfAgents is what laterChart changes.
func (in *installation) templateOfAgents(t *testing.T) string {
	t.Helper()
	return in.kubectl(t, "", "get", "daemonset", "-n", "capdrift", "capdrift-agent", "-o", `jsonpath={.spec.template.metadata.labels.app\.kubernetes\.io/version} `+
		`{.spec.template.metadata.annotations.capdrift\.test/release} {.spec.template.spec.terminationGracePeriodSeconds}`)
}

// mustKeep: the findings of the intruder are those that they were, and nobody opened them again.
func (in *installation) mustKeep(t *testing.T, pod string) {
	t.Helper()
	await(t, "the findings are there", func() (bool, string) {
		ids := in.critical(t, pod)
		return slices.Equal(ids, in.kept), fmt.Sprintf("critical: %q, want %q", ids, in.kept)
	})
	await(t, "the watch is with the agent again", func() (bool, string) {
		return in.follow.connected(t, "worker-1"), in.follow.text(t)
	})
	for _, r := range in.follow.records(t) {
		if r.Finding.about(pod) && r.Finding.Severity == "critical" && (r.Change == "opened" || r.Change == "resolved") {
			t.Errorf("%s tells: %s %s", r.NodeName, r.Finding.ID, r.Change)
		}
	}
	// The agent counts since it was started.
	metrics := in.metrics(t, "worker-1")
	if open := `capdrift_findings{kind="permitted_excess",severity="critical"} 1`; !strings.Contains(metrics, open+"\n") {
		t.Errorf("the agent has no %s in its metrics:\n%s", open, metrics)
	}
	if moved := regexp.MustCompile(`capdrift_findings_(opened|resolved)_total\{kind="(bounding|permitted)_excess".*`).FindString(metrics); moved != "" {
		t.Errorf("the agent did not leave them as they were: %s", moved)
	}
}

// metrics are those of a node's agent, by the API server, which asks it without the kubelet and the runtime.
func (in *installation) metrics(t *testing.T, on string) string {
	t.Helper()
	text, err := in.Request(t.Context(), http.MethodGet, "/api/v1/namespaces/capdrift/pods/"+in.agents(t)[on].Name+":7702/proxy/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// moves are how many findings an agent ever opened and resolved, by what they are.
func moves(metrics string) []string {
	return regexp.MustCompile(`(?m)^capdrift_findings_(opened|resolved)_total.*`).FindAllString(metrics, -1)
}

// Without containerd nobody gets to the agent by a forwarded port. It watches on, and says where it
// can be asked that it does not see all.
func testRuntimeAway(t *testing.T, in *installation) {
	n, pod := in.Nodes[0], in.podsOf(t, "everywhere")["worker-1"]
	before, moved := in.agents(t)[n.Name], moves(in.metrics(t, n.Name))
	if seen := in.scanned(t, n.Name); !seen.Coverage.Complete {
		t.Errorf("else what follows would prove nothing: %+v", seen)
	}
	if err := n.StopContainerd(t.Context()); err != nil {
		t.Fatal(err)
	}
	in.mustMiss(t, "containerd.sock: connect: connection refused")
	await(t, "the agent says that its runtime is away", func() (bool, string) {
		metrics := in.metrics(t, n.Name)
		return strings.Contains(metrics, `capdrift_component_healthy{component="runtime"} 0`+"\n") && strings.Contains(metrics, "capdrift_coverage_complete 0\n"), metrics
	})
	told, _, _ := in.ask(t, in.client, n.Name, "get", "node", "-o", "json")
	for _, component := range agentViewOf(t, told).Components {
		if away := component.Name == "runtime"; component.OK == away || away && !strings.Contains(component.Why, "connection refused") {
			t.Errorf("%s: %v %s", component.Name, component.OK, component.Why)
		}
	}
	seen := in.scanned(t, n.Name) // which is a look taken now
	blind := slices.ContainsFunc(seen.Coverage.Limits, func(l limit) bool {
		return l.Blind && strings.Contains(l.What, "declared") && strings.Contains(l.Why, "connection refused")
	})
	if ids := critical(seen.Findings, pod); seen.Coverage.Complete || !blind || !slices.Equal(ids, in.kept) {
		t.Errorf("coverage %+v, critical: %q, want %q", seen.Coverage, ids, in.kept)
	}
	if now := moves(in.metrics(t, n.Name)); !slices.Equal(now, moved) {
		t.Errorf("findings were opened or resolved: %q, and before %q", now, moved)
	}

	if err := n.StopKubelet(t.Context()); err != nil {
		t.Fatal(err)
	}
	in.mustMiss(t, "connection refused")
	if told, status := in.capdrift(t, "get", "nodes", "--allow-missing", "--node-timeout", "20s"); status != 0 || !strings.Contains(told, "worker-1") || !strings.Contains(told, "worker-2") {
		t.Errorf("status %d: %s", status, told)
	}
	if err := n.StartContainerd(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.StartKubelet(t.Context()); err != nil {
		t.Fatal(err)
	}
	in.mustKeep(t, pod)
	await(t, "nothing ails the node's agent", func() (bool, string) {
		told, status := in.capdrift(t, "get", "nodes", "--node", n.Name, "-o", "json")
		healthy := status == 0
		for _, n := range parse[agentView](t, told).Nodes {
			for _, component := range n.Answer.Components {
				healthy = healthy && component.OK
			}
		}
		return healthy, told
	})
	if seen := in.scanned(t, n.Name); !seen.Coverage.Complete || !slices.Equal(critical(seen.Findings, pod), in.kept) {
		t.Errorf("coverage %+v, findings %+v", seen.Coverage, seen.Findings)
	}
	if now := moves(in.metrics(t, n.Name)); !slices.Equal(now, moved) {
		t.Errorf("findings were opened or resolved: %q, and before %q", now, moved)
	}
	if after := in.agents(t)[n.Name]; after != before {
		t.Errorf("the agent was %v, and is %v", before, after)
	}
}

// mustMiss: the first node cannot be asked, and the answer says why; the other can.
func (in *installation) mustMiss(t *testing.T, why string) {
	t.Helper()
	told, status := in.capdrift(t, "get", "nodes", "-o", "json", "--node-timeout", "20s")
	answers := parse[agentView](t, told)
	if status != 1 || answers.Complete || len(answers.Nodes) != 2 || !strings.Contains(answers.Nodes[0].Error, why) || answers.Nodes[1].Error != "" {
		t.Fatalf("status %d: %s", status, told)
	}
	t.Logf("%s: %s", in.Nodes[0].Name, answers.Nodes[0].Error)
}

// scanned is what a node's agent sees when it looks, asked over TCP.
func (in *installation) scanned(t *testing.T, on string) (seen scan) {
	t.Helper()
	told, problems, _ := in.ask(t, in.client, on, "scan", "-o", "json")
	if err := json.Unmarshal([]byte(told), &seen); err != nil {
		t.Fatalf("%v in %s %s", err, told, problems)
	}
	return seen
}

func testEviction(t *testing.T, in *installation) {
	before := in.agents(t)["worker-1"]
	_, err := in.Request(t.Context(), http.MethodPost, "/api/v1/namespaces/capdrift/pods/"+before.Name+"/eviction",
		fmt.Appendf(nil, `{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"namespace": "capdrift", "name": %q}}`, before.Name))
	if err != nil {
		t.Fatal(err)
	}
	await(t, "another agent comes", func() (bool, string) {
		after := in.agents(t)["worker-1"]
		return after.UID != before.UID && after.UID != "", fmt.Sprintf("it was %v, and is %v", before, after)
	})
	in.awaitRollout(t)
	in.mustKeep(t, in.podsOf(t, "everywhere")["worker-1"])
}

func testUsers(t *testing.T, in *installation) {
	const roles = "deploy/rbac-reader.yaml"
	in.kubectl(t, "", "apply", "-f", filepath.Join(in.repo, roles))
	reader, err := in.User("jane", "capdrift-readers")
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := in.User("john")
	if err != nil {
		t.Fatal(err)
	}
	// The API server learns of roles as everybody else does.
	await(t, "the reader may ask", func() (bool, string) {
		told, problems, status := in.capdriftAs(t, reader, "get", "findings", "-o", "json")
		return status == 0 && parse[list](t, told).Complete, told + problems
	})
	told, problems, status := in.capdriftAs(t, stranger, "get", "findings", "-o", "json")
	if status != 1 || !strings.Contains(problems, "ask for a Role with the rule") || !strings.Contains(problems, "resources: [pods]") {
		t.Errorf("to a stranger: status %d, %s %s", status, told, problems)
	}
	in.kubectl(t, "", "delete", "-f", filepath.Join(in.repo, roles))
}

func testUninstall(t *testing.T, in *installation) {
	runs := func() string {
		var all strings.Builder
		for _, n := range in.Nodes {
			// A process may end between the list and the read.
			all.WriteString(output(t, n.Command(t.Context(), "sh", "-c", "cat /proc/[0-9]*/comm 2>/dev/null || true"), ""))
		}
		return all.String()
	}
	if strings.Count(runs(), "capdrift\n") != 2 {
		t.Errorf("else this look would prove nothing: %s", runs())
	}
	in.helm(t, "uninstall", "capdrift", "--wait")
	await(t, "no agent runs", func() (bool, string) { all := runs(); return !strings.Contains(all, "capdrift"), all })
	kinds := strings.Fields(in.kubectl(t, "", "api-resources", "--namespaced", "--verbs=list", "-o", "name"))
	kinds = slices.DeleteFunc(kinds, func(kind string) bool { return strings.HasPrefix(kind, "events") }) // which tell of it
	await(t, "what is in the namespace is Kubernetes' own", func() (bool, string) {
		left := in.kubectl(t, "", "get", strings.Join(kinds, ","), "-n", "capdrift", "-o", "name")
		return left == "configmap/kube-root-ca.crt\nserviceaccount/default\n", left
	})
	for _, n := range in.Nodes {
		if info, err := os.Stat(n.Path("/var/lib/capdrift/journal.db")); err != nil || info.Sys().(*syscall.Stat_t).Uid != 0 {
			t.Errorf("the journal of %s: %v", n.Name, err)
		}
	}
}

// fleet is capdrift.fleet/v1, as far as the tests read it.
type fleet[Answer any] struct {
	Complete bool
	Nodes    []struct {
		NodeName, Error string
		Answer          Answer
	}
}

// agentView is capdrift.agent/v1.
type agentView struct{ Components []component }

type component struct {
	Name, Why string
	OK        bool
}

// agentViewOf is what one agent tells.
func agentViewOf(t *testing.T, told string) (v agentView) {
	t.Helper()
	if err := json.Unmarshal([]byte(told), &v); err != nil {
		t.Fatalf("%v in %q", err, told)
	}
	return v
}

func (v agentView) component(t *testing.T, name string) component {
	t.Helper()
	at := slices.IndexFunc(v.Components, func(c component) bool { return c.Name == name })
	if at < 0 {
		t.Fatalf("there is no %s in %v", name, v.Components)
	}
	return v.Components[at]
}

// scan is capdrift.node/v1, as far as the tests read it.
type scan struct {
	Coverage struct {
		Complete bool
		Limits   []limit
	}
	Findings []*finding
}

type limit struct {
	What, Why string
	Blind     bool
}

// list is capdrift.list/v1.
type list struct {
	Containers []struct {
		Name      string
		Pod       *podName
		Declared  struct{ Pod, CRI, OCI *struct{} }
		Processes []struct{}
	}
	Findings []*finding
	Accepted int
}

// report is capdrift.audit/v1.
type report struct {
	Containers []struct{}
	Results    []struct {
		Declared, Actual struct{ Verdict string }
		Exception        *string
	}
}

type podName struct{ Namespace, Name string }

type finding struct {
	ID, Kind, Severity string
	Pod                *podName
}

func (f *finding) about(pod string) bool {
	return f != nil && f.Pod != nil && f.Pod.Namespace == "shop" && f.Pod.Name == pod
}

func parse[Answer any](t *testing.T, told string) (f fleet[Answer]) {
	t.Helper()
	if told == "" {
		return f // nobody could be asked
	}
	if err := json.Unmarshal([]byte(told), &f); err != nil {
		t.Fatalf("%v in %s", err, told)
	}
	return f
}
