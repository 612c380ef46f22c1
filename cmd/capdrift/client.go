package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	rpcstatus "google.golang.org/grpc/status"

	v1 "github.com/capdrift/capdrift/api/capdrift/v1"
	"github.com/capdrift/capdrift/kube"
)

// agentSocket is where an agent listens unless it is told otherwise.
const agentSocket = "unix:///run/capdrift/agent.sock"

// clientOptions are the flags of every command that asks an agent.
type clientOptions struct {
	agent      string
	cert       string
	key        string
	authority  string
	serverName string
	plaintext  bool
	wait       bool
	timeout    time.Duration

	forward *forwarding // by which an agent in a cluster is reached; nil where agent says how
	most    int64       // how many bytes are taken of the agent; 0 for no bound
}

// clientFlags are their names, but for --agent itself.
var clientFlags = []string{"tls-cert", "tls-key", "tls-ca", "tls-server-name", "plaintext", "wait", "timeout"}

func (o *clientOptions) addFlags(cmd *cobra.Command, agent string, timeout time.Duration) {
	flags := cmd.Flags()
	what := "the agent to ask: unix:///path of its socket, or host:port"
	if agent == "" {
		what = "have an agent look, and not this program: unix:///path of its socket, or host:port"
	}
	flags.StringVar(&o.agent, "agent", agent, what)
	flags.StringVar(&o.cert, "tls-cert", "", "a file with our certificate for an agent at host:port")
	flags.StringVar(&o.key, "tls-key", "", "a file with the key of --tls-cert")
	flags.StringVar(&o.authority, "tls-ca", "", "a file with the certificates that the agent's must be signed by")
	flags.StringVar(&o.serverName, "tls-server-name", "", "the name that the agent's certificate is for (default: the host of --agent)")
	flags.BoolVar(&o.plaintext, "plaintext", false, "ask an agent at host:port without TLS; on the loopback only")
	flags.BoolVar(&o.wait, "wait", false, "wait until the agent runs and has looked at its node, at most for --timeout")
	flags.DurationVar(&o.timeout, "timeout", timeout, "how long all of it may take; 0 for no limit")
	for _, flag := range []string{"tls-cert", "tls-key", "tls-ca"} {
		if err := cmd.MarkFlagFilename(flag); err != nil {
			panic(err) // a flag of this name was just defined
		}
	}
	complete(cmd, "agent", agentSocket)
}

// program is how this program was called, for what it says of itself.
func (o *clientOptions) program() string {
	if o.forward != nil {
		return pluginName
	}
	return "capdrift"
}

func (o *clientOptions) validate() error {
	if o.timeout < 0 {
		return fmt.Errorf("--timeout=%s: want a time, or 0 for no limit", o.timeout)
	}
	network, address, err := o.address()
	if err != nil {
		return fmt.Errorf("--agent=%s: %w", printable(o.agent), err)
	}
	secured := 0
	for _, file := range []string{o.cert, o.key, o.authority} {
		if file != "" {
			secured++
		}
	}
	host, _, _ := net.SplitHostPort(address) // "" for a socket
	switch {
	case network == "unix" && (secured > 0 || o.serverName != "" || o.plaintext):
		return errors.New("--tls-cert, --tls-key, --tls-ca, --tls-server-name and --plaintext are of an --agent at host:port; a socket is guarded by its file mode")
	case network == "unix":
	case o.plaintext && (secured > 0 || o.serverName != ""):
		return errors.New("want either --plaintext or the --tls flags")
	case o.plaintext && !isLoopback(host):
		return fmt.Errorf("--plaintext is for the loopback only, and %s is elsewhere: give --tls-cert, --tls-key and --tls-ca", printable(host))
	case !o.plaintext && secured < 3:
		return errors.New("an --agent at host:port needs --tls-cert, --tls-key and --tls-ca (or --plaintext, on the loopback)")
	}
	return nil
}

// isLoopback believes the name localhost; what it stands for is seen to when dialing.
func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// address reads --agent.
func (o *clientOptions) address() (network, address string, err error) {
	if path, ok := strings.CutPrefix(o.agent, "unix://"); ok {
		if !filepath.IsAbs(path) {
			return "", "", errors.New("want unix:///path, with three slashes")
		}
		return "unix", path, nil
	}
	host, port, err := net.SplitHostPort(o.agent)
	if err != nil || host == "" {
		return "", "", errors.New("want unix:///path or host:port")
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", "", fmt.Errorf("the port %.20q is no number below 65536", port)
	}
	return "tcp", o.agent, nil
}

