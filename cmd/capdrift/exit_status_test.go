package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/cri/fake"
	"github.com/capdrift/capdrift/drift"
	kubefake "github.com/capdrift/capdrift/kube/fake"
)

// column is a command whose exit status is a gate.
type column struct {
	name string
	args string // with $LEVEL for the severity, and $HERE, $AGENT, $FLEET and so on for the world
	of   byte   // 'l' looks at this node, 'm' reads manifests, 'a' asks an agent, 'f' a fleet
}

var columns = []column{
	{"scan", "scan $HERE --fail-on $LEVEL", 'l'},
	{"audit", "audit $HERE --pack $PACK --fail-on $LEVEL", 'l'},
	{"audit --manifests", "audit --manifests $MANIFEST --pack pss-baseline --fail-on $LEVEL", 'm'},
	{"scan --agent", "scan --agent $AGENT --fail-on $LEVEL", 'a'},
	{"get findings", "get findings --agent $AGENT --fail-on $LEVEL", 'a'},
	{"watch", "watch --agent $AGENT --until-finding $LEVEL --timeout 6s", 'a'},
	{"kubectl capdrift scan", "kubectl $FLEET scan --fail-on $LEVEL", 'f'},
	{"… audit", "kubectl $FLEET audit --pack $PACK --fail-on $LEVEL", 'f'},
	{"… get findings", "kubectl $FLEET get findings --fail-on $LEVEL", 'f'},
	{"… watch", "kubectl $FLEET watch --until-finding $LEVEL --timeout 6s", 'f'},
}

// situation is one row of the table in docs/exit-status.md. What it leaves out is calm: nothing is
// found, and everything is seen.
type situation struct {
	name  string
	of    string // the columns' kinds
	level string // high where it is empty; "none" for no gate
	flags string

	here        func(*testing.T) (*fixture, *fake.Node)
	report      func(*drift.Report)
	turns       int32 // the agent tells of the report so often, and then of the calm one
	cluster     func(*cluster)
	manifest    string
	interrupted bool
	but         map[string]string // flags of a column instead
}

