package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/joshdk/go-junit"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/cri/fake"
	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/policy"
)

const auditPack = `
pack: ours
title: What we ask
rules:
  - id: ours-net-raw
    title: Nobody forges packets
    severity: high
    rationale: Who may write raw packets may answer for others, {as} [ARP](https://arp.example) does.
    remedy: Drop ALL.
    controls:
      - {benchmark: Ours, versions: ["1", "2"], id: "4.2", source: our auditor}
      - {benchmark: Ours, versions: ["3"], id: "4.3", source: our auditor, note: another one says 4.2}
    declared: declared.drop.exists(c, c.matches("(?i)^(CAP_)?(ALL|NET_RAW)$"))
    actual: process.caps.bounding.hasNone(["NET_RAW"])
  - id: ours-root
    title: Nobody is root
    severity: medium
    rationale: Root is root to whatever no namespace covers.
    remedy: Set runAsNonRoot.
    applies: name != "clean"
    declared: known(declared.runAsUser) && declared.runAsUser != 0
    actual: process.uid != 0
  - id: ours-paper
    title: The pod spec says who
    severity: low
    rationale: What is not said is not meant.
    remedy: Set runAsUser.
    declared: known(declared.runAsUser)
`

const auditExceptions = `
exceptions:
  - {id: agent, containers: name == "agent", rules: [ours-net-raw], kinds: [permitted_excess], capabilities: [NET_RAW, SYS_ADMIN], owner: network@ours.example, reason: It watches the wire., expires: 2027-03-31}
  - {id: over, containers: "true", rules: [ours-root], owner: "old\e[31m@ours.example", reason: Was to be mended., expires: 2026-01-01}
  - {id: idle, containers: name == "nobody", rules: [ours-root], owner: us@ours.example, reason: Nobody knows., expires: 2027-01-01}
  - {id: elsewhere, containers: "true", rules: [cis-root], owner: us@ours.example, reason: Of another pack., expires: 2027-01-01}
`

// hostileName is a formula, a terminal's escape and a bidirectional override.
const hostileName = "=1\x1b[2J\u202e<&>"

// auditFixture has a container of each sort: one whose drop dropped nothing, a clean
// one, one whose failure is accepted, one that the host does not show, and one with
// hostile names.
func auditFixture(t *testing.T) audit {
	t.Helper()
	pack, err := policy.LoadPack("ours.yaml", []byte(auditPack))
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := policy.LoadExceptions("exceptions.yaml", []byte(auditExceptions))
	if err != nil {
		t.Fatal(err)
	}
	rules, err := policy.Compile([]policy.Pack{pack}, accepted)
	if err != nil {
		t.Fatal(err)
	}
	raw := capdecode.Set(1 << 13)
	user := func(id int64) *int64 { return &id }
	process := func(pid int, name string, uid uint32, set capdecode.Set) drift.Process {
		no := false
		return drift.Process{
			PID: pid, StartTime: uint64(pid) * 10, Name: name, UID: uid, ContainerUID: &uid, NoNewPrivileges: &no, ThreadCount: 1,
			UserNamespace: drift.UserNamespace{Relation: drift.RelationSame}, Observation: drift.Observed,
			Caps: capdecode.Sets{Permitted: set, Effective: set, Bounding: set},
		}
	}
	container := func(name string, pod drift.PodSecurity, processes ...drift.Process) drift.Container {
		return drift.Container{
			ID: strings.Repeat("0", 60) + name[:1] + "abc", Name: name, Image: "registry.example/" + name, Pod: &drift.Pod{Namespace: "shop", Name: name + "-0", UID: "u-" + name},
			Observation: drift.Observed, Declared: drift.Declared{Pod: &pod}, Processes: processes,
		}
	}
	hidden := container("hidden", drift.PodSecurity{Drop: []string{"ALL"}, RunAsUser: user(1000)})
	hidden.Observation, hidden.Reason = drift.UnsupportedRuntime, "runtime handler runsc"
	report := drift.Report{
		Schema:  "capdrift.node/v1",
		Node:    drift.Node{Name: "node-a", BootID: "11111111-2222-3333-4444-555555555555", Kernel: "6.18.44", CapLastCap: 40, CgroupMode: "v2"},
		Runtime: &drift.Runtime{Name: "containerd", Version: "v2.4.2", Endpoint: "unix:///run/containerd/containerd.sock"},
		TakenAt: time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC),
		Containers: []drift.Container{
			container("gateway", drift.PodSecurity{Drop: []string{"CAP_NET_RAW"}, RunAsUser: user(1000)}, process(101, "gateway", 1000, raw), process(102, "worker", 1000, raw)),
			container("clean", drift.PodSecurity{Drop: []string{"ALL"}, RunAsUser: user(1000)}, process(201, "clean", 1000, 0)),
			container("agent", drift.PodSecurity{RunAsUser: user(1000)}, process(301, "agent", 1000, raw)),
			hidden,
			container(hostileName, drift.PodSecurity{Add: []string{"x](https://evil.example)\a"}}, process(501, "-cmd\u009b|' /C", 0, raw)),
			{ID: strings.Repeat("9", 64), Sandbox: true, Observation: drift.Observed, Pod: &drift.Pod{Namespace: "shop", Name: "clean-0"}},
		},
	}
	agent, gateway := report.Containers[2], report.Containers[0]
	found := func(id string, kind drift.Kind, severity drift.Severity, c drift.Container, set capdecode.Set) drift.Finding {
		return drift.Finding{
			ID: id, Kind: kind, Severity: severity, From: drift.LayerOCI, Layer: drift.LayerKernel, ContainerID: c.ID, Container: c.Name, Pod: c.Pod,
			PID: c.Processes[0].PID, Capabilities: set, Message: "it holds " + set.String(), Remedy: "Delete the pod.",
		}
	}
	report.Findings = []drift.Finding{
		found("00000000000000f1", drift.BoundingExcess, drift.Critical, gateway, raw),
		found("00000000000000f2", drift.PermittedExcess, drift.Critical, agent, raw),
		found("00000000000000f3", drift.Dropped, drift.Info, agent, raw),
	}
	report.Findings[0].Incident = "000000000000001c"
	report.Coverage.Limits = []drift.Limit{{What: "container hidden", Why: "runsc", Blind: true}}
	report.Cover()
	return audit{report: report, rules: rules, Judgement: rules.Judge(report, report.TakenAt)}
}

