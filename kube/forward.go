package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/portforward"
	"k8s.io/client-go/rest"
	sockettransport "k8s.io/client-go/transport/websocket"
	streams "k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	kjson "sigs.k8s.io/json"
)

// The headers of a forwarded port's two streams (k8s.io/api/core/v1, types.go).
const (
	streamType  = "streamType"
	streamError = "error"
	streamData  = "data"
	streamPort  = "port"
	streamID    = "requestID"
)

const (
	pingEvery  = 5 * time.Second  // as kubectl does, for balancers that end what is silent
	writeLimit = 30 * time.Second // for as much as one write of gRPC's
	maxRefusal = 4 << 10          // of what a kubelet says went wrong
)

// forwarded is a port of a pod's loopback as a connection. Nobody listens on this
// side: what is read and written are the streams themselves, so that nobody else
// on this machine can use them.
type forwarded struct {
	data io.ReadWriteCloser
	said chan struct{} // closed when the kubelet has said all that it will
	end  func()

	mu      sync.Mutex
	closed  bool
	refusal error // what the kubelet said went wrong
}

// Dial forwards the agent's port, by WebSocket where the API server speaks it
// (Kubernetes 1.31), otherwise by SPDY. What it takes is the user's right to
// create pods/portforward.
func (c *Cluster) Dial(ctx context.Context, pod AgentPod) (net.Conn, error) {
	type answer struct {
		conn net.Conn
		err  error
	}
	done := make(chan answer, 1)
	go func() { // what SPDY does on its way has no context
		conn, err := c.forward(ctx, pod)
		done <- answer{conn, err}
	}()
	select {
	case a := <-done:
		return a.conn, a.err
	case <-ctx.Done():
		go func() { // nobody waits for it any more
			if late := <-done; late.err == nil {
				_ = late.conn.Close()
			}
		}()
		return nil, context.Cause(ctx)
	}
}

func (c *Cluster) forward(ctx context.Context, pod AgentPod) (net.Conn, error) {
	place := c.client.Post().Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("portforward").URL()
	carrier, end, err := c.overSocket(ctx, place)
	if streams.IsUpgradeFailure(err) || streams.IsHTTPSProxyError(err) {
		bySocket := err
		if carrier, end, err = c.overSPDY(ctx, place); err != nil && isForbidden(bySocket) {
			err = bySocket
		}
	}
	if err != nil {
		return nil, c.unforwarded(ctx, pod, err)
	}
	conn, err := open(carrier, end, pod.Port)
	if err != nil {
		end()
		return nil, fmt.Errorf("the kubelet of node %s does not open the port %d of pod %s/%s: %s", shown(pod.Node), pod.Port, shown(pod.Namespace), shown(pod.Name), shown(err.Error()))
	}
	return conn, nil
}

// overSocket tunnels SPDY through a WebSocket.
func (c *Cluster) overSocket(ctx context.Context, place *url.URL) (streams.Connection, func(), error) {
	transport, holder, err := sockettransport.RoundTripperFor(c.config)
	if err != nil {
		return nil, nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, place.String(), nil)
	if err != nil {
		return nil, nil, err
	}
	socket, err := sockettransport.Negotiate(transport, holder, request, portforward.WebsocketsSPDYTunnelingPortForwardV1)
	if err != nil {
		return nil, nil, err
	}
	through := &tunnel{Conn: socket}
	carrier, err := spdy.NewClientConnectionWithPings(through, pingEvery)
	if err != nil {
		return nil, nil, err
	}
	return carrier, func() { _ = carrier.Close(); _ = through.Close() }, nil
}

func (c *Cluster) overSPDY(ctx context.Context, place *url.URL) (streams.Connection, func(), error) {
	config, err := rest.TLSConfigFor(c.config)
	if err != nil {
		return nil, nil, err
	}
	upgrade, err := spdy.NewRoundTripperWithConfig(spdy.RoundTripperConfig{TLS: config, Proxier: c.config.Proxy, PingPeriod: pingEvery})
	if err != nil {
		return nil, nil, err
	}
	transport, err := rest.HTTPWrappersForConfig(c.config, upgrade)
	if err != nil {
		return nil, nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, place.String(), nil)
	if err != nil {
		return nil, nil, err
	}
	request.Header.Set(streams.HeaderProtocolVersion, portforward.PortForwardV1Name)
	answer, err := transport.RoundTrip(request)
	if err != nil {
		return nil, nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusSwitchingProtocols {
		return nil, nil, refusal(answer)
	}
	carrier, err := upgrade.NewConnection(answer)
	if err != nil {
		return nil, nil, err
	}
	return carrier, func() { _ = carrier.Close() }, nil
}

// refusal is what an API server says that forwards no port.
func refusal(answer *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(answer.Body, maxRefusal)) // the status says enough
	var told metav1.Status
	if kjson.UnmarshalCaseSensitivePreserveInts(text, &told) == nil && told.Kind == "Status" && told.Message != "" {
		told.Code = int32(answer.StatusCode)
		return &apierrors.StatusError{ErrStatus: told}
	}
	return apierrors.NewGenericServerResponse(answer.StatusCode, "create", schema.GroupResource{Resource: portForward}, "", string(text), 0, true)
}