// TestExitStatus walks docs/exit-status.md: every situation with every command that can be in it.
func TestExitStatus(t *testing.T) {
	t.Parallel()
	files := exceptionFiles(t)
	guest := func(r *drift.Report) {
		r.Containers = append(r.Containers, drift.Container{
			ID: strings.Repeat("9", 64), Name: "box", Pod: r.Containers[0].Pod, RuntimeHandler: "runsc", Managed: new(true),
			Observation: drift.UnsupportedRuntime, Reason: "runtime handler runsc", Processes: []drift.Process{},
		})
	}
	finding := func(severity drift.Severity, exception string) func(*drift.Report) {
		return func(r *drift.Report) {
			f := shop().Findings[0]
			f.Severity, f.PID, f.Evidence, f.Incident, f.Exception = severity, 10, nil, "", exception
			r.Findings = append(r.Findings, f)
		}
	}
	starting := func(r *drift.Report) {
		p := r.Containers[0].Processes[0]
		p.PID, p.Observation = 77, drift.Starting
		r.Containers[0].Processes = append(r.Containers[0].Processes, p)
	}
	both := func(these ...func(*drift.Report)) func(*drift.Report) {
		return func(r *drift.Report) {
			for _, change := range these {
				change(r)
			}
		}
	}
	hidden := func(r *drift.Report) {
		r.Coverage.Limits = append(r.Coverage.Limits, drift.Limit{What: "processes of other users", Why: "hidepid", Blind: true, Code: drift.GapHidden},
			drift.Limit{What: "containers in containerd's namespace moby", Why: "refused", Blind: true, Code: drift.GapOtherRuntime, Object: "containerd/moby"})
	}
	old := func(r *drift.Report) {
		r.Coverage.Limits = append(r.Coverage.Limits, drift.Limit{What: "no_new_privs", Why: "an old kernel", Blind: true, Code: drift.GapOldKernel})
	}
	gap := situation{of: "laf", here: unreadableNode, report: guest}
	with := func(s situation, name, flags string) situation {
		s.name, s.flags = name, flags
		return s
	}
	unknown := situation{of: "m", manifest: unjudgedManifest}
	two := situation{of: "f", cluster: func(c *cluster) { c.node("worker-2") }}
	windows := situation{of: "f", cluster: func(c *cluster) {
		c.Put("nodes", kubefake.Object{"metadata": kubefake.Object{"name": "win-1"}, "status": kubefake.Object{"nodeInfo": kubefake.Object{"operatingSystem": "windows"}}})
	}}
	fargate := situation{of: "f", cluster: func(c *cluster) {
		c.Put("nodes", kubefake.Object{"metadata": kubefake.Object{"name": "fargate-1", "labels": kubefake.Object{"eks.amazonaws.com/compute-type": "fargate"}}})
	}}
	deaf := two
	deaf.cluster = func(c *cluster) {
		c.node("worker-2")
		c.agent("worker-2", "agent-worker-2") // nobody listens there
	}
	rows := []situation{
		{name: "Nothing is found, and everything was seen", of: "lmaf"},
		{name: "What is found is below the level", of: "lmaf", level: "critical", here: lowNode, report: finding(drift.High, ""), manifest: strings.Replace(calmManifest, "{}", "{capabilities: {add: [NET_ADMIN]}}", 1)},
		{name: "Something is found at the level", of: "lmaf", here: foundNode, report: finding(drift.High, ""), manifest: strings.Replace(calmManifest, "{}", "{privileged: true}", 1)},
		{name: "The same, without a gate", of: "lmaf", level: "none", here: foundNode, report: finding(drift.High, ""), manifest: strings.Replace(calmManifest, "{}", "{privileged: true}", 1)},
		{name: "What is found is accepted", of: "maf", flags: "", report: finding(drift.High, "debugging"), manifest: strings.Replace(calmManifest, "{}", "{privileged: true}", 1),
			but: map[string]string{"audit --manifests": "--exceptions " + files["failures"], "… audit": "--exceptions " + files["failures"]}},
		{name: "The same, but the exception has expired", of: "mf", report: finding(drift.High, ""), manifest: strings.Replace(calmManifest, "{}", "{privileged: true}", 1), flags: "--exceptions " + files["expired"],
			but: map[string]string{"kubectl capdrift scan": "", "… get findings": "", "… watch": ""}},
		{name: "An expired exception accepts nothing that is there, with `--fail-on-expired`", of: "lmaf", flags: "--fail-on-expired --exceptions " + files["expired"]},
		{name: "What is found is accepted, and something beside it is not known", of: "maf", report: both(finding(drift.High, "debugging"), guest), manifest: unjudgedManifest + "---\n" + strings.Replace(calmManifest, "{}", "{privileged: true}", 1),
			but: map[string]string{"audit --manifests": "--exceptions " + files["failures"], "… audit": "--exceptions " + files["failures"]}},
		with(gap, "A gap that stays: gVisor's handler, an unreadable process", ""),
		with(gap, "The same, with `--allow-incomplete`", "--allow-incomplete"),
		with(gap, "The same, accepted by name", "--exceptions "+files["gaps"]),
		with(gap, "The same, and the acceptance has expired", "--exceptions "+files["expired"]),
		with(gap, "The same, with `--fail-on-expired`", "--fail-on-expired --exceptions "+files["expired"]),
		{name: "hidepid, and a namespace of containerd that cannot be listed, accepted by name", of: "af", report: hidden, flags: "--exceptions " + files["gaps"]},
		{name: "A new gap beside one that is accepted", of: "af", report: both(guest, old), flags: "--exceptions " + files["gaps"]},
		{name: "Something is found at the level, beside a gap", of: "laf", here: foundUnreadableNode, report: both(guest, finding(drift.High, ""))},
		{name: "The gap is in another namespace than `-n` asks for", of: "laf", here: unreadableNode, flags: "-n data", report: both(func(r *drift.Report) {
			c := r.Containers[0]
			c.ID, c.Pod = strings.Repeat("8", 64), &drift.Pod{Namespace: "data", Name: "db-0", UID: "u2"}
			r.Containers = append(r.Containers, c)
		}, guest), cluster: func(c *cluster) {
			c.Put("pods", kubefake.Object{"metadata": kubefake.Object{"namespace": "data", "name": "db-0", "uid": "u2"}, "spec": kubefake.Object{"nodeName": "worker-1", "containers": []kubefake.Object{{"name": "nginx"}}}, "status": kubefake.Object{"phase": "Running"}})
		}, but: map[string]string{"scan": "--container nonroot", "audit": "--filter name!='default'"}},
		{name: "A filter about findings does not leave out a gap", of: "laf", here: unreadableNode, report: guest, flags: "--filter finding.kind=='none'", but: map[string]string{"audit": "", "… audit": ""}},
		{name: "A process is being started in the first look, and read in a later one", of: "laf", here: startingNode(true), report: starting, turns: 4},
		{name: "A process is being started, and takes longer than is waited for", of: "laf", here: startingNode(false), report: starting},
		{name: "No runtime answers", of: "laf", here: silentNode, report: func(r *drift.Report) {
			r.Runtime = nil
			r.Coverage.Limits = append(r.Coverage.Limits, drift.Limit{What: "what was declared", Why: "refused", Blind: true, Code: drift.GapRuntimeSilent})
		}},
		{name: "The agent does not answer", of: "a", flags: "--agent unix:///nonexistent.sock"},
		with(deaf, "One of two agents does not answer", ""),
		with(deaf, "The same, with `--allow-missing`", "--allow-missing"),
		with(two, "No agent is on one of two nodes", ""),
		with(two, "The same, accepted by name", "--exceptions "+files["gaps"]),
		with(windows, "A node of the cluster runs Windows", ""),
		with(windows, "The same, accepted by name", "--exceptions "+files["gaps"]),
		with(fargate, "A node of the cluster is of Fargate, or virtual", ""),
		with(fargate, "The same, accepted by name", "--exceptions "+files["gaps"]),
		{name: "The same, without a gate", of: "f", level: "none", cluster: fargate.cluster},
		with(two, "A node without an agent is not among those of `--node-field-selector`", "--node-field-selector metadata.name=worker-1"),
		with(two, "No node has what `--node-selector` asks for", "--node-selector pool=none"),
		{name: "A namespace that nothing is in", of: "laf", flags: "-n nowhere", but: map[string]string{"audit": ""}},
		{name: "A container that is not there (`--container`)", of: "l", flags: "--container nowhere", but: map[string]string{"audit": ""}},
		{name: "A node that is not there, with `--allow-missing` too", of: "f", flags: "--node nowhere --allow-missing"},
		{name: "A part of a custom resource that cannot be judged", of: "m", manifest: unjudgedManifest},
		with(unknown, "The same, with `--allow-incomplete`", "--allow-incomplete"),
		{name: "A manifest that cannot be read, with `--allow-incomplete` too", of: "m", manifest: "kind: Pod\napiVersion: v1\nmetadata: {name: a}\nspec: {containers: [{name: a, securityContext: {priviledged: true}}]}\n", flags: "--allow-incomplete"},
		{name: "A filter that nothing matches", of: "laf", flags: `--filter finding.kind=='none'`, but: map[string]string{"audit": "--filter name=='none'", "… audit": "--filter pod.namespace=='none'"}},
		{name: "A filter that is wrong", of: "lmaf", flags: "--filter nme=='x'"},
		{name: "A flag or a value that is wrong", of: "lmaf", flags: "--allow-incomplet"},
		{name: "A file of exceptions that is wrong", of: "lmaf", flags: "--exceptions " + files["broken"]},
		{name: "Interrupted", of: "laf", interrupted: true},
	}
	walk(t, rows)
}

