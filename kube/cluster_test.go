package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/capdrift/capdrift/kube/fake"
)

// leakless fails the test when it leaves goroutines behind. Call it first.
//
// SPDY waits a second for somebody to ask how a connection ended; that is no leak.
func leakless(t *testing.T) {
	t.Helper()
	already, waits := goleak.IgnoreCurrent(), goleak.IgnoreTopFunction("github.com/moby/spdystream.(*Connection).shutdown")
	t.Cleanup(func() { goleak.VerifyNone(t, already, waits) })
}

func clusterOf(t *testing.T, c *fake.Cluster) *Cluster {
	t.Helper()
	rules := &clientcmd.ClientConfigLoadingRules{ExplicitPath: fake.Serve(t, c)}
	cluster, err := NewCluster(clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	return cluster
}

// object is one with a name, and owners by their uids.
func object(namespace, name string, owners ...string) fake.Object {
	references := []fake.Object{}
	for _, owner := range owners {
		references = append(references, fake.Object{"uid": owner})
	}
	return fake.Object{"metadata": fake.Object{"namespace": namespace, "name": name, "uid": "u-" + name, "ownerReferences": references}}
}

func onNode(o fake.Object, node, phase string) fake.Object {
	o["spec"], o["status"] = fake.Object{"nodeName": node}, fake.Object{"phase": phase}
	return o
}

func TestPodsOf(t *testing.T) {
	leakless(t)
	known := &fake.Cluster{Page: 2}
	known.Put("deployments", object("shop", "web"), object("data", "web"))
	known.Put("replicasets", object("shop", "web-1", "u-web"), object("shop", "web-2", "u-web"), object("shop", "api-1", "u-api"))
	known.Put("cronjobs", object("shop", "bill"))
	known.Put("jobs", object("shop", "bill-7", "u-bill"))
	known.Put("statefulsets", object("shop", "db"))
	known.Put("pods",
		onNode(object("shop", "web-2-b", "u-web-2"), "n2", "Running"), onNode(object("shop", "web-1-a", "u-web-1"), "n1", "Running"),
		onNode(object("shop", "web-2-c", "u-web-2"), "", "Pending"), onNode(object("shop", "api-1-a", "u-api-1"), "n1", "Running"),
		onNode(object("shop", "bill-7-x", "u-bill-7"), "n1", "Succeeded"), onNode(object("shop", "bill-7-y", "u-bill-7"), "n2", "Running"),
		onNode(object("shop", "db-0", "u-db"), "n3", "Running"), onNode(object("data", "web-1-a", "u-other"), "n9", "Running"))
	cluster := clusterOf(t, known)
	for target, want := range map[string]string{
		"deploy/web":   "web-1-a on n1, web-2-b on n2",
		"rs/web-2":     "web-2-b on n2",
		"cronjob/bill": "bill-7-y on n2",
		"job/bill-7":   "bill-7-y on n2",
		"sts/db":       "db-0 on n3",
		"Pod/api-1-a":  "api-1-a on n1",
		"pod/nobody":   "there is no pod nobody in namespace shop",
		"ds/web":       "there is no daemonset web in namespace shop",
		"svc/web":      "svc owns no pods: want one of pod, deploy",
		"pod/../x":     "there is no pod ../x in namespace shop",
	} {
		kind, name, _ := strings.Cut(target, "/")
		pods, err := cluster.PodsOf(t.Context(), "shop", kind, name)
		var got []string
		for _, pod := range pods {
			got = append(got, pod.Name+" on "+pod.Node)
		}
		text := strings.Join(got, ", ")
		if err != nil {
			text = err.Error()
		}
		if !strings.HasPrefix(text, want) {
			t.Errorf("%s: got %s, want %s", target, text, want)
		}
	}
}

// agentPodOn is the pod of an agent, and what a test makes of it.
func agentPodOn(node string, change func(o fake.Object)) fake.Object {
	o := object("capdrift", "agent-"+node)
	o["metadata"].(fake.Object)["labels"] = fake.Object{"app.kubernetes.io/name": "capdrift", "app.kubernetes.io/component": "agent"}
	o["spec"] = fake.Object{"nodeName": node, "containers": []fake.Object{{"ports": []fake.Object{{"name": "metrics", "containerPort": 1}, {"name": "grpc", "containerPort": 9443}}}}}
	o["status"] = fake.Object{"phase": "Running", "conditions": []fake.Object{{"type": "Ready", "status": "True"}}}
	if change != nil {
		change(o)
	}
	return o
}

func TestAgents(t *testing.T) {
	leakless(t)
	known := &fake.Cluster{}
	known.Put("pods",
		agentPodOn("good", nil),
		agentPodOn("pending", func(o fake.Object) { o["status"] = fake.Object{"phase": "Pending"} }),
		agentPodOn("unready", func(o fake.Object) {
			o["status"].(fake.Object)["conditions"] = []fake.Object{{"type": "Ready", "status": "False", "reason": "Containers\x1b[2J"}}
		}),
		agentPodOn("portless", func(o fake.Object) { o["spec"] = fake.Object{"nodeName": "portless"} }),
		agentPodOn("leaving", func(o fake.Object) { o["metadata"].(fake.Object)["deletionTimestamp"] = "2026-01-01T00:00:00Z" }),
		agentPodOn("leaving", func(o fake.Object) { o["metadata"].(fake.Object)["name"] = "agent-new" }),
		agentPodOn("stranger", func(o fake.Object) { o["metadata"].(fake.Object)["namespace"] = "shop" }),
		agentPodOn("unlabelled", func(o fake.Object) { o["metadata"].(fake.Object)["labels"] = fake.Object{} }))
	found, err := clusterOf(t, known).Agents(t.Context(), "capdrift", "")
	if err != nil {
		t.Fatal(err)
	}
	for node, want := range map[string]string{
		"good": "", "leaving": "", "pending": "is Pending: kubectl describe pod -n capdrift agent-pending", "portless": "has no port named grpc",
		"unready": `is not Ready ("Containers\x1b[2J"): kubectl logs`,
	} {
		if one := found[node]; one.Node != node || (want == "") != (one.Problem == "") || !strings.Contains(one.Problem, want) || want == "" && one.Port != 9443 {
			t.Errorf("%s: %+v, want %q", node, one, want)
		}
	}
	if len(found) != 5 {
		t.Errorf("%d agents: %v", len(found), found)
	}
}

func TestNodes(t *testing.T) {
	leakless(t)
	known := &fake.Cluster{Page: 1}
	for name, status := range map[string]fake.Object{
		"b":   {"conditions": []fake.Object{{"type": "Ready", "status": "True"}}},
		"a":   {"conditions": []fake.Object{{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}}},
		"win": {"nodeInfo": fake.Object{"operatingSystem": "windows"}},
	} {
		known.Put("nodes", fake.Object{"metadata": fake.Object{"name": name}, "status": status})
	}
	nodes, err := clusterOf(t, known).Nodes(t.Context(), NodeSelector{})
	if want := []Node{{"a", "the node is not Ready (NodeStatusUnknown)", false, ""}, {"b", "", false, ""}, {"win", "the node is not Ready", true, ""}}; err != nil || !slices.Equal(nodes, want) {
		t.Errorf("got %v, %v", nodes, err)
	}
}

// TestVirtualNodes: nodes whose containers run elsewhere are told by what EKS and virtual-kubelet write, and no others.
func TestVirtualNodes(t *testing.T) {
	for _, row := range []struct {
		name   string
		labels map[string]string
		id     string
		want   string
	}{
		{"a plain node", map[string]string{"kubernetes.io/os": "linux"}, "aws:///eu-west-1a/i-0123456789abcdef0", ""},
		{"no labels and no provider", nil, "", ""},
		{"Fargate by its label", map[string]string{"eks.amazonaws.com/compute-type": "fargate"}, "", "it is of EKS on Fargate (label eks.amazonaws.com/compute-type=fargate)"},
		{"Fargate by its provider id", nil, "aws:///eu-west-1a/0123-abcd/fargate-ip-192-168-1-2.eu-west-1.compute.internal", "it is of EKS on Fargate (provider id aws:///eu-west-1a/0123-abcd/fargate-ip-192-168-1-2.eu-west-1.compute.internal)"},
		{"EKS on machines", map[string]string{"eks.amazonaws.com/compute-type": "ec2"}, "aws:///eu-west-1a/i-0", ""},
		{"another provider's machine of that name", nil, "gce://project/zone/fargate-1", ""},
		{"a virtual-kubelet", map[string]string{"type": "virtual-kubelet"}, "", "it is a virtual-kubelet (label type=virtual-kubelet)"},
		{"another type", map[string]string{"type": "gpu"}, "", ""},
	} {
		var n node
		n.Metadata.Labels, n.Spec.ProviderID = row.labels, row.id
		if got := n.virtual(); got != row.want {
			t.Errorf("%s: %q, want %q", row.name, got, row.want)
		}
	}
}

// TestSelectedNodes: the API server is asked for the nodes of a label and of a field.
func TestSelectedNodes(t *testing.T) {
	leakless(t)
	known := &fake.Cluster{}
	for name, pool := range map[string]string{"a": "gpu", "b": "gpu", "c": "web"} {
		known.Put("nodes", fake.Object{"metadata": fake.Object{"name": name, "labels": fake.Object{"pool": pool}}})
	}
	cluster := clusterOf(t, known)
	for selector, want := range map[NodeSelector]string{
		{}: "a b c", {Labels: "pool=gpu"}: "a b", {Fields: "metadata.name=c"}: "c", {Labels: "pool=gpu", Fields: "metadata.name=b"}: "b", {Labels: "pool=none"}: "",
	} {
		nodes, err := cluster.Nodes(t.Context(), selector)
		var names []string
		for _, n := range nodes {
			names = append(names, n.Name)
		}
		if got := strings.Join(names, " "); err != nil || got != want {
			t.Errorf("%+v: %q, want %q (%v)", selector, got, want, err)
		}
	}
}

// TestLargePodsHideNobody: who makes pods as large as they can be keeps no other from
// being listed.
func TestLargePodsHideNobody(t *testing.T) {
	leakless(t)
	known := &fake.Cluster{}
	large := strings.Repeat("x", 8<<10)
	for _, name := range []string{"a", "b", "c"} {
		known.Put("pods", fake.Object{"metadata": fake.Object{"namespace": "shop", "name": name, "annotations": fake.Object{"large": large}}})
	}
	cluster := clusterOf(t, known)
	cluster.http.Transport = bounded{cluster.http.Transport, 12 << 10}
	pods, err := cluster.Pods(t.Context(), "shop", "")
	if err != nil || len(pods.Specs) != 3 {
		t.Fatalf("%d pods, %v", len(pods.Specs), err)
	}
	known.Put("pods", fake.Object{"metadata": fake.Object{"namespace": "shop", "name": "d", "annotations": fake.Object{"large": large + large}}})
	if _, err := cluster.Pods(t.Context(), "shop", ""); !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v", err)
	}
}