// within bounds a command's time by --timeout. It is no deadline, which gRPC would
// tell the agent: that could then end the call before we do, and seem to have failed.
func (o *clientOptions) within(ctx context.Context) (context.Context, context.CancelFunc) {
	return within(ctx, timeoutError{o.timeout, "--timeout"})
}

func within(ctx context.Context, limit timeoutError) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	if limit.after == 0 {
		return ctx, func() { cancel(nil) }
	}
	timer := time.AfterFunc(limit.after, func() { cancel(limit) })
	return ctx, func() { timer.Stop(); cancel(nil) }
}

// timeoutError is the end of the time that a flag gives.
type timeoutError struct {
	after time.Duration
	flag  string
}

func (e timeoutError) Error() string {
	return fmt.Sprintf("the agent has not answered within %s; give it more time with %s", e.after, e.flag)
}

var errInterrupted = errors.New("interrupted")

// client is a connection to an agent, made when it is first used.
type client struct {
	v1.AgentServiceClient
	options *clientOptions
	conn    *grpc.ClientConn
	trouble *trouble
}

func (c *client) close() { _ = c.conn.Close() } // nothing is written that could be lost

// dial makes a client. It reads the certificates, and connects to nobody yet.
func (o *clientOptions) dial() (_ *client, err error) {
	c := &client{options: o, trouble: &trouble{}}
	reach, secured, err := o.way(c.trouble)
	if err != nil {
		return nil, err
	}
	// The dialer knows where the agent is: no resolver is asked, of DNS or otherwise.
	c.conn, err = grpc.NewClient("passthrough:///agent", append(secured,
		grpc.WithNoProxy(), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			conn, err := reach(ctx)
			c.trouble.note(connecting, err)
			if err == nil && o.most > 0 {
				conn = &bounded{conn, o.most}
			}
			return conn, err
		}))...)
	if err != nil {
		return nil, err
	}
	c.AgentServiceClient = v1.NewAgentServiceClient(c.conn)
	return c, nil
}

// bounded is a connection on which only so much is heard.
type bounded struct {
	net.Conn
	left int64
}

func (b *bounded) Read(to []byte) (int, error) {
	if b.left <= 0 {
		return 0, errors.New("it has said more than anybody is to say")
	}
	n, err := b.Conn.Read(to[:min(int64(len(to)), b.left)])
	b.left -= int64(n)
	return n, err
}

// way is how the agent is reached, and how the connection is secured.
func (o *clientOptions) way(trouble *trouble) (reach func(context.Context) (net.Conn, error), secured []grpc.DialOption, err error) {
	plain := []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost")}
	if o.forward != nil { // within the API server's TLS
		return func(ctx context.Context) (net.Conn, error) { return o.forward.dial(ctx, trouble) }, plain, nil
	}
	network, address, err := o.address()
	if err != nil {
		return nil, nil, usageError{err}
	}
	dialer := &net.Dialer{}
	reach = func(ctx context.Context) (net.Conn, error) { return dialer.DialContext(ctx, network, address) }
	switch {
	case network == "unix":
		return reach, plain, nil
	case o.plaintext:
		dialer.Control = loopbackOnly
		return reach, plain, nil
	}
	config, err := o.tls(address)
	if err != nil {
		return nil, nil, err
	}
	return reach, []grpc.DialOption{grpc.WithTransportCredentials(noting{credentials.NewTLS(config), trouble})}, nil
}

func loopbackOnly(_, address string, _ syscall.RawConn) error {
	if host, _, _ := net.SplitHostPort(address); !isLoopback(host) {
		return fmt.Errorf("%s is not the loopback, and --plaintext is for that only", host)
	}
	return nil
}

// tls is mutual TLS 1.3, as agents speak it.
func (o *clientOptions) tls(address string) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(o.cert, o.key)
	if err != nil {
		return nil, fmt.Errorf("--tls-cert and --tls-key: %w", err)
	}
	pem, err := os.ReadFile(o.authority)
	if err != nil {
		return nil, fmt.Errorf("--tls-ca: %w", err)
	}
	authorities := x509.NewCertPool()
	if !authorities.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("--tls-ca: %s has no certificate in PEM", o.authority)
	}
	name := o.serverName
	if name == "" {
		name, _, _ = net.SplitHostPort(address)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, RootCAs: authorities, ServerName: name}, nil
}

// trouble remembers the error that gRPC then tells as text only.
type trouble struct {
	mu   sync.Mutex
	step step
	err  error
}

// step is how far a connection came.
type step int

const (
	connecting step = iota
	shakingHands
	refused // by the agent, after our side took its certificate
)