// walk runs every cell, and holds the table against the one in the docs.
func walk(t *testing.T, rows []situation) {
	const page, begin, end = "../../docs/exit-status.md", "<!-- what TestExitStatus saw begins here -->\n", "<!-- and ends here -->\n"
	cells := make([][]string, len(rows))
	var group errgroup.Group
	group.SetLimit(20) // most of the time a watch waits for its time-out, which a busy machine needs to connect
	for i := range rows {
		cells[i] = make([]string, len(columns))
		for j, c := range columns {
			args, applies := rows[i].args(t, c)
			if cells[i][j] = " "; !applies {
				continue
			}
			group.Go(func() error {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if rows[i].interrupted {
					cancel()
				}
				var out, errs strings.Builder
				cells[i][j] = strconv.Itoa(run(ctx, args, &out, &errs))
				if testing.Verbose() {
					t.Logf("%s: %s: %s: %s", rows[i].name, c.name, cells[i][j], errs.String())
				}
				return nil
			})
		}
	}
	_ = group.Wait() // none fails
	var table strings.Builder
	line := func(first string, rest []string) {
		fmt.Fprintf(&table, "| %s | %s |\n", first, strings.Join(rest, " | "))
	}
	var names, rule []string
	for _, c := range columns {
		names, rule = append(names, "`"+c.name+"`"), append(rule, "---")
	}
	line("situation", names)
	line("---", rule)
	for i := range rows {
		line(rows[i].name, cells[i])
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	_, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		t.Fatalf("%s has no place for the table", page)
	}
	golden(t, page, before+begin+table.String()+end+after)
}

