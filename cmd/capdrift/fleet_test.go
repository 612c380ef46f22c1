package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/kube/fake"
)

// cluster is a fake one whose nodes have real agents.
type cluster struct {
	*fake.Cluster
	kubeconfig string
	sockets    map[string]string // by pod
}

// newCluster has an agent on each node of those that are given a feed, and an empty
// place on the others.
func newCluster(t *testing.T, nodes map[string]*told) *cluster {
	t.Helper()
	c := &cluster{Cluster: &fake.Cluster{Minor: "34+", Forbidden: map[string]bool{}, Hang: map[string]chan struct{}{}}, sockets: make(map[string]string)}
	c.Dial = func(_, pod string, port int) (net.Conn, error) {
		path, there := c.sockets[pod]
		if !there || port != 9443 {
			return nil, errors.New("connection refused")
		}
		return net.Dial("unix", path)
	}
	for node, feed := range nodes {
		c.node(node)
		if feed != nil {
			c.sockets["agent-"+node] = strings.TrimPrefix(agentSocketOf(t, feed), "unix://")
			c.agent(node, "agent-"+node)
		}
	}
	c.kubeconfig = fake.Serve(t, c.Cluster)
	return c
}

func (c *cluster) node(name string) {
	c.Put("nodes", fake.Object{"metadata": fake.Object{"name": name}, "status": fake.Object{"conditions": []fake.Object{{"type": "Ready", "status": "True"}}}})
}

// agent puts the pod of an agent on the node.
func (c *cluster) agent(node, pod string) {
	c.Put("pods", fake.Object{
		"metadata": fake.Object{"namespace": "capdrift", "name": pod, "labels": fake.Object{"app.kubernetes.io/name": "capdrift", "app.kubernetes.io/component": "agent"}},
		"spec":     fake.Object{"nodeName": node, "containers": []fake.Object{{"name": "agent", "ports": []fake.Object{{"name": "grpc", "containerPort": 9443}}}}},
		"status":   fake.Object{"phase": "Running", "conditions": []fake.Object{{"type": "Ready", "status": "True"}}},
	})
}

// args are those of the plugin.
func (c *cluster) args(args ...string) []string {
	return append([]string{"kubectl", "--kubeconfig", c.kubeconfig}, args...)
}

// another is a node like shop's, with containers and findings of its own.
func another() *drift.Report {
	r := shop()
	r.Node.Name = "another"
	ids := make(map[string]string)
	for i := range r.Containers {
		c := &r.Containers[i]
		ids[c.ID] = "e" + c.ID[1:]
		c.ID = ids[c.ID]
	}
	for i := range r.Findings {
		f := &r.Findings[i]
		f.ID = "e" + f.ID[1:]
		if f.ContainerID != "" {
			f.ContainerID = ids[f.ContainerID]
		}
	}
	return r
}

// podsOfShop are the specs of shop's pods, which run on worker-1, as a person wrote them.
func (c *cluster) podsOfShop() {
	pod := func(namespace, name, uid string, containers ...fake.Object) {
		c.Put("pods", fake.Object{
			"metadata": fake.Object{"namespace": namespace, "name": name, "uid": uid, "ownerReferences": []fake.Object{{"uid": "u-rs"}}},
			"spec":     fake.Object{"nodeName": "worker-1", "containers": containers}, "status": fake.Object{"phase": "Running"},
		})
	}
	pod("shop", "web-0", "u1",
		fake.Object{"name": "nginx", "securityContext": fake.Object{"capabilities": fake.Object{"add": []string{"NET_BIND_SERVICE"}, "drop": []string{"ALL"}}}},
		fake.Object{"name": "log", "env": []fake.Object{{"name": "A", "value": "hunter2"}}})
	c.Put("deployments", fake.Object{"metadata": fake.Object{"namespace": "shop", "name": "web", "uid": "u-deploy"}})
	c.Put("replicasets", fake.Object{"metadata": fake.Object{"namespace": "shop", "name": "web-1", "uid": "u-rs", "ownerReferences": []fake.Object{{"uid": "u-deploy"}}}})
}

// fleetOfThree has two nodes that answer and one without an agent.
func fleetOfThree(t *testing.T) *cluster {
	t.Helper()
	blind := another()
	blind.Coverage.Complete = false
	blind.Coverage.Limits = []drift.Limit{{What: "1 process", Why: "permission denied", Blind: true}}
	blind.Containers = blind.Containers[3:]
	blind.Findings = blind.Findings[2:3]
	first := shop()
	first.Containers[0].InitPID, first.Containers[1].InitPID = 10, 20
	c := newCluster(t, map[string]*told{"worker-1": newTold(first), "worker-2": newTold(blind), "worker-3": nil})
	c.podsOfShop()
	return c
}

