package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	rpcstatus "google.golang.org/grpc/status"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/agent/rpc"
	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

// told is an agent.Feed that a test publishes to.
type told struct {
	mu       sync.Mutex
	view     *agent.View
	kept     []agent.Change
	watchers map[*follower]bool
	policy   *agent.PolicyStatus // of all views that are published
}

func newTold(report *drift.Report) *told {
	f := &told{watchers: make(map[*follower]bool)}
	if report != nil {
		f.publish(*report)
	}
	return f
}

// publish makes the report the view, after the changes.
func (f *told) publish(report drift.Report, changes ...agent.Change) {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := agent.View{
		Position: agent.Position{BootID: "boot", Epoch: "first"}, Report: report,
		Status: []agent.Component{{Name: "proc", OK: true}, {Name: "runtime", OK: true}},
		Policy: f.policy,
	}
	if f.view != nil {
		next.Position, next.Status = f.view.Position, f.view.Status
	}
	for _, change := range changes {
		next.Position.Sequence++
		change.Position, change.At = next.Position, time.Date(2026, 1, 2, 3, 4, 0, int(next.Position.Sequence)*1e6, time.UTC)
		if change.Component != nil {
			next.Status = []agent.Component{*change.Component}
		}
		f.kept = append(f.kept, change)
		for w := range f.watchers {
			w.changes <- change // no test fills it
		}
	}
	f.view = &next
}

// restart is another run of the agent: nothing is kept of the one before.
func (f *told) restart() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.kept = nil
	f.view.Position = agent.Position{BootID: "boot", Epoch: "second"}
}

func (f *told) View() (agent.View, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.view == nil {
		return agent.View{}, false
	}
	return *f.view, true
}

func (f *told) Watch(after agent.Position) agent.Subscription {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := &follower{feed: f, changes: make(chan agent.Change, 1000)}
	if after.BootID != f.view.Position.BootID || after.Epoch != f.view.Position.Epoch {
		w.view = f.view
	} else {
		for _, change := range f.kept {
			if change.Position.Sequence > after.Sequence {
				w.changes <- change
			}
		}
	}
	f.watchers[w] = true
	return w
}

func (f *told) watched() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.watchers) > 0
}

type follower struct {
	feed    *told
	view    *agent.View
	changes chan agent.Change
}

func (w *follower) Snapshot() (agent.View, bool) {
	if w.view == nil {
		return agent.View{}, false
	}
	return *w.view, true
}

func (w *follower) Changes() <-chan agent.Change { return w.changes }
func (w *follower) Err() error                   { return nil }

func (w *follower) Close() {
	w.feed.mu.Lock()
	defer w.feed.mu.Unlock()
	delete(w.feed.watchers, w)
}

// Scan implements [rpc.Scanner]: the look that is taken is the view.
func (f *told) Scan(context.Context) (agent.View, error) {
	view, ok := f.View()
	if !ok {
		return view, errors.New("nobody has published anything")
	}
	return view, nil
}

// serveAgent serves the feed until stop is called, or the test ends.
func serveAgent(tb testing.TB, feed *told, listener *rpc.Listener) (stop func()) {
	tb.Helper()
	return serveFeed(tb, feed, listener)
}

// feeder is what an agent is served from.
type feeder interface {
	agent.Feed
	rpc.Scanner
}

func serveFeed(tb testing.TB, feed feeder, listener *rpc.Listener) (stop func()) {
	tb.Helper()
	service := rpc.NewService(feed, rpc.Options{
		Identity: rpc.Identity{Version: "capdrift v1.2.3", Started: time.Now().Add(-30 * time.Hour), NodeName: "node-a"}, Scanner: feed, Now: time.Now,
		Limits: rpc.Limits{Heartbeat: 20 * time.Millisecond, Stop: time.Second},
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- rpc.NewServer(service, slog.New(slog.DiscardHandler)).Serve(ctx, listener) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			tb.Errorf("serving: %v", err)
		}
	})
	tb.Cleanup(stop)
	return stop
}

func listenUnix(tb testing.TB, path string) *rpc.Listener {
	tb.Helper()
	listener, err := rpc.ListenUnix(path)
	if err != nil {
		tb.Fatal(err)
	}
	return listener
}

// agentSocketOf serves the feed on a socket of its own and returns what --agent takes.
func agentSocketOf(tb testing.TB, feed *told) string {
	tb.Helper()
	path := filepath.Join(socketDir(tb), "agent.sock")
	serveAgent(tb, feed, listenUnix(tb, path))
	return "unix://" + path
}