// args are those of the command in this situation, false where it cannot be in it.
func (s situation) args(t *testing.T, c column) ([]string, bool) {
	flags := s.flags
	if own, has := s.but[c.name]; has {
		if flags = own; own == "" && s.flags != "" {
			return nil, false
		}
	}
	if !strings.ContainsRune(s.of, rune(c.of)) {
		return nil, false
	}
	level, text := s.level, c.args
	switch level {
	case "":
		level = "high"
	case "none":
		text = strings.NewReplacer(" --fail-on $LEVEL", "", " --until-finding $LEVEL", "").Replace(text)
	}
	place := map[string]string{"$LEVEL": level}
	switch c.of {
	case 'l':
		here := s.here
		if here == nil {
			here = func(t *testing.T) (*fixture, *fake.Node) {
				return capturedNode(t, "cri-o-1.37.0", "hybrid"), load(t, "cri-o-1.37.0")
			}
		}
		f, node := here(t)
		place["$HERE"] = "--host-root " + f.root + " --cri-endpoint " + endpointOf(t, node)
	case 'm':
		place["$MANIFEST"] = written(t, "web.yaml", stringOr(s.manifest, calmManifest))
	case 'a':
		place["$AGENT"] = serveTurning(t, s)
	case 'f':
		cluster := newCluster(t, map[string]*told{"worker-1": nil})
		cluster.sockets["agent-worker-1"] = strings.TrimPrefix(serveTurning(t, s), "unix://")
		cluster.agent("worker-1", "agent-worker-1")
		cluster.podsOfShop()
		if s.cluster != nil {
			s.cluster(cluster)
		}
		place["$FLEET"] = "--kubeconfig " + cluster.kubeconfig
	}
	place["$PACK"] = written(t, "gate.yaml", gatePack)
	var pairs []string
	for name, value := range place {
		pairs = append(pairs, name, value)
	}
	return strings.Fields(strings.NewReplacer(pairs...).Replace(text) + " " + flags), true
}

func stringOr(text, other string) string {
	if text == "" {
		return other
	}
	return text
}

func written(t *testing.T, name, text string) string {
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

const gatePack = "pack: gate\ntitle: G\nrules:\n  - {id: gate-user, title: T, severity: high, rationale: R, remedy: M, actual: process.uid != 4242}\n"

const calmManifest = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop}\nspec: {containers: [{name: nginx, image: n, securityContext: {}}]}\n"

