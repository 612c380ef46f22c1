package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/agent/metrics"
	"github.com/capdrift/capdrift/agent/rpc"
	"github.com/capdrift/capdrift/cri"
	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/journal"
	"github.com/capdrift/capdrift/proc"
)

// dialing is a runtime that is opened when it is first asked, and again after it
// could not be: an agent may start before its runtime.
type dialing struct {
	options cri.Options

	mu     sync.Mutex
	client *cri.Client
}

// runtime says which runtime is asked, and how.
func (c config) runtime() cri.Options {
	return cri.Options{Endpoint: c.Runtime.Endpoint, Places: c.Runtime.places(), Root: c.Node.HostRoot, Timeout: time.Duration(c.Runtime.Timeout)}
}

// Inventory implements [agent.Runtime].
func (d *dialing) Inventory(ctx context.Context) (drift.Inventory, error) {
	client, err := d.open(ctx)
	if err != nil {
		return drift.Inventory{}, err
	}
	return client.Inventory(ctx)
}

func (d *dialing) open(ctx context.Context) (*cri.Client, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.client == nil {
		client, err := cri.Connect(ctx, d.options)
		if err != nil {
			return nil, err
		}
		d.client = client
	}
	return d.client, nil
}

// Close implements [io.Closer].
func (d *dialing) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.client == nil {
		return nil
	}
	return d.client.Close()
}

