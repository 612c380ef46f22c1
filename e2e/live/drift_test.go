//go:build linux

package live

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/e2e/node"
)

// A scene is one container with something in it, and all that must be found there
// above "info". What it wants of "info" is listed too; other information is free.
type scene struct {
	name  string
	about string
	set   func(ctx context.Context, n *node.Node) (*node.Container, []finding, error)
}

func pod(sc *cri.LinuxContainerSecurityContext, steps ...string) node.Pod {
	return node.Pod{Security: sc, Args: steps, Shared: true}
}

var scenes = []scene{
	{
		name:  "full_capabilities_injected",
		about: "a process from the host, with all it has, in a restricted container",
		set: func(ctx context.Context, n *node.Node) (*node.Container, []finding, error) {
			c, err := n.Run(ctx, pod(restricted()))
			if err != nil {
				return nil, nil, err
			}
			p, err := n.Inject(ctx, c, "ready", "sleep")
			if err != nil {
				return c, nil, err
			}
			return c, []finding{
				{Kind: "permitted_excess", Severity: "critical", Pid: p.Pid, Set: "permitted", Capabilities: names(held() &^ netBind)},
				{Kind: "bounding_excess", Severity: "critical", Pid: p.Pid, Set: "bounding", Capabilities: names(held() &^ netBind)},
				{Kind: "nnp_missing", Severity: "high", Pid: p.Pid},
				{Kind: "became_root", Severity: "high", Pid: p.Pid, Capabilities: names(held())},
			}, nil
		},
	},
	{
		name:  "runc_exec_with_capability",
		about: "runc exec --cap CAP_SYS_ADMIN into a container that dropped ALL",
		set: func(ctx context.Context, n *node.Node) (*node.Container, []finding, error) {
			c, err := n.Run(ctx, pod(dropAll()))
			if err != nil {
				return nil, nil, err
			}
			pid, err := n.RuncExec(ctx, c, []string{"CAP_SYS_ADMIN"}, "ready", "sleep")
			return c, []finding{
				{Kind: "permitted_excess", Severity: "critical", Pid: pid, Set: "permitted", Capabilities: []string{"CAP_SYS_ADMIN"}},
				{Kind: "bounding_excess", Severity: "critical", Pid: pid, Set: "bounding", Capabilities: []string{"CAP_SYS_ADMIN"}},
			}, err
		},
	},
	{
		name:  "thread_above_ceiling",
		about: "the leader holds nothing, one thread holds what the container may not have",
		set: func(ctx context.Context, n *node.Node) (*node.Container, []finding, error) {
			c, err := n.Run(ctx, pod(dropAll()))
			if err != nil {
				return nil, nil, err
			}
			p, err := n.Inject(ctx, c, "bound=0", "worker=200000", "ready", "sleep")
			if err != nil {
				return c, nil, err
			}
			tid, err := threadHolding(p.Pid)
			return c, []finding{
				{Kind: "thread_excess", Severity: "critical", Pid: p.Pid, Tid: tid, Capabilities: []string{"CAP_SYS_ADMIN"}},
			}, err
		},
	},
	{
		name:  "thread_within_ceiling",
		about: "one thread keeps what its leader dropped, and the container may have it",
		set: func(ctx context.Context, n *node.Node) (*node.Container, []finding, error) {
			c, err := n.Run(ctx, pod(nil, "worker=400", "ready", "sleep"))
			return c, nil, err
		},
	},
	{
		name:  "nested_user_namespace",
		about: "full sets that count only in a user namespace below the container's",
		set: func(ctx context.Context, n *node.Node) (*node.Container, []finding, error) {
			return nested(ctx, n, pod(nil, "userns=root", "ready", "sleep"))
		},
	},
	{
		name:  "nested_user_namespace_unmapped",
		about: "without a map the process is nobody, with a full bounding set",
		set: func(ctx context.Context, n *node.Node) (*node.Container, []finding, error) {
			return nested(ctx, n, pod(nil, "userns=unmapped", "ready", "sleep"))
		},
	},
	{
		name:  "nested_user_namespace_identity",
		about: "its uid_map reads like the initial namespace's",
		set: func(ctx context.Context, n *node.Node) (*node.Container, []finding, error) {
			return nested(ctx, n, pod(nil, "userns=identity", "ready", "sleep"))
		},
	},
	{
		name:  "nested_user_namespace_in_a_pod_with_its_own",
		about: "a user namespace below a pod's user namespace",
		set: func(ctx context.Context, n *node.Node) (*node.Container, []finding, error) {
			return nested(ctx, n, pod(userNamespace(&cri.LinuxContainerSecurityContext{}), "userns=root", "ready", "sleep"))
		},
	},
	{
		name:  "host_process_in_user_namespaced_pod",
		about: "a process of the host's user namespace where the pod has its own",
		set: func(ctx context.Context, n *node.Node) (*node.Container, []finding, error) {
			c, err := n.Run(ctx, pod(userNamespace(&cri.LinuxContainerSecurityContext{})))
			if err != nil {
				return nil, nil, err
			}
			p, err := n.Inject(ctx, c, "ready", "sleep")
			if err != nil {
				return c, nil, err
			}
			return c, []finding{{Kind: "userns_escape", Severity: "critical", Pid: p.Pid, Capabilities: names(held())}}, nil
		},
	},
	{
		name:  "setuid_program",
		about: "a setuid program makes a non-root container root, within its ceiling",
		set: func(ctx context.Context, n *node.Node) (*node.Container, []finding, error) {
			c, err := n.Run(ctx, pod(&cri.LinuxContainerSecurityContext{RunAsUser: uid(1000)}, "exec=/bin/actor-setuid", "ready", "sleep"))
			if err != nil {
				return nil, nil, err
			}
			return c, []finding{
				{Kind: "became_root", Severity: "medium", Pid: c.Pid},
				{Kind: "gained_within_ceiling", Severity: "info", Pid: c.Pid},
			}, nil
		},
	},
	{
		name:  "setuid_program_under_no_new_privs",
		about: "no_new_privs makes setuid programs ordinary",
		set: func(ctx context.Context, n *node.Node) (*node.Container, []finding, error) {
			c, err := n.Run(ctx, pod(&cri.LinuxContainerSecurityContext{RunAsUser: uid(1000), NoNewPrivs: true}, "exec=/bin/actor-setuid", "ready", "sleep"))
			return c, nil, err
		},
	},
	{
		name:  "file_capability",
		about: "a program with file capabilities gives NET_RAW to a non-root process",
		set: func(ctx context.Context, n *node.Node) (*node.Container, []finding, error) {
			c, err := n.Run(ctx, pod(&cri.LinuxContainerSecurityContext{RunAsUser: uid(1000)}, "exec=/bin/actor-filecap", "ready", "sleep"))
			if err != nil {
				return nil, nil, err
			}
			return c, []finding{{Kind: "gained_within_ceiling", Severity: "info", Pid: c.Pid, Capabilities: []string{"CAP_NET_RAW"}}}, nil
		},
	},
	{
		name:  "file_capability_under_no_new_privs",
		about: "no_new_privs keeps file capabilities from a process that does not hold them",
		set: func(ctx context.Context, n *node.Node) (*node.Container, []finding, error) {
			c, err := n.Run(ctx, pod(&cri.LinuxContainerSecurityContext{RunAsUser: uid(1000), NoNewPrivs: true}, "exec=/bin/actor-filecap", "ready", "sleep"))
			return c, nil, err
		},
	},
	{
		name:  "file_capability_of_the_entrypoint_under_no_new_privs",
		about: "the entrypoint gets them all the same: runc still held them (the coredns pattern)",
		set: func(ctx context.Context, n *node.Node) (*node.Container, []finding, error) {
			p := pod(&cri.LinuxContainerSecurityContext{RunAsUser: uid(1000), NoNewPrivs: true}, "ready", "sleep")
			p.Command = []string{"/bin/actor-filecap"}
			c, err := n.Run(ctx, p)
			if err != nil {
				return nil, nil, err
			}
			return c, []finding{{Kind: "gained_within_ceiling", Severity: "info", Pid: c.Pid, Capabilities: []string{"CAP_NET_RAW"}}}, nil
		},
	},
	{
		name:  "no_new_privs_missing",
		about: "a process without no_new_privs in a container that declares it",
		set: func(ctx context.Context, n *node.Node) (*node.Container, []finding, error) {
			sc := dropAll()
			sc.NoNewPrivs = true
			c, err := n.Run(ctx, pod(sc))
			if err != nil {
				return nil, nil, err
			}
			p, err := n.Inject(ctx, c, "bound=0", "caps=0", "ready", "sleep")
			if err != nil {
				return c, nil, err
			}
			return c, []finding{{Kind: "nnp_missing", Severity: "high", Pid: p.Pid}}, nil
		},
	},
	{
		name:  "inheritable_excess",
		about: "an inheritable set that the container was not given",
		set: func(ctx context.Context, n *node.Node) (*node.Container, []finding, error) {
			c, err := n.Run(ctx, pod(dropAll()))
			if err != nil {
				return nil, nil, err
			}
			p, err := n.Inject(ctx, c, "inh=2000", "bound=0", "caps=0", "ready", "sleep")
			if err != nil {
				return c, nil, err
			}
			return c, []finding{{Kind: "inheritable_excess", Severity: "high", Pid: p.Pid, Set: "inheritable", Capabilities: []string{"CAP_NET_RAW"}}}, nil
		},
	},
	{
		name:  "disguised_as_runc_init",
		about: "an injected process takes the name of runc's own stage, which proves nothing",
		set: func(ctx context.Context, n *node.Node) (*node.Container, []finding, error) {
			c, err := n.Run(ctx, pod(dropAll()))
			if err != nil {
				return nil, nil, err
			}
			p, err := n.Inject(ctx, c, "name=runc:[2:INIT]", "ready", "sleep")
			if err != nil {
				return c, nil, err
			}
			return c, []finding{
				{Kind: "permitted_excess", Severity: "critical", Pid: p.Pid, Set: "permitted", Capabilities: names(held())},
				{Kind: "bounding_excess", Severity: "critical", Pid: p.Pid, Set: "bounding", Capabilities: names(held())},
			}, nil
		},
	},
	{
		name:  "runc_run_alone",
		about: "a container that no daemon knows",
		set: func(ctx context.Context, n *node.Node) (*node.Container, []finding, error) {
			c, err := n.RunAlone(ctx, node.Alone{Capabilities: []string{"CAP_NET_ADMIN"}, Args: []string{"ready", "sleep"}})
			if err != nil {
				return nil, nil, err
			}
			return c, []finding{{Kind: "unmanaged_container", Severity: "medium", Pid: c.Pid, Capabilities: []string{"CAP_NET_ADMIN"}}}, nil
		},
	},
	{
		name:  "other_containerd_namespace",
		about: "a container as docker starts it, which the CRI does not list",
		set: func(ctx context.Context, n *node.Node) (*node.Container, []finding, error) {
			c, err := n.RunMoby(ctx, "ready", "sleep")
			if err != nil {
				return nil, nil, err
			}
			return c, []finding{{Kind: "unmanaged_container", Severity: "medium", Pid: c.Pid}}, nil
		},
	},
}

