// Package cri asks a node's container runtime which containers run and what was
// declared for each: over CRI v1 on any runtime, and over containerd's own API
// for the containers that no pod explains.
//
// Read it in this order: [Connect] finds the runtime, [Client.Inventory] asks
// it, list.go takes its lists, learn.go learns what was declared and from where, info.go, spec.go and config.go decode
// the answers, prune.go and wire.go read them without holding them, containerd.go looks
// beside the CRI,
// [Client.Events] listens for when to ask again.
//
// # Promises
//
// Only calls that read are made: Version, Status, the lists (also as streams) and the statuses, and List
// and Get of containerd's API (namespaces, tasks, containers); and one that listens, Subscribe of containerd's or
// GetContainerEvents of CRI-O. Every call but that one has a deadline, and a bound on
// the size of its answer. The environment and the arguments of a container, which a
// verbose status carries, are never decoded, returned or quoted in an error.
// One container that cannot be read never hides the others, and is not hidden itself by
// what its pod's author wrote: an answer that is too large to send is asked for in gzip and
// read as a stream, and what it would have told is looked for elsewhere ([drift.Container]
// says in Undeclared where it was not found).
package cri

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/drift"
)

// What [Connect] can fail with, beside the errors of opening a socket
// ([fs.ErrNotExist], [fs.ErrPermission], [syscall.ECONNREFUSED]) and
// [context.DeadlineExceeded] from a runtime that hangs.
var (
	ErrEndpoint  = errors.New("want unix:///path/to/runtime.sock or an absolute path")
	ErrNoRuntime = errors.New("no container runtime socket found")
	ErrNotCRIv1  = errors.New("does not serve CRI v1")
)

// usualPlaces are the sockets of the runtimes that Kubernetes nodes run, in the
// order in which crictl probes the first three (cri-tools cmd/crictl/main_unix.go);
// then k3s and RKE2, k0s, MicroK8s.
var usualPlaces = []string{
	"/run/containerd/containerd.sock",
	"/run/crio/crio.sock",
	"/run/cri-dockerd.sock",
	"/run/k3s/containerd/containerd.sock",
	"/run/k0s/containerd.sock",
	"/var/snap/microk8s/common/run/containerd.sock",
}

// maxList bounds the answer to a list; the kubelet and containerd take as much
// (cri-client pkg/utils.go, containerd defaults/defaults.go).
const maxList = 16 << 20

// Options say which runtime to ask, and how. The zero value finds one.
type Options struct {
	Endpoint string        // unix:///run/containerd/containerd.sock or a path; empty to look in the usual places
	Places   []string      // paths of sockets to look in without an Endpoint, instead of the usual places
	Root     string        // of the node's files: the usual places and the bundles are below it; empty for /
	Timeout  time.Duration // of each call; 10 s when zero
	Parallel int           // status calls under way at once; 16 when zero
}

// Client asks one runtime. It may be used by several goroutines; inventories are
// taken one after the other.
type Client struct {
	path     string
	root     string        // of the node's files, where bundles are
	peer     *atomic.Int64 // the pid that listens on the socket; 0 when it cannot be told
	conn     *grpc.ClientConn
	cri      runtimeapi.RuntimeServiceClient
	timeout  time.Duration
	parallel int
	passed   []drift.Limit // further runtimes on this node, which are not asked

	starts starts // of tasks in the CRI's namespace

	// What this runtime's lists were found to be, until it is connected to anew: too large
	// for one answer, and not told as a stream.
	wide, streamless *atomic.Bool

	large turns // of the one call whose answer may be large

	mu         sync.Mutex
	containerd bool             // it is one, with an API of its own
	bundles    string           // where the bundles' config.json are, for {namespace} and {id}; empty when not known
	known      map[string]facts // by [subject.key]: what was told, once per container
	failures   map[string]failure
}

