//go:build linux

package chart

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/capdrift/capdrift/e2e/cluster"
	"github.com/capdrift/capdrift/e2e/provision"
)

// reader is somebody new, who has a clean clone and a cluster, and types what the pages say.
type reader struct {
	clone string
	path  string   // PATH
	goEnv []string // where Go keeps what it built before, though the reader's home is new

	on *cluster.Node // where the reader is logged in; nil is this machine

	followed map[string]bool // commands
}

// outcome is what a command does that does not just succeed.
type outcome struct {
	status int
	prints string // a regular expression
	until  bool   // it goes on for ever, and is interrupted when it has printed that
	then   string // what shows that it worked, in the same shell
}

// outcomes are those of some commands, by what the page says.
var outcomes = map[string]outcome{
	"kubectl -n capdrift exec daemonset/capdrift-agent -- capdrift get node":   {prints: `(?m)^Coverage: .*1 container seen`},
	"kubectl -n capdrift get pods -o wide --field-selector spec.nodeName=NODE": {prints: `capdrift-agent-\w+ +1/1 +Running`},
	"kubectl capdrift get nodes":             {prints: `(?s)worker-1.*worker-2`},
	"kubectl capdrift get findings -n shop":  {prints: `(?m)^worker-1 +critical +shop/everywhere-\w+ .*(bounding|permitted)_excess.*\n.* also +(bounding|permitted)_excess`},
	"kubectl capdrift watch --node worker-1": {prints: `critical .*(bounding|permitted)_excess`, until: true},
	"kubectl capdrift scan --fail-on high":   {prints: `critical .*(bounding|permitted)_excess`, status: 3},
	"kubectl capdrift explain deploy/web":    {prints: `CAP_`},
	"kubectl -n capdrift logs POD":           {prints: `the journal is open`},
	"kubectl capdrift get findings -o json | jq '.nodes[] | .nodeName as $n | .answer.findings[]? | {$n, kind, severity}'": {prints: `"kind": "permitted_excess"`},
	"kubectl capdrift audit --pack pss-restricted":                 {prints: `(?m)^high +pss-restricted-capabilities`},
	"kubectl -n capdrift get daemonset":                            {prints: `capdrift-agent +2 +2 +2`},
	"sudo bin/capdrift scan":                                       {prints: `critical .*(bounding|permitted)_excess`},
	"sudo bin/capdrift audit --pack pss-restricted --fail-on high": {prints: `high +pss-restricted-capabilities`, status: 3},
	"sudo bin/capdrift explain PID":                                {prints: `intruder`},
	"bin/capdrift predict -f web.yaml --runtime all":               {prints: `(?s)cri-o, docker +refused\n.*keeps 13 capabilities`},
	"source <(bin/capdrift completion bash)":                       {then: "complete -p capdrift"},
	"bin/capdrift version":                                         {prints: `capdrift `},
	"sudo bin/capdrift scan --fail-on high":                        {status: 3},
}

// newReader gives a reader a clone of what would be committed, and on his PATH what the pages suppose.
func newReader(t *testing.T, in *installation) *reader {
	t.Helper()
	dir := t.TempDir()
	r := &reader{clone: filepath.Join(dir, "capdrift"), followed: map[string]bool{}}
	if err := provision.Clone(t.Context(), in.repo, r.clone); err != nil {
		t.Fatal(err)
	}
	tools := filepath.Join(dir, "tools")
	for name, program := range map[string]string{"kubectl": in.Program("kubectl"), "helm": filepath.Join(in.tools, "helm")} {
		link(t, program, filepath.Join(tools, name))
	}
	// The reader is root.
	script(t, filepath.Join(tools, "sudo"), `exec "$@"`)
	// "On every node" is a loop.
	each := "set -e\n"
	for _, n := range in.Nodes {
		each += fmt.Sprintf("%q --address %q \"$@\"\n", filepath.Join(in.tools, "ctr"), n.Path(cluster.RuntimeSocket))
	}
	script(t, filepath.Join(tools, "ctr"), each)
	r.path = tools + ":" + in.bin + ":" + os.Getenv("PATH")
	for _, name := range []string{"GOCACHE", "GOMODCACHE", "GOENV"} {
		value := output(t, exec.CommandContext(t.Context(), "go", "env", name), "")
		r.goEnv = append(r.goEnv, name+"="+strings.TrimSpace(value))
	}
	return r
}

func link(t *testing.T, to, at string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.Symlink(to, at)); err != nil {
		t.Fatal(err)
	}
}

func script(t *testing.T, at, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, []byte("#!/bin/sh\n"+text+"\n"), 0o755)); err != nil {
		t.Fatal(err)
	}
}

// walk does what a page says, from its top to its bottom, or in some of its sections.
func (in *installation) walk(t *testing.T, page string, sections ...string) {
	t.Helper()
	todo, _, err := readPage(in.repo, page)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range todo {
		switch {
		case len(sections) > 0 && !slices.Contains(sections, i.section), elsewhere[i.command] != "":
		case i.file != "":
			path := filepath.Join(in.reader.clone, i.file)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(i.text), 0o644)); err != nil {
				t.Fatal(err)
			}
		default:
			in.carryOut(t, i)
		}
	}
}