// socketDir is short enough for the name of a socket, and only ours.
func socketDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "agent")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// leakless fails the test when it leaves goroutines behind. Call it first.
func leakless(t *testing.T, but ...goleak.Option) {
	t.Helper()
	but = append(but, goleak.IgnoreCurrent())
	t.Cleanup(func() { goleak.VerifyNone(t, but...) })
}

func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-ctx.Done():
			t.Fatalf("waiting until %s: %v", what, ctx.Err())
		case <-tick.C:
		}
	}
}

const bind, sysAdmin, netRaw = capdecode.Set(1 << 10), capdecode.Set(1 << 21), capdecode.Set(1 << 13)

// shop is a node with four containers, and five findings about them.
func shop() *drift.Report {
	yes, no, uid, off := true, false, uint32(1000), 0
	sets := func(s capdecode.Set) capdecode.Sets { return capdecode.Sets{Effective: s, Permitted: s, Bounding: s} }
	process := func(pid int, name string, s capdecode.Set) drift.Process {
		return drift.Process{
			PID: pid, StartTime: 100, ParentPID: 1, Name: name, State: "S", UID: uid, UIDs: drift.UIDs{Real: uid, Effective: uid, Saved: uid, FileSystem: uid}, ContainerUID: &uid, NoNewPrivileges: &yes, Seccomp: &off,
			UserNamespace: drift.UserNamespace{Relation: drift.RelationSame}, Caps: sets(s), Observation: drift.Observed, ThreadCount: 1,
		}
	}
	id := func(letter string) string { return strings.Repeat(letter, 64) }
	pod := &drift.Pod{Namespace: "shop", Name: "web-0", UID: "u1"}
	oci := &drift.OCI{Sets: sets(bind), NoNewPrivileges: true, UID: uid, UnknownNames: []string{}}
	report := &drift.Report{
		Schema:     drift.Schema,
		Node:       drift.Node{Name: "node-a", BootID: "boot", Kernel: "6.18.44", CapLastCap: 40, CgroupMode: "v2"},
		Runtime:    &drift.Runtime{Name: "containerd", Version: "v2.4.2", Endpoint: "unix:///run/containerd/containerd.sock"},
		TakenAt:    time.Now().Add(-3 * time.Hour),
		DurationMs: 12,
		Coverage:   drift.Coverage{Containers: drift.ContainerCoverage{Running: 3, Observed: 3}, Processes: drift.ProcessCoverage{Observed: 4}, Complete: true, Limits: []drift.Limit{}},
		Containers: []drift.Container{
			{
				ID: id("c"), Name: "nginx", Image: "docker.io/library/nginx:1", Pod: pod, Managed: &yes, Observation: drift.Observed, Declared: drift.Declared{OCI: oci},
				Processes: []drift.Process{process(10, "nginx", bind), process(11, "intruder", bind|sysAdmin|netRaw)}, Created: time.Now().Add(-5 * time.Hour),
			},
			{
				ID: id("a"), Name: "log", Image: "log:2", Pod: pod, RuntimeHandler: "crun", Managed: &yes, Observation: drift.Observed, Declared: drift.Declared{OCI: oci},
				Processes: []drift.Process{process(20, "log\x1b[2J", bind)},
			},
			{ID: id("b"), Pod: pod, Sandbox: true, Managed: &yes, Observation: drift.Observed, Processes: []drift.Process{}},
			{
				ID: id("d"), Name: "db", Image: "db:3", Pod: &drift.Pod{Namespace: "data", Name: "db-0", UID: "u2"}, Managed: &no, Origin: "k8s.io", Observation: drift.Partial,
				Reason: "1 of its 2 processes could not be read", Processes: []drift.Process{process(30, "db", bind)},
			},
		},
	}
	find := func(letter, container, name string, pod *drift.Pod, pid int, kind drift.Kind, severity drift.Severity, s capdecode.Set) drift.Finding {
		return drift.Finding{
			ID: strings.Repeat(letter, 16), Kind: kind, Severity: severity, From: drift.LayerOCI, Layer: drift.LayerKernel, ContainerID: id(container), Container: name,
			Pod: pod, PID: pid, Set: "bounding", Capabilities: s, Message: "it holds more than declared", Remedy: "look into it",
		}
	}
	report.Findings = []drift.Finding{
		find("1", "c", "nginx", pod, 11, "bounding_excess", drift.Critical, sysAdmin|netRaw),
		find("2", "c", "nginx", pod, 11, "inheritable_excess", drift.High, sysAdmin),
		find("3", "d", "db", report.Containers[3].Pod, 0, "unmanaged_container", drift.Medium, 0),
		find("4", "a", "log", pod, 20, "dropped", drift.Info, bind),
		{ID: strings.Repeat("5", 16), Kind: "oci_mismatch", Severity: drift.Info, From: drift.LayerCRI, Layer: drift.LayerOCI, RuntimeHandler: "crun", Message: "the handler takes something away", Remedy: "-"},
	}
	started, booted := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	for i := range report.Findings[:2] {
		report.Findings[i].Incident, report.Findings[i].StartTime, report.Findings[i].Processes = "1n", 100, 1
		report.Findings[i].Evidence = &drift.Evidence{
			StartedAt: &started, PID: 11, ContainerPID: 7, Cgroup: "/kubepods/x", Executable: "/memfd:\x1b[2J (deleted)", ExecutableSHA256: strings.Repeat("ab", 32),
			Parent: &drift.EvidenceParent{PID: 1, Name: "systemd", StartedAt: &booted, Outside: true},
		}
	}
	report.Containers[0].Processes[1].UIDs.Saved = 0
	return report
}

