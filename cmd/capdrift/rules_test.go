package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/cri/fake"
	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/policy"
)

const ownPack = `pack: own
title: own
rules:
- id: own-no-raw
  title: nobody needs raw sockets
  severity: %s
  rationale: r
  remedy: drop them
  declared: capabilities(declared.add).hasNone(["NET_RAW"])
  actual: process.caps.bounding.hasNone(["NET_RAW"])
`

// TestViolationsSayWhichSideFails: the message has the side, the other one, and what it rests
// on; names are quoted, and it does not grow with what somebody else chooses.
func TestViolationsSayWhichSideFails(t *testing.T) {
	pack, err := policy.LoadPack("own.yaml", fmt.Appendf(nil, ownPack, "high"))
	if err != nil {
		t.Fatal(err)
	}
	compiled, err := policy.Compile([]policy.Pack{pack}, nil)
	if err != nil {
		t.Fatal(err)
	}
	holds := func(name string, s capdecode.Set) drift.Process {
		return drift.Process{PID: 7, StartTime: 9, Age: 3, Name: name, Caps: capdecode.Sets{Bounding: s}, Observation: drift.Observed, ThreadCount: 1}
	}
	threaded := holds("app", 0)
	threaded.Threads = []drift.Thread{{TID: 8, Name: "worker", Caps: capdecode.Sets{Bounding: netRaw}}}
	many := slices.Repeat([]string{"NET_RAW"}, 1000)
	const label = "shop/web-0/nginx fails own-no-raw (nobody needs raw sockets) "
	for what, row := range map[string]struct {
		add       []string
		processes []drift.Process
		want      string // the message, or how it begins where it ends in …
		declared  string
		actual    string
		failing   []agent.Seen
	}{
		"only in the kernel": {
			[]string{}, []drift.Process{holds("a\x1b[2J", netRaw)},
			label + `in the kernel, and passes on paper: process.caps.bounding is 0000000000002000 (CAP_NET_RAW), of process 7 "a\x1b[2J"`, "pass", "fail", []agent.Seen{{PID: 7, StartTime: 9, Age: 3}},
		},
		"only on paper": {
			[]string{"NET_RAW"}, []drift.Process{holds("app", 0)},
			label + `on paper, and passes in the kernel: declared.add is ["NET_RAW"] (CAP_NET_RAW)`, "fail", "pass", nil,
		},
		"on both sides": {
			[]string{"NET_RAW"}, []drift.Process{holds("app", netRaw)},
			label + `on paper and in the kernel: declared.add is ["NET_RAW"] (CAP_NET_RAW); process.caps.bounding is …`, "fail", "fail", []agent.Seen{{PID: 7, StartTime: 9, Age: 3}},
		},
		"one side is not known": {
			[]string{"NET_RAW"}, nil, label + `on paper, and in the kernel it could not be told (processes: none was seen): declared.add is …`, "fail", "unknown", nil,
		},
		"a thread": {
			[]string{}, []drift.Process{threaded}, label + `in the kernel, and passes on paper: process.caps.bounding is 0000000000002000 (CAP_NET_RAW), of process 7 "worker" (thread 8)`, "pass", "fail", nil,
		},
		"a list that somebody made long": {many, nil, label + "on paper, and in the kernel …", "fail", "unknown", nil},
	} {
		t.Run(what, func(t *testing.T) {
			c := drift.Container{
				ID: "c1", Name: "nginx", Pod: &drift.Pod{Namespace: "shop", Name: "web-0"}, Observation: drift.Observed,
				Declared: drift.Declared{CRI: &drift.CRI{Add: row.add}}, Processes: row.processes,
			}
			judged := ruling{compiled}.Judge(drift.Node{CapLastCap: 40}, nil, &c, true)
			if len(judged.Violations) != 1 {
				t.Fatalf("%+v", judged)
			}
			f := judged.Violations[0].Finding
			want, begins := strings.CutSuffix(row.want, "…")
			if right := f.Message == want || begins && strings.HasPrefix(f.Message, want); !right || len(f.Message) > 4096 {
				t.Errorf("the message is\n%s\nwant\n%s", f.Message, row.want)
			}
			if f.Kind != drift.PolicyViolation || f.Severity != drift.High || f.Declared != row.declared || f.Actual != row.actual || f.Remedy != "drop them" || f.Capabilities != netRaw {
				t.Errorf("%+v", f)
			}
			if got := judged.Violations[0].Failing; !slices.Equal(got, row.failing) {
				t.Errorf("failing are %v, want %v", got, row.failing)
			}
		})
	}
}

