package drift_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

// TestRuntimesThatGiveEverything: where the OCI runtime of a handler gives root everything
// in a user namespace of its own, that is one finding about the handler. Nothing else is
// excused by it.
func TestRuntimesThatGiveEverything(t *testing.T) {
	maps := []drift.IDRange{{Inside: 0, Outside: 362144, Length: 65536}}
	holding := func(held capdecode.Set) capdecode.Sets {
		return capdecode.Sets{Bounding: held, Permitted: held, Effective: held}
	}
	pod := func(id string, changes ...func(*drift.Container)) drift.Container {
		c := drift.Container{
			ID: id, Name: "runner", RuntimeHandler: "nested", Managed: new(true), Observation: drift.Observed, InitPID: 10,
			Pod:      &drift.Pod{Namespace: "ci", Name: id, UID: id},
			Declared: drift.Declared{OCI: &drift.OCI{Sets: capdecode.Sets{Bounding: crio, Permitted: crio, Effective: crio}, UserNamespace: true, UIDMap: maps}},
		}
		for _, pid := range []int{10, 11} {
			p := drift.Process{PID: pid, Name: "systemd", UID: 362144, Caps: holding(all)}
			p.UserNamespace = drift.UserNamespace{Inode: 4026532800, Parent: node().UserNamespace.Inode, UIDMap: maps, GIDMap: maps, ProjectIDMap: []drift.IDRange{}}
			c.Processes = append(c.Processes, p)
		}
		for _, change := range changes {
			change(&c)
		}
		return c
	}
	held := func(set capdecode.Set) func(*drift.Container) {
		return func(c *drift.Container) {
			for i := range c.Processes {
				c.Processes[i].Caps = holding(set)
			}
		}
	}
	looksAlike := func(c *drift.Container) {
		for i := range c.Processes {
			c.Processes[i].UserNamespace.Inode, c.Processes[i].UserNamespace.Parent = 0, 0
		}
	}
	asUser := func(c *drift.Container) {
		c.Declared.OCI.UID, c.Declared.OCI.Sets = 1000, capdecode.Sets{}
		for i := range c.Processes {
			c.Processes[i].UID = 363144
		}
	}
	const about = "medium permitted_excess oci→kernel oci_runtime_gives_all "
	excess := "critical permitted_excess oci→kernel  " + (all &^ crio).String()
	one := []string{"critical bounding_excess oci→kernel  " + (all &^ crio).String(), excess}
	for what, row := range map[string]struct {
		binary     string
		containers []drift.Container
		want       []string
	}{
		"several pods":                 {containers: []drift.Container{pod("a"), pod("b")}, want: []string{about + all.String()}},
		"beside one with another user": {containers: []drift.Container{pod("a"), pod("b"), pod("c", asUser, held(0))}, want: []string{about + all.String()}},
		"one pod proves nothing":       {containers: []drift.Container{pod("a")}, want: one},
		"several whose namespaces may be nested prove nothing": {
			containers: []drift.Container{pod("a", looksAlike), pod("b", looksAlike), pod("c")},
			want:       slices.Concat(one[:1], one[:1], one[:1], one[1:], one[1:], one[1:]),
		},
		"unless its runtime is known": {binary: "/usr/bin/sysbox-runc", containers: []drift.Container{pod("a")}, want: []string{about + all.String()}},
		"neither does one where another got what it should": {
			containers: []drift.Container{pod("a"), pod("b"), pod("c", held(crio))}, want: append(slices.Clone(one), one...),
		},
		"another user who holds everything is not excused": {
			containers: []drift.Container{pod("a"), pod("b"), pod("c", asUser)},
			want: []string{
				about + all.String(), "critical bounding_excess oci→kernel  " + all.String(), "critical permitted_excess oci→kernel  " + all.String(),
			},
		},
		"nor is one on another handler": {
			containers: []drift.Container{pod("a"), pod("b"), pod("c", func(c *drift.Container) { c.RuntimeHandler = "" })},
			want:       append([]string{about + all.String()}, one...),
		},
		"a process that came by its capabilities later is": {
			containers: []drift.Container{pod("a", func(c *drift.Container) { c.Processes[0].Caps = holding(crio) }), pod("b", func(c *drift.Container) { c.Processes[0].Caps = holding(crio) })},
			want:       slices.Sorted(slices.Values(append(slices.Clone(one), one...))),
		},
	} {
		t.Run(what, func(t *testing.T) {
			runtime := drift.Runtime{Name: "cri-o", Handlers: map[string]drift.Handler{"nested": {Binary: row.binary}}}
			n := node()
			full := all
			var found []drift.Finding
			for i := range row.containers {
				drift.Settle(n, &runtime, &row.containers[i])
				found = append(found, drift.Compare(n, row.containers[i])...)
			}
			expect := drift.Expect(n, runtime, &full, drift.Given{}, row.containers)
			found = slices.DeleteFunc(append(expect.Findings(), expect.Fold(found)...), func(f drift.Finding) bool { return f.Severity == drift.Info })
			got, want := summary(found), slices.Sorted(slices.Values(row.want))
			if !slices.Equal(got, want) {
				t.Errorf("found\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}