func TestGetErrorsNameTheNextMove(t *testing.T) {
	dir := socketDir(t)
	refusing := filepath.Join(dir, "refusing.sock")
	listener, err := net.Listen("unix", refusing)
	if err != nil {
		t.Fatal(err)
	}
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = listener.Close()
	leakless(t)
	silent := agentSocketOf(t, newTold(nil))
	whole := agentSocketOf(t, newTold(shop()))
	for name, row := range map[string]struct {
		args   string
		status int
		says   string
	}{
		"no socket":                  {"get node --agent unix://" + dir + "/none.sock", 1, "is the agent running?"},
		"a socket that is left over": {"get findings --agent unix://" + refusing, 1, "nobody listens at"},
		"watching no socket":         {"watch --agent unix://" + dir + "/none.sock", 1, "Start it with 'capdrift agent'"},
		"no port":                    {"get node --agent 127.0.0.1:1 --plaintext", 1, "nobody listens at 127.0.0.1:1"},
		"before the first look":      {"get findings --agent " + silent, 1, "has not looked at its node yet; ask again in a moment; to wait for it, add --wait"},
		"waiting too short":          {"get findings --wait --timeout 1s --agent " + silent, 1, "has not looked at its node within --timeout=1s"},
		"waiting for nobody":         {"get findings --wait --timeout 200ms --agent unix://" + dir + "/none.sock", 1, "is the agent running?"},
		"scanning no socket":         {"scan --agent unix://" + dir + "/none.sock", 1, "is the agent running?"},
		"no such container":          {"get container nobody --agent " + whole, 1, "there is no container nobody on this agent's node; capdrift get containers lists them"},
		"a container misspelt":       {"get container shop/web-0/ngnix --agent " + whole, 1, "capdrift get containers lists them; did you mean shop/web-0/nginx?"},
		"the same, of containers":    {"get containers -n shpo -o jsonl --agent " + whole, 1, "did you mean shop?"},
		"watching a namespace":       {"watch -n shpo --timeout 5s --agent " + whole, 1, "no container on this agent's node is in a namespace shpo; did you mean shop?"},
		"a gate of one thing":        {"get finding 1111 --fail-on high", 2, "--fail-on is of the list of findings"},
		"a gate of containers":       {"get containers --fail-on high", 2, "--fail-on is of the list of findings"},
		"a gate that goes on":        {"get findings -w --fail-on high", 2, "a watch has --until-finding"},
		"an allowance of nothing":    {"get findings --allow-incomplete", 2, "--allow-incomplete is about --fail-on, which is not given"},
		"the same of a watch":        {"watch --allow-incomplete", 2, "--allow-incomplete is about --until-finding, which is not given"},
		"an end of nothing":          {"get findings --fail-on-expired", 2, "--fail-on-expired is about the exceptions of --exceptions"},
		"two of that name":           {"get container web-0 --agent " + whole, 1, "2 containers are called web-0: shop/web-0/"},
		"no such finding":            {"get finding ffff --agent " + whole, 1, "capdrift get findings lists them"},

		"a path alone":             {"get node --agent /run/a.sock", 2, "want unix:///path or host:port"},
		"a relative socket":        {"get node --agent unix://a.sock", 2, "three slashes"},
		"a port by name":           {"get node --agent 127.0.0.1:http", 2, "no number"},
		"TCP without anything":     {"get node --agent 127.0.0.1:1", 2, "needs --tls-cert, --tls-key and --tls-ca"},
		"TCP with half":            {"get node --agent 127.0.0.1:1 --tls-cert a --tls-key b", 2, "needs --tls-cert"},
		"plaintext elsewhere":      {"get node --agent 10.0.0.1:1 --plaintext", 2, "for the loopback only, and 10.0.0.1 is elsewhere"},
		"plaintext and TLS":        {"get node --agent 127.0.0.1:1 --plaintext --tls-ca x", 2, "either --plaintext or"},
		"TLS on a socket":          {"get node --tls-ca x", 2, "guarded by its file mode"},
		"no certificate":           {"get node --agent 127.0.0.1:1 --tls-cert /none --tls-key /none --tls-ca /none", 1, "--tls-cert and --tls-key: open /none"},
		"an unknown thing":         {"get pods", 2, "want one of node, containers, findings"},
		"a node's name":            {"get node x", 2, "one node only"},
		"an unknown format":        {"get findings -o csv", 2, "table, wide, json, jsonl, yaml, name"},
		"sorted by nothing":        {"get findings --sort-by processes", 2, "age, container, id, kind, pod, severity"},
		"one thing filtered":       {"get container x --filter true", 2, "of lists"},
		"a node watched":           {"get node -w", 2, "--watch is of the lists"},
		"a watch as YAML":          {"get findings -w -o yaml", 2, "table, wide or jsonl"},
		"watching the node":        {"watch node", 2, "want findings or containers"},
		"an unknown severity":      {"watch --until-finding awful", 2, "critical, high"},
		"until for containers":     {"watch containers --until-finding high", 2, "of watch findings"},
		"scan of both":             {"scan --agent " + whole + " --host-root /x", 2, "with --agent the agent looks"},
		"scan with TLS of nobody":  {"scan --tls-ca x", 2, "name it with --agent"},
		"an empty name":            {"get container/", 2, "is empty"},
		"a time that is over":      {"get node --timeout -1s", 2, "want a time"},
		"more than a name":         {"get container a b", 2, "accepts between"},
		"an interrupted container": {"get container x --namespace y --agent " + whole, 1, "in namespace y"},
	} {
		stdout, stderr, status := capture(t, strings.Fields(row.args)...)
		if status != row.status || !strings.Contains(stderr, row.says) || stdout != "" {
			t.Errorf("%s: status %d, %s%s; want %d and %q", name, status, stdout, stderr, row.status, row.says)
		}
	}
}

