package main

import (
	"encoding/json"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/drift"
)

// TestGetPrints holds what get prints against golden files.
func TestGetPrints(t *testing.T) {
	leakless(t)
	report := shop()
	report.Coverage.Complete = false
	report.Coverage.Limits = []drift.Limit{{What: "1 process", Why: "permission denied", Blind: true}}
	feed := newTold(report)
	feed.publish(*report, agent.Change{Kind: agent.StatusChanged, Component: &agent.Component{Name: "runtime", Why: "it does not answer\x1b[2J"}})
	at := agentSocketOf(t, feed)
	moving := regexp.MustCompile(`("(?:takenAt|startedAt)"|(?:takenAt|startedAt)): ?"[^"]*"`) // what differs from run to run
	for name, args := range map[string]string{
		"node":                  "node",
		"node-wide":             "node -o wide",
		"node.json":             "no -o json",
		"node.jsonl":            "nodes -o jsonl",
		"node.yaml":             "node -o yaml",
		"node-name":             "node -o name",
		"containers":            "containers",
		"containers-wide":       "co -o wide",
		"containers-by-count":   "containers --sort-by processes --no-headers",
		"containers.json":       "containers -o json",
		"containers.jsonl":      "containers -o jsonl",
		"containers-name":       "containers -o name --sort-by id",
		"container.yaml":        "container/shop/web-0/nginx -o yaml",
		"container":             "container cccc",
		"findings":              "findings",
		"findings-wide":         "findings -o wide",
		"findings-of-namespace": "findings -n data",
		"findings-filtered":     `findings --filter finding.severity>=severity("high")`,
		"findings-by-pod":       "fi --sort-by pod -o name",
		"findings.json":         "findings -o json",
		"findings.jsonl":        "findings -o jsonl -n data",
		"finding.json":          "finding 1111 -o json",
		"nothing":               "findings --filter finding.kind=='none'",
		"handlers":              "findings -n elsewhere",
		"nothing.json":          "findings -n elsewhere -o json --filter finding.kind=='none'",
		"undecided":             `containers --filter declared.cri.privileged`,
	} {
		stdout, stderr, status := capture(t, append(append([]string{"get"}, strings.Fields(args)...), "--agent", at)...)
		want := exitDone
		if strings.Contains(args, "-n elsewhere") { // where nothing is
			want = exitFailed
		}
		if status != want {
			t.Errorf("%s: status %d, %s", name, status, stderr)
		}
		text := moving.ReplaceAllString(stdout, `$1: ""`)
		if stderr != "" {
			text += "--- standard error\n" + stderr
		}
		golden(t, filepath.Join("../../testdata/golden/get", name), text)
	}
}

// TestGetKeepsThePublishedForm: a container or finding is written as in
// capdrift.node/v1.
func TestGetKeepsThePublishedForm(t *testing.T) {
	leakless(t)
	compiler := jsonschema.NewCompiler()
	at := agentSocketOf(t, newTold(shop()))
	for resource, definition := range map[string]string{"containers": "container", "findings": "finding"} {
		schema, err := compiler.Compile("../../docs/capdrift.node.v1.schema.json#/$defs/" + definition)
		if err != nil {
			t.Fatal(err)
		}
		text, stderr, status := capture(t, "get", resource, "-o", "json", "--agent", at)
		value, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
		if err != nil || status != 0 {
			t.Fatalf("status %d, %v, %s", status, err, stderr)
		}
		list := value.(map[string]any)[resource].([]any)
		if len(list) < 4 {
			t.Errorf("%d %s", len(list), resource)
		}
		for _, item := range list {
			if err := schema.Validate(item); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestGetJoinsPages: many containers, and one that fits into no message.
func TestGetJoinsPages(t *testing.T) {
	leakless(t)
	report := shop()
	one := report.Containers[0].Processes[0]
	report.Containers[0].Processes = nil
	for pid := range 9000 {
		one.PID = pid + 100
		report.Containers[0].Processes = append(report.Containers[0].Processes, one)
	}
	small := report.Containers[2]
	for i := range 250 {
		small.ID = strings.Repeat("e", 60) + string([]byte{byte('a' + i/100), byte('0' + i/10%10), byte('0' + i%10), 'f'})
		report.Containers = append(report.Containers, small)
	}
	finding := report.Findings[3]
	for i := range 1500 {
		finding.PID = i + 1
		finding.ID = "f" + strings.Repeat("0", 8) + string([]byte{byte('0' + i/1000), byte('0' + i/100%10), byte('0' + i/10%10), byte('0' + i%10)})
		report.Findings = append(report.Findings, finding)
	}
	at := agentSocketOf(t, newTold(report))
	for _, args := range []string{"containers -o jsonl", "containers -o jsonl --sort-by pod", "container " + report.Containers[0].ID + " -o json"} {
		text, stderr, status := capture(t, append(append([]string{"get"}, strings.Fields(args)...), "--agent", at)...)
		containers, processes := 0, 0
		for decoder := json.NewDecoder(strings.NewReader(text)); decoder.More(); containers++ {
			var line struct{ Container drift.Container }
			if err := decoder.Decode(&line); err != nil {
				t.Fatal(err)
			}
			processes += len(line.Container.Processes)
		}
		want, wantProcesses := 254, 9002
		if strings.HasPrefix(args, "container ") {
			want, wantProcesses = 1, 9000
		}
		if status != 0 || containers != want || processes != wantProcesses {
			t.Errorf("%s: status %d, %d containers, %d processes; want %d and %d; %s", args, status, containers, processes, want, wantProcesses, stderr)
		}
	}
	if text, _, _ := capture(t, "get", "findings", "-o", "name", "--agent", at); strings.Count(text, "\n") != 1505 {
		t.Errorf("%d findings", strings.Count(text, "\n"))
	}
}

// TestGetShowsWhereAFilterIsWrong: the agent's words and its caret arrive.
func TestGetShowsWhereAFilterIsWrong(t *testing.T) {
	leakless(t)
	at := agentSocketOf(t, newTold(shop()))
	for _, command := range []string{"get containers", "get containers -w", "watch containers"} {
		args := append(strings.Fields(command), "--agent", at, "--filter", `caps.efective.hasAny(["NET_RAW"])`)
		stdout, stderr, status := capture(t, args...)
		lines := strings.Split(stderr, "\n")
		if status != exitUsage || stdout != "" || len(lines) < 3 || !strings.HasPrefix(lines[0], "capdrift: --filter: column 6: ") ||
			lines[1] != `  caps.efective.hasAny(["NET_RAW"])` || strings.Index(lines[2], "^") != 7 {
			t.Errorf("%s: status %d, %s%s", command, status, stdout, stderr)
		}
	}
}