// TestFleetSelectsNodes: nodes are chosen by label and by field, and virtual ones are left out by what they are.
func TestFleetSelectsNodes(t *testing.T) {
	leakless(t)
	c := fleetOfThree(t)
	pool := func(name string, labels fake.Object) {
		c.Put("nodes", fake.Object{"metadata": fake.Object{"name": name, "labels": labels}, "status": fake.Object{"conditions": []fake.Object{{"type": "Ready", "status": "True"}}}})
	}
	pool("virtual-1", fake.Object{"type": "virtual-kubelet", "pool": "cloud"})
	pool("fargate-1", fake.Object{"eks.amazonaws.com/compute-type": "fargate", "pool": "cloud"})
	c.sockets["agent-posing"] = c.sockets["agent-worker-1"]
	pool("posing", fake.Object{"type": "virtual-kubelet", "pool": "posing"})
	c.agent("posing", "agent-posing")
	for name, row := range map[string]struct {
		args   string
		status int
		out    string // names of nodes that answer
		errs   string
	}{
		"by field":                               {"get nodes -o name --node-field-selector metadata.name=worker-2", 0, "node/worker-2\n", ""},
		"by label, though it says it is virtual": {"get nodes -o name --node-selector pool=posing", 0, "node/posing\n", ""},
		"virtual ones alone":                     {"get nodes -o name --node-selector pool=cloud", 0, "", "not asked: fargate-1: it is of EKS on Fargate (label eks.amazonaws.com/compute-type=fargate), where no agent can be\ncapdrift: not asked: virtual-1: it is a virtual-kubelet"},
		"all, virtual ones told":                 {"get nodes -o name", 1, "node/posing\nnode/worker-1\nnode/worker-2\n", "1 of 4 nodes did not answer"},
		"none":                                   {"get nodes --node-selector pool=none", 1, "", "no node of the cluster has what --node-selector=pool=none and --node-field-selector= ask for"},
		"by name and by label":                   {"get nodes --node worker-1 --node-selector pool=cloud", 2, "", "want one of the two"},
		"an argument and a label":                {"get node worker-1 --node-selector pool=cloud", 2, "", "want one of the two"},
		"a label that is none":                   {"get nodes --node-selector pool=(", 2, "", "--node-selector=pool=(: "},
		"a field that is none":                   {"scan --node-field-selector pool", 2, "", "--node-field-selector=pool: "},
		"explain on the nodes of a label":        {"explain deploy/web -c nginx --node-selector pool=cloud", 1, "", "has no running pod on any node that is asked"},
		"a gate names them":                      {"get findings --node-selector pool=cloud --fail-on high", 1, "", "not seen: virtual_node on fargate-1: node: it is of EKS on Fargate"},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, status := capture(t, c.args(strings.Fields(row.args)...)...)
			if status != row.status || row.out != "" && stdout != row.out || !strings.Contains(stderr, row.errs) {
				t.Errorf("status %d\n%s\n%s", status, stdout, stderr)
			}
		})
	}
	c.Forbidden["nodes"] = true
	if _, stderr, status := capture(t, c.args("get", "nodes", "--node-selector", "pool=cloud", "--allow-missing")...); status != 1 || !strings.Contains(stderr, "resources: [nodes]") {
		t.Errorf("who may not list nodes cannot choose them: status %d: %s", status, stderr)
	}
}

// moves is what differs from run to run.
var moves = regexp.MustCompile(`("?(?:takenAt|startedAt|timestamp)"?[:=]) ?"[^"]*"|\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?: UTC|Z)?|https://127\.0\.0\.1:\d+|(?m)(agent is|than this) \([^)]*\)`)