// ruledNode is an agent on a node made of files whose policy the test changes.
type ruledNode struct {
	*testing.T
	*fixture
	dir   string // of the policy's files
	parts parts
	ticks chan time.Time
	hangs chan os.Signal
	file  string // the agent's configuration
	log   *growing
}

// startRuled starts one, and ends it with the test.
func startRuled(t *testing.T, policy string) *ruledNode {
	t.Helper()
	n := &ruledNode{
		T: t, fixture: capturedNode(t, "containerd-2.4.2", "hybrid"), dir: t.TempDir(), ticks: make(chan time.Time), hangs: make(chan os.Signal),
		file: filepath.Join(t.TempDir(), "agent.yaml"), log: &growing{},
	}
	n.configure(policy)
	return n
}

func (n *ruledNode) configure(policy string) {
	n.Helper()
	n.put(n.file, fmt.Sprintf("node: {hostRoot: %q}\nruntime: {endpoint: %q}\njournal: {dir: ''}\napi: {socket: %q}\ncadence: {membership: 20ms, sweep: 50ms, confirm: 10ms, threads: 50ms}\npolicy: %s\n",
		n.root, fake.Serve(n.T, load(n.T, "containerd-2.4.2")).Endpoint, filepath.Join(socketDir(n.T), "a.sock"), policy))
}

// put writes a file as one that was whole before it had its name.
func (n *ruledNode) put(name, text string) {
	n.Helper()
	if err := os.WriteFile(name+".new", []byte(text), 0o600); err != nil {
		n.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		n.Fatal(err)
	}
}

// start runs the agent.
func (n *ruledNode) start() {
	n.Helper()
	options := &agentOptions{config: n.file}
	c, err := options.read()
	if err != nil {
		n.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.MultiWriter(n.log, n.Output()), nil))
	if n.parts, err = assemble(c, log); err != nil {
		n.Fatal(err)
	}
	reload := &reloading{options: options, current: c, loop: n.parts.loop, certificates: n.parts.certificates, level: new(slog.LevelVar), log: log, refused: n.parts.refused}
	ctx, cancel := context.WithCancel(n.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- n.parts.run(ctx, c, func(ctx context.Context) error { return reload.run(ctx, n.hangs, n.ticks) })
	}()
	n.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			n.Error(err)
		}
	})
}

// tick has the agent look at its files, and returns when it has.
func (n *ruledNode) tick() {
	n.ticks <- time.Time{}
	n.ticks <- time.Time{} // it takes this one when it is done with that
}

// awaits lets the node's time go on until a condition holds.
func (n *ruledNode) awaits(what string, holds func(agent.View) bool) {
	n.Helper()
	uptime := 9000
	until(n.T, what, func() bool {
		uptime++
		n.put(filepath.Join(n.root, "proc/uptime"), fmt.Sprintf("%d.00 17000.00\n", uptime))
		view, ok := n.parts.loop.View()
		return ok && holds(view)
	})
}

func part(view agent.View, name string) (agent.Component, bool) {
	at := slices.IndexFunc(view.Status, func(c agent.Component) bool { return c.Name == name })
	if at < 0 {
		return agent.Component{}, false
	}
	return view.Status[at], true
}

// violations are those that are open, by severity.
func violations(view agent.View, severity drift.Severity, accepted bool) (n int) {
	for _, f := range view.Report.Findings {
		if f.Kind == drift.PolicyViolation && f.Severity == severity && (f.Exception != "") == accepted {
			n++
		}
	}
	return n
}