// hints gives the loop what the runtime tells, as soon as there is a runtime, until
// the context ends.
func (d *dialing) hints(ctx context.Context, to chan<- drift.RuntimeEvent) error {
	defer close(to)
	client, err := d.open(ctx)
	for ; err != nil; client, err = d.open(ctx) {
		if wait(ctx, tryAgain) != nil {
			return nil
		}
	}
	for event := range client.Events(ctx) {
		select {
		case to <- drift.RuntimeEvent{Kind: hinted[event.Kind], ContainerID: cri.InventoryID(event.Namespace, event.ContainerID), PID: event.PID, Why: event.Why}:
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// tryAgain is how soon a runtime that could not be opened is tried again.
const tryAgain = time.Second

// hinted is what a runtime's events mean to the loop.
var hinted = map[cri.EventKind]drift.RuntimeEventKind{
	cri.ContainerCreated: drift.EventCreated, cri.Started: drift.EventStarted, cri.ExecStarted: drift.EventExecStarted,
	cri.Exited: drift.EventExited, cri.Deleted: drift.EventDeleted, cri.Overflow: drift.EventMissed,
	cri.Connected: drift.EventHeard, cri.Blind: drift.EventBlind, cri.Silent: drift.EventSilent,
}

// listeners opens all places where the agent is reached.
func listeners(c config, certificates *rpc.Certificates) (open []*rpc.Listener, err error) {
	add := func(listener *rpc.Listener, err error) error {
		if err == nil {
			open = append(open, listener)
		}
		return err
	}
	defer func() {
		if err != nil {
			for _, listener := range open {
				err = errors.Join(err, listener.Close())
			}
		}
	}()
	if socket := c.API.Socket; socket != "" {
		if err := os.MkdirAll(filepath.Dir(socket), 0o700); err != nil {
			return nil, fmt.Errorf("api.socket: %w", err)
		}
		if err := add(rpc.ListenUnix(socket)); err != nil {
			return nil, fmt.Errorf("api.socket: %w", err)
		}
	}
	if c.Health.Address != "" {
		if err := add(rpc.ListenProbes(c.Health.Address)); err != nil {
			return nil, fmt.Errorf("health.address: %w", err)
		}
	}
	if address := c.API.Plaintext; address != "" {
		if err := add(rpc.ListenPlaintext(address)); err != nil {
			return nil, fmt.Errorf("api.plaintextLoopback: %w", err)
		}
	}
	if certificates != nil {
		if err := add(rpc.ListenTLS(c.API.TCP.Address, certificates)); err != nil {
			return nil, fmt.Errorf("api.tcp: %w", err)
		}
	}
	return open, nil
}

// newEpoch names one run of the agent.
func newEpoch() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// serveMetrics answers scrapes until the context ends.
func serveMetrics(ctx context.Context, address string, handler http.Handler) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("metrics.address: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", handler)
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serving metrics: %w", err)
	case <-ctx.Done():
	}
	if err := server.Close(); err != nil {
		return fmt.Errorf("ending metrics: %w", err)
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving metrics: %w", err)
	}
	return nil
}

// openJournal opens the journal and returns what was open when the agent ended last. An
// agent whose disk fails still watches, and says so: only another agent ends it.
func openJournal(c journalConfig, log *slog.Logger) (*recorder, former, error) {
	if c.Dir == "" {
		return nil, former{}, nil
	}
	r := &recorder{now: time.Now, open: func(readOnly bool) (*journal.Journal, error) {
		opened, found, err := journal.Open(c.Dir, journal.Options{
			MaxBytes: c.MaxBytes, ReadOnly: readOnly, Writer: "capdrift " + versionText(), Classify: classify,
		})
		if err == nil && len(found.Damage) > 0 {
			log.Warn("the journal was damaged", "damage", found.Damage, "lost", found.Lost, "setAside", found.SetAside)
		}
		if err == nil && found.Form != 0 {
			log.Info("the journal of an older release was carried over", "records", found.Records, "state", found.State)
		}
		return opened, err
	}}
	before, err := r.begin()
	switch {
	case errors.Is(err, journal.ErrLocked):
		return nil, former{}, fmt.Errorf("journal.dir: %w: another agent runs on this node", err)
	case err != nil:
		log.Error("the journal cannot be opened, so nothing is remembered until it can", "dir", c.Dir, "error", err)
	default:
		records, bytes := r.Depth()
		log.Info("the journal is open", "dir", c.Dir, "records", records, "bytes", bytes)
	}
	for _, err := range before.unreadable {
		log.Warn("left out", "error", err)
	}
	return r, before, nil
}

// certificates reads those of the API over TCP; nil where there is none.
func (c tcpConfig) certificates(log *slog.Logger) (*rpc.Certificates, error) {
	if c.Address == "" {
		return nil, nil
	}
	read, err := rpc.LoadCertificates(rpc.CertificateFiles{Certificate: c.CertFile, Key: c.KeyFile, ClientCA: c.CAFile}, time.Now, log)
	if err != nil {
		return nil, fmt.Errorf("api.tcp: %w", err)
	}
	return read, nil
}

// sweepTime is the processor time that a sweep of the agent may take to read processes.
// Four of them in a minute and the threads' time of the fourth are a twentieth of a core;
// a node of 5,000 ordinary processes takes half of it.
const sweepTime = 550 * time.Millisecond

// firstSweepTime is for the first one, which is several times as costly.
const firstSweepTime = 5 * time.Second

// parts are what an agent is made of.
type parts struct {
	loop         *agent.Loop
	metrics      *metrics.Metrics
	server       *rpc.Server
	certificates *rpc.Certificates // of the API over TCP; nil for none
	hints        func(context.Context) error
	close        func() error
	refused      error // why the policy was not taken
}

// assemble builds the agent of its configuration.
func assemble(c config, log *slog.Logger) (parts, error) {
	given, err := c.given()
	if err != nil {
		return parts{}, err
	}
	certificates, err := c.API.TCP.certificates(log)
	if err != nil {
		return parts{}, err
	}
	kept, before, err := openJournal(c.Journal, log)
	if err != nil {
		return parts{}, err
	}
	runtime := &dialing{options: c.runtime()}
	host := named{proc.New(c.Node.HostRoot, proc.Options{LeadersOnly: true, Readers: 1, Time: sweepTime, FirstTime: firstSweepTime}), c.Node.Name}
	thorough := named{host.With(proc.Options{Threads: threadBudget, Readers: 1, Time: sweepTime, FirstTime: firstSweepTime}), c.Node.Name}
	members := host.Members()

	var loop *agent.Loop
	var stored metrics.Stored
	var inner agent.Journal
	rules, refused := c.Policy.read()
	switch {
	case rules != nil:
		log.Info("the policy is in force", "packs", c.Policy.Packs, "exceptions", c.Policy.Exceptions)
	case refused != nil:
		// A node is watched all the same: what was found by rules before stays open.
		log.Error("the policy cannot be read, so no rule is judged until it can", "error", refused)
	}
	config := agent.Loop{Given: given, Policy: agent.PolicyUpdate{Policy: rules, Err: briefError(refused)}, Cadence: c.cadence(), Epoch: newEpoch(), Now: time.Now, Used: processorTime, After: time.After}
	if kept != nil {
		stored, inner = kept, kept
		config.Open, config.BootID, config.Former = before.open, before.bootID, before.containers
	}
	counted := metrics.New(versionText(), time.Now, func() (agent.View, bool) { return loop.View() }, stored)
	config.Host, config.Runtime = counted.Host(host), counted.Runtime(runtime)
	config.Threads = counted.Host(thorough)
	config.Members, config.Journal = counted.Members(following{members}), counted.Journal(inner)
	events := make(chan drift.RuntimeEvent)
	config.Events = events
	loop = agent.NewLoop(config)
	service := rpc.NewService(loop, rpc.Options{
		Identity: rpc.Identity{Version: versionText(), Started: time.Now(), NodeName: c.Node.Name}, Scanner: loop, Now: time.Now,
	})
	hints := func(ctx context.Context) error { return runtime.hints(ctx, events) }
	return parts{loop, counted, rpc.NewServer(service, log), certificates, hints, func() error {
		err := errors.Join(members.Close(), runtime.Close())
		if kept != nil {
			err = errors.Join(err, kept.Close())
		}
		return err
	}, refused}, nil
}

// following hands the loop what [proc.Members] tells, in the loop's nouns.
type following struct{ *proc.Members }

// Changes implements [agent.Members].
func (f following) Changes(ctx context.Context) ([]drift.MembershipChange, error) {
	changes, err := f.Members.Changes(ctx)
	told := make([]drift.MembershipChange, 0, len(changes))
	for _, c := range changes {
		told = append(told, drift.MembershipChange{ContainerID: c.ContainerID, Appeared: c.Appeared, Gone: c.Gone, Missed: c.Missed})
	}
	return told, err
}

// Read implements [agent.Members].
func (f following) Read(ctx context.Context, id string, pids []int) ([]drift.Process, error) {
	read, _, err := f.Members.Read(ctx, id, pids)
	return read, err
}

// named is a host that is called as the configuration says.
type named struct {
	*proc.FS
	name string
}

// Node implements [agent.Host].
func (n named) Node() (drift.Node, []drift.Limit, error) {
	node, limits, err := n.FS.Node()
	if n.name != "" {
		node.Name = n.name
	}
	return node, limits, err
}

// run runs an agent, and what goes beside its loop, until the context ends.
func (p parts) run(ctx context.Context, c config, beside ...func(context.Context) error) (err error) {
	defer func() { err = errors.Join(err, p.close()) }()
	open, err := listeners(c, p.certificates)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return p.loop.Run(ctx) })
	group.Go(func() error { return p.hints(ctx) })
	group.Go(func() error { return p.server.Serve(ctx, open...) })
	for _, work := range beside {
		group.Go(func() error { return work(ctx) })
	}
	if c.Metrics.Address != "" {
		group.Go(func() error { return serveMetrics(ctx, c.Metrics.Address, p.metrics.Handler()) })
	}
	return group.Wait()
}

// processorTime is what this process has used; getrusage(2).
func processorTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