// TestFleetPrints holds what the plugin prints against golden files.
func TestFleetPrints(t *testing.T) {
	leakless(t)
	c := fleetOfThree(t)
	for name, row := range map[string]struct {
		args   string
		status int
	}{
		"nodes":                {"get nodes", 1},
		"nodes.json":           {"get nodes -o json", 1},
		"nodes.jsonl":          {"get no -o jsonl --allow-missing", 0},
		"nodes-name":           {"get nodes -o name", 1},
		"node":                 {"get node worker-2", 0},
		"findings":             {"get findings", 1},
		"findings-wide":        {"get findings -o wide --allow-missing", 0},
		"findings-of":          {"get findings -n data --node worker-1 --node worker-2", 0},
		"findings-all":         {"get findings -n data -A --node worker-2 --no-headers", 0},
		"findings.json":        {"get findings -o json", 1},
		"findings.jsonl":       {"get findings -o jsonl -n data", 1},
		"findings-name":        {"get findings -o name", 1},
		"containers":           {"get containers --sort-by id --node worker-1 --node worker-3", 1},
		"containers.jsonl":     {"get containers -o jsonl -n shop --allow-missing", 0},
		"container.yaml":       {"get container shop/web-0/nginx -o yaml", 1},
		"nothing":              {"get findings --filter finding.kind=='none' --allow-missing", 0},
		"scan":                 {"scan", 1},
		"scan-wide":            {"scan -n shop --wide --node worker-1", 0},
		"scan-fail-on":         {"scan --fail-on critical --allow-missing", 3},
		"scan.json":            {"scan -o json -n shop", 1},
		"scan.jsonl":           {"scan -o jsonl -n data", 1},
		"scan.csv":             {"scan -o csv", 1},
		"audit":                {"audit --pack pss-restricted", 1},
		"audit-wide":           {"audit --pack pss-restricted -n shop --wide --allow-missing", 0},
		"audit.csv":            {"audit --pack dangerous -o csv --node worker-1 --node worker-3", 1},
		"audit.junit":          {"audit --pack dangerous -o junit --node worker-2 --node worker-3", 1},
		"audit-fail-on":        {"audit --pack pss-restricted --fail-on high --allow-missing", 3},
		"explain":              {"explain deploy/web SYS_ADMIN,NET_BIND_SERVICE", 0},
		"explain-one":          {"explain web-0 -n shop -c log --pack pss-restricted NET_RAW", 0},
		"explain.json":         {"explain pod/web-0 -c nginx -o json SYS_ADMIN", 0},
		"explain-no-container": {"explain web-0 -c none", 1},
	} {
		stdout, stderr, status := capture(t, c.args(strings.Fields(row.args)...)...)
		if status != row.status {
			t.Errorf("%s: status %d, want %d: %s", name, status, row.status, stderr)
		}
		text := moves.ReplaceAllString(stdout, `$1 …`)
		if stderr != "" {
			text += "--- standard error\n" + moves.ReplaceAllString(stderr, `$1 …`)
		}
		if strings.Contains(text, "hunter2") || strings.Contains(text, "\x1b") {
			t.Errorf("%s: a secret or an escape sequence:\n%s", name, text)
		}
		golden(t, filepath.Join("../../testdata/golden/fleet", name), text)
	}
}

// TestFleetJoinsPodSpecs: the layer that agents do not know, and what contradicts it.
func TestFleetJoinsPodSpecs(t *testing.T) {
	leakless(t)
	report := shop()
	report.Containers[0].Declared.CRI = &drift.CRI{Add: []string{"SYS_ADMIN"}, Drop: []string{}, AddAmbient: []string{}}
	c := newCluster(t, map[string]*told{"worker-1": newTold(report)})
	c.podsOfShop()
	kinds := func() (found []string, complete bool) {
		stdout, stderr, status := capture(t, c.args("scan", "-o", "json", "-n", "shop")...)
		var all struct {
			Complete bool
			Nodes    []struct{ Answer drift.Report }
		}
		if err := json.Unmarshal([]byte(stdout), &all); err != nil || status != 0 || !all.Complete {
			t.Fatalf("status %d, %v, %s", status, err, stderr)
		}
		for _, f := range all.Nodes[0].Answer.Findings {
			if f.From == drift.LayerPod {
				found = append(found, string(f.Kind)+" "+f.Container)
			}
		}
		for _, one := range all.Nodes[0].Answer.Containers {
			if one.Name == "nginx" && (one.Declared.Pod == nil || !slices.Equal(one.Declared.Pod.Add, []string{"NET_BIND_SERVICE"})) {
				t.Errorf("its pod spec is %+v", one.Declared.Pod)
			}
		}
		return found, all.Nodes[0].Answer.Coverage.Complete
	}
	if got, complete := kinds(); !slices.Equal(got, []string{"cri_mismatch nginx"}) || !complete {
		t.Errorf("got %v, complete %v", got, complete)
	}
	c.Put("pods", fake.Object{"metadata": fake.Object{"namespace": "shop", "name": "web-0", "uid": "u1"}, "spec": fake.Object{"nodeName": "worker-1", "containers": []fake.Object{{"name": "nginx",
		"securityContext": fake.Object{"capabilities": fake.Object{"add": []string{"NET_BIND_SERVICE"}}}}}}})
	if got, _ := kinds(); !slices.Equal(got, []string{"cri_mismatch nginx", "unmanaged_container log"}) {
		t.Errorf("a container that its pod's spec does not have: got %v", got)
	}
	c.Forbid("pods", true)
	if _, stderr, status := capture(t, c.args("scan")...); status != 1 || !strings.Contains(stderr, "verbs: [list]") {
		t.Errorf("status %d, %s", status, stderr)
	}
}