func TestGetExplainsWhatRootCannotMeet(t *testing.T) {
	c := client{options: &clientOptions{agent: agentSocket}, trouble: &trouble{}}
	unavailable := rpcstatus.Error(codes.Unavailable, "connection error")
	c.trouble.note(connecting, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EACCES)})
	if err := c.explained(t.Context(), unavailable); err == nil || !strings.Contains(err.Error(), "permission denied; run as root") {
		t.Error(err)
	}
	if c.mayPass(unavailable) {
		t.Error("waiting does not help against a permission")
	}
	c.trouble.note(connecting, fs.ErrNotExist)
	if !c.mayPass(unavailable) {
		t.Error("an agent that starts makes its socket")
	}
	c.trouble.note(connecting, nil)
	hostile := rpcstatus.Error(codes.Internal, "\x1b[2J"+strings.Repeat("ü", 5000))
	if err := c.explained(t.Context(), hostile); strings.Contains(err.Error(), "\x1b") || len(err.Error()) > 1100 {
		t.Errorf("%d bytes: %q", len(err.Error()), err)
	}
}

// TestNobodyIsHeardForEver: an agent that goes on and on is one that does not answer.
func TestNobodyIsHeardForEver(t *testing.T) {
	leakless(t)
	socket := agentSocketOf(t, newTold(shop()))
	for most, want := range map[int64]string{mostSaid: "", 1000: "more than anybody is to say"} {
		_, err := (&clientOptions{agent: socket, most: most}).scan(t.Context(), false)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("of %d bytes: %v", most, err)
		}
	}
}

func TestGetWaitsForTheFirstLook(t *testing.T) {
	leakless(t)
	feed := newTold(nil)
	path := filepath.Join(socketDir(t), "agent.sock")
	result := make(chan string)
	go func() {
		stdout, stderr, _ := capture(t, "get", "findings", "--wait", "--agent", "unix://"+path, "-o", "name")
		result <- stdout + stderr
	}()
	serveAgent(t, feed, listenUnix(t, path))
	feed.publish(*shop())
	if got := <-result; strings.Count(got, "finding/") != 5 {
		t.Error(got)
	}
}

// authority signs certificates for a test.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	dir  string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir()}
	a.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	a.cert, _ = x509.ParseCertificate(der)
	a.write(t, "ca.crt", "CERTIFICATE", der)
	return a
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

