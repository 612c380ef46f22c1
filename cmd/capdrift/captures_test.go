package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/capdrift/capdrift/cri"
	"github.com/capdrift/capdrift/cri/fake"
	"github.com/capdrift/capdrift/drift"
)

// held is what the recorded runtimes' own processes held: all but SYS_RESOURCE.
const held = 0x1fffeffffff

// declaredTo returns the containers of a recorded runtime by the name of their case.
func declaredTo(t *testing.T, runtime string) map[string]drift.Declared {
	t.Helper()
	node, err := fake.Load(filepath.Join(captures, runtime))
	if err != nil {
		t.Fatal(err)
	}
	server := fake.Serve(t, node)
	client, err := cri.Connect(t.Context(), cri.Options{Endpoint: server.Endpoint})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	inventory, err := client.Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cases := make(map[string]drift.Declared)
	for _, c := range inventory.Containers {
		cases[c.Name] = c.Declared
	}
	return cases
}

// TestPredictionsAgreeWithCaptures holds the hop CRI → OCI against what real
// runtimes made of the same twenty orders. CRI-O hides its orders; they are those
// that containerd was given in the case of the same name.
func TestPredictionsAgreeWithCaptures(t *testing.T) {
	orders := declaredTo(t, "containerd-2.4.2")
	if len(orders) != 20 {
		t.Fatalf("%d recorded cases, want 20", len(orders))
	}
	for runtime, recorded := range map[string]string{drift.Containerd: "containerd-2.4.2", drift.CRIO: "cri-o-1.37.0"} {
		made := declaredTo(t, recorded)
		for name, order := range orders {
			settings := drift.Stock(runtime, 40)
			settings.Held = held
			want, err := drift.PredictOCI(runtime, *order.CRI, settings)
			got := made[name].OCI
			if got == nil {
				// The runtime refused. It was predicted to, or it gave what the machine
				// that it ran on could not.
				if _, missing := os.Stat(filepath.Join(captures, recorded, name, "error.txt")); missing != nil {
					t.Errorf("%s %s: neither recorded nor refused", recorded, name)
				}
				if !errors.Is(err, drift.ErrRefused) && want.Bounding.Within(held) {
					t.Errorf("%s %s was refused; predicted %+v, %v", recorded, name, want, err)
				}
				continue
			}
			if err != nil || want.Sets != got.Sets || want.NoNewPrivileges != got.NoNewPrivileges || want.UserNamespace != got.UserNamespace ||
				order.CRI.RunAsUser != nil && want.UID != got.UID || len(want.UnknownNames) != len(got.UnknownNames) {
				t.Errorf("%s %s: predicted %+v (%v), recorded %+v", recorded, name, want, err, *got)
			}
		}
	}
}

// TestPaperAndKernelOnBothRuntimes: the same pod specs, judged by "Minimize the admission of
// containers with the NET_RAW capability" and by what two real runtimes made of them. Paper
// says the same of both, and is wrong about one.
func TestPaperAndKernelOnBothRuntimes(t *testing.T) {
	for _, row := range []struct {
		runtime, name, securityContext string
		declared, actual               string
	}{
		{"containerd-2.4.2", "default", "{}", "fail", "fail"},
		{"cri-o-1.37.0", "default", "{}", "fail", "pass"}, // never had it
		{"containerd-2.4.2", "cap-prefix-drop", "{capabilities: {drop: [CAP_NET_RAW]}}", "pass", "fail"},
		{"cri-o-1.37.0", "cap-prefix-drop", "{capabilities: {drop: [CAP_NET_RAW]}}", "pass", "pass"},
		{"containerd-2.4.2", "drop-net-raw", "{capabilities: {drop: [NET_RAW]}}", "pass", "pass"},
		{"cri-o-1.37.0", "drop-net-raw", "{capabilities: {drop: [NET_RAW]}}", "pass", "pass"},
		{"containerd-2.4.2", "add-net-admin", "{capabilities: {add: [NET_ADMIN]}}", "fail", "fail"},
		{"cri-o-1.37.0", "add-net-admin", "{capabilities: {add: [NET_ADMIN]}}", "fail", "pass"},
	} {
		t.Run(row.runtime+" "+row.name, func(t *testing.T) {
			pods := filepath.Join(t.TempDir(), "pods.yaml")
			manifest := fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %[1]s, namespace: default}\nspec: {containers: [{name: %[1]s, securityContext: %[2]s}]}\n", row.name, row.securityContext)
			if err := os.WriteFile(pods, []byte(manifest), 0o600); err != nil {
				t.Fatal(err)
			}
			server := fake.Serve(t, load(t, row.runtime))
			text, stderr, status := capture(t, "audit", "-o", "json", "--pack", "cis", "--pods", pods, "--filter", fmt.Sprintf("name == %q", row.name),
				"--host-root", capturedNode(t, row.runtime, "hybrid").root, "--cri-endpoint", server.Endpoint)
			if status != exitDone {
				t.Fatalf("status %d, %s", status, stderr)
			}
			var page struct {
				Results []struct {
					Rule             string
					Declared, Actual struct{ Verdict string }
				}
			}
			if err := json.Unmarshal([]byte(text), &page); err != nil {
				t.Fatal(err)
			}
			for _, result := range page.Results {
				if result.Rule == "cis-net-raw" {
					if result.Declared.Verdict != row.declared || result.Actual.Verdict != row.actual {
						t.Errorf("%s on paper, %s in the kernel; want %s and %s", result.Declared.Verdict, result.Actual.Verdict, row.declared, row.actual)
					}
					return
				}
			}
			t.Error("nothing was said by cis-net-raw")
		})
	}
}