func (t *trouble) note(step step, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.step, t.err = step, err
}

func (t *trouble) last() (step, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.step, t.err
}

// noting tells of a handshake's errors. With TLS 1.3 our side's handshake is done
// before the agent has judged our certificate, so its answer is read later.
type noting struct {
	credentials.TransportCredentials
	trouble *trouble
}

func (n noting) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	secured, info, err := n.TransportCredentials.ClientHandshake(ctx, authority, conn)
	n.trouble.note(shakingHands, err)
	if err != nil {
		return nil, nil, err
	}
	return &refusable{Conn: secured, trouble: n.trouble}, info, nil
}

func (n noting) Clone() credentials.TransportCredentials {
	return noting{n.TransportCredentials.Clone(), n.trouble}
}

// refusable tells why a connection ends on which the agent has not said anything.
type refusable struct {
	net.Conn
	trouble *trouble
	heard   atomic.Bool
}

func (r *refusable) Read(to []byte) (int, error) {
	n, err := r.Conn.Read(to)
	if n > 0 {
		r.heard.Store(true)
	}
	r.note(err)
	return n, err
}

func (r *refusable) Write(from []byte) (int, error) {
	n, err := r.Conn.Write(from)
	r.note(err)
	return n, err
}

// note keeps an alert, which says more than that the connection is closed.
func (r *refusable) note(err error) {
	if err == nil || r.heard.Load() || errors.Is(err, net.ErrClosed) {
		return
	}
	if at, already := r.trouble.last(); at != refused || already == nil || isAlert(err) {
		r.trouble.note(refused, err)
	}
}

// isAlert tells whether it is what the other side said of our handshake; crypto/tls
// has no other name for it.
func isAlert(err error) bool {
	var of *net.OpError
	return errors.As(err, &of) && of.Op == "remote error"
}

// open makes a client; with --wait it returns when the agent has looked.
func (o *clientOptions) open(ctx context.Context) (*client, error) {
	answered := false
	for pause := (backoff{}); ; {
		c, err := o.dial()
		if err != nil || !o.wait {
			return c, err
		}
		node, err := c.GetNode(ctx, &v1.GetNodeRequest{})
		if err == nil && node.Look != nil {
			return c, nil
		}
		c.close()
		if err == nil {
			answered = true
		} else if ctx.Err() == nil && !c.mayPass(err) {
			return nil, c.explained(ctx, err)
		}
		if wait(ctx, pause.next()) == nil {
			continue
		}
		if late := (timeoutError{}); answered && errors.As(context.Cause(ctx), &late) {
			return nil, fmt.Errorf("the agent at %s has not looked at its node within --timeout=%s; its own log says why", printable(o.agent), o.timeout)
		}
		return nil, c.explained(ctx, cmp.Or(err, ctx.Err()))
	}
}

// backoff is the time to the next attempt: up to twice as long each time.
type backoff struct{ last time.Duration }

const firstPause, longestPause = 100 * time.Millisecond, 10 * time.Second

func (b *backoff) next() time.Duration {
	b.last = min(max(2*b.last, firstPause), longestPause)
	return b.last/2 + rand.N(b.last/2)
}

// mayPass tells whether an error is one that waiting may help against.
func (c *client) mayPass(err error) bool {
	if rpcstatus.Code(err) != codes.Unavailable {
		return false
	}
	step, cause := c.trouble.last()
	if c.options.forward != nil {
		var forbidden *kube.ForbiddenError
		return !errors.As(cause, &forbidden)
	}
	return cause == nil || step == connecting && !errors.Is(cause, fs.ErrPermission)
}

// explained is an error of a call as the user is told it: with the next move.
func (c *client) explained(ctx context.Context, err error) error {
	var late timeoutError
	switch cause := context.Cause(ctx); {
	case err == nil:
		return nil
	case errors.As(cause, &late):
		if step, trouble := c.trouble.last(); trouble != nil {
			return fmt.Errorf("%w (%w)", late, c.unconnected(step, trouble))
		}
		return late
	case cause != nil:
		return errInterrupted
	}
	answer, ok := rpcstatus.FromError(err)
	if !ok {
		return err
	}
	if step, trouble := c.trouble.last(); answer.Code() == codes.Unavailable && trouble != nil {
		return c.unconnected(step, trouble)
	}
	message := said(answer.Message())
	switch answer.Code() {
	case codes.Unavailable:
		if c.options.wait || c.options.forward != nil {
			return fmt.Errorf("the agent cannot answer now: %s", message)
		}
		return fmt.Errorf("the agent cannot answer now: %s; to wait for it, add --wait", message)
	case codes.ResourceExhausted:
		if filterTooCostly(err) {
			return usageError{fmt.Errorf("--filter: %s", message)}
		}
	case codes.InvalidArgument:
		if wrong := wrongFilter(answer); wrong != "" {
			return usageError{fmt.Errorf("--filter: %s", wrong)}
		}
		return fmt.Errorf("the agent does not understand the question: %s", message)
	case codes.Unimplemented:
		return fmt.Errorf("the agent cannot do this (perhaps it is of another version; %s get node tells): %s", c.options.program(), message)
	case codes.PermissionDenied, codes.Unauthenticated:
		return fmt.Errorf("the agent refuses to answer us: %s", message)
	}
	return fmt.Errorf("the agent answers %s: %s", answer.Code(), message)
}