func nested(ctx context.Context, n *node.Node, p node.Pod) (*node.Container, []finding, error) {
	c, err := n.Run(ctx, p)
	if err != nil {
		return nil, nil, err
	}
	below, err := children(c.Pid)
	if err != nil {
		return c, nil, err
	}
	if len(below) != 1 {
		return c, nil, fmt.Errorf("the actor has %d children, want 1", len(below))
	}
	return c, []finding{{Kind: "nested_userns", Severity: "info", Pid: below[0]}}, nil
}

// threadHolding finds the thread whose permitted set is not empty.
func threadHolding(pid int) (int, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil {
		return 0, err
	}
	for _, file := range files {
		status, err := os.ReadFile(file)
		if err != nil {
			return 0, err
		}
		if !strings.Contains(string(status), "CapPrm:\t0000000000000000") {
			return strconv.Atoi(filepath.Base(filepath.Dir(file)))
		}
	}
	return 0, fmt.Errorf("no thread of %d holds anything", pid)
}

// TestDrift sets all scenes on one node and looks once: each must show its own findings
// and nothing may be found that no scene has.
func TestDrift(t *testing.T) {
	n := onNode(t)
	containers := make([]*node.Container, len(scenes))
	wanted := make([][]finding, len(scenes))
	removeAfter(t, containers)
	inParallel(t, scenes, func(i int, s scene) (err error) {
		if containers[i], wanted[i], err = s.set(t.Context(), n); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		return nil
	})

	r := scanUntilSettled(t)
	explained := map[string]bool{}
	for i, s := range scenes {
		id := containers[i].ReportedID()
		explained[id] = true
		t.Run(s.name, func(t *testing.T) {
			var got []finding
			for _, f := range r.Findings {
				if f.ContainerID == id {
					got = append(got, f)
				}
			}
			compare(t, s.about, got, wanted[i])
			if managed := r.container(t, id).Managed; managed == nil || *managed != (containers[i].Sandbox != "") {
				t.Errorf("managed %v", managed)
			}
		})
	}
	t.Run("nothing_else", func(t *testing.T) {
		for _, f := range r.Findings {
			if f.alarming() && !explained[f.ContainerID] {
				t.Errorf("false alarm: %+v", f)
			}
		}
		if !r.Coverage.Complete {
			t.Errorf("coverage is not complete: %+v", r.Coverage)
		}
	})
}