// TestAgentTakesPolicies: by a change of a file, of what a symbolic link leads to, of the
// configuration, and by a signal; what is broken leaves the last one in force and says so.
func TestAgentTakesPolicies(t *testing.T) {
	leakless(t)
	n := startRuled(t, "{}")
	// As Kubernetes mounts a ConfigMap: the name leads through ..data to a folder.
	version := func(name, pack string) {
		folder := filepath.Join(n.dir, name)
		if err := os.Mkdir(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		n.put(filepath.Join(folder, "own.yaml"), pack)
		if err := os.Symlink(name, filepath.Join(n.dir, "..new")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(n.dir, "..new"), filepath.Join(n.dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	version("..1", fmt.Sprintf(ownPack, "high"))
	own, exceptions := filepath.Join(n.dir, "own.yaml"), filepath.Join(n.dir, "exceptions.yaml")
	if err := os.Symlink("..data/own.yaml", own); err != nil {
		t.Fatal(err)
	}
	n.put(exceptions, "exceptions: []\n")
	n.start()
	n.awaits("it has looked, and has no policy", func(v agent.View) bool {
		_, has := part(v, "policy")
		return len(v.Report.Containers) > 0 && v.Policy == nil && !has
	})

	n.configure(fmt.Sprintf("{packs: [%q], exceptions: [%q]}", own, exceptions))
	n.tick()
	n.awaits("it judges", func(v agent.View) bool { return violations(v, drift.High, false) > 0 && v.Policy.Pending == 0 })

	version("..2", fmt.Sprintf(ownPack, "low"))
	n.tick()
	n.awaits("the rule is of another severity", func(v agent.View) bool {
		return violations(v, drift.Low, false) > 0 && violations(v, drift.High, false) == 0
	})
	n.put(exceptions, "exceptions:\n- {id: all-of-it, containers: 'true', rules: [own-no-raw], capabilities: [ALL], owner: a, reason: b, expires: 2199-01-01}\n")
	n.tick()
	n.awaits("all of it is accepted", func(v agent.View) bool {
		return violations(v, drift.Low, true) > 0 && violations(v, drift.Low, false) == 0
	})
	in := func(v agent.View) time.Time { return v.Policy.Since }
	before, _ := n.parts.loop.View()

	broken := func(what, why string) {
		t.Helper()
		n.tick()
		n.awaits(what, func(v agent.View) bool {
			c, has := part(v, "policy")
			return has && !c.OK && strings.Contains(c.Why, why) && !strings.Contains(c.Why, "\n")
		})
		view, _ := n.parts.loop.View()
		if !in(view).Equal(in(before)) || violations(view, drift.Low, true) == 0 || violations(view, drift.Low, false) > 0 {
			t.Errorf("%s: what was in force is not", what)
		}
	}
	good, err := os.ReadFile(exceptions)
	if err != nil {
		t.Fatal(err)
	}
	n.put(exceptions, "exceptions: [")
	broken("it is no YAML", exceptions+":1:")
	n.put(exceptions, strings.Replace(string(good), "'true'", "'true &&'", 1))
	broken("an expression is wrong", exceptions+":2:")
	version("..3", strings.Replace(fmt.Sprintf(ownPack, "low"), `process.caps.bounding.hasNone(["NET_RAW"])`,
		`processes.all(a, processes.all(b, processes.all(c, a.pid == b.pid || b.pid == c.pid)))`, 1))
	broken("a rule is too costly", "too long")
	n.put(exceptions, string(good)) // only now: at no time is all of it good
	if err := os.Remove(own); err != nil {
		t.Fatal(err)
	}
	broken("a file is missing", "no such file")
	if told := strings.Count(n.log.String(), "the policy was not taken"); told != 4 {
		t.Errorf("the log says %d times that the policy was not taken, want 4:\n%s", told, n.log)
	}

	n.put(own, fmt.Sprintf(ownPack, "medium"))
	n.hangs <- os.Interrupt // any will do: what counts is that one came
	n.awaits("it is well again", func(v agent.View) bool {
		c, _ := part(v, "policy")
		return c.OK && in(v).After(in(before)) && violations(v, drift.Medium, true) > 0 && violations(v, drift.Low, true) == 0
	})
	n.put(n.file, "policy: {packs: [none]}")
	n.tick()
	n.awaits("the configuration is broken", func(v agent.View) bool {
		c, has := part(v, "config")
		return has && !c.OK && strings.Contains(c.Why, `there is no pack "none"`) && violations(v, drift.Medium, true) > 0
	})
	n.configure("{}")
	n.tick()
	n.awaits("nothing is judged any more", func(v agent.View) bool {
		_, has := part(v, "policy")
		c, _ := part(v, "config")
		return v.Policy == nil && !has && c.OK && violations(v, drift.Medium, true) == 0
	})
}

// TestAgentStartsWithoutItsPolicy: a node is watched although its policy cannot be read, and
// judged as soon as it can, though no file is another one then.
func TestAgentStartsWithoutItsPolicy(t *testing.T) {
	leakless(t)
	n := startRuled(t, "{}")
	own := filepath.Join(n.dir, "own.yaml")
	n.configure(fmt.Sprintf("{packs: [cis, %q]}", own))
	n.start()
	n.awaits("it says that there is none", func(v agent.View) bool {
		c, _ := part(v, "policy")
		return strings.Contains(c.Why, own) && v.Policy != nil && v.Policy.Since.IsZero() && len(v.Report.Containers) > 0
	})
	n.put(own, fmt.Sprintf(ownPack, "high"))
	n.tick()
	n.awaits("it judges", func(v agent.View) bool {
		c, _ := part(v, "policy")
		return c.OK && slices.Equal(v.Policy.Packs, []string{"cis", "own"}) && violations(v, drift.High, false) > 0
	})
}

// TestRecorderRemembersRules: what a rule found is open after a restart with all that was said.
func TestRecorderRemembersRules(t *testing.T) {
	dir := t.TempDir()
	r := newRecording(t, dir, "boot", "one")
	_, err := r.begin()
	f := drift.Finding{
		ID: "a", Kind: drift.PolicyViolation, Severity: drift.High, Rule: "own-no-raw", Declared: "pass", Actual: "fail", Exception: "debugging", Capabilities: netRaw,
	}
	r.at.Sequence++
	r.must(nil, err, r.Record([]agent.Change{{Position: r.at, At: r.clock, Kind: agent.FindingOpened, Finding: &f}}, []drift.Finding{f}))
	if _, before := r.written(); len(before.open) != 1 || before.open[0] != f {
		t.Errorf("open are %+v", before.open)
	}
}

// TestAgentTellsOfItsCertificates: files that cannot be taken leave those before in use, and it is said.
func TestAgentTellsOfItsCertificates(t *testing.T) {
	leakless(t)
	n, ours := startRuled(t, "{}"), newAuthority(t)
	ours.sign(t, "agent", "agent.test", time.Now().Add(time.Hour))
	text, err := os.ReadFile(n.file)
	if err != nil {
		t.Fatal(err)
	}
	n.put(n.file, strings.Replace(string(text), "api: {", fmt.Sprintf("api: {tcp: {address: '127.0.0.1:0', certFile: %q, keyFile: %q, clientCAFile: %q}, ",
		ours.file("agent.crt"), ours.file("agent.key"), ours.file("ca.crt")), 1))
	n.start()
	n.awaits("they are well", func(v agent.View) bool {
		c, has := part(v, "certificates")
		return has && c.OK
	})
	key, err := os.ReadFile(ours.file("agent.key"))
	if err != nil {
		t.Fatal(err)
	}
	n.put(ours.file("agent.key"), "none")
	n.awaits("they are not", func(v agent.View) bool {
		n.tick()
		c, _ := part(v, "certificates")
		return !c.OK && strings.Contains(c.Why, "agent.key")
	})
	n.put(ours.file("agent.key"), string(key))
	n.awaits("they are again", func(v agent.View) bool {
		n.tick()
		c, _ := part(v, "certificates")
		return c.OK
	})
}