// Connect opens the endpoint, or the first of the usual places where a runtime
// serves CRI v1. The context bounds Connect alone, not the client.
func Connect(ctx context.Context, o Options) (*Client, error) {
	if o.Timeout <= 0 {
		o.Timeout = 10 * time.Second
	}
	if o.Parallel <= 0 {
		o.Parallel = 16
	}
	if o.Endpoint == "" {
		return find(ctx, o)
	}
	path, hasScheme := strings.CutPrefix(o.Endpoint, "unix://")
	if !filepath.IsAbs(path) || (!hasScheme && strings.Contains(path, "://")) {
		return nil, fmt.Errorf("endpoint %.100q: %w", o.Endpoint, ErrEndpoint)
	}
	return connect(ctx, filepath.Clean(path), o)
}

// find takes the first place that serves CRI v1 and remembers the others that
// are in use. Docker's containerd comes first in the order and has no CRI, so a
// place that fails does not end the search.
func find(ctx context.Context, o Options) (*Client, error) {
	var found *Client
	var passed []drift.Limit
	var failures []error
	places := o.Places
	if len(places) == 0 {
		for _, place := range usualPlaces {
			places = append(places, filepath.Join("/", o.Root, place))
		}
	}
	for _, path := range places {
		var err error
		if found == nil {
			found, err = connect(ctx, path, o)
			if err == nil {
				continue
			}
		} else if err = probe(ctx, path, o.Timeout); err == nil {
			err = fmt.Errorf("%s was asked instead; to ask this one, scan again with --cri-endpoint", found.endpoint())
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		failures = append(failures, err)
		// A socket where nobody listens is a leftover, and hides nothing.
		if !errors.Is(err, syscall.ECONNREFUSED) {
			passed = append(passed, drift.Limit{What: "containers of the runtime at " + path, Why: err.Error(), Blind: true, Code: drift.GapOtherRuntime, Object: path})
		}
	}
	switch {
	case found != nil:
		found.passed = passed
		return found, nil
	case len(failures) == 0 && len(o.Places) > 0:
		return nil, fmt.Errorf("%w: looked for %s", ErrNoRuntime, strings.Join(o.Places, ", "))
	case len(failures) == 0:
		return nil, fmt.Errorf("%w under %s: looked for %s; name one with --cri-endpoint",
			ErrNoRuntime, filepath.Join("/", o.Root), strings.Join(usualPlaces, ", "))
	case len(failures) == 1:
		return nil, failures[0]
	}
	return nil, fmt.Errorf("none of the runtimes on this node can be asked: %w", oneLine(failures))
}

// oneLine is a joined error that stays on one line.
type oneLine []error

func (e oneLine) Unwrap() []error { return e }

func (e oneLine) Error() string {
	texts := make([]string, len(e))
	for i, err := range e {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

func connect(ctx context.Context, path string, o Options) (*Client, error) {
	if err := probe(ctx, path, o.Timeout); err != nil {
		return nil, err
	}
	peer, wide, streamless := new(atomic.Int64), new(atomic.Bool), new(atomic.Bool)
	// Not the unix: resolver of gRPC, which would take a path for a URL.
	conn, err := grpc.NewClient("passthrough:///localhost",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			socket, err := new(net.Dialer).DialContext(ctx, "unix", path)
			// A runtime that restarts is another process, and may be of another version.
			peer.Store(int64(listener(socket)))
			wide.Store(false)
			streamless.Store(false)
			return socket, err
		}),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		// A runtime that restarts is back within seconds; the default waits minutes.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
			MinConnectTimeout: 2 * o.Timeout, // so that a silent runtime is met as a call without an answer
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxList)),
	)
	if err != nil {
		return nil, fmt.Errorf("cannot open %s: %w", path, err)
	}
	c := &Client{
		path: path, root: o.Root, peer: peer, conn: conn, cri: runtimeapi.NewRuntimeServiceClient(conn),
		wide: wide, streamless: streamless, timeout: o.Timeout, parallel: o.Parallel, large: turns{one: make(chan struct{}, 1)},
	}
	if _, err := c.version(ctx); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return c, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

func (c *Client) endpoint() string { return "unix://" + c.path }