// TestClusterNamesTheMissingRule: what to ask an administrator for.
func TestClusterNamesTheMissingRule(t *testing.T) {
	leakless(t)
	known := &fake.Cluster{Forbidden: map[string]bool{"nodes": true, "pods": true, "deployments": true, "pods/portforward": true}}
	cluster := clusterOf(t, known)
	_, nodes := cluster.Nodes(t.Context(), NodeSelector{})
	_, agents := cluster.Agents(t.Context(), "capdrift", "")
	_, workload := cluster.PodsOf(t.Context(), "shop", "deploy", "web")
	_, forwarding := cluster.Dial(t.Context(), AgentPod{Namespace: "capdrift", Name: "agent", Port: 1})
	for want, err := range map[string]error{
		`list nodes in the whole cluster (403): ask for a ClusterRole with the rule {apiGroups: [""], resources: [nodes], verbs: [list]}`:             nodes,
		`list pods in namespace capdrift (403): ask for a Role with the rule {apiGroups: [""], resources: [pods], verbs: [list]}`:                     agents,
		`get deployments in namespace shop (403): ask for a Role with the rule {apiGroups: ["apps"], resources: [deployments], verbs: [get]}`:         workload,
		`create pods/portforward in namespace capdrift (403): ask for a Role with the rule {apiGroups: [""], resources: [pods/portforward], verbs: [`: forwarding,
	} {
		var forbidden *ForbiddenError
		if err == nil || !errors.As(err, &forbidden) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// echo answers with what it is told.
func echo(t *testing.T) (dial func(string, string, int) (net.Conn, error)) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	return func(_, _ string, port int) (net.Conn, error) {
		if port != 9443 {
			return nil, errors.New("connection refused\x1b[2J")
		}
		return net.Dial("tcp", listener.Addr().String())
	}
}

func TestDialForwards(t *testing.T) {
	for protocol, old := range map[string]bool{"WebSocket": false, "SPDY": true} {
		t.Run(protocol, func(t *testing.T) {
			leakless(t)
			known := &fake.Cluster{OnlySPDY: old, Dial: echo(t)}
			cluster := clusterOf(t, known)
			conn, err := cluster.Dial(t.Context(), AgentPod{Namespace: "capdrift", Name: "agent", Port: 9443})
			if err != nil {
				t.Fatal(err)
			}
			said := strings.Repeat("0123456789", 100_000)
			go func() { _, _ = io.WriteString(conn, said) }()
			heard := make([]byte, len(said))
			if _, err := io.ReadFull(conn, heard); err != nil || string(heard) != said {
				t.Errorf("%v; %d bytes", err, len(heard))
			}
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
			if n, err := conn.Read(heard); err == nil {
				t.Errorf("%d bytes were read after the end", n)
			}
			if got := known.Forwards(); !slices.Equal(got, []string{"capdrift/agent:9443 by " + protocol}) {
				t.Error(got)
			}

			refused, err := cluster.Dial(t.Context(), AgentPod{Namespace: "capdrift", Name: "agent", Port: 1})
			if err != nil {
				t.Fatal(err)
			}
			defer refused.Close()
			if _, err := refused.Read(heard); err == nil || !strings.Contains(err.Error(), "error forwarding port 1 to pod agent") || strings.Contains(err.Error(), "\x1b") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestRefusal: what an API server says in its own form is not quoted as text.
func TestRefusal(t *testing.T) {
	for _, row := range []struct{ said, want string }{
		{`{"kind":"Status","message":"error dialing backend: connection refused","code":500}`, "API server fake: error dialing backend: connection refused"},
		{`{"kind":"Status","message":"bad\u001b[2J"}`, `API server fake: "bad\x1b[2J"`},
		{`{"kind":"Status","message":"", "code":403}`, `API server fake: "an error on the server `},
		{"out of order", `API server fake: "an error on the server (\"out of order\")`},
	} {
		answer := &http.Response{StatusCode: http.StatusInternalServerError, Body: io.NopCloser(strings.NewReader(row.said))}
		err := (&Cluster{source: "API server fake"}).unforwarded(t.Context(), AgentPod{}, refusal(answer))
		if !strings.HasPrefix(err.Error(), row.want) {
			t.Errorf("%s is told as %v, want %s", row.said, err, row.want)
		}
	}
	forbidden := &http.Response{StatusCode: http.StatusForbidden, Body: io.NopCloser(strings.NewReader(`{"kind":"Status","message":"no"}`))}
	if err := refusal(forbidden); !isForbidden(err) {
		t.Errorf("403 is told as %v", err)
	}
}

// TestDialEnds: with the context, and where nobody is.
func TestDialEnds(t *testing.T) {
	leakless(t)
	held := make(chan struct{})
	t.Cleanup(func() { close(held) })
	cluster := clusterOf(t, &fake.Cluster{Hang: map[string]chan struct{}{"pods/portforward": held}})
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := fmt.Errorf("it takes too long")
	done := make(chan error)
	go func() {
		_, err := cluster.Dial(ctx, AgentPod{Namespace: "capdrift", Name: "agent", Port: 1})
		done <- err
	}()
	cancel(ended)
	if err := <-done; !errors.Is(err, ended) {
		t.Error(err)
	}
}