// carryOut types one command.
func (in *installation) carryOut(t *testing.T, i instruction) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	wants, began := outcomes[i.command], time.Now()
	typed := in.fillIn(t, i.command)
	if wants.then != "" {
		typed += "\n" + wants.then
	}
	command := in.command(ctx, typed)
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	command.Stdout, command.Stderr = out, out
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	prints := regexp.MustCompile(wants.prints)
	if wants.until {
		await(t, "it prints "+wants.prints, func() (bool, string) {
			text := read(t, out.Name())
			return prints.MatchString(text), text
		})
		if err := command.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
	}
	var exit *exec.ExitError
	if err := command.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	text, status := read(t, out.Name()), command.ProcessState.ExitCode()
	if status != wants.status || !prints.MatchString(text) || strings.Contains(text, "capdrift: warning:") {
		t.Fatalf("%s\ntyped as %q: status %d, and not %d with %q:\n%s", i, typed, status, wants.status, wants.prints, text)
	}
	t.Logf("%s (%s)", i, time.Since(began).Round(time.Millisecond))
	in.reader.followed[i.command] = true
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// command is a line as the reader's shell runs it.
func (in *installation) command(ctx context.Context, line string) *exec.Cmd {
	bash := []string{"bash", "-e", "-u", "-o", "pipefail", "-c", line}
	if in.reader.on != nil && !strings.HasPrefix(line, "make ") { // nodes have no compiler
		return in.reader.on.Command(ctx, "env", append([]string{"--chdir", atNode + "/capdrift", "PATH=" + atNode + "/tools:/opt/programs:/usr/bin:/bin"}, bash...)...)
	}
	shell := exec.CommandContext(ctx, bash[0], bash[1:]...)
	shell.Dir = in.reader.clone
	shell.Env = slices.Concat(os.Environ(), in.Kubectl(ctx).Env, in.reader.goEnv, []string{"PATH=" + in.reader.path, "MAKEFLAGS="})
	return shell
}

// fillIn puts into a command what the reader has to. /usr/local/bin is a folder of the test's, and the
// chart that the reader is in is the agent's.
func (in *installation) fillIn(t *testing.T, command string) string {
	t.Helper()
	filled := strings.NewReplacer("/usr/local/bin/", in.bin+"/", "helm template . ", "helm template deploy/chart ").Replace(command)
	for placeholder, value := range map[string]func() string{
		"NODE":      func() string { return "worker-1" },
		"POD":       func() string { return in.agents(t)["worker-1"].Name },
		"CONTAINER": func() string { return "agent" },
		"PID": func() string {
			look := `grep -lx intruder /proc/[0-9]*/comm 2>/dev/null | head -1 | cut -d/ -f3`
			return strings.TrimSpace(output(t, in.node("worker-1").Command(t.Context(), "sh", "-c", look), ""))
		},
	} {
		if word := regexp.MustCompile(`\b` + placeholder + `\b`); word.MatchString(filled) {
			filled = word.ReplaceAllLiteralString(filled, value())
		}
	}
	return filled
}

func testPlugin(t *testing.T, in *installation) {
	in.walk(t, kubectlPage, "Install it")
}

// The whole page, on a cluster as it is for somebody new, with the Prometheus operator's custom resources, of
// which the page says that they must be there.
func testKubernetesPage(t *testing.T, in *installation) {
	resources, err := provision.OperatorResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"podmonitors", "prometheusrules"} {
		in.kubectl(t, "", "apply", "--server-side", "-f", filepath.Join(resources, "monitoring.coreos.com_"+kind+".yaml"))
		await(t, "the API serves "+kind, func() (bool, string) {
			served := in.kubectl(t, "", "get", "crd", kind+".monitoring.coreos.com", "-o", `jsonpath={.status.conditions[?(@.type=="Established")].status}`)
			return served == "True", served
		})
	}
	in.walk(t, kubernetesPage)
}

// The rest of the page, for somebody whose namespace is the shop.
func testKubectlPage(t *testing.T, in *installation) {
	in.kubectl(t, "", "config", "set-context", "--current", "--namespace=shop")
	in.walk(t, kubectlPage, "What it needs", "Use it", "What it prints", "When it does not work")
	in.kubectl(t, "", "config", "set-context", "--current", "--namespace=")
	if told := output(t, in.command(t.Context(), `kubectl __complete capdrift get ''`), ""); !strings.Contains(told, "findings") {
		t.Errorf("kubectl completes capdrift get by %q", told)
	}
}

// testPages: nothing that the pages say was left out.
func testPages(t *testing.T, in *installation) {
	for _, page := range pages {
		todo, _, err := readPage(in.repo, page)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range todo {
			if i.command != "" && elsewhere[i.command] == "" && !in.reader.followed[i.command] {
				t.Errorf("%s: nobody ran it", i)
			}
		}
	}
}

// atNode is the folder of who is logged in on a node.
const atNode = "/root"

// What needs no cluster, and what is to be typed on a node, on one where an intruder is.
func testReadme(t *testing.T, in *installation) {
	in.walk(t, readme, "See it work")
	n, home := in.Nodes[0], in.Nodes[0].Path(atNode)
	for to, from := range map[string]string{
		"capdrift":               in.reader.clone,
		"tools/helm":             filepath.Join(in.tools, "helm"),
		"tools/kubectl-capdrift": filepath.Join(in.bin, "kubectl-capdrift"),
		".kube/config":           in.Kubeconfig(),
	} {
		to = filepath.Join(home, to)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		output(t, exec.CommandContext(t.Context(), "cp", "--recursive", "--dereference", from, to), "")
	}
	script(t, filepath.Join(home, "tools", "sudo"), `exec "$@"`)
	in.reader.on = n
	defer func() { in.reader.on = nil }()
	in.walk(t, readme, "Use it")
}