func TestFleetErrorsNameTheNextMove(t *testing.T) {
	leakless(t)
	c := fleetOfThree(t)
	c.agent("worker-3", "agent-worker-3") // in which nobody listens
	empty := newCluster(t, map[string]*told{"worker-1": nil})
	begins := newCluster(t, map[string]*told{"worker-1": newTold(shop()), "worker-2": newTold(nil)})
	for name, row := range map[string]struct {
		on     *cluster
		args   string
		forbid string
		status int
		says   string
	}{
		"nobody listens":           {c, "get findings --node worker-3", "", 1, "error forwarding port 9443 to pod agent-worker-3, uid : connection refused): it must listen in plaintext on the pod's loopback"},
		"no agent at all":          {empty, "get nodes", "", 1, "no agent runs in namespace capdrift: install it (helm upgrade --install capdrift"},
		"none on the node":         {empty, "get nodes --node worker-1", "", 1, "no agent's pod is on it in namespace capdrift"},
		"may not forward":          {c, "scan --node worker-1", "pods/portforward", 1, `you may not create pods/portforward in namespace capdrift (403): ask for a Role with the rule {apiGroups: [""], resources: [pods/portforward], verbs: [create]}`},
		"may not list pods":        {c, "get findings", "pods", 1, "the agents cannot be found: you may not list pods in namespace capdrift"},
		"may not list nodes":       {c, "get findings", "nodes", 1, "only nodes with an agent are known: you may not list nodes in the whole cluster"},
		"nodes do not matter":      {c, "get findings --node worker-1", "nodes", 0, ""},
		"allowed to miss nodes":    {c, "get findings --allow-missing", "nodes", 0, "only nodes with an agent are known"},
		"one of several":           {c, "get findings", "", 1, "1 of 3 nodes did not answer, so nothing is known of what runs there (--allow-missing accepts that)"},
		"may not see the workload": {c, "explain deploy/web", "deployments", 1, `resources: [deployments], verbs: [get]`},
		"no such workload":         {c, "explain deploy/none", "", 1, "there is no deployment none in namespace shop"},
		"no such container":        {c, "get container none --allow-missing", "", 1, "there is no container none on 2 nodes (and 1 node did not answer); kubectl capdrift get containers lists them"},
		"on two nodes":             {c, "get container db --allow-missing", "", 1, "2 containers are called db: data/db-0/db"},
		"not looked yet":           {begins, "get container none -o json", "", 1, "there is no container none on 1 node (and 1 node did not answer)"},
		"two on one node":          {c, "get container web-0", "", 1, "2 containers are called web-0: shop/web-0/log"},
		"no such context":          {c, "get nodes --context none", "", 1, "the kubeconfig"},
		"no such file":             {c, "get nodes --kubeconfig /none", "", 1, "/none"},

		"a wrong filter":      {c, "get findings --filter finding.severty", "", 2, "--filter: column 9"},
		"a wrong kind":        {c, "explain svc/web", "", 2, "want KIND/NAME with one of pod, deploy"},
		"too many slashes":    {c, "explain pod/a/b", "", 2, "the container is named with -c"},
		"no agents' home":     {c, "get nodes --agent-namespace=", "", 2, "could then pose as an agent"},
		"nobody at once":      {c, "scan --parallel 0", "", 2, "want a number above zero"},
		"an unknown command":  {c, "frobnicate", "", 2, `unknown command "frobnicate" for "kubectl capdrift"`},
		"an agent's own flag": {c, "get nodes --agent x", "", 2, "see 'kubectl capdrift get --help'"},
		"a look's own flag":   {c, "scan --host-root /", "", 2, "see 'kubectl capdrift scan --help'"},
	} {
		row.on.Forbid(row.forbid, true)
		stdout, stderr, status := capture(t, row.on.args(strings.Fields(row.args)...)...)
		row.on.Forbid(row.forbid, false)
		if status != row.status || !strings.Contains(strings.Join(strings.Fields(stdout+stderr), " "), row.says) {
			t.Errorf("%s: status %d, %s%s; want %d and %q", name, status, stdout, stderr, row.status, row.says)
		}
	}
}

