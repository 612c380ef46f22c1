package drift_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

func TestExplain(t *testing.T) {
	user := func(n uint32) func(*drift.Container) {
		return ofOCI(func(o *drift.OCI) { o.UID = n })
	}
	ran := func(sets capdecode.Sets) *drift.Process {
		return &drift.Process{PID: 7, UserNamespace: drift.UserNamespace{Relation: drift.RelationSame}, Caps: sets}
	}
	level := func(set capdecode.Set) capdecode.Sets {
		return capdecode.Sets{Bounding: set, Permitted: set, Effective: set}
	}
	bundled := func(set capdecode.Set) func(*drift.Container) {
		return func(c *drift.Container) { o := spec(set); c.Declared.Bundle = &o }
	}
	for what, row := range map[string]struct {
		orders                drift.CRI
		changes               []func(*drift.Container)
		process               *drift.Process
		asked                 capdecode.Set
		pod, cri, oci, kernel string
		steps                 []string // the beginnings of each
	}{
		"a default": {
			process: ran(level(defaults)), asked: chown, pod: "?", cri: "-", oci: "epb", kernel: "epb",
			steps: []string{"cri→oci: a default of the runtime", "oci→kernel: held since the start"},
		},
		"a prefixed drop": {
			orders: drift.CRI{Drop: []string{"CAP_NET_RAW"}}, process: ran(level(defaults)), asked: netRaw, pod: "?", cri: "drop", oci: "epb", kernel: "epb",
			steps: []string{"cri→oci: kept: containerd reads the drop as CAP_CAP_NET_RAW", "oci→kernel: held since the start"},
		},
		"a prefixed add": {
			orders: drift.CRI{Add: []string{"cap_sys_admin"}}, process: ran(level(defaults)), asked: sysAdmin, pod: "?", cri: "add", oci: "-", kernel: "-",
			steps: []string{"cri→oci: not added: containerd reads it as CAP_CAP_SYS_ADMIN", "oci→kernel: not in the OCI spec"},
		},
		"an add for a user other than root": {
			orders: drift.CRI{Add: []string{"NET_BIND_SERVICE"}, Drop: []string{"ALL"}}, changes: []func(*drift.Container){user(1000)},
			process: ran(capdecode.Sets{Bounding: bind}), asked: bind, pod: "?", cri: "add", oci: "epb", kernel: "b",
			steps: []string{"cri→oci: added by its name", "oci→kernel: user 1000 keeps only ambient"},
		},
		"dropped with ALL": {
			orders: drift.CRI{Drop: []string{"all"}}, process: ran(capdecode.Sets{}), asked: chown, pod: "?", cri: "drop", oci: "-", kernel: "-",
			steps: []string{"cri→oci: dropped by ALL", "oci→kernel: not in the OCI spec"},
		},
		"put in from outside": {
			orders: drift.CRI{Drop: []string{"ALL"}}, process: ran(level(sysAdmin)), asked: sysAdmin, pod: "?", cri: "drop", oci: "-", kernel: "epb",
			steps: []string{"cri→oci: dropped by ALL", "oci→kernel: more than the OCI spec allows"},
		},
		"put in by a wrapper": {
			orders: drift.CRI{Drop: []string{"ALL"}}, changes: []func(*drift.Container){bundled(sysAdmin)}, process: ran(level(sysAdmin)), asked: sysAdmin,
			pod: "?", cri: "drop", oci: "-", kernel: "epb",
			steps: []string{"cri→oci: dropped by ALL", "oci→kernel: not in the OCI spec and in the config.json"},
		},
		"taken by a wrapper": {
			changes: []func(*drift.Container){bundled(defaults &^ chown)}, process: ran(level(defaults &^ chown)), asked: chown, pod: "?", cri: "-", oci: "epb", kernel: "-",
			steps: []string{"cri→oci: a default", "oci→kernel: in the OCI spec and not in the config.json"},
		},
		"a CRI config that the kubelet did not make": {
			orders: drift.CRI{Add: []string{"SYS_ADMIN"}}, changes: []func(*drift.Container){podSpec(drift.PodSecurity{})}, asked: sysAdmin,
			pod: "-", cri: "add", oci: "epb", kernel: "?",
			steps: []string{"pod→cri: the runtime was not told", "cri→oci: added by its name"},
		},
		"in a user namespace of the process's own": {
			process: &drift.Process{Caps: level(all), UserNamespace: drift.UserNamespace{Relation: drift.RelationChild}}, asked: sysAdmin,
			pod: "?", cri: "-", oci: "-", kernel: "epb",
			steps: []string{"cri→oci: not a default of the runtime, and not added", "oci→kernel: held in a user namespace of its own"},
		},
		"gained by a program with file capabilities": {
			changes: []func(*drift.Container){user(1000)}, process: ran(capdecode.Sets{Bounding: defaults, Permitted: netRaw, Effective: netRaw}), asked: netRaw,
			pod: "?", cri: "-", oci: "epb", kernel: "epb",
			steps: []string{"cri→oci: a default", "oci→kernel: gained after the start"},
		},
		"lowered for now": {
			process: ran(capdecode.Sets{Bounding: defaults, Permitted: defaults}), asked: chown, pod: "?", cri: "-", oci: "epb", kernel: "pb",
			steps: []string{"cri→oci: a default", "oci→kernel: held, and not in force now"},
		},
	} {
		t.Run(what, func(t *testing.T) {
			c := made(t, drift.Containerd, row.orders, row.changes...)
			full := all
			expect := drift.Expect(node(), drift.Runtime{Name: "containerd"}, &full, drift.Given{}, []drift.Container{c})
			accounts := drift.Explain(node(), expect, c, row.process, row.asked)
			if len(accounts) != 1 {
				t.Fatalf("%d accounts", len(accounts))
			}
			got := accounts[0]
			if got.Pod != row.pod || got.CRI != row.cri || got.OCI != row.oci || got.Kernel != row.kernel {
				t.Errorf("pod %s, cri %s, oci %s, kernel %s", got.Pod, got.CRI, got.OCI, got.Kernel)
			}
			var steps []string
			for _, step := range got.Steps {
				steps = append(steps, string(step.From)+"→"+string(step.To)+": "+step.Why)
			}
			if !slices.EqualFunc(steps, row.steps, strings.HasPrefix) {
				t.Errorf("steps\n%s\nwant\n%s", strings.Join(steps, "\n"), strings.Join(row.steps, "\n"))
			}
		})
	}
	t.Run("without a question, all that is named or held", func(t *testing.T) {
		c := made(t, drift.Containerd, drift.CRI{Add: []string{"CAP_SYS_ADMIN"}, Drop: []string{"CHOWN"}})
		expect := drift.Expect(node(), drift.Runtime{Name: "containerd"}, nil, drift.Given{}, []drift.Container{c})
		var set capdecode.Set
		for _, account := range drift.Explain(node(), expect, c, nil, 0) {
			one, _ := capdecode.ParseName(account.Capability)
			set |= capdecode.Of(one)
		}
		if set != defaults|sysAdmin {
			t.Errorf("%s", set)
		}
	})
}

