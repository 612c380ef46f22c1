//go:build linux

package chart

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/capdrift/capdrift/e2e/cluster"
	"github.com/capdrift/capdrift/e2e/node"
	"github.com/capdrift/capdrift/e2e/provision"
	"github.com/capdrift/capdrift/e2e/suite"
)

// installation is the cluster with the chart on it, and those who use it.
type installation struct {
	*cluster.Cluster
	repo  string
	tools string // folder with helm
	bin   string // folder with the plugin

	reader *reader // of the pages

	kept   []string // ids of an intruder's findings that stay open
	follow *watch   // since they are

	authority *cluster.Authority // that signed the agents' certificates
	client    client             // that they let in over TCP

	watches []*exec.Cmd // that run
}

// needs skips a laptop that cannot.
func needs(t *testing.T) {
	t.Helper()
	why := ""
	if _, err := exec.LookPath("buildah"); err != nil {
		why = "needs buildah; run: make packages"
	}
	if os.Geteuid() != 0 {
		why = "needs root; run: sudo make cluster-test"
	}
	if why == "" {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("CI must run this: %s", why)
	}
	t.Skip(why)
}

// start brings up a cluster.
func start(t *testing.T) *installation {
	t.Helper()
	needs(t)
	repo, err := provision.Repo()
	if err != nil {
		t.Fatal(err)
	}
	tools, err := provision.ChartToolsFromEnv(t.Context(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	c, err := suite.Cluster(t.Context(), cluster.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	in := &installation{Cluster: c, repo: repo, tools: tools, bin: t.TempDir()}
	in.reader = newReader(t, in)
	t.Cleanup(func() {
		for _, w := range in.watches {
			_ = w.Process.Kill()
			_ = w.Wait() // killed
		}
	})
	return in
}

func (in *installation) chart() string { return filepath.Join(in.repo, "deploy", "chart") }
func (in *installation) exceptions() string {
	return filepath.Join(in.repo, "deploy", "exceptions.yaml")
}

func (in *installation) node(name string) *cluster.Node {
	return in.Nodes[slices.IndexFunc(in.Nodes, func(n *cluster.Node) bool { return n.Name == name })]
}

// await asks for a condition often, for three minutes, and tells what was seen last.
func await(t *testing.T, what string, holds func() (ok bool, seen string)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
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

func output(t *testing.T, command *exec.Cmd, stdin string) string {
	t.Helper()
	var out, errs bytes.Buffer
	command.Stdin, command.Stdout, command.Stderr = strings.NewReader(stdin), &out, &errs
	if err := command.Run(); err != nil {
		t.Fatalf("%q: %v\n%s%s", command.Args, err, out.String(), errs.String())
	}
	return out.String()
}

// kubectl runs a command as the administrator and returns what it prints.
func (in *installation) kubectl(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	return output(t, in.Kubectl(ctx, args...), stdin)
}

// helm runs a command in the agents' namespace.
func (in *installation) helm(t *testing.T, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, filepath.Join(in.tools, "helm"), append(args, "--namespace", "capdrift")...)
	command.Env = in.Kubectl(ctx).Env // whose cluster and folders serve helm too
	output(t, command, "")
}

// plugin is kubectl capdrift of whom a kubeconfig makes it.
func (in *installation) plugin(ctx context.Context, kubeconfig string, args ...string) *exec.Cmd {
	command := in.KubectlAs(ctx, kubeconfig, append([]string{"capdrift"}, args...)...)
	command.Env = append(command.Env, "PATH="+in.bin)
	return command
}

func (in *installation) capdrift(t *testing.T, args ...string) (told string, status int) {
	t.Helper()
	told, _, status = in.capdriftAs(t, in.Kubeconfig(), args...)
	return told, status
}

func (in *installation) capdriftAs(t *testing.T, kubeconfig string, args ...string) (told, problems string, status int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	command := in.plugin(ctx, kubeconfig, args...)
	command.Stdout, command.Stderr = &out, &errs
	var exit *exec.ExitError
	if err := command.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), command.ProcessState.ExitCode()
}

func (in *installation) awaitRollout(t *testing.T) {
	t.Helper()
	in.kubectl(t, "", "rollout", "status", "-n", "capdrift", "daemonset/capdrift-agent", "--timeout=2m")
}

// agentPod is who an agent's pod is, and how often it was started again.
type agentPod struct {
	Name, UID, Address string
	Restarts           int
}

// agents are those that run, by node.
func (in *installation) agents(t *testing.T) map[string]agentPod {
	t.Helper()
	var list struct {
		Items []struct {
			Metadata struct {
				Name, UID         string
				DeletionTimestamp *string
			}
			Spec   struct{ NodeName string }
			Status struct {
				PodIP             string
				ContainerStatuses []struct{ RestartCount int }
			}
		}
	}
	text := in.kubectl(t, "", "get", "pods", "-n", "capdrift", "-l", "app.kubernetes.io/component=agent", "-o", "json")
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		t.Fatal(err)
	}
	found := map[string]agentPod{}
	for _, pod := range list.Items {
		if pod.Metadata.DeletionTimestamp == nil && len(pod.Status.ContainerStatuses) == 1 {
			found[pod.Spec.NodeName] = agentPod{pod.Metadata.Name, pod.Metadata.UID, pod.Status.PodIP, pod.Status.ContainerStatuses[0].RestartCount}
		}
	}
	return found
}

// podsOf are the pods of an app of the shop, by node.
func (in *installation) podsOf(t *testing.T, app string) map[string]string {
	t.Helper()
	list := in.kubectl(t, "", "get", "pods", "-n", "shop", "-l", "app="+app, "-o", `jsonpath={range .items[*]}{.spec.nodeName} {.metadata.name}{"\n"}{end}`)
	found := map[string]string{}
	for line := range strings.Lines(list) {
		on, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		found[on] = name
	}
	return found
}

// only is the one entry that there is.
func only(t *testing.T, pods map[string]string) (on, name string) {
	t.Helper()
	if len(pods) != 1 {
		t.Fatalf("pods by node: %v, want one", pods)
	}
	for on, name = range pods {
	}
	return on, name
}

// showLogs shows what the agents wrote.
func (in *installation) showLogs(t *testing.T) {
	t.Helper()
	for on := range in.agents(t) {
		files, _ := filepath.Glob(in.node(on).Path("/var/log/pods/capdrift_*/agent/*.log"))
		for _, file := range files {
			text, _ := os.ReadFile(file)
			t.Logf("%s of %s:\n%s", filepath.Base(filepath.Dir(filepath.Dir(file))), on, text[max(0, len(text)-4000):])
		}
	}
}

// record is a line of watch, as far as the tests read it.
type record struct {
	NodeName, Type, Change, Resolved string
	Finding                          *finding
}

// watch is a kubectl capdrift watch that runs as long as the installation's test does.
type watch struct{ file string }

// watch starts one, and waits until both nodes have told what is.
func (in *installation) watch(t *testing.T) *watch {
	t.Helper()
	dir, err := os.MkdirTemp(in.bin, "watch-") // which outlives the step
	if err != nil {
		t.Fatal(err)
	}
	w := &watch{file: filepath.Join(dir, "lines")}
	lines, err := os.Create(w.file)
	if err != nil {
		t.Fatal(err)
	}
	defer lines.Close()
	command := in.plugin(context.Background(), in.Kubeconfig(), "watch", "-o", "jsonl")
	command.Stdout, command.Stderr = lines, lines
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	in.watches = append(in.watches, command)
	await(t, "both nodes tell", func() (bool, string) {
		told := map[string]bool{}
		for _, r := range w.records(t) {
			if r.Type == "snapshot_end" {
				told[r.NodeName] = true
			}
		}
		return len(told) == 2, w.text(t)
	})
	return w
}

func (w *watch) text(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(w.file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// records are the lines that are whole; notes to people stand between them.
func (w *watch) records(t *testing.T) (all []record) {
	t.Helper()
	for line := range strings.Lines(w.text(t)) {
		if !strings.HasPrefix(line, "{") || !strings.HasSuffix(line, "\n") {
			continue
		}
		var r record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		all = append(all, r)
	}
	return all
}

// connected tells whether a node's agent has told all since the watch lost it last.
func (w *watch) connected(t *testing.T, on string) (is bool) {
	t.Helper()
	for _, r := range w.records(t) {
		if r.NodeName == on && r.Type != "node_status" {
			is = r.Type != "disconnected" && (is || r.Type == "snapshot_end" || r.Type == "connected")
		}
	}
	return is
}