const unjudgedManifest = "apiVersion: mq.example/v1\nkind: Broker\nmetadata: {name: main, namespace: mq}\nspec: {pod: {securityContext: {runAsUser: 0}}}\n" +
	"---\n" + calmManifest

// exceptionFiles are those that the table names, by what is in them.
func exceptionFiles(t *testing.T) map[string]string {
	const gaps = `coverage:
  - {id: guests, gaps: [guest], node: "*", object: handler/runsc, owner: us@ours.example, reason: R, expires: END}
  - {id: partial, gaps: [container_partial], node: node-a, object: container/default/default/default, owner: us@ours.example, reason: R, expires: END}
  - {id: hidden, gaps: [processes_hidden], node: "*", object: node, owner: us@ours.example, reason: R, expires: END}
  - {id: moby, gaps: [other_runtime], node: "*", object: containerd/moby, owner: us@ours.example, reason: R, expires: END}
  - {id: nodes, gaps: [no_agent, windows_node, virtual_node], node: "*", object: node, owner: us@ours.example, reason: R, expires: END}
`
	const failures = `exceptions:
  - {id: privileged, containers: "true", rules: [pss-baseline-privileged, pss-baseline-capabilities], capabilities: [ALL], kinds: [bounding_excess], owner: us@ours.example, reason: R, expires: END}
`
	at := func(text, end string) string {
		return written(t, "exceptions.yaml", strings.ReplaceAll(text, "END", end))
	}
	return map[string]string{
		"gaps": at(gaps, "2999-12-31"), "failures": at(failures, "2999-12-31"), "expired": at(gaps+failures, "2020-12-31"),
		"broken": at("coverage: [{id: x}]\n", ""),
	}
}

// endpointOf serves the node; nil is one where nobody listens.
func endpointOf(t *testing.T, node *fake.Node) string {
	if node == nil {
		return fake.Refusing(t)
	}
	return fake.Serve(t, node).Endpoint
}

func silentNode(t *testing.T) (*fixture, *fake.Node) {
	return capturedNode(t, "cri-o-1.37.0", "hybrid"), nil
}

func lowNode(t *testing.T) (*fixture, *fake.Node) {
	return capturedNode(t, "containerd-2.4.2", "hybrid"), load(t, "containerd-2.4.2")
}

func foundNode(t *testing.T) (*fixture, *fake.Node) {
	return driftNode(t), load(t, "containerd-2.4.2")
}

// unreadable adds a process to the default container that tells no effective set.
func (f *fixture) unreadable(t *testing.T, runtime string) *fixture {
	f.process(60001, strings.Replace(status("app", 60001, 0, "00000000a80425fb"), "CapEff:\t00000000a80425fb\n", "", 1), cgroupOf(t, runtime, "default"))
	return f
}

func unreadableNode(t *testing.T) (*fixture, *fake.Node) {
	return capturedNode(t, "cri-o-1.37.0", "hybrid").unreadable(t, "cri-o-1.37.0"), load(t, "cri-o-1.37.0")
}

func foundUnreadableNode(t *testing.T) (*fixture, *fake.Node) {
	return driftNode(t).unreadable(t, "containerd-2.4.2"), load(t, "containerd-2.4.2")
}

// startingNode has a stage of runc in the container "restricted" at each first look, which has
// ended at the second one if it ends.
func startingNode(ends bool) func(*testing.T) (*fixture, *fake.Node) {
	return func(t *testing.T) (*fixture, *fake.Node) {
		f, node := capturedNode(t, "cri-o-1.37.0", "hybrid"), load(t, "cri-o-1.37.0")
		probe := f.probed(t)
		probe(1)
		var looks atomic.Int32
		node.Before = func(_ context.Context, method string) error {
			if method == "ListContainers" && looks.Add(1) == 2 && ends {
				probe(0)
			}
			return nil
		}
		return f, node
	}
}