// scanUntilSettled scans until the report is complete: it must not claim to be as long as a
// process is taken for a starting one.
func scanUntilSettled(t *testing.T) report {
	t.Helper()
	ctx, cancel := onNode(t).Within(t.Context(), time.Minute)
	defer cancel()
	for {
		r := scan(t)
		if r.Coverage.Processes.Starting > 0 && r.Coverage.Complete {
			t.Errorf("%d processes are taken for starting ones, and the report claims to be complete", r.Coverage.Processes.Starting)
		}
		if r.Coverage.Complete {
			return r
		}
		if ctx.Err() != nil {
			t.Fatalf("the report is never complete: %+v", r.Coverage)
		}
	}
}

// compare asserts that above "info" all that is wanted was found, and nothing else.
func compare(t *testing.T, about string, got, want []finding) {
	t.Helper()
	t.Log(about)
	matched := make([]bool, len(got))
	for _, w := range want {
		w.Layer = "kernel"
		i := slices.IndexFunc(got, func(f finding) bool { return matches(f, w) })
		if i < 0 {
			t.Errorf("not found: %+v", w)
			continue
		}
		matched[i] = true
		if got[i].Message == "" || got[i].Remedy == "" {
			t.Errorf("no message or no remedy: %+v", got[i])
		}
	}
	for i, f := range got {
		if !matched[i] && f.Severity != "info" {
			t.Errorf("not wanted: %+v", f)
		}
	}
}

// matches compares what the wanted one names.
func matches(got, want finding) bool {
	return got.Kind == want.Kind && got.Severity == want.Severity && got.Layer == want.Layer &&
		got.Pid == want.Pid && got.Tid == want.Tid &&
		(want.Set == "" || got.Set == want.Set) &&
		(want.Capabilities == nil || slices.Equal(got.Capabilities, want.Capabilities))
}
