//go:build linux

package live

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/capdrift/capdrift/e2e/node"
	"github.com/capdrift/capdrift/e2e/workload"
)

// A ruse is a container that passes rules on paper and fails them in the kernel.
type ruse struct {
	row, name    string // of the table in docs/policy.md, and which way it is done
	about        string
	workload     workload.Workload
	pack         string
	fails        []string // the pack's rules that paper and kernel disagree about: all of them
	capabilities []string // that offend against the first of them; nil where none do
	first        bool     // its first process holds nothing: what is wrong is in another
}

// executed runs one more process in the container, with capabilities that it was not given.
func executed(capabilities ...string) func(context.Context, *node.Node, *node.Container) error {
	return func(ctx context.Context, n *node.Node, c *node.Container) error {
		_, err := n.RuncExec(ctx, c, capabilities, "name=debug", "ready", "sleep")
		return err
	}
}

// executedWith is executed by containerd, with these capabilities and no other.
func executedWith(capabilities []string) func(context.Context, *node.Node, *node.Container) error {
	return func(ctx context.Context, n *node.Node, c *node.Container) error {
		_, err := n.TaskExec(ctx, c, capabilities, "name=debug", "ready", "sleep")
		return err
	}
}

// joined puts a process of the host into the container, which does the steps there.
func joined(steps ...string) func(context.Context, *node.Node, *node.Container) error {
	return func(ctx context.Context, n *node.Node, c *node.Container) error {
		_, err := n.Inject(ctx, c, append(steps, "name=stranger", "ready", "sleep")...)
		return err
	}
}

func ruses() []ruse {
	dropping := func(names ...string) workload.SecurityContext {
		return workload.SecurityContext{Capabilities: &workload.Capabilities{Drop: names}}
	}
	escalating := workload.Restricted()
	escalating.AllowPrivilegeEscalation = nil
	privileged := dropping("ALL")
	privileged.Privileged = true
	return []ruse{
		{
			row: "added_capabilities", name: "base_runtime_spec",
			about:    "the runtime handler's defaults are wider than anybody's, and nothing was added",
			workload: workload.Workload{Handler: node.HandlerWide},
			pack:     "cis", fails: []string{"cis-added-capabilities"}, capabilities: []string{node.BaseCapability},
		},
		{
			row: "added_capabilities", name: "init_container",
			about:    "the same of an init container, while it runs",
			workload: workload.Workload{Handler: node.HandlerWide, List: "initContainers"},
			pack:     "cis", fails: []string{"cis-added-capabilities"}, capabilities: []string{node.BaseCapability},
		},
		{
			row: "added_capabilities", name: "ephemeral_container",
			about:    "kubectl debug --profile=sysadmin is privileged, and adds nothing",
			workload: workload.Workload{Security: workload.SecurityContext{Privileged: true}, List: "ephemeralContainers"},
			pack:     "cis", fails: []string{"cis-added-capabilities"}, capabilities: names(held() &^ defaults),
		},
		{
			row: "added_capabilities", name: "exec",
			about:    "runc exec --cap from the host",
			workload: workload.Workload{Then: executed("CAP_SYS_ADMIN")},
			pack:     "cis", fails: []string{"cis-added-capabilities"}, capabilities: []string{"CAP_SYS_ADMIN"},
		},
		{
			row: "drop_all", name: "cap_prefix",
			about:    "containerd reads the drop as CAP_CAP_ALL",
			workload: workload.Workload{Security: dropping("CAP_ALL")},
			pack:     "cis", fails: []string{"cis-capabilities-assigned", "cis-net-raw"}, capabilities: names(defaults),
		},
		{
			row: "drop_all", name: "privileged",
			about:    "privileged discards both lists",
			workload: workload.Workload{Security: privileged},
			pack:     "pss-restricted", fails: []string{"pss-restricted-capabilities"}, capabilities: names(held() &^ netBind),
		},
		{
			row: "drop_all", name: "wrapper",
			about:    "a wrapper of the OCI runtime edits config.json after all was dropped",
			workload: workload.Workload{Security: workload.Restricted(), Handler: node.HandlerWrapped},
			pack:     "pss-restricted", fails: []string{"pss-restricted-capabilities"}, capabilities: []string{node.WrapperCapability},
		},
		{
			row: "net_raw", name: "cap_prefix",
			about:    "containerd reads the drop as CAP_CAP_NET_RAW",
			workload: workload.Workload{Security: dropping("CAP_NET_RAW")},
			pack:     "cis", fails: []string{"cis-net-raw"}, capabilities: []string{"CAP_NET_RAW"},
		},
		{
			row: "net_raw", name: "exec",
			about:    "dropped, and somebody's tcpdump got it back from the host",
			workload: workload.Workload{Security: dropping("NET_RAW"), Then: executed("CAP_NET_RAW")},
			pack:     "cis", fails: []string{"cis-net-raw"}, capabilities: []string{"CAP_NET_RAW"},
		},
		{
			row: "security_context", name: "privileged",
			about:    "an exec with all that the node has, as wrappers of runc offer it to kubectl exec",
			workload: workload.Workload{Security: workload.Restricted(), Then: executedWith(names(held()))},
			pack:     "securitycontext", fails: []string{"securitycontext-drop-all", "securitycontext-privileged"}, capabilities: names(held()), first: true,
		},
		{
			row: "security_context", name: "privilege_escalation",
			about:    "a process that was not started from the container's spec has no no_new_privs",
			workload: workload.Workload{Security: workload.Restricted(), Then: joined("bound=0", "uid=1000")},
			pack:     "securitycontext", fails: []string{"securitycontext-privilege-escalation"}, first: true,
		},
		{
			row: "security_context", name: "drop_all",
			about:    "a wrapper of the OCI runtime edits config.json after all was dropped",
			workload: workload.Workload{Security: workload.Restricted(), Handler: node.HandlerWrapped},
			pack:     "securitycontext", fails: []string{"securitycontext-drop-all"}, capabilities: []string{node.WrapperCapability},
		},
		{
			row: "security_context", name: "run_as_non_root",
			about:    "the kubelet checks the user of the first process alone",
			workload: workload.Workload{Security: workload.Restricted(), Then: joined("nnp", "bound=0", "caps=0")},
			pack:     "securitycontext", fails: []string{"securitycontext-run-as-non-root"}, first: true,
		},
		{
			row: "security_context", name: "setuid_program",
			about:    "runAsNonRoot, and a setuid program where no_new_privs is missing",
			workload: workload.Workload{Security: escalating, Steps: []string{"exec=/bin/actor-setuid"}},
			pack:     "securitycontext", fails: []string{"securitycontext-run-as-non-root"},
		},
		{
			row: "after_admission", name: "exec",
			about:    "/proc/1/status is clean, and the shell beside it is not",
			workload: workload.Workload{Security: workload.Restricted(), Then: executed("CAP_SYS_ADMIN")},
			pack:     "hygiene", fails: []string{"hygiene-default-set"}, capabilities: []string{"CAP_SYS_ADMIN"}, first: true,
		},
		{
			row: "after_admission", name: "thread",
			about:    "every /proc/PID/status is clean: one thread keeps what its leader dropped",
			workload: workload.Workload{Security: workload.Restricted(), Then: joined("nnp", "bound=0", "worker=200000")},
			pack:     "hygiene", fails: []string{"hygiene-default-set"}, capabilities: []string{"CAP_SYS_ADMIN"}, first: true,
		},
	}
}

