//go:build linux

package live

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/capdrift/capdrift/e2e/workload"
)

// The published form of an audit, "capdrift.audit/v1", as far as the tests read it.
type audit struct {
	Schema   string
	Coverage *struct{ Complete bool } // nil where manifests were judged
	Packs    []struct{ Name, Title string }
	Rules    []rule
	Results  []result
	Findings []struct{ Finding finding }
}

type rule struct {
	ID, Pack string
	Controls []struct{ Benchmark, Edition, ID string }
}

type result struct {
	Rule, ContainerID string
	Declared, Actual  outcome
	Disagrees         bool
}

type outcome struct {
	Verdict      string
	Capabilities []string
	Failing      int
	Tasks        []struct {
		Pid, Tid int
		Name     string
	}
}

// of returns what a rule says of a container.
func (a audit) of(t *testing.T, rule, id string) result {
	t.Helper()
	i := slices.IndexFunc(a.Results, func(r result) bool { return r.Rule == rule && r.ContainerID == id })
	if i < 0 {
		t.Fatalf("nothing was said of container %s by %s", id, rule)
	}
	return a.Results[i]
}

// judge is `capdrift audit -o json` with more flags, which must succeed.
func judge(t *testing.T, flags ...string) audit {
	t.Helper()
	args := append([]string{"audit", "-o", "json"}, flags...)
	stdout, stderr, status, err := capdrift(args...)
	if err != nil || status != 0 {
		t.Fatalf("capdrift %q: exit status %d, %v\n%s", args, status, err, stderr)
	}
	var a audit
	if err := json.Unmarshal([]byte(stdout), &a); err != nil || a.Schema != "capdrift.audit/v1" {
		t.Fatalf("audit did not print its JSON: %v\n%s", err, stdout)
	}
	return a
}

// judgeNode is an audit of the node, with the pod specs of a file, once no process is taken
// for a starting one any more: what was seen in part passes nothing.
func judgeNode(t *testing.T, manifests string) audit {
	t.Helper()
	ctx, cancel := onNode(t).Within(t.Context(), time.Minute)
	defer cancel()
	for {
		a := judge(t, "--cri-endpoint", theNode.Endpoint(), "--pods", manifests)
		if a.Coverage != nil && a.Coverage.Complete {
			return a
		}
		if ctx.Err() != nil {
			t.Fatalf("the audit is never complete: %+v", a.Coverage)
		}
	}
}

// manifestsOf writes the pod specs of workloads into a file.
func manifestsOf(t *testing.T, workloads ...workload.Workload) string {
	t.Helper()
	text, err := workload.Manifests(workloads...)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "pods.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// asDeclared asserts that the runtime was told what the kubelet makes of the pod specs, so
// that paper and kernel are of the same container.
func (a audit) asDeclared(t *testing.T) {
	t.Helper()
	for _, f := range a.Findings {
		if f.Finding.Kind == "cri_mismatch" {
			t.Errorf("the CRI config is not what the kubelet makes of the pod spec: %s", f.Finding.Message)
		}
	}
}
