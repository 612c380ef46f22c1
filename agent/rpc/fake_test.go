package rpc_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/agent/rpc"
	v1 "github.com/capdrift/capdrift/api/capdrift/v1"
	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// feed is an agent.Feed that a test publishes to. It keeps everything from first
// on.
type feed struct {
	mu     sync.Mutex
	view   *agent.View
	kept   []agent.Change
	queue  int
	ended  chan *subscription // by their watchers
	active map[*subscription]bool
}

func newFeed() *feed {
	return &feed{queue: 1000, ended: make(chan *subscription, 100), active: map[*subscription]bool{}}
}

// publish makes the report the view, after the changes; their positions are the
// next ones.
func (f *feed) publish(report drift.Report, changes ...agent.Change) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at := agent.Position{BootID: "boot", Epoch: "epoch"}
	if f.view != nil {
		at = f.view.Position
	}
	for _, change := range changes {
		at.Sequence++
		change.Position, change.At = at, time.Unix(1_700_000_000+int64(at.Sequence), 0).UTC()
		f.kept = append(f.kept, change)
		for s := range f.active {
			if len(s.changes) == cap(s.changes) {
				s.end(agent.ErrSlow)
				continue
			}
			s.changes <- change
		}
	}
	f.view = &agent.View{Position: at, Report: report, Status: []agent.Component{{Name: "runtime", OK: true}, {Name: "journal", Why: "the disk is full"}}, Policy: &agent.PolicyStatus{
		Packs: []string{"cis", "own"}, Rules: 9, Since: time.Unix(1_700_000_000, 0), Pending: 1, Unknown: 3,
		Exceptions: []agent.ExceptionStatus{{Exception: agent.Exception{ID: "debugging", Expires: time.Unix(1_700_000_001, 0)}, State: agent.ExceptionExpired, Findings: 2}},
	}}
}

// forget drops what it kept.
func (f *feed) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.kept = nil
}

func (f *feed) View() (agent.View, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.view == nil {
		return agent.View{}, false
	}
	return *f.view, true
}

func (f *feed) Watch(after agent.Position) agent.Subscription {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := &subscription{feed: f, changes: make(chan agent.Change, f.queue)}
	now := f.view.Position
	keeps := len(f.kept) > 0 && f.kept[0].Position.Sequence <= after.Sequence+1 || after == now
	if after.BootID == now.BootID && after.Epoch == now.Epoch && after.Sequence <= now.Sequence && keeps {
		for _, change := range f.kept {
			if change.Position.Sequence > after.Sequence {
				s.changes <- change
			}
		}
	} else {
		s.view = f.view
	}
	f.active[s] = true
	return s
}

type subscription struct {
	feed    *feed
	view    *agent.View
	changes chan agent.Change
	err     error
}

func (s *subscription) end(err error) {
	if s.feed.active[s] {
		delete(s.feed.active, s)
		s.err = err
		close(s.changes)
	}
}

func (s *subscription) Snapshot() (agent.View, bool) {
	if s.view == nil {
		return agent.View{}, false
	}
	return *s.view, true
}

func (s *subscription) Changes() <-chan agent.Change { return s.changes }

func (s *subscription) Err() error {
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	return s.err
}

func (s *subscription) Close() {
	s.feed.mu.Lock()
	s.end(nil)
	s.feed.mu.Unlock()
	s.feed.ended <- s
}

// scanner is an rpc.Scanner of a function.
type scanner func(context.Context) (agent.View, error)

func (s scanner) Scan(ctx context.Context) (agent.View, error) { return s(ctx) }

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// serve serves until the test ends, or stop is called.
func serve(t *testing.T, f agent.Feed, options rpc.Options, listeners ...*rpc.Listener) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- rpc.NewServer(rpc.NewService(f, options), quiet()).Serve(ctx, listeners...) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func unixListener(t *testing.T) (*rpc.Listener, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.sock")
	listener, err := rpc.ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	return listener, "unix://" + path
}

// onSocket serves a feed on a unix socket and returns a connection to it.
func onSocket(t *testing.T, f agent.Feed, options rpc.Options) *grpc.ClientConn {
	t.Helper()
	listener, target := unixListener(t)
	serve(t, f, options, listener)
	return connect(t, target)
}

