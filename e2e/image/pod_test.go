//go:build linux

package image

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/capdrift/capdrift/e2e/cluster"
	"github.com/capdrift/capdrift/e2e/node"
	"github.com/capdrift/capdrift/e2e/provision"
)

// TestPod: an API server takes what the chart renders, and a kubelet runs the DaemonSet's pod
// from the image that was built. The pod is probed, sees its node and itself, holds nothing, takes
// a changed ConfigMap without a restart, and leaves its journal on the node.
//
// Nothing makes pods of DaemonSets here, and pods have no network: so the pod is made of its
// template, with the host's network for the kubelet's probes.
func TestPod(t *testing.T) {
	needs(t)
	repo := repository(t)
	makes(t, repo, "chart-tools")
	n, c := startCluster(t)
	load(t, n, filepath.Join(build(t, repo), "capdrift.docker.tar"))
	journal := filepath.Join(t.TempDir(), "capdrift")
	manifest := render(t, repo, "namespace.create=true", "image.tag="+version, "image.pullPolicy=Never",
		"agent.runtime.socket="+filepath.Join(n.SocketDir(), "containerd.sock"), "agent.journal.hostPath="+journal)
	template := install(t, c, manifest)

	template.Spec["hostNetwork"] = true
	template.Metadata["name"] = "agent"
	manifest, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": template.Metadata, "spec": template.Spec})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.CreatePod(t.Context(), namespace, manifest); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		showLog(t, n)
		if err := c.DeletePod(context.Background(), namespace, "agent"); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(journal, "journal.db")); err != nil {
			t.Errorf("the journal is gone with the pod: %v", err)
		}
	})
	if _, err := c.AwaitRunning(t.Context(), namespace, "agent"); err != nil {
		t.Fatal(err)
	}
	var p agentPod
	await(t, "the kubelet finds it ready", func() bool { p = look(t, c); return p.ready() })
	agent := &node.Container{ID: strings.TrimPrefix(p.Status.ContainerStatuses[0].ContainerID, "containerd://")}

	checkView(t, n, agent)
	metrics := scrape(t)
	for _, want := range []string{"capdrift_ready 1", `capdrift_build_info{version="` + version + `"} 1`} {
		if !strings.Contains(metrics, want+"\n") {
			t.Errorf("no %s in the metrics", want)
		}
	}

	changed := strings.Replace(p.config(t, c), "level: info", "level: debug", 1)
	patch, err := json.Marshal(map[string]any{"data": map[string]string{"agent.yaml": changed}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Request(t.Context(), http.MethodPatch, configMap, patch); err != nil {
		t.Fatal(err)
	}
	await(t, "the changed configuration is in force", func() bool { return strings.Contains(logs(t, n), "the configuration is in force") })
	if p = look(t, c); p.Status.ContainerStatuses[0].RestartCount != 0 || !p.ready() {
		t.Errorf("after all, %+v", p.Status)
	}
}

const (
	namespace = "capdrift"
	configMap = "/api/v1/namespaces/" + namespace + "/configmaps/capdrift-agent"
)

// startCluster brings up a node with a kubelet and an API server.
func startCluster(t *testing.T) (*node.Node, *cluster.Cluster) {
	t.Helper()
	programs, err := provision.KubernetesFromEnv(t.Context(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	n, err := node.Start(t.Context(), node.Config{Programs: programs, Parent: os.Getenv("CAPDRIFT_E2E_ROOT")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	c, err := cluster.Start(t.Context(), n, cluster.Config{Programs: programs, APIServer: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return n, c
}

// load imports an archive as `ctr images import` does.
func load(t *testing.T, n *node.Node, file string) {
	t.Helper()
	client, err := containerd.New(strings.TrimPrefix(n.Endpoint(), "unix://"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	archive, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer archive.Close()
	ctx := namespaces.WithNamespace(t.Context(), "k8s.io")
	images, err := client.Import(ctx, archive)
	if err != nil || len(images) != 1 || images[0].Name != name {
		t.Fatalf("import: %v, %+v", err, images)
	}
	if err := containerd.NewImage(client, images[0]).Unpack(ctx, ""); err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(n.Endpoint(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	await(t, "the CRI knows the image", func() bool {
		told, err := cri.NewImageServiceClient(conn).ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}})
		return err == nil && told.Image != nil
	})
}

// render is `helm template`, with the values given.
func render(t *testing.T, repo string, values ...string) []byte {
	t.Helper()
	args := []string{"template", "capdrift", filepath.Join(repo, "deploy", "chart"), "--namespace", namespace}
	for _, value := range values {
		args = append(args, "--set", value)
	}
	manifest, err := exec.CommandContext(t.Context(), filepath.Join(repo, ".cache", "tools", "helm-v4.3.1"), args...).Output()
	if err != nil {
		t.Fatal(err)
	}
	return manifest
}

// podTemplate is what a DaemonSet makes pods of.
type podTemplate struct{ Metadata, Spec map[string]any }

var (
	kind   = regexp.MustCompile(`(?m)^kind: (\w+)$`)
	places = map[string]string{
		"Namespace":      "/api/v1/namespaces",
		"ServiceAccount": "/api/v1/namespaces/" + namespace + "/serviceaccounts",
		"ConfigMap":      "/api/v1/namespaces/" + namespace + "/configmaps",
		"DaemonSet":      "/apis/apps/v1/namespaces/" + namespace + "/daemonsets",
		"NetworkPolicy":  "/apis/networking.k8s.io/v1/namespaces/" + namespace + "/networkpolicies",
	}
)

// install gives all objects to the API server, which takes no unknown fields, and returns the
// template of the DaemonSet's pods.
func install(t *testing.T, c *cluster.Cluster, manifest []byte) (template podTemplate) {
	t.Helper()
	byKind := make(map[string]string)
	for _, text := range strings.Split("\n"+string(manifest), "\n---\n") {
		if found := kind.FindStringSubmatch(text); found != nil {
			byKind[found[1]] = text
		}
	}
	for _, what := range []string{"Namespace", "ServiceAccount", "ConfigMap", "NetworkPolicy", "DaemonSet"} {
		made, err := c.Request(t.Context(), http.MethodPost, places[what]+"?fieldValidation=Strict", []byte(byKind[what]))
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if what == "DaemonSet" {
			var set struct {
				Spec struct{ Template podTemplate }
			}
			if err := json.Unmarshal(made, &set); err != nil {
				t.Fatal(err)
			}
			template = set.Spec.Template
		}
	}
	return template
}

// agentPod is the pod as the API tells it, as far as this test reads it.
type agentPod struct {
	Status struct {
		Conditions        []struct{ Type, Status string }
		ContainerStatuses []struct {
			ContainerID  string
			RestartCount int
		}
	}
}

func look(t *testing.T, c *cluster.Cluster) (p agentPod) {
	t.Helper()
	text, err := c.Pod(t.Context(), namespace, "agent")
	if err == nil {
		err = json.Unmarshal(text, &p)
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (p agentPod) ready() bool {
	for _, condition := range p.Status.Conditions {
		if condition.Type == "Ready" {
			return condition.Status == "True"
		}
	}
	return false
}

// config is the agent's configuration as the API has it.
func (agentPod) config(t *testing.T, c *cluster.Cluster) string {
	t.Helper()
	text, err := c.Request(t.Context(), http.MethodGet, configMap, nil)
	var told struct{ Data map[string]string }
	if err == nil {
		err = json.Unmarshal(text, &told)
	}
	if err != nil {
		t.Fatal(err)
	}
	return told.Data["agent.yaml"]
}

// checkView: what `kubectl exec POD -- capdrift` tells.
func checkView(t *testing.T, n *node.Node, agent *node.Container) {
	t.Helper()
	ask := func(into any, args ...string) {
		t.Helper()
		stdout, stderr, err := n.Exec(t.Context(), agent, append([]string{"capdrift"}, args...)...)
		if err == nil {
			err = json.Unmarshal(stdout, into)
		}
		if err != nil {
			t.Fatalf("capdrift %q: %v: %s", args, err, stderr)
		}
	}
	var view struct {
		Node       struct{ Name string }
		Components []struct {
			Name, Why string
			OK        bool
		}
	}
	ask(&view, "get", "node", "-o", "json")
	if view.Node.Name != "capdrift-node" || len(view.Components) == 0 {
		t.Errorf("it calls itself %+v", view)
	}
	for _, component := range view.Components {
		if !component.OK {
			t.Errorf("component %+v", component)
		}
	}
	var report struct {
		Containers []struct {
			ID        string
			Processes []struct {
				NoNewPrivileges bool
				Caps            struct{ Permitted, Bounding struct{ Hex string } }
			}
		}
		Findings []struct{ ContainerID, Kind, Severity string }
	}
	ask(&report, "scan", "--agent", "unix:///run/capdrift/agent.sock", "-o", "json")
	itself := false
	for _, c := range report.Containers {
		for _, p := range c.Processes {
			if c.ID != agent.ID {
				continue
			}
			itself = true
			if none := "0000000000000000"; p.Caps.Permitted.Hex != none || p.Caps.Bounding.Hex != none || !p.NoNewPrivileges {
				t.Errorf("the agent holds %+v", p)
			}
		}
	}
	if !itself {
		t.Errorf("the agent does not see itself among %d containers", len(report.Containers))
	}
	for _, f := range report.Findings {
		if f.ContainerID == agent.ID && f.Severity != "info" {
			t.Errorf("the agent finds about itself %+v", f)
		}
	}
}

func scrape(t *testing.T) string {
	t.Helper()
	answer, err := http.Get("http://127.0.0.1:7702/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// logs is what the agent wrote.
func logs(t *testing.T, n *node.Node) (text string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(n.Root, "cluster", "logs", namespace+"_*", "agent", "*.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		one, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text += string(one)
	}
	return text
}

func showLog(t *testing.T, n *node.Node) {
	if t.Failed() {
		t.Logf("the agent wrote:\n%s", logs(t, n))
	}
}

func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := node.Until(ctx, what, func() (bool, error) { return holds(), nil }); err != nil {
		t.Fatal(err)
	}
}