// open asks for the port: one stream for errors, one for data.
func open(carrier streams.Connection, end func(), port int) (*forwarded, error) {
	headers := http.Header{}
	headers.Set(streamType, streamError)
	headers.Set(streamPort, strconv.Itoa(port))
	headers.Set(streamID, "0")
	failures, err := carrier.CreateStream(headers)
	if err != nil {
		return nil, err
	}
	_ = failures.Close() // our half: nothing is written there
	headers.Set(streamType, streamData)
	data, err := carrier.CreateStream(headers)
	if err != nil {
		return nil, err
	}
	f := &forwarded{data: data, said: make(chan struct{})}
	f.end = sync.OnceFunc(func() {
		_ = data.Reset()
		_ = failures.Reset()
		end()
	})
	go f.listen(failures)
	return f, nil
}

// listen waits for what the kubelet says went wrong. Then nothing more will come.
func (f *forwarded) listen(failures io.Reader) {
	defer close(f.said)
	text, _ := io.ReadAll(io.LimitReader(failures, maxRefusal)) // an end of any kind is the end of what is said
	if len(text) == 0 {
		return
	}
	f.mu.Lock()
	f.refusal = fmt.Errorf("the kubelet says: %s", shown(string(text)))
	f.mu.Unlock()
	f.end()
}

func (f *forwarded) Read(to []byte) (int, error) {
	n, err := f.data.Read(to)
	return n, f.why(err)
}

func (f *forwarded) Write(from []byte) (int, error) {
	n, err := f.data.Write(from)
	return n, f.why(err)
}

// why says what is behind the end of a stream.
func (f *forwarded) why(err error) error {
	if err == nil {
		return nil
	}
	// What went wrong was said before the end, and may still be on its way to listen.
	late := time.NewTimer(time.Second)
	defer late.Stop()
	select {
	case <-f.said:
	case <-late.C:
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return net.ErrClosed
	case f.refusal != nil:
		return f.refusal
	}
	return err
}

// Close ends both streams and what carries them.
func (f *forwarded) Close() error {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.end()
	return nil
}

// The streams have neither addresses nor deadlines: gRPC needs none.

func (f *forwarded) LocalAddr() net.Addr              { return &net.UnixAddr{Name: "forwarded", Net: "unix"} }
func (f *forwarded) RemoteAddr() net.Addr             { return f.LocalAddr() }
func (f *forwarded) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (f *forwarded) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (f *forwarded) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

// tunnel makes of a WebSocket's messages the bytes of a connection.
type tunnel struct {
	*websocket.Conn
	message io.Reader // the one that is being read, nil between two
}

func (t *tunnel) Read(to []byte) (int, error) {
	for {
		if t.message == nil {
			kind, message, err := t.NextReader()
			switch {
			case websocket.IsCloseError(err, websocket.CloseNormalClosure):
				return 0, io.EOF
			case err != nil:
				return 0, err
			case kind != websocket.BinaryMessage:
				return 0, errors.New("a message that is not binary came through the tunnel")
			}
			t.message = message
		}
		n, err := t.message.Read(to)
		if n > 0 || err == nil {
			return n, nil
		}
		if !errors.Is(err, io.EOF) {
			return 0, err
		}
		t.message = nil
	}
}

func (t *tunnel) Write(from []byte) (int, error) {
	if err := t.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil {
		return 0, err
	}
	if err := t.WriteMessage(websocket.BinaryMessage, from); err != nil {
		return 0, err
	}
	return len(from), nil
}

// Close is no failure the second time: whoever carries streams would wait a second
// for somebody to hear of it.
func (t *tunnel) Close() error {
	_ = t.Conn.Close()
	return nil
}

func (t *tunnel) SetDeadline(at time.Time) error {
	return errors.Join(t.SetReadDeadline(at), t.SetWriteDeadline(at))
}