// auditText is the fixture in one format.
func auditText(t *testing.T, o auditOptions) string {
	t.Helper()
	var out bytes.Buffer
	if err := o.write(&out, auditFixture(t)); err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(out.String(), versionText(), "v0.0.0")
}

// TestAuditFormats holds each format of one report against its golden file.
func TestAuditFormats(t *testing.T) {
	for name, o := range map[string]auditOptions{
		"table.txt":  {output: outputOptions{format: "table", color: "never"}},
		"wide.txt":   {output: outputOptions{format: "table", color: "never", wide: true}, showExcepted: true},
		"bare.txt":   {output: outputOptions{format: "table", color: "always", noHeaders: true}},
		"audit.json": {output: outputOptions{format: "json"}}, "audit.jsonl": {output: outputOptions{format: "jsonl"}},
		"audit.csv": {output: outputOptions{format: "csv"}}, "audit.sarif": {output: outputOptions{format: "sarif"}}, "junit.xml": {output: outputOptions{format: "junit"}},
	} {
		t.Run(name, func(t *testing.T) {
			golden(t, filepath.Join(goldens, "audit", name), auditText(t, o))
		})
	}
}

// TestAuditIsSafeToLookAt: no format has what a terminal obeys, whatever containers,
// processes and owners of exceptions call themselves.
func TestAuditIsSafeToLookAt(t *testing.T) {
	for _, format := range auditOutputs() {
		text := auditText(t, auditOptions{output: outputOptions{format: format, color: "never", wide: true}, showExcepted: true})
		if !strings.Contains(text, "1b[2J") && !strings.Contains(text, "001b[2J") {
			t.Errorf("-o %s does not show the hostile name", format)
		}
		for _, r := range text {
			if r != '\n' && !unicode.IsPrint(r) {
				t.Errorf("-o %s has %U", format, r)
			}
		}
	}
	rows, err := csv.NewReader(strings.NewReader(auditText(t, auditOptions{output: outputOptions{format: "csv"}}))).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	quoted := 0
	for _, row := range rows {
		for _, text := range row {
			if text != "" && strings.ContainsAny(text[:1], "=+-@\t\r") {
				t.Errorf("the cell %q starts a formula", text)
			}
			if strings.HasPrefix(text, "'=1") {
				quoted++
			}
		}
	}
	if quoted == 0 {
		t.Error("no cell holds the hostile name")
	}
}

// readSchema compiles a schema that may refer to others.
func readSchema(t *testing.T, path string, others ...string) *jsonschema.Schema {
	t.Helper()
	compiler := jsonschema.NewCompiler()
	var id string
	for _, path := range append(others, path) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		value, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		fields := value.(map[string]any)
		var named bool
		if id, named = fields["$id"].(string); !named {
			id = fields["id"].(string) // draft 4
		}
		if err := compiler.AddResource(id, value); err != nil {
			t.Fatal(err)
		}
	}
	schema, err := compiler.Compile(id)
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