// version asks who answers and makes sure that it speaks CRI v1.
func (c *Client) version(ctx context.Context) (drift.Runtime, error) {
	answer, err := call(ctx, c, c.cri.Version, &runtimeapi.VersionRequest{})
	switch {
	case errors.Is(err, errUnimplemented):
		return drift.Runtime{}, fmt.Errorf("%s %w: capdrift needs containerd 1.6, CRI-O 1.20, cri-dockerd 0.3 or newer "+
			"(and no \"cri\" among the disabled_plugins of containerd's config.toml); name another socket with --cri-endpoint", c.path, ErrNotCRIv1)
	case err != nil:
		return drift.Runtime{}, err
	case answer.GetRuntimeApiVersion() != "v1":
		return drift.Runtime{}, fmt.Errorf("%s %w: it says version %.20q; capdrift needs containerd 1.6, CRI-O 1.20, cri-dockerd 0.3 or newer; "+
			"name another socket with --cri-endpoint", c.path, ErrNotCRIv1, answer.GetRuntimeApiVersion())
	}
	return drift.Runtime{
		Name: clip(answer.GetRuntimeName()), Version: clip(answer.GetRuntimeVersion()), Endpoint: c.endpoint(),
		PID: int(c.peer.Load()),
	}, nil
}

// probe opens the socket and closes it: unlike gRPC it tells why it could not.
func probe(ctx context.Context, path string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err == nil {
		return conn.Close()
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		err = errno
	}
	advice := "name another socket with --cri-endpoint"
	switch {
	case errors.Is(err, fs.ErrPermission):
		advice = "run as root, or " + advice
	case errors.Is(err, fs.ErrNotExist):
		advice = "start the runtime, or " + advice
	case errors.Is(err, syscall.ECONNREFUSED):
		advice = "nobody listens there: start the runtime, or " + advice
	}
	return fmt.Errorf("cannot open %s: %w; %s", path, err, advice)
}

// listener returns the pid of the process that listens on the socket, in this
// process's pid namespace, and 0 when it is in none that can be seen from here;
// SO_PEERCRED, unix(7).
func listener(socket net.Conn) (pid int) {
	conn, ok := socket.(*net.UnixConn)
	if !ok {
		return 0
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0
	}
	err = raw.Control(func(fd uintptr) {
		if peer, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(peer.Pid)
		}
	})
	if err != nil {
		return 0
	}
	return pid
}

// What a call can fail with that callers tell apart.
var (
	errVanished      = errors.New("it is gone")
	errTooLarge      = errors.New("the answer is too large")
	errUnimplemented = errors.New("the runtime does not serve this call")
)

// call makes one call within the client's timeout.
func call[Request proto.Message, Answer any](
	ctx context.Context, c *Client, method func(context.Context, Request, ...grpc.CallOption) (Answer, error),
	request Request, options ...grpc.CallOption,
) (Answer, error) {
	bounded, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	answer, err := method(bounded, request, options...)
	if err == nil {
		return answer, nil
	}
	name := strings.TrimSuffix(string(request.ProtoReflect().Descriptor().Name()), "Request")
	if ctx.Err() != nil {
		return answer, fmt.Errorf("%s: %s: %w", c.path, name, ctx.Err())
	}
	// The status text is the runtime's: bounded, and quoted against terminal escapes.
	switch s := status.Convert(err); s.Code() {
	case codes.DeadlineExceeded:
		err = fmt.Errorf("no answer within %v: %w; the runtime hangs or is overloaded", c.timeout, context.DeadlineExceeded)
	case codes.NotFound:
		err = errVanished
	case codes.Unimplemented:
		err = errUnimplemented
	case codes.PermissionDenied:
		err = fmt.Errorf("%w: %.200q", fs.ErrPermission, s.Message())
	case codes.ResourceExhausted:
		err = fmt.Errorf("%w: %.200q", errTooLarge, s.Message())
	case codes.Unavailable:
		if down := probe(ctx, c.path, c.timeout); down != nil {
			return answer, down
		}
		err = fmt.Errorf("the connection failed: %.200q", s.Message())
	default:
		err = fmt.Errorf("%v: %.200q", s.Code(), s.Message())
	}
	return answer, fmt.Errorf("%s: %s: %w", c.path, name, err)
}

// clip bounds a text that somebody else chose.
func clip(text string) string {
	const most = 256
	if len(text) > most {
		return strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}