func TestArrival(t *testing.T) {
	init := drift.Process{PID: 10, StartTime: 1000}
	c := drift.Container{InitPID: 10, Processes: []drift.Process{init}}
	namespaces := map[string]uint64{"mnt": 1, "pid": 2, "net": 3, "ipc": 4, "uts": 5, "cgroup": 6, "user": 7}
	first := drift.Lineage{Namespaces: namespaces}
	elsewhere := map[string]uint64{"mnt": 1, "pid": 2, "net": 3, "ipc": 4, "uts": 5, "cgroup": 6, "user": 99}
	for what, row := range map[string]struct {
		process drift.Process
		own     drift.Lineage
		want    []string
	}{
		"the first": {init, drift.Lineage{Ancestors: []drift.Ancestor{{PID: 5, Name: "shim"}}}, []string{"It is the container's first process.", `Its ancestors: "shim" (5).`}},
		"started inside": {
			drift.Process{PID: 12, StartTime: 1200},
			drift.Lineage{Ancestors: []drift.Ancestor{{PID: 11, Name: "sh", Container: true}, {PID: 10, Name: "app", Container: true}}, Namespaces: namespaces},
			[]string{"It descends from the container's first process: it was started inside.", `Its ancestors: "sh" (11) ← "app" (10).`,
				"It started 2s after the container's first process.", "It is in all the namespaces of the container's first process: mnt, pid, net, ipc, uts, cgroup, user."},
		},
		"put in": {
			drift.Process{PID: 13, StartTime: 1000},
			drift.Lineage{Ancestors: []drift.Ancestor{{PID: 5, Name: "runc\n"}, {PID: 1, Name: "init"}}, Namespaces: elsewhere},
			[]string{`It does not descend from the container's first process: "runc\n" (5), outside of the container, put it there: an exec (kubectl exec, a probe, runc exec) or nsenter.`,
				`Its ancestors: "runc\n" (5) ← "init" (1).`, "It shares the namespaces mnt, pid, net, ipc, uts, cgroup with the container's first process, and not user."},
		},
		"adopted": {
			drift.Process{PID: 14}, drift.Lineage{Ancestors: []drift.Ancestor{{PID: 1, Name: "systemd"}}},
			[]string{"What started it has ended, and the node's first process adopted it; it does not descend from the container's first process.",
				`Its ancestors: "systemd" (1).`, "Which namespaces it joined may not be read without CAP_SYS_PTRACE."},
		},
		"of parents that cannot be seen": {
			drift.Process{PID: 15}, drift.Lineage{Namespaces: map[string]uint64{"mnt": 50}},
			[]string{"Its parent is not visible from here.", "It shares no namespace with the container's first process."},
		},
	} {
		t.Run(what, func(t *testing.T) {
			if got := drift.Arrival(c, row.process, row.own, first); !slices.Equal(got, row.want) {
				t.Errorf("said\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(row.want, "\n"))
			}
		})
	}
}
