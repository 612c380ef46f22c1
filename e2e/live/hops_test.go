//go:build linux

package live

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/e2e/node"
)

// about returns the findings about a container, or with an empty id those about
// runtime handlers, as "severity kind cause from→layer capabilities".
func (r report) about(id string) (list []string) {
	for _, f := range r.Findings {
		if f.ContainerID == id {
			list = append(list, strings.TrimSpace(fmt.Sprintf("%s %s %s %s→%s %s", f.Severity, f.Kind, f.Cause, f.From, f.Layer, strings.Join(f.Capabilities, " "))))
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// finding returns the one of a kind about a container.
func (r report) finding(t *testing.T, id, kind string) finding {
	t.Helper()
	i := slices.IndexFunc(r.Findings, func(f finding) bool { return f.ContainerID == id && f.Kind == kind })
	if i < 0 {
		t.Fatalf("no %s about %s among %+v", kind, id, r.Findings)
	}
	return r.Findings[i]
}

// TestHops: each hop before the kernel is blamed for what it changed, and what is to be
// pasted mends it.
func TestHops(t *testing.T) {
	onNode(t)
	with := func(add, drop []string) *cri.LinuxContainerSecurityContext {
		return &cri.LinuxContainerSecurityContext{Capabilities: capabilities(add, drop)}
	}
	idle := with([]string{"NET_ADMIN"}, []string{"ALL"})
	idle.RunAsUser = uid(1000)
	wrapped := with(nil, []string{"ALL"})
	started := run(
		t,
		node.Pod{Container: "trap-drop", Security: with(nil, []string{"CAP_NET_RAW"})},
		node.Pod{Container: "trap-add", Security: with([]string{"CAP_SYS_ADMIN"}, nil)},
		node.Pod{Container: "wide-1", Handler: node.HandlerWide},
		node.Pod{Container: "wide-2", Handler: node.HandlerWide, Security: with([]string{"NET_ADMIN"}, []string{"CHOWN"})},
		node.Pod{Container: "wide-3", Handler: node.HandlerWide, Security: with(nil, []string{"ALL"})},
		node.Pod{Container: "wrapped", Handler: node.HandlerWrapped, Security: wrapped},
		node.Pod{Container: "idle", Security: idle},
		// What is to be pasted for three of them.
		node.Pod{Container: "mended-drop", Security: with(nil, []string{"NET_RAW"})},
		node.Pod{Container: "mended-add", Security: with([]string{"SYS_ADMIN"}, nil)},
		node.Pod{Container: "mended-idle", Security: func() *cri.LinuxContainerSecurityContext {
			sc := with([]string{"NET_ADMIN"}, []string{"ALL"})
			sc.RunAsUser = uid(0)
			return sc
		}()},
	)
	r := scan(t)
	by := make(map[string]*node.Container)
	for _, c := range started {
		by[c.Pod.Container] = c
	}
	wrapperSays := []string{
		"critical bounding_excess wrapper_or_hook oci→kernel " + node.WrapperCapability,
		"critical permitted_excess wrapper_or_hook oci→kernel " + node.WrapperCapability,
	}
	for name, want := range map[string][]string{
		"trap-drop": {"high drop_ignored cap_prefix cri→oci CAP_NET_RAW"},
		"trap-add":  {"medium add_ignored cap_prefix cri→oci CAP_SYS_ADMIN"},
		"wide-1":    nil, "wide-2": nil, "wide-3": nil,
		"wrapped":     wrapperSays,
		"idle":        {"info ineffective_add non_root oci→kernel CAP_NET_ADMIN"},
		"mended-drop": nil, "mended-add": nil, "mended-idle": nil,
	} {
		if got := r.about(by[name].ID); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if got, want := r.about(""), []string{"medium oci_mismatch base_runtime_spec cri→oci " + node.BaseCapability}; !slices.Equal(got, want) {
		t.Errorf("about handlers: %q, want %q", got, want)
	}
	for name, paste := range map[string]string{
		"trap-drop": "securityContext:\n  capabilities:\n    drop: [NET_RAW]\n",
		"trap-add":  "securityContext:\n  capabilities:\n    add: [SYS_ADMIN]\n",
		"idle":      "securityContext:\n  runAsUser: 0\n  capabilities:\n    add: [NET_ADMIN]\n    drop: [ALL]\n",
	} {
		kind := map[string]string{"trap-drop": "drop_ignored", "trap-add": "add_ignored", "idle": "ineffective_add"}[name]
		if got := r.finding(t, by[name].ID, kind).Paste; got != paste {
			t.Errorf("%s: to paste\n%s\nwant\n%s", name, got, paste)
		}
	}
	for name, want := range map[string]uint64{"mended-drop": defaults &^ netRaw, "mended-add": defaults | 1<<21, "mended-idle": netAdmin} {
		if got := r.container(t, by[name].ID).process(t, by[name].Pid).Caps.Effective.Hex; got != fmt.Sprintf("%016x", want) {
			t.Errorf("%s holds %s, want %016x", name, got, want)
		}
	}
	if f := r.finding(t, by["wrapped"].ID, "bounding_excess"); !strings.Contains(f.Message, theNode.Wrapper()) {
		t.Errorf("the wrapper %s is not named: %s", theNode.Wrapper(), f.Message)
	}
	if f := r.finding(t, "", "oci_mismatch"); !strings.Contains(f.Message, theNode.BaseSpec()) || f.RuntimeHandler != node.HandlerWide {
		t.Errorf("the base runtime spec %s is not named: %+v", theNode.BaseSpec(), f)
	}
	if b := r.container(t, by["wrapped"].ID).Declared.Bundle; b == nil || !slices.Equal(b.Bounding.Names, []string{node.WrapperCapability}) {
		t.Errorf("bundle %+v", b)
	}

	t.Run("a base runtime spec that is stated is no drift", func(t *testing.T) {
		stated := fmt.Sprintf("default-caps=%016x", uint64(defaults)|1<<19)
		stdout, stderr, status, err := capdrift("scan", "-o", "json", "--cri-endpoint", theNode.Endpoint(), "--assume", stated)
		if err != nil || status != 0 {
			t.Fatalf("status %d, %v: %s", status, err, stderr)
		}
		// Stated for all handlers, it is the default handler that is now another.
		for _, f := range parse(t, stdout).Findings {
			if f.ContainerID == "" && f.RuntimeHandler == node.HandlerWide {
				t.Errorf("%+v", f)
			}
		}
	})
	t.Run("a pod spec that the CRI config is not made of", func(t *testing.T) { impostor(t, by["mended-add"], by["mended-drop"]) })
	t.Run("explain", func(t *testing.T) { explainHops(t, by) })
}

// impostor gives the pod specs of two containers, of which one was given other orders.
func impostor(t *testing.T, other, same *node.Container) {
	t.Helper()
	manifests := ""
	for _, pod := range []struct{ of, drop string }{{other.Pod.Name, "ALL"}, {same.Pod.Name, "NET_RAW"}} {
		manifests += fmt.Sprintf("---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: default}\nspec:\n  containers:\n"+
			"  - {name: mended-add, securityContext: {capabilities: {drop: [ALL]}}}\n"+
			"  - {name: mended-drop, securityContext: {capabilities: {drop: [%s]}}}\n", pod.of, pod.drop)
	}
	file := filepath.Join(t.TempDir(), "pods.yaml")
	if err := os.WriteFile(file, []byte(manifests), 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, status, err := capdrift("scan", "-o", "json", "--cri-endpoint", theNode.Endpoint(), "--pods", file)
	if err != nil || status != 0 {
		t.Fatalf("status %d, %v: %s", status, err, stderr)
	}
	r := parse(t, stdout)
	if got, want := r.about(other.ID), "medium cri_mismatch file_is_not_live pod→cri CAP_"; len(got) != 1 || !strings.HasPrefix(got[0], want) {
		t.Errorf("%q, want %q …", got, want)
	}
	if got := r.about(same.ID); got != nil {
		t.Errorf("%q about one that is as its pod spec says", got)
	}
}

// explainHops asks for the accounts of capabilities whose way is known.
func explainHops(t *testing.T, by map[string]*node.Container) {
	exec, err := theNode.RuncExec(t.Context(), by["mended-drop"], []string{"CAP_SYS_ADMIN"}, "name=debug", "ready", "sleep")
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		target, capability  string
		pod, cri, oci, held string
		why                 string // of the last step
	}{
		{by["trap-drop"].ID, "NET_RAW", "?", "drop", "epb", "epb", "held since the start"},
		{by["trap-add"].Pod.Name + "/trap-add", "sys_admin", "?", "add", "-", "-", "not in the OCI spec"},
		{by["wide-1"].ID[:12], node.BaseCapability, "?", "-", "epb", "epb", "held since the start"},
		{"wrapped", node.WrapperCapability, "?", "drop", "-", "epb", "a wrapper or hook added it"},
		{"idle", "NET_ADMIN", "?", "add", "epb", "b", "user 1000 keeps only ambient capabilities"},
		{fmt.Sprint(exec), "SYS_ADMIN", "?", "-", "-", "epb", "this did not come from the spec"},
	} {
		stdout, stderr, status, err := capdrift("explain", row.target, row.capability, "-o", "json", "--cri-endpoint", theNode.Endpoint())
		if err != nil || status != 0 {
			t.Errorf("explain %s: status %d, %v: %s", row.target, status, err, stderr)
			continue
		}
		var page struct {
			Capabilities []struct {
				Capability, Pod, CRI, OCI, Kernel string
				Steps                             []struct{ From, To, Why string }
			}
			Arrival []string
		}
		if err := json.Unmarshal([]byte(stdout), &page); err != nil || len(page.Capabilities) != 1 {
			t.Fatalf("%v: %s", err, stdout)
		}
		got := page.Capabilities[0]
		if got.Pod != row.pod || got.CRI != row.cri || got.OCI != row.oci || got.Kernel != row.held {
			t.Errorf("%s of %s: %+v", row.capability, row.target, got)
		}
		if last := got.Steps[len(got.Steps)-1]; !strings.Contains(last.Why, row.why) {
			t.Errorf("%s of %s: %q, want %q", row.capability, row.target, last.Why, row.why)
		}
		inside := strings.Contains(strings.Join(page.Arrival, " "), "It is the container's first process.")
		if inside == (row.target == fmt.Sprint(exec)) {
			t.Errorf("%s: how it came: %q", row.target, page.Arrival)
		}
	}
}