func (a *authority) write(t *testing.T, name, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(a.file(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (a *authority) sign(t *testing.T, name, host string, ends time.Time) {
	t.Helper()
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{host}, NotBefore: time.Now().Add(-time.Hour), NotAfter: ends,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	a.write(t, name+".crt", "CERTIFICATE", der)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	a.write(t, name+".key", "PRIVATE KEY", private)
}

func TestGetOverTLS(t *testing.T) {
	leakless(t)
	ours, foreign := newAuthority(t), newAuthority(t)
	later := time.Now().Add(time.Hour)
	ours.sign(t, "agent", "agent.test", later)
	ours.sign(t, "me", "me", later)
	ours.sign(t, "expired", "me", time.Now().Add(-time.Minute))
	foreign.sign(t, "me", "me", later)
	certificates, err := rpc.LoadCertificates(rpc.CertificateFiles{Certificate: ours.file("agent.crt"), Key: ours.file("agent.key"), ClientCA: ours.file("ca.crt")}, time.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	secured, err := rpc.ListenTLS("127.0.0.1:0", certificates)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := rpc.ListenPlaintext("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	feed := newTold(shop())
	serveAgent(t, feed, secured)
	serveAgent(t, feed, plain)
	port := secured.Addr().(*net.TCPAddr).Port
	for name, row := range map[string]struct {
		from             *authority
		cert, ca, server string
		at               int
		status           int
		says             string
	}{
		"it works":              {ours, "me", ours.file("ca.crt"), "agent.test", port, 0, ""},
		"another name":          {ours, "me", ours.file("ca.crt"), "", port, 1, "say which with --tls-server-name"},
		"another authority":     {ours, "me", foreign.file("ca.crt"), "agent.test", port, 1, "is not signed by --tls-ca"},
		"a foreign certificate": {foreign, "me", ours.file("ca.crt"), "agent.test", port, 1, "signed by an authority that the agent trusts"},
		"an expired one":        {ours, "expired", ours.file("ca.crt"), "agent.test", port, 1, "signed by an authority that the agent trusts"},
		"no certificate in it":  {ours, "me", ours.file("me.key"), "agent.test", port, 1, "has no certificate in PEM"},
		"TLS to plaintext":      {ours, "me", ours.file("ca.crt"), "agent.test", plain.Addr().(*net.TCPAddr).Port, 1, "does not speak TLS"},
	} {
		args := []string{
			"get", "node", "-o", "name", "--agent", "127.0.0.1:" + strconv.Itoa(row.at), "--tls-ca", row.ca,
			"--tls-cert", row.from.file(row.cert + ".crt"), "--tls-key", row.from.file(row.cert + ".key"),
		}
		if row.server != "" {
			args = append(args, "--tls-server-name", row.server)
		}
		stdout, stderr, status := capture(t, args...)
		if status != row.status || !strings.Contains(stderr, row.says) || status == 0 && stdout != "node/node-a\n" {
			t.Errorf("%s: status %d, %s%s; want %d and %q", name, status, stdout, stderr, row.status, row.says)
		}
	}
	if stdout, stderr, _ := capture(t, "get", "node", "-o", "name", "--plaintext", "--agent", plain.Addr().String()); stdout != "node/node-a\n" {
		t.Errorf("plaintext: %s%s", stdout, stderr)
	}
	if _, stderr, status := capture(t, "get", "node", "--plaintext", "--agent", secured.Addr().String()); status != 1 || stderr == "" {
		t.Errorf("plaintext to TLS: status %d, %s", status, stderr)
	}
}

// TestGetScan: the report of an agent is printed as one of our own would be.
func TestGetScan(t *testing.T) {
	leakless(t)
	report := shop()
	at := agentSocketOf(t, newTold(report))
	text, stderr, status := capture(t, "scan", "--agent", at, "-o", "json", "--fail-on", "critical")
	if status != exitFindings || !strings.Contains(stderr, "at or above --fail-on=critical") {
		t.Errorf("status %d, %s", status, stderr)
	}
	var got, want drift.Report
	var own strings.Builder
	if err := writeJSON(&own, *report); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(json.Unmarshal([]byte(text), &got), json.Unmarshal([]byte(own.String()), &want)); err != nil {
		t.Fatal(err)
	}
	got.TakenAt = want.TakenAt // told in UTC
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	text, stderr, status = capture(t, "scan", "--agent", at, "--namespace", "data", "--wide")
	if status != 0 || !strings.Contains(text, "unmanaged_container") || strings.Contains(text, "nginx") {
		t.Errorf("status %d, %s%s", status, text, stderr)
	}
}