// unconnected says why there is no connection.
func (c *client) unconnected(at step, cause error) error {
	if c.options.forward != nil {
		return c.options.forward.unconnected(at, cause)
	}
	network, address, _ := c.options.address()
	address = printable(address)
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	var plain tls.RecordHeaderError
	why := said(cause.Error())
	switch {
	case network == "unix" && errors.Is(cause, fs.ErrNotExist):
		return fmt.Errorf("there is no socket %s: is the agent running? Start it with 'capdrift agent', or say where it listens with --agent", address)
	case network == "unix" && errors.Is(cause, syscall.ECONNREFUSED):
		return fmt.Errorf("nobody listens at %s any more: is the agent running? Start it with 'capdrift agent'", address)
	case network == "unix" && errors.Is(cause, fs.ErrPermission):
		return fmt.Errorf("cannot open %s: permission denied; run as root, as the agent does", address)
	case errors.Is(cause, syscall.ECONNREFUSED):
		return fmt.Errorf("nobody listens at %s: is the agent running there, with api.tcp.address in its configuration?", address)
	case at == connecting:
		return fmt.Errorf("cannot reach the agent at %s: %s; say where it listens with --agent", address, why)
	case at == refused && !isAlert(cause):
		return fmt.Errorf("the agent at %s closed the connection when it had seen our certificate (%s), most likely because it refused it: --tls-cert must be valid now, and signed by an authority that the agent trusts", address, why)
	case at == refused:
		return fmt.Errorf("the agent at %s refused our certificate (%s): --tls-cert must be valid now, and signed by an authority that the agent trusts", address, why)
	case errors.As(cause, &unknown):
		return fmt.Errorf("the certificate of the agent at %s is not signed by --tls-ca (%s): give the authority's certificate", address, why)
	case errors.As(cause, &name):
		return fmt.Errorf("the certificate of the agent at %s is for another name (%s): say which with --tls-server-name", address, why)
	case errors.As(cause, &invalid):
		return fmt.Errorf("the certificate of the agent at %s is not valid (%s)", address, why)
	case errors.As(cause, &plain):
		return fmt.Errorf("whoever listens at %s does not speak TLS; an agent's plaintext port on the loopback is asked with --plaintext", address)
	}
	return fmt.Errorf("no TLS 1.3 connection to the agent at %s: %s", address, why)
}

// wrongFilter is what the agent says of --filter, line by line, with the place
// marked; "" if it says nothing of it.
func wrongFilter(answer *rpcstatus.Status) string {
	for _, detail := range answer.Details() {
		request, ok := detail.(*errdetails.BadRequest)
		if !ok {
			continue
		}
		for _, violation := range request.FieldViolations {
			if violation.Reason != "FILTER_INVALID" && !strings.HasSuffix(violation.Field, "filter") {
				continue
			}
			var lines []string
			for line := range strings.Lines(violation.Description) {
				lines = append(lines, said(strings.TrimSuffix(line, "\n")))
			}
			return strings.Join(lines[:min(len(lines), 20)], "\n")
		}
	}
	return ""
}

// filterTooCostly tells whether the agent gave up on our filter, as it would again.
func filterTooCostly(err error) bool {
	return slices.ContainsFunc(rpcstatus.Convert(err).Details(), func(detail any) bool {
		info, ok := detail.(*errdetails.ErrorInfo)
		return ok && info.Reason == "FILTER_TOO_COSTLY"
	})
}

// said is text of an agent, as much of it as anybody reads, safe to show.
func said(text string) string {
	const most = 1000
	if len(text) <= most {
		return printable(text)
	}
	cut := most
	for cut > 0 && !utf8.RuneStart(text[cut]) {
		cut--
	}
	return printable(text[:cut]) + "…"
}