// TestPaperAndKernel: what documents ask for and their own audits of a pod spec cannot see.
// Each container passes on paper, by its manifest alone and on the node, and fails in the kernel.
func TestPaperAndKernel(t *testing.T) {
	n, list := onNode(t), ruses()
	workloads := make([]workload.Workload, len(list))
	containers := make([]*node.Container, len(list))
	removeAfter(t, containers)
	for i, r := range list {
		workloads[i] = r.workload
		workloads[i].Namespace, workloads[i].Name, workloads[i].Container = "paper", fmt.Sprintf("ruse-%d", i), "main"
	}
	inParallel(t, workloads, func(i int, w workload.Workload) (err error) {
		if containers[i], err = w.Run(t.Context(), n); err != nil {
			return fmt.Errorf("%s/%s: %w", list[i].row, list[i].name, err)
		}
		return nil
	})
	documented(t, list)
	manifests := manifestsOf(t, workloads...)
	paper, kernel := judge(t, "--manifests", manifests), judgeNode(t, manifests)
	kernel.asDeclared(t)
	for i, r := range list {
		t.Run(r.row+"/"+r.name, func(t *testing.T) {
			t.Log(r.about)
			id := containers[i].ID
			manifest := "Pod/paper/" + workloads[i].Name + "/main"
			if got := kernel.disagreements(r.pack, id); !slices.Equal(got, r.fails) {
				t.Errorf("pass on paper and fail in the kernel: %q, want %q", got, r.fails)
			}
			for _, rule := range r.fails {
				if got := paper.of(t, rule, manifest).Declared.Verdict; got != "pass" {
					t.Errorf("the manifest alone: %s by %s", got, rule)
				}
			}
			got := kernel.of(t, r.fails[0], id).Actual
			if !slices.Equal(got.Capabilities, r.capabilities) {
				t.Errorf("%s offend against %s, want %s", got.Capabilities, r.fails[0], r.capabilities)
			}
			if r.first {
				holdsNothing(t, containers[i].Pid)
				for _, task := range got.Tasks {
					if task.Pid == containers[i].Pid {
						t.Errorf("the first process is blamed: %+v", task)
					}
				}
			}
			if thread := len(got.Tasks) > 0 && got.Tasks[0].Tid != 0; thread != (r.name == "thread") {
				t.Errorf("blamed are %+v", got.Tasks)
			}
		})
	}
}

// documented asserts that the page has the same rows, in the same order. "…" there is the row
// that was named before.
func documented(t *testing.T, list []ruse) {
	t.Helper()
	page, err := os.ReadFile(policyPage(t))
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for _, r := range list {
		want = append(want, r.row+"/"+r.name)
	}
	row := ""
	for _, name := range regexp.MustCompile("`(…|[a-z_]+)/([a-z_]+)`").FindAllSubmatch(page, -1) {
		if string(name[1]) != "…" {
			row = string(name[1])
		}
		got = append(got, row+"/"+string(name[2]))
	}
	if !slices.Equal(got, want) {
		t.Errorf("docs/policy.md has the rows\n%q\nand this test\n%q", got, want)
	}
}

// disagreements are the rules of a pack that a container passes on paper and fails in the kernel.
func (a audit) disagreements(pack, id string) (rules []string) {
	for _, r := range a.Rules {
		for _, result := range a.Results {
			if r.Pack == pack && result.Rule == r.ID && result.ContainerID == id && result.Declared.Verdict == "pass" && result.Actual.Verdict == "fail" {
				rules = append(rules, r.ID)
			}
		}
	}
	slices.Sort(rules)
	return rules
}

// holdsNothing asserts that all five sets are empty in /proc/PID/status, where the leader's are.
func holdsNothing(t *testing.T, pid int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	if len(emptySet.FindAll(status, -1)) != 5 {
		t.Errorf("the first process holds something:\n%s", status)
	}
}

var emptySet = regexp.MustCompile(`(?m)^Cap[A-Z][a-z]+:\t0{16}$`)