func connect(t *testing.T, target string, options ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	if len(options) == 0 {
		options = append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))
	}
	conn, err := grpc.NewClient(target, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// soon is a context that bounds what a test waits for.
func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// gather makes random reports whose fields are all on the wire.
type gather struct{ *rand.Rand }

func pick[T any](g gather, of ...T) T { return of[g.IntN(len(of))] }

func maybe[T any](g gather, value T) *T {
	if g.IntN(2) == 0 {
		return nil
	}
	return &value
}

func (g gather) word() string {
	return pick(g, "", "a", "web", "NET_ADMIN", "cap_bogus", "\x1b[31mred", "日本", "with space") + fmt.Sprint(g.IntN(1000))
}

func (g gather) comm() string { return pick(g, "sh", "\xff\xfe", "", "(sd-pam)", "a\nb") }

func (g gather) words() []string {
	list := []string{}
	for range g.IntN(4) {
		list = append(list, g.word())
	}
	return list
}

func (g gather) truth() bool { return g.IntN(2) == 0 }

func (g gather) set() capdecode.Set { return capdecode.Set(g.Uint64() & g.Uint64()) }

func (g gather) sets() capdecode.Sets {
	return capdecode.Sets{Inheritable: g.set(), Permitted: g.set(), Effective: g.set(), Bounding: g.set(), Ambient: g.set()}
}

func (g gather) pod() *drift.Pod {
	return maybe(g, drift.Pod{Namespace: g.word(), Name: g.word(), UID: g.word()})
}

func (g gather) oci() *drift.OCI {
	return maybe(g, drift.OCI{Sets: g.sets(), NoNewPrivileges: g.truth(), UID: g.Uint32(), UnknownNames: g.words(), UserNamespace: g.truth()})
}

func (g gather) observation() drift.Observation {
	return pick(g, drift.Observed, drift.Partial, drift.Vanished, drift.Unreadable, drift.Starting, drift.UnsupportedRuntime)
}

func (g gather) process(pid int) drift.Process {
	p := drift.Process{
		PID: pid, StartTime: g.Uint64(), ParentPID: g.IntN(1 << 22), Name: g.comm(), State: pick(g, "S", "R", "Z"), UID: g.Uint32(), UIDs: g.uids(),
		ContainerUID: maybe(g, g.Uint32()), NoNewPrivileges: maybe(g, g.truth()), Seccomp: maybe(g, g.IntN(3)),
		UserNamespace: drift.UserNamespace{
			Relation: pick(g, drift.RelationSame, drift.RelationChild, drift.RelationInitial, drift.RelationUnknown),
			Inode:    pick(g, 0, g.Uint64()),
		},
		Caps: g.sets(), Observation: pick(g, drift.Observed, drift.Starting, drift.Helper), ThreadCount: g.IntN(100),
	}
	for tid := range g.IntN(3) {
		p.Threads = append(p.Threads, g.thread(pid+tid+1))
	}
	return p
}

func (g gather) thread(tid int) drift.Thread {
	return drift.Thread{TID: tid, Name: g.comm(), UID: g.Uint32(), UIDs: g.uids(), NoNewPrivileges: maybe(g, g.truth()), Seccomp: maybe(g, g.IntN(3)), Caps: g.sets()}
}

func (g gather) uids() drift.UIDs {
	return pick(g, drift.UIDs{Untold: true}, drift.UIDs{Real: g.Uint32(), Effective: g.Uint32(), Saved: g.Uint32(), FileSystem: g.Uint32()})
}

func (g gather) time() time.Time { return time.Unix(g.Int64N(1<<32)+1, 5).UTC() }

func (g gather) evidence() *drift.Evidence {
	return maybe(g, drift.Evidence{
		StartedAt: maybe(g, g.time()), PID: g.IntN(3), ContainerPID: g.IntN(3), Cgroup: g.word(), Executable: g.word(),
		ExecutableSHA256: g.word(), ExecutableUnreadable: g.word(),
		Parent: maybe(g, drift.EvidenceParent{PID: g.IntN(3), Name: g.word(), StartedAt: maybe(g, g.time()), ContainerID: g.word(), Outside: g.truth()}),
	})
}

func (g gather) container(id string, processes int) drift.Container {
	c := drift.Container{
		ID: id, Name: g.word(), Image: g.word(), Pod: g.pod(), RuntimeHandler: g.word(), Sandbox: g.truth(), Managed: maybe(g, g.truth()),
		Origin: g.word(), Observation: g.observation(), Reason: g.word(), Processes: []drift.Process{}, InitPID: g.IntN(3),
		Created: pick(g, time.Time{}, time.Unix(g.Int64N(1<<32), 5).UTC()), Labels: pick(g, nil, g.words()), Ended: g.truth(),
	}
	c.Declared = drift.Declared{
		Pod: maybe(g, drift.PodSecurity{
			Role: pick(g, drift.RoleContainer, drift.RoleInit, drift.RoleSidecar, drift.RoleEphemeral), Add: g.words(), Drop: g.words(),
			Privileged: g.truth(), AllowPrivilegeEscalation: maybe(g, g.truth()), RunAsUser: maybe(g, g.Int64()), RunAsNonRoot: g.truth(),
			HostUsers: maybe(g, g.truth()), RuntimeClass: g.word(), Source: g.word(),
			SeccompProfile: maybe(g, g.word()), ReadOnlyRootFilesystem: maybe(g, g.truth()),
			PodLevel: drift.PodLevel{RunAsUser: maybe(g, g.Int64()), RunAsNonRoot: maybe(g, g.truth()), SeccompProfile: maybe(g, g.word())},
			PodFields: maybe(g, drift.PodFields{
				HostNetwork: g.truth(), HostPID: g.truth(), HostIPC: g.truth(), OS: g.word(), VolumeTypes: g.words(), Sysctls: g.words(),
				HostPorts: pick(g, []int64{}, []int64{80, g.Int64()}), ProbeHosts: g.words(), ProcMount: maybe(g, g.word()), WindowsHostProcess: g.truth(),
				AppArmorProfiles: g.words(), AppArmorAnnotations: g.words(), SeccompAnnotations: g.words(),
				SELinuxTypes: g.words(), SELinuxUsers: g.words(), SELinuxRoles: g.words(),
			}),
		}),
		CRI: maybe(g, drift.CRI{
			Add: g.words(), Drop: g.words(), AddAmbient: g.words(), Privileged: g.truth(), NoNewPrivileges: g.truth(),
			RunAsUser: maybe(g, g.Int64()), UserNamespace: g.truth(), SeccompProfile: maybe(g, g.word()), ReadOnlyRootFilesystem: g.truth(),
		}),
		OCI: g.oci(), Bundle: g.oci(), Privileged: maybe(g, g.truth()),
	}
	for i := range processes {
		c.Processes = append(c.Processes, g.process(10*i+1))
	}
	return c
}

func (g gather) finding(id string) drift.Finding {
	layer := func() drift.Layer {
		return pick(g, "", drift.LayerPod, drift.LayerCRI, drift.LayerOCI, drift.LayerKernel)
	}
	return drift.Finding{
		ID: id, Kind: pick(g, drift.BoundingExcess, drift.DropIgnored, "a_later_kind"), Severity: pick(g, drift.Severities()...),
		From: layer(), Layer: layer(), Cause: pick(g, "", drift.CausePrefix), RuntimeHandler: g.word(), ContainerID: g.word(), Container: g.word(),
		Pod: g.pod(), PID: g.IntN(3), TID: g.IntN(3), Set: pick(g, "", "bounding"), Capabilities: g.set(), Message: g.word(), Remedy: g.word(), Paste: g.word(),
		Rule: g.word(), Declared: pick(g, "", "pass", "fail"), Actual: pick(g, "", "unknown", "not_applicable"), Exception: pick(g, "", g.word()),
		Incident: pick(g, "", g.word()), StartTime: pick(g, 0, g.Uint64()), Processes: g.IntN(3), Evidence: g.evidence(),
	}
}

func (g gather) report(containers, findings int) drift.Report {
	n := func() int { return g.IntN(1000) }
	r := drift.Report{
		Schema:  drift.Schema,
		Node:    drift.Node{Name: g.word(), BootID: g.word(), Kernel: g.word(), CapLastCap: capdecode.Cap(g.IntN(64)), CgroupMode: pick(g, "v1", "hybrid", "v2"), BootTime: pick(g, time.Time{}, g.time())},
		Runtime: maybe(g, drift.Runtime{Name: g.word(), Version: g.word(), Endpoint: g.word()}),
		TakenAt: time.Unix(1_700_000_000+g.Int64N(1<<20), g.Int64N(1e9)).UTC(), DurationMs: g.Int64N(1 << 30),
		Coverage: drift.Coverage{
			Containers: drift.ContainerCoverage{Running: n(), Observed: n(), Partial: n(), Unreadable: n(), Unsupported: n()},
			Sandboxes:  drift.ContainerCoverage{Running: n(), Observed: n(), Partial: n(), Unreadable: n(), Unsupported: n()},
			Processes:  drift.ProcessCoverage{Observed: n(), Starting: n(), Vanished: n(), Unreadable: n()},
			Threads:    drift.ThreadCoverage{Observed: n(), Skipped: n()},
			Complete:   g.truth(), Limits: []drift.Limit{{What: g.word(), Why: g.word(), Blind: g.truth()}},
		},
		Containers: []drift.Container{}, Findings: []drift.Finding{},
	}
	for i := range containers {
		r.Containers = append(r.Containers, g.container(fmt.Sprintf("%04d", i), g.IntN(4)))
	}
	for i := range findings {
		r.Findings = append(r.Findings, g.finding(fmt.Sprintf("f%04d", i)))
	}
	return r
}

// gathered is a generator whose seed is told when the test fails.
func gathered(t *testing.T) gather {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return gather{rand.New(rand.NewPCG(seed, 0))}
}

// steady is one that always makes the same.
func steady() gather { return gather{rand.New(rand.NewPCG(1, 2))} }

// messages receives until the stream ends or the condition holds.
func messages(t *testing.T, stream v1.AgentService_WatchClient, until func(*v1.WatchResponse) bool) []*v1.WatchResponse {
	t.Helper()
	var list []*v1.WatchResponse
	for {
		message, err := stream.Recv()
		if err != nil {
			t.Fatalf("after %d messages: %v", len(list), err)
		}
		if message.ResumeToken == "" {
			t.Errorf("a message has no resume token: %v", message)
		}
		list = append(list, message)
		if until(message) {
			return list
		}
	}
}