func validate(t *testing.T, schema *jsonschema.Schema, text string) error {
	t.Helper()
	value, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return schema.Validate(value)
}

// TestAuditPublishedForm holds audits of a fixture, of a recorded node and of
// manifests against the published schema.
func TestAuditPublishedForm(t *testing.T) {
	schema := readSchema(t, "../../docs/capdrift.audit.v1.schema.json", "../../docs/capdrift.node.v1.schema.json")
	server := fake.Serve(t, load(t, "containerd-2.4.2"))
	node, _, _ := capture(t, "audit", "-o", "json", "--host-root", driftNode(t).root, "--cri-endpoint", server.Endpoint)
	paper, _, _ := capture(t, "audit", "-o", "json", "--manifests", manifests)
	for name, text := range map[string]string{"fixture": auditText(t, auditOptions{output: outputOptions{format: "json"}}), "node": node, "manifests": paper} {
		if err := validate(t, schema, text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := validate(t, schema, strings.Replace(paper, `"results": [`, `"results": [{},`, 1)); err == nil {
		t.Error("the schema takes a result without anything")
	}
}

// TestExplainPublishedForm holds pages of a recorded node, of one of its processes and of a
// node without a runtime against the published schema.
func TestExplainPublishedForm(t *testing.T) {
	schema := readSchema(t, "../../docs/capdrift.explain.v1.schema.json", "../../docs/capdrift.node.v1.schema.json", "../../docs/capdrift.audit.v1.schema.json")
	containerd, crio := fake.Serve(t, load(t, "containerd-2.4.2")), fake.Serve(t, load(t, "cri-o-1.37.0"))
	drifted, hidden := driftNode(t).root, capturedNode(t, "cri-o-1.37.0", "v2").root
	text := ""
	for name, args := range map[string][]string{
		"a container":           {"add-and-drop-same", "--host-root", drifted, "--cri-endpoint", containerd.Endpoint},
		"a capability of it":    {"default", "SYS_ADMIN", "--host-root", drifted, "--cri-endpoint", containerd.Endpoint},
		"a process, and policy": {"70001", "--pack", "pss-restricted", "--pack", "dangerous", "--host-root", drifted, "--cri-endpoint", containerd.Endpoint},
		"privileged":            {"privileged-nonroot", "--pack", "cis", "--host-root", drifted, "--cri-endpoint", containerd.Endpoint},
		"a hidden CRI config":   {"default", "--pack", "cis", "--host-root", hidden, "--cri-endpoint", crio.Endpoint},
		"no runtime":            {"70001", "--host-root", drifted, "--cri-endpoint", "unix:///nobody/listens.sock"},
	} {
		text, _, _ = capture(t, append([]string{"explain", "-o", "json"}, args...)...)
		if err := validate(t, schema, text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := validate(t, schema, strings.Replace(text, `"capabilities": [`, `"capabilities": [{},`, 1)); err == nil {
		t.Error("the schema takes an account without anything")
	}
}

// TestSARIF holds audits against the schema that OASIS publishes.
func TestSARIF(t *testing.T) {
	schema := readSchema(t, "../../testdata/schemas/sarif-schema-2.1.0.json")
	server := fake.Serve(t, load(t, "containerd-2.4.2"))
	node, _, _ := capture(t, "audit", "-o", "sarif", "--host-root", driftNode(t).root, "--cri-endpoint", server.Endpoint)
	paper, _, _ := capture(t, "audit", "-o", "sarif", "--manifests", manifests)
	fixture := auditText(t, auditOptions{output: outputOptions{format: "sarif"}})
	for name, text := range map[string]string{"fixture": fixture, "node": node, "manifests": paper} {
		if err := validate(t, schema, text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var log sarifLog
		if err := json.Unmarshal([]byte(text), &log); err != nil {
			t.Fatal(err)
		}
		for _, rule := range log.Runs[0].Tool.Driver.Rules {
			if tags, _ := rule.Properties["tags"].([]any); len(tags) > 20 { // what GitHub takes
				t.Errorf("%s: %s has %d tags", name, rule.ID, len(tags))
			}
		}
		seen := make(map[string]bool)
		run := log.Runs[0]
		for _, result := range run.Results {
			if at := result.RuleIndex; at >= len(run.Tool.Driver.Rules) || run.Tool.Driver.Rules[at].ID != result.RuleID {
				t.Errorf("%s: the index of rule %s is %d", name, result.RuleID, at)
			}
			if print := result.Fingerprints["capdrift/v1"]; print == "" || seen[print] {
				t.Errorf("%s: %s has the fingerprint %q, which another has too", name, result.RuleID, print)
			} else {
				seen[print] = true
			}
			if result.Kind != "fail" && result.Level != "none" {
				t.Errorf("%s: %s is %s and of level %s", name, result.RuleID, result.Kind, result.Level)
			}
		}
		if len(seen) == 0 {
			t.Errorf("%s: no results", name)
		}
	}
	if err := validate(t, schema, strings.Replace(fixture, `"kind": "fail"`, `"kind": "failed"`, 1)); err == nil {
		t.Error("the schema takes any kind")
	}
}

// TestFingerprintsOutliveContainers: one that is created anew is the same to whoever
// follows results from run to run, and another one is not.
func TestFingerprintsOutliveContainers(t *testing.T) {
	a := auditFixture(t)
	c := a.report.Containers[0]
	before := a.fingerprint("ours-root", &c)
	c.ID = "another"
	if after := a.fingerprint("ours-root", &c); after != before {
		t.Errorf("it was %s, and is %s after a restart", before, after)
	}
	if other := a.fingerprint("ours-net-raw", &c); other == before {
		t.Error("two rules share a fingerprint")
	}
	c.Pod = nil
	if other := a.fingerprint("ours-root", &c); other == before {
		t.Error("a container without a pod has the fingerprint of one that has")
	}
	a.places = map[string]manifestPlace{}
	c = a.report.Containers[0]
	c.ID = "Deployment/shop/gateway-0/gateway#2"
	if other := a.fingerprint("ours-root", &c); other == before {
		t.Error("two manifests of one name share a fingerprint")
	}
}

// TestJUnit has a parser that others use read what continuous integration will.
func TestJUnit(t *testing.T) {
	suites, err := junit.IngestReader(strings.NewReader(auditText(t, auditOptions{output: outputOptions{format: "junit"}})))
	if err != nil {
		t.Fatal(err)
	}
	status := make(map[string]junit.Status)
	for _, suite := range suites {
		for _, test := range suite.Tests {
			status[test.Classname+" "+test.Name] = test.Status
		}
	}
	for name, want := range map[string]junit.Status{
		"ours.ours-net-raw shop/gateway-0/gateway":                 junit.StatusFailed,
		"ours.ours-net-raw shop/clean-0/clean":                     junit.StatusPassed,
		"ours.ours-net-raw shop/agent-0/agent":                     junit.StatusSkipped, // accepted
		"ours.ours-net-raw shop/hidden-0/hidden":                   junit.StatusError,   // unknown is no pass
		"ours.ours-root shop/clean-0/clean":                        junit.StatusSkipped, // not meant
		"ours.ours-paper shop/hidden-0/hidden":                     junit.StatusPassed,
		"drift.bounding_excess shop/gateway-0/gateway 101 gateway": junit.StatusFailed,
		"unseen container hidden: runsc":                           junit.StatusError,
		"drift.permitted_excess shop/agent-0/agent 301 agent":      junit.StatusSkipped,
	} {
		if got := status[name]; got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if len(status) != 3*5+2+1 {
		t.Errorf("%d cases", len(status))
	}
	if totals := suites[0].Totals; totals.Failed != 2 || totals.Error != 1 || totals.Skipped != 1 || totals.Passed != 1 {
		t.Errorf("the totals of the first rule are %+v", totals)
	}
}

// TestAuditGate: what --fail-on makes of what fails, was accepted, and is unknown.
func TestAuditGate(t *testing.T) {
	without := func(names ...string) func(*audit) {
		return func(a *audit) {
			var kept []drift.Container
			for _, c := range a.report.Containers {
				keep := true
				for _, name := range names {
					keep = keep && c.Name != name
				}
				if keep {
					kept = append(kept, c)
				}
			}
			a.report.Containers, a.report.Findings = kept, nil
		}
	}
	sees := func(a *audit) { a.report.Coverage.Limits = nil }
	guests := []policy.AcceptedGap{{ID: "guests", Codes: []drift.GapCode{drift.GapGuest}, Node: "*", Object: "handler/*", Expires: time.Now().Add(time.Hour)}}
	former := []policy.AcceptedGap{{ID: "guests", Codes: []drift.GapCode{drift.GapGuest}, Node: "*", Object: "handler/*", Expires: time.Now().Add(-time.Hour)}}
	partly := func(a *audit) {
		for i := range a.report.Containers {
			a.report.Containers[i].Observation = drift.Partial
		}
	}
	for name, row := range map[string]struct {
		gate   gateOptions
		change []func(*audit)
		want   string // of the error; "" for none
		status int
	}{
		"nothing is asked":                        {gateOptions{}, nil, "", exitDone},
		"a critical finding":                      {gateOptions{severity: "critical"}, nil, "of severity critical", exitFindings},
		"a rule fails":                            {gateOptions{severity: "high"}, []func(*audit){without("hidden")}, "of severity high", exitFindings},
		"what fails is less":                      {gateOptions{severity: "critical"}, []func(*audit){without("hidden"), sees}, "", exitDone},
		"all that fails is accepted":              {gateOptions{severity: "low"}, []func(*audit){without("hidden", "gateway", hostileName), sees}, "", exitDone},
		"what is unknown does not pass":           {gateOptions{severity: "low"}, []func(*audit){without("gateway", hostileName), sees}, "2 results could not be judged", exitFailed},
		"what is unknown is less, and not seen":   {gateOptions{severity: "critical"}, []func(*audit){without("gateway", hostileName), sees}, "but not everything was seen (1 gap), and what", exitFailed},
		"what is not seen is allowed":             {gateOptions{severity: "low", allowIncomplete: true}, []func(*audit){without("gateway", hostileName), sees}, "", exitDone},
		"what is not seen is accepted":            {gateOptions{severity: "low", accepted: guests}, []func(*audit){without("gateway", hostileName), sees}, "", exitDone},
		"what is not seen was accepted":           {gateOptions{severity: "low", accepted: former}, []func(*audit){without("gateway", hostileName), sees}, "2 results could not be judged", exitFailed},
		"what is accepted hides nothing else":     {gateOptions{severity: "low", accepted: guests}, []func(*audit){without("gateway", hostileName)}, "not everything was seen (1 gap)", exitFailed},
		"what is unknown beside what is accepted": {gateOptions{severity: "high"}, []func(*audit){without("hidden", "gateway", "clean", hostileName), sees, partly}, "1 result could not be judged", exitFailed},
		"what was not looked at does not pass":    {gateOptions{severity: "critical"}, []func(*audit){without("hidden")}, "not everything was seen", exitFailed},
	} {
		t.Run(name, func(t *testing.T) {
			a := auditFixture(t)
			for _, change := range row.change {
				change(&a)
			}
			a.report.Cover()
			o := auditOptions{gate: row.gate}
			if _, err := o.judge(&a, a.report.TakenAt); err != nil {
				t.Fatal(err)
			}
			err := o.gate.decide(io.Discard, o.known(a, ""))
			if row.want == "" {
				if err != nil {
					t.Errorf("it does not pass: %v", err)
				}
				return
			}
			var found findingsError
			if err == nil || !strings.Contains(err.Error(), row.want) || errors.As(err, &found) != (row.status == exitFindings) {
				t.Errorf("%T %v, want %q and status %d", err, err, row.want, row.status)
			}
		})
	}
}

// TestAuditFailOnExpired: an exception that has expired fails by itself, and what fails by
// its severity is said first.
func TestAuditFailOnExpired(t *testing.T) {
	for name, row := range map[string]struct {
		options auditOptions
		want    string
	}{
		"not asked":         {auditOptions{}, ""},
		"alone":             {auditOptions{gate: gateOptions{flag: failOn, failExpired: true}}, "1 exception expired: over (old"},
		"beside what fails": {auditOptions{gate: gateOptions{flag: failOn, failExpired: true, severity: "high"}}, "of severity critical"},
	} {
		a := auditFixture(t)
		if _, err := row.options.judge(&a, a.report.TakenAt); err != nil {
			t.Fatal(err)
		}
		err := row.options.gate.decide(io.Discard, row.options.known(a, ""))
		var found findingsError
		if row.want == "" && err != nil || row.want != "" && (!errors.As(err, &found) || !strings.Contains(err.Error(), row.want) || strings.Contains(err.Error(), "\x1b")) {
			t.Errorf("%s: %v, want %q", name, err, row.want)
		}
	}
	if _, stderr, status := capture(t, "audit", "--fail-on-expired"); status != exitUsage || !strings.Contains(stderr, "--exceptions") {
		t.Errorf("without exceptions: status %d, %s", status, stderr)
	}
}

// TestAuditWritesAll: an error of the writer is not lost in any format.
func TestAuditWritesAll(t *testing.T) {
	a := auditFixture(t)
	for _, format := range auditOutputs() {
		if err := (&auditOptions{output: outputOptions{format: format}}).write(fullDisk{}, a); err == nil {
			t.Errorf("-o %s does not say that nothing was written", format)
		}
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, io.ErrShortWrite }