// TestFleetDoesNotWaitForOne: a node that hangs is a row, and the others are asked
// all the same.
func TestFleetDoesNotWaitForOne(t *testing.T) {
	leakless(t)
	c := newCluster(t, map[string]*told{"worker-1": newTold(shop()), "worker-2": newTold(another())})
	listener, err := net.Listen("unix", filepath.Join(socketDir(t), "silent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close() // nobody takes what comes
	c.sockets["agent-worker-2"] = listener.Addr().String()
	stdout, stderr, status := capture(t, c.args("get", "findings", "--node-timeout", "1s", "-n", "data")...)
	if status != 1 || !strings.Contains(stdout, "worker-1   medium") || !strings.Contains(stdout, "worker-2   the agent has not answered within 1s; give it more time with --node-timeout") {
		t.Errorf("status %d, %s%s", status, stdout, stderr)
	}
	if _, stderr, status := capture(t, c.args("scan", "--node", "worker-2", "--timeout", "1s")...); status != 1 || !strings.Contains(stderr, "did not answer") {
		t.Errorf("status %d, %s", status, stderr)
	}
}

// TestFleetDoesNotFailForOne: nor does one that talks nonsense keep the others from being
// heard.
func TestFleetDoesNotFailForOne(t *testing.T) {
	leakless(t)
	odd := another()
	odd.Node.CapLastCap = 200
	late := another() // later than JSON can say
	late.TakenAt = time.Date(20_000, 1, 1, 0, 0, 0, 0, time.UTC)
	c := newCluster(t, map[string]*told{"worker-1": newTold(shop()), "worker-2": newTold(odd), "worker-3": newTold(late)})
	for _, form := range []string{"json", "jsonl", "yaml"} {
		if stdout, stderr, status := capture(t, c.args("scan", "-o", form, "--node", "worker-1", "--node", "worker-3")...); status != 1 || !strings.Contains(stdout, shop().Containers[0].ID) || !strings.Contains(stdout, "the agent's report names no node, time or coverage") {
			t.Errorf("%s: status %d, %s", form, status, stderr)
		}
	}
	for _, form := range []string{"table", "json", "jsonl", "yaml"} {
		stdout, stderr, status := capture(t, c.args("get", "nodes", "-o", form)...)
		if status != 1 || !strings.Contains(stdout, "6.18.44") || !strings.Contains(stdout, "the agent's last capability is 200") || !strings.Contains(stderr, "2 of 3 nodes did not answer") {
			t.Errorf("%s: status %d, %s%s", form, status, stdout, stderr)
		}
	}
}

// TestFleetAsksInParallel: each agent waits for the other to be asked.
func TestFleetAsksInParallel(t *testing.T) {
	leakless(t)
	c := newCluster(t, map[string]*told{"worker-1": newTold(shop()), "worker-2": newTold(another())})
	both := make(chan struct{}, 2)
	dial := c.Dial
	c.Dial = func(namespace, pod string, port int) (net.Conn, error) {
		both <- struct{}{}
		until(t, "both are asked", func() bool { return len(both) == 2 })
		return dial(namespace, pod, port)
	}
	if stdout, stderr, status := capture(t, c.args("get", "nodes", "-o", "name")...); status != 0 || stdout != "node/worker-1\nnode/worker-2\n" {
		t.Errorf("status %d, %s%s", status, stdout, stderr)
	}
	if got := c.Forwards(); len(got) != 2 || !strings.HasSuffix(got[0], "by WebSocket") {
		t.Error(got)
	}
}

// TestFleetWatch: many streams, one output; a node that is lost comes back where it
// was, under another pod; nodes come and go.
func TestFleetWatch(t *testing.T) {
	leakless(t)
	first, second := shop(), another()
	feeds := map[string]*told{"worker-1": newTold(first), "worker-2": newTold(second)}
	c := newCluster(t, feeds)
	path := filepath.Join(socketDir(t), "agent.sock")
	stop := serveAgent(t, feeds["worker-2"], listenUnix(t, path))
	c.sockets["agent-worker-2"] = path
	lines := startWatch(t, c.args("watch", "-n", "shop", "--discover", "20ms")...)
	objects := startWatch(t, c.args("get", "findings", "-w", "-o", "jsonl")...)
	lines.prints("worker-1 open                 critical  shop/web-0/nginx")
	lines.prints("worker-2 open                 critical  shop/web-0/nginx")
	until(t, "both snapshots end", func() bool { return strings.Count(objects.out.String(), "node_status") == 2 })
	until(t, "both are watched", func() bool { return feeds["worker-1"].watched() && feeds["worker-2"].watched() })

	stop()
	lines.says("worker-2: ")
	objects.prints(`{"nodeName":"worker-2","schema":"capdrift.watch/v1","type":"disconnected"`)
	opened := second.Findings[0]
	opened.ID, opened.Incident = "while-away", ""
	after := *second
	after.Findings = append(slices.Clone(second.Findings), opened)
	feeds["worker-2"].publish(after, agent.Change{Kind: agent.FindingOpened, Finding: &opened})
	path = filepath.Join(socketDir(t), "agent.sock")
	serveAgent(t, feeds["worker-2"], listenUnix(t, path))
	c.sockets = map[string]string{"agent-worker-1": c.sockets["agent-worker-1"], "agent-new": path}
	c.Remove("pods", "capdrift", "agent-worker-2")
	c.agent("worker-2", "agent-new")
	lines.prints("2026-01-02T03:04:00.001Z worker-2 opened ")
	lines.says("capdrift: worker-2: the agent is back\n")
	objects.prints(`"type":"connected"`)

	c.sockets = map[string]string{"agent-worker-1": c.sockets["agent-worker-1"], "agent-new": path, "agent-worker-9": c.sockets["agent-worker-1"]}
	c.node("worker-9")
	c.agent("worker-9", "agent-worker-9")
	lines.says("capdrift: worker-9: watched from now on\n")
	lines.prints("worker-9 open ")
	c.Remove("nodes", "", "worker-9")
	lines.interrupt()
	objects.interrupt()
	if text := lines.ends(exitDone); strings.Count(text, "TIME") != 1 || strings.Contains(text, "data/") || !strings.HasPrefix(text, "TIME                     NODE     CHANGE") {
		t.Errorf("it printed\n%s", text)
	}
	objects.ends(exitDone)
}

func TestFleetWatchEnds(t *testing.T) {
	leakless(t)
	c := newCluster(t, map[string]*told{"worker-1": newTold(shop()), "worker-2": newTold(nil), "worker-3": nil})
	if _, stderr, status := capture(t, c.args("watch", "--until-finding", "critical")...); status != exitFindings || !strings.Contains(stderr, "worker-1: a finding of severity critical is open") {
		t.Errorf("status %d, %s", status, stderr)
	}
	args := c.args("watch", "--until-finding", "critical", "-n", "data", "--timeout", "500ms")
	if _, stderr, status := capture(t, args...); status != exitFailed || !strings.Contains(stderr, "not everything is known of worker-2, and of 1 node more") ||
		!strings.Contains(stderr, "worker-3: no agent's pod is on it") {
		t.Errorf("status %d, %s", status, stderr)
	}
	if _, stderr, status := capture(t, append(args, "--allow-missing")...); status != exitDone {
		t.Errorf("status %d, %s", status, stderr)
	}
	if _, stderr, status := capture(t, c.args("watch", "--filter", "finding.severty == 1")...); status != exitUsage || !strings.Contains(stderr, "--filter: column 9") {
		t.Errorf("status %d, %s", status, stderr)
	}
	c.Forbid("pods/portforward", true)
	if _, stderr, status := capture(t, c.args("watch", "--node", "worker-1")...); status != exitFailed || !strings.Contains(stderr, "resources: [pods/portforward]") {
		t.Errorf("status %d, %s", status, stderr)
	}
}

// TestPluginNames: kubectl finds the program, and its completion, by their names.
func TestPluginNames(t *testing.T) {
	for program, want := range map[string]string{
		"/usr/bin/capdrift get": "get", "/x/kubectl-capdrift get": "kubectl get", "kubectl-capdrift.exe": "kubectl",
		"/x/kubectl_complete-capdrift get f": "kubectl __complete get f",
	} {
		if got := strings.Join(arguments(strings.Fields(program)), " "); got != want {
			t.Errorf("%s: got %s, want %s", program, got, want)
		}
	}
	c := newCluster(t, map[string]*told{"worker-1": nil, "worker-2": nil, "master": nil})
	for args, want := range map[string]string{
		"":                        "explain",
		"get ":                    "findings",
		"get findings --node wor": "worker-2",
		"explain ":                "deploy/",
		"audit --pack pss":        "pss-restricted",
		"watch --until-finding ":  "critical",
		"scan --context ":         "",
	} {
		full := append([]string{"kubectl", "__complete", "--kubeconfig", c.kubeconfig}, strings.Split(args, " ")...)
		stdout, stderr, status := capture(t, full...)
		if status != 0 || !strings.Contains("\n"+stdout, "\n"+want) || strings.Contains(args, "wor") && strings.Contains(stdout, "master") {
			t.Errorf("%q: status %d, %s%s", args, status, stdout, stderr)
		}
	}
	for _, command := range []string{"get", "watch", "scan", "audit", "explain"} {
		stdout, _, status := capture(t, "kubectl", command, "--help")
		if status != 0 || !strings.Contains(stdout, "Usage:\n  kubectl capdrift "+command) || strings.Contains(stdout, "--cri-endpoint") || !strings.Contains(stdout, "--context string") {
			t.Errorf("%s: status %d, %s", command, status, stdout)
		}
	}
}

// TestNamingKeepsLines: a name is a string of JSON, whatever is in it.
func TestNamingKeepsLines(t *testing.T) {
	var out strings.Builder
	if err := writeJSONLine(naming{&out, "a\"\x1b\u202e"}, itemLine{Schema: "s"}); err != nil {
		t.Fatal(err)
	}
	var line struct{ NodeName, Schema string }
	if err := json.Unmarshal([]byte(out.String()), &line); err != nil || line.NodeName != "a\"\x1b\u202e" || line.Schema != "s" || strings.Contains(out.String(), "\u202e") {
		t.Errorf("%v, %s", err, out.String())
	}
}

// TestFleetAuditJudgesByItsOwnRules: what the agents judge by their policy, and accept
// by it, is nothing to an audit by other rules.
func TestFleetAuditJudgesByItsOwnRules(t *testing.T) {
	leakless(t)
	report := shop()
	report.Findings[0].Exception = "of-the-agent"
	report.Findings = append(report.Findings, drift.Finding{
		ID: "6666", Kind: drift.PolicyViolation, Severity: drift.Critical, ContainerID: report.Containers[0].ID, Rule: "of/the-agent", Declared: "pass", Actual: "fail",
	})
	c := newCluster(t, map[string]*told{"worker-1": newTold(report)})
	stdout, stderr, status := capture(t, c.args("audit", "--pack", "dangerous", "-o", "json")...)
	var all struct {
		Nodes []struct {
			Answer struct{ Findings []drift.Finding }
		}
	}
	if err := json.Unmarshal([]byte(stdout), &all); err != nil || status != 0 {
		t.Fatalf("status %d, %v, %s", status, err, stderr)
	}
	found := all.Nodes[0].Answer.Findings
	if len(found) != 5 || strings.Contains(stdout, "of/the-agent") || strings.Contains(stdout, "of-the-agent") {
		t.Errorf("%d findings, %s", len(found), stdout)
	}
}

// soil ends every text that an agent can choose with what a terminal would obey.
func soil(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		soil(v.Elem())
	case reflect.Slice:
		for i := range v.Len() {
			soil(v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			soil(v.Field(i))
		}
	case reflect.String:
		if !v.CanSet() {
			return // a time's
		}
		switch v.Interface().(type) {
		case drift.Observation, drift.Layer, drift.Relation: // numbers on the wire
		default:
			v.SetString(v.String() + "\x1b[2J\u202e\nforged")
		}
	}
}

// TestFleetObeysNoAgent: whatever an agent says, no terminal is told to do anything, and
// no line begins with its words.
func TestFleetObeysNoAgent(t *testing.T) {
	leakless(t)
	report := shop()
	report.Coverage.Limits = []drift.Limit{{What: "all", Why: "nothing", Blind: true}}
	report.Coverage.Complete = false
	soil(reflect.ValueOf(report))
	feed := newTold(nil)
	feed.policy = &agent.PolicyStatus{Packs: []string{"cis"}, Since: report.TakenAt, Exceptions: []agent.ExceptionStatus{{Exception: agent.Exception{ID: "e"}, State: agent.ExceptionUnused}}}
	soil(reflect.ValueOf(feed.policy))
	part := agent.Component{Name: "proc", Why: "it fails"}
	soil(reflect.ValueOf(&part))
	feed.publish(*report, agent.Change{Kind: agent.StatusChanged, Component: &part})
	c := newCluster(t, map[string]*told{"worker-1": feed})
	pod := report.Containers[0].Pod
	c.Put("pods", fake.Object{"metadata": fake.Object{"namespace": pod.Namespace, "name": pod.Name, "uid": pod.UID}, "spec": fake.Object{"nodeName": "worker-1"}, "status": fake.Object{"phase": "Running"}})
	id := report.Containers[0].ID[:20]
	for _, asked := range [][]string{
		{"get", "nodes"}, {"get", "nodes", "-o", "wide"}, {"get", "nodes", "-o", "name"}, {"get", "nodes", "-o", "json"}, {"get", "nodes", "-o", "yaml"}, {"get", "node", "worker-1"},
		{"get", "findings", "--show-excepted"}, {"get", "findings", "-o", "wide", "--show-excepted"}, {"get", "findings", "-o", "name", "--show-excepted"}, {"get", "findings", "-o", "jsonl"},
		{"get", "containers"}, {"get", "containers", "-o", "wide"}, {"get", "containers", "-o", "name"}, {"get", "containers", "-o", "yaml"},
		{"get", "container", id}, {"get", "container", "n"}, {"get", "containers", "--filter", "process.seccomp == 9"},
		{"scan"}, {"scan", "--show-excepted"}, {"scan", "--wide", "--show-excepted"}, {"scan", "-o", "json"}, {"scan", "-o", "jsonl"}, {"scan", "-o", "yaml"}, {"scan", "-o", "csv"},
		{"scan", "--filter", "process.seccomp == 9"},
		{"audit"}, {"audit", "--wide"}, {"audit", "-o", "csv"}, {"audit", "-o", "sarif"}, {"audit", "-o", "junit"}, {"audit", "-o", "jsonl"}, {"audit", "--filter", "process.seccomp == 9"},
		{"explain", pod.Name, "-n", pod.Namespace, "--pack", "cis"}, {"explain", pod.Name, "-n", pod.Namespace, "-o", "yaml"}, {"explain", pod.Name, "-n", pod.Namespace, "-c", "none"},
		{"watch", "--timeout", "300ms", "--show-excepted"}, {"watch", "containers", "--timeout", "300ms"}, {"watch", "--timeout", "300ms", "-o", "jsonl"},
	} {
		stdout, stderr, _ := capture(t, c.args(asked...)...)
		obeyed := "\x1b\u202e"
		if slices.Contains(asked, "yaml") {
			obeyed = "\x1b" // its writer takes U+202E for a letter
		}
		text := stdout + stderr
		if at := strings.IndexAny(text, obeyed); text == "" || at >= 0 || strings.Contains(text, "\nforged") {
			t.Errorf("%s: at %d:\n%q", strings.Join(asked, " "), at, text[max(at-200, 0):])
		}
	}
}

// TestFleetWatchTellsWhatItFoundLast: a finding that is waited for counts although its
// node has just left the cluster, and a node that fails again and again is one node.
func TestFleetWatchTellsWhatItFoundLast(t *testing.T) {
	w := fleetWatch{
		watchOptions: &watchOptions{discover: time.Hour}, fleet: &fleet{fleetOptions: &fleetOptions{}}, out: watchOutput{errs: io.Discard},
		ended: make(chan watchEnd, 1), on: map[string]context.CancelFunc{"worker-1": func() {}}, left: map[string]bool{"worker-1": true},
	}
	w.ended <- watchEnd{"worker-1", true, findingsError{errors.New("a finding is open")}}
	var found findingsError
	if err := w.run(t.Context(), t.Context()); !errors.As(err, &found) {
		t.Errorf("got %v", err)
	}
	lost := watchEnd{"worker-1", false, errors.New("refused")}
	if err := w.verdict(t.Context(), []watchEnd{lost, lost}); err == nil || strings.Contains(err.Error(), "more") {
		t.Errorf("got %v", err)
	}
}

// TestFleetExplainsEachPodWhereItIs: an agent speaks of the pods of its own node, and a
// pod that its agent does not see is not passed over.
func TestFleetExplainsEachPodWhereItIs(t *testing.T) {
	leakless(t)
	c := newCluster(t, map[string]*told{"worker-1": newTold(shop()), "worker-2": newTold(another())})
	c.podsOfShop()
	c.Put("pods", fake.Object{
		"metadata": fake.Object{"namespace": "shop", "name": "web-9", "uid": "u9", "ownerReferences": []fake.Object{{"uid": "u-rs"}}},
		"spec":     fake.Object{"nodeName": "worker-2"}, "status": fake.Object{"phase": "Running"},
	})
	stdout, stderr, status := capture(t, c.args("explain", "deploy/web", "NET_RAW", "-n", "shop")...)
	if status != 0 || strings.Count(stdout, "on worker-1") != 2 || strings.Contains(stdout, "on worker-2") ||
		!strings.Contains(stderr, "the agent of worker-2 sees no running container of shop/web-9") {
		t.Errorf("status %d, %s%s", status, stdout, stderr)
	}
}

// TestFleetAuditKeepsNodesApart: an agent that says another node's ids speaks of its own
// node all the same.
func TestFleetAuditKeepsNodesApart(t *testing.T) {
	leakless(t)
	c := newCluster(t, map[string]*told{"worker-1": newTold(shop()), "worker-2": newTold(shop())})
	stdout, stderr, status := capture(t, c.args("audit", "--pack", "pss-restricted", "--wide", "-n", "shop", "--no-headers")...)
	first, second := strings.Count(stdout, "\nworker-1   "), strings.Count(stdout, "\nworker-2   ")
	if status != 0 || second == 0 || first-second > 1 || second-first > 1 { // the first line follows no other
		t.Errorf("status %d, %d and %d, %s%s", status, first, second, stdout, stderr)
	}
}

// TestFleetNamesThatAreNotThere: a name that nothing has is an error wherever a gate could pass by
// it, with the nearest one; whom nobody named is no such name.
func TestFleetNamesThatAreNotThere(t *testing.T) {
	leakless(t)
	c := newCluster(t, map[string]*told{"worker-1": newTold(calm()), "worker-2": nil})
	c.podsOfShop()
	pack := written(t, "gate.yaml", gatePack)
	for args, want := range map[string]string{
		"scan -n shpo --allow-missing":                                "no running container matches --namespace=shpo; did you mean shop?",
		"audit -n shpo --fail-on high --allow-missing --pack " + pack: "no container on the nodes that were asked is in a namespace shpo; did you mean shop?",
		"get findings -n shpo --allow-missing":                        "no container on the nodes that were asked is in a namespace shpo; did you mean shop?",
		"watch -n shpo --node worker-1 --timeout 5s":                  "no container on the nodes that are watched is in a namespace shpo; did you mean shop?",
		"get container ngnix --node worker-1":                         "did you mean nginx?",
		"scan --node worker-11 --allow-missing":                       "there is no node worker-11 in the cluster; did you mean worker-1 or worker-2?",
		"audit --node worker-11 --allow-missing --pack " + pack:       "there is no node worker-11",
		"get findings --node worker-1 --node wroker-2":                "there is no node wroker-2 in the cluster; did you mean worker-2 or worker-1?",
		"get node worker-11":                                          "there is no node worker-11",
		"watch --node worker-11 --allow-missing --timeout 5s":         "there is no node worker-11",
	} {
		if _, stderr, status := capture(t, c.args(strings.Fields(args)...)...); status != exitFailed || !strings.Contains(stderr, want) {
			t.Errorf("%s: status %d, %s, want %q", args, status, stderr, want)
		}
	}
	// A node that nobody may list is not known to be there, unless an agent runs on it.
	c.Forbid("nodes", true)
	if _, stderr, status := capture(t, c.args("scan", "--node", "worker-2", "--allow-missing")...); status != exitFailed || !strings.Contains(stderr, "no agent runs on a node worker-2, and whether there is one is not known") {
		t.Errorf("status %d, %s", status, stderr)
	}
	if _, stderr, status := capture(t, c.args("scan", "--node", "worker-1")...); status != exitDone {
		t.Errorf("status %d, %s", status, stderr)
	}
}