// probed draws who runs probes, and returns what has the nth probe be at its start, and no other;
// 0 is none. In tests' goroutines it may only panic.
func (f *fixture) probed(t *testing.T) func(n int) {
	home := cgroupOf(t, "cri-o-1.37.0", "restricted")
	f.write("proc/1/mountinfo", "30 1 0:1 / / rw - ext4 x rw\n")
	f.write("proc/20405/mountinfo", "500 1 0:1 / / rw - overlay x rw\n")
	f.draw(drawn{pid: 900, parent: 1, name: "crio", cgroup: "/system.slice/crio.service"})
	f.draw(drawn{pid: 30002, parent: 20392, name: "runc", cgroup: "/system.slice/crio.service"})
	members := filepath.Join(f.root, "sys/fs/cgroup", f.cgroup, home, "cgroup.procs")
	without, err := os.ReadFile(members)
	if err != nil {
		t.Fatal(err)
	}
	f.fail = func(err error) { panic(err) }
	last := 0
	return func(n int) {
		f.write(strings.TrimPrefix(members, f.root), string(without))
		if last > 0 {
			if err := os.RemoveAll(filepath.Join(f.root, "proc", strconv.Itoa(30002+last))); err != nil {
				panic(err)
			}
		}
		if last = n; n > 0 {
			f.draw(drawn{pid: 30002 + n, parent: 30002, name: "runc:[2:INIT]", cgroup: home, mount: 500, inner: 6 + n, forked: true})
		}
	}
}

// TestProbesChangeNoStatus: on a node where a probe of some container is just at its start at every
// look, a gate ends with one and the same status.
func TestProbesChangeNoStatus(t *testing.T) {
	pack := written(t, "gate.yaml", gatePack)
	for _, command := range []string{"scan", "audit --pack " + pack} {
		for n := range 10 {
			t.Run(fmt.Sprintf("%.5s %d", command, n), func(t *testing.T) {
				t.Parallel()
				f, node := capturedNode(t, "cri-o-1.37.0", "hybrid"), load(t, "cri-o-1.37.0")
				probe := f.probed(t)
				probe(1)
				looks := 0
				node.Before = func(_ context.Context, method string) error {
					if method == "ListContainers" { // of which one is made at a time
						if looks++; looks > 1 {
							probe(looks)
						}
					}
					return nil
				}
				server := fake.Serve(t, node)
				args := append(strings.Fields(command), "--host-root", f.root, "--cri-endpoint", server.Endpoint, "--fail-on", "high")
				stdout, stderr, status := capture(t, args...)
				if status != exitDone || !strings.Contains(stdout, "that an OCI runtime began to start after the first look") || looks < 2 {
					t.Errorf("status %d after %d looks, %s%s", status, looks, stdout, stderr)
				}
			})
		}
	}
}

// turning is an agent that tells of one report so often, and then of another.
type turning struct {
	*told
	left  atomic.Int32
	later drift.Report
}

func (f *turning) View() (agent.View, bool) {
	if f.left.Add(-1) == -1 {
		f.publish(f.later)
	}
	return f.told.View()
}

func (f *turning) Scan(context.Context) (agent.View, error) {
	view, _ := f.View()
	return view, nil
}

// calm is a node of which everything is seen, and nothing is found.
func calm() *drift.Report {
	r := shop()
	r.Findings, r.Containers = nil, r.Containers[:3]
	r.Containers[0].Processes = r.Containers[0].Processes[:1]
	r.Cover()
	return r
}

// serveTurning serves the agent of a situation.
func serveTurning(t *testing.T, s situation) string {
	report := calm()
	if s.report != nil {
		s.report(report)
		report.Cover()
	}
	feed := newTold(report)
	path := filepath.Join(socketDir(t), "agent.sock")
	if s.turns == 0 {
		serveAgent(t, feed, listenUnix(t, path))
		return "unix://" + path
	}
	changing := &turning{told: feed, later: *calm()}
	changing.left.Store(s.turns)
	serveFeed(t, changing, listenUnix(t, path))
	return "unix://" + path
}
