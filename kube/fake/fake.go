// Package fake is an API server for tests: lists, and ports that are forwarded as
// the real one and a kubelet do it, by WebSocket and by SPDY.
package fake

import (
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"k8s.io/apimachinery/pkg/util/portforward"
	streams "k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// Token is what the only user shows.
const Token = "a-token"

// Object is one object, as JSON has it.
type Object map[string]any

// at follows a path of fields; nil where it ends.
func (o Object) at(path ...string) any {
	var value any = map[string]any(o)
	for _, field := range path {
		inner, ok := value.(map[string]any)
		if !ok {
			return nil
		}
		value = inner[field]
	}
	return value
}

// Cluster is what the API server knows and does. Set its fields before it serves;
// later use its methods.
type Cluster struct {
	// Dial connects to a pod's port; nil for no pod that answers.
	Dial func(namespace, pod string, port int) (net.Conn, error)
	// Forbidden are the resources that nobody may ask for: "nodes", "pods/portforward".
	// Once it is served, Forbid changes them.
	Forbidden map[string]bool
	// OnlySPDY answers WebSockets as an API server before Kubernetes 1.31 does.
	OnlySPDY bool
	// Page is how many objects a list has at most; 0 for what is asked for.
	Page int
	// Minor is of the version that it says it is: "34", "34+"; "" for none that it tells.
	Minor string
	// Hang holds up every answer about a resource until it is closed.
	Hang map[string]chan struct{}

	mu       sync.Mutex
	objects  map[string][]Object // by resource
	forwards []string            // NAMESPACE/POD:PORT by PROTOCOL, as they came
	asked    map[Access]bool
}

// Access is what an API server asks its access control about.
type Access struct{ Verb, Group, Resource, Namespace string }

// Forbid says whether nobody may ask for a resource from now on.
func (c *Cluster) Forbid(resource string, forbidden bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Forbidden[resource] = forbidden
}

func (c *Cluster) forbids(resource string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.Forbidden[resource]
}

// Asked tells what it was asked for.
func (c *Cluster) Asked() map[Access]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.asked)
}

func (c *Cluster) note(a Access) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.asked == nil {
		c.asked = make(map[Access]bool)
	}
	c.asked[a] = true
}

// Put adds objects of a resource, or replaces those of the same name.
func (c *Cluster) Put(resource string, objects ...Object) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.objects == nil {
		c.objects = make(map[string][]Object)
	}
	for _, object := range objects {
		text, err := json.Marshal(object)
		if err != nil {
			panic(err)
		}
		plain := Object{}
		if err := json.Unmarshal(text, &plain); err != nil {
			panic(err)
		}
		c.remove(resource, plain.at("metadata", "namespace"), plain.at("metadata", "name"))
		c.objects[resource] = append(c.objects[resource], plain)
	}
}

// Remove takes one away.
func (c *Cluster) Remove(resource, namespace, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remove(resource, namespace, name)
}

func (c *Cluster) remove(resource string, namespace, name any) {
	var kept []Object
	for _, object := range c.objects[resource] {
		if object.at("metadata", "namespace") != namespace || object.at("metadata", "name") != name {
			kept = append(kept, object)
		}
	}
	c.objects[resource] = kept
}

// Forwards tells which ports were forwarded, and how.
func (c *Cluster) Forwards() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string{}, c.forwards...)
}

// Serve serves until the test ends, and returns the name of a kubeconfig for it.
func Serve(tb testing.TB, c *Cluster) (kubeconfig string) {
	tb.Helper()
	server := httptest.NewUnstartedServer(http.HandlerFunc(c.serve))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	tb.Cleanup(server.Close)
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	dir := tb.TempDir()
	config, err := json.Marshal(Object{
		"apiVersion": "v1", "kind": "Config", "current-context": "test",
		"clusters": []Object{{"name": "test", "cluster": Object{"server": server.URL, "certificate-authority-data": authority}}},
		"users":    []Object{{"name": "me", "user": Object{"token": Token}}},
		"contexts": []Object{{"name": "test", "context": Object{"cluster": "test", "user": "me", "namespace": "shop"}}},
	})
	if err != nil {
		tb.Fatal(err)
	}
	kubeconfig = filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(kubeconfig, config, 0o600); err != nil {
		tb.Fatal(err)
	}
	return kubeconfig
}

func fail(w http.ResponseWriter, status int, reason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(Object{"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": status, "reason": reason, "message": message})
}

// serve takes /api/v1/… and /apis/GROUP/v1/….
func (c *Cluster) serve(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer "+Token {
		fail(w, http.StatusUnauthorized, "Unauthorized", "Unauthorized")
		return
	}
	if r.URL.Path == "/version" {
		if c.Minor == "" {
			fail(w, http.StatusNotFound, "NotFound", "no version")
			return
		}
		_ = json.NewEncoder(w).Encode(Object{"major": "1", "minor": c.Minor, "gitVersion": "v1." + strings.Trim(c.Minor, "+") + ".2"})
		return
	}
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	access := Access{}
	if strings.HasPrefix(r.URL.Path, "/apis/") && len(parts) > 1 {
		access.Group, parts = parts[1], parts[1:]
	}
	parts = parts[min(2, len(parts)):]
	var namespace any
	if len(parts) > 2 && parts[0] == "namespaces" {
		access.Namespace, namespace, parts = parts[1], parts[1], parts[2:]
	}
	parts = append(parts, "", "", "")
	resource, name, sub := parts[0], parts[1], parts[2]
	if sub != "" {
		resource += "/" + sub
	}
	access.Resource, access.Verb = resource, "list"
	switch {
	case r.Method == http.MethodPost:
		access.Verb = "create"
	case name != "":
		access.Verb = "get"
	}
	c.note(access)
	if held := c.Hang[resource]; held != nil {
		select {
		case <-held:
		case <-r.Context().Done():
			return
		}
	}
	switch {
	case c.forbids(resource):
		fail(w, http.StatusForbidden, "Forbidden", `User "me" cannot do that`)
	case sub == "portforward":
		c.forward(w, r, namespace.(string), name)
	case name != "":
		c.get(w, resource, namespace, name)
	default:
		c.list(w, r, resource, namespace)
	}
}

func (c *Cluster) get(w http.ResponseWriter, resource string, namespace any, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, object := range c.objects[resource] {
		if object.at("metadata", "namespace") == namespace && object.at("metadata", "name") == name {
			_ = json.NewEncoder(w).Encode(object)
			return
		}
	}
	fail(w, http.StatusNotFound, "NotFound", name+" not found")
}

func (c *Cluster) list(w http.ResponseWriter, r *http.Request, resource string, namespace any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	query := r.URL.Query()
	items := []Object{}
	for _, object := range c.objects[resource] {
		takes := namespace == nil || object.at("metadata", "namespace") == namespace
		for _, term := range strings.Split(query.Get("labelSelector"), ",") {
			label, value, asked := strings.Cut(term, "=")
			takes = takes && (!asked || object.at("metadata", "labels", label) == value)
		}
		if field, value, asked := strings.Cut(query.Get("fieldSelector"), "="); asked {
			takes = takes && object.at(strings.Split(field, ".")...) == value
		}
		if takes {
			items = append(items, object)
		}
	}
	begin, _ := strconv.Atoi(query.Get("continue"))
	page, _ := strconv.Atoi(query.Get("limit"))
	if c.Page > 0 {
		page = c.Page
	}
	metadata := Object{}
	if page > 0 && begin+page < len(items) {
		metadata["continue"] = strconv.Itoa(begin + page)
		items = items[:begin+page]
	}
	_ = json.NewEncoder(w).Encode(Object{"apiVersion": "v1", "kind": "List", "metadata": metadata, "items": items[begin:]})
}

// forward is an API server and a kubelet in one.
func (c *Cluster) forward(w http.ResponseWriter, r *http.Request, namespace, pod string) {
	bySocket := websocket.IsWebSocketUpgrade(r)
	if bySocket && c.OnlySPDY {
		fail(w, http.StatusBadRequest, "BadRequest", "Upgrade request required")
		return
	}
	arrived := make(chan streams.Stream)
	ended := make(chan struct{})
	defer close(ended)
	accept := func(stream streams.Stream, replied <-chan struct{}) error {
		go func() {
			<-replied
			select {
			case arrived <- stream:
			case <-ended:
			}
		}()
		return nil
	}
	protocol := "SPDY"
	var carrier streams.Connection
	if bySocket {
		protocol = "WebSocket"
		upgrader := websocket.Upgrader{Subprotocols: []string{portforward.WebsocketsSPDYTunnelingPortForwardV1}}
		socket, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return // it was answered
		}
		defer socket.Close()
		if carrier, err = spdy.NewServerConnection(&tunnel{Conn: socket}, accept); err != nil {
			return
		}
	} else {
		if _, err := streams.Handshake(r, w, []string{portforward.PortForwardV1Name}); err != nil {
			return // it was answered
		}
		if carrier = spdy.NewResponseUpgrader().UpgradeResponse(w, r, accept); carrier == nil {
			return
		}
	}
	defer carrier.Close()
	pairs := make(map[string]map[string]streams.Stream) // by request, then by type: they come in any order
	for {
		select {
		case stream := <-arrived:
			id := stream.Headers().Get("requestID")
			if pairs[id] == nil {
				pairs[id] = make(map[string]streams.Stream)
			}
			pairs[id][stream.Headers().Get("streamType")] = stream
			if len(pairs[id]) < 2 {
				continue
			}
			port, _ := strconv.Atoi(stream.Headers().Get("port"))
			c.mu.Lock()
			c.forwards = append(c.forwards, fmt.Sprintf("%s/%s:%d by %s", namespace, pod, port, protocol))
			c.mu.Unlock()
			go c.pipe(namespace, pod, port, pairs[id]["data"], pairs[id]["error"])
		case <-carrier.CloseChan():
			return
		}
	}
}

// pipe is the kubelet's part. Its errors go by the errors' stream, first.
func (c *Cluster) pipe(namespace, pod string, port int, data, failures streams.Stream) {
	defer func() { _ = data.Close(); _ = data.Reset() }()
	defer failures.Close()
	conn, err := net.Conn(nil), errors.New("connection refused")
	if c.Dial != nil {
		conn, err = c.Dial(namespace, pod, port)
	}
	if err != nil {
		fmt.Fprintf(failures, "error forwarding port %d to pod %s, uid : %v", port, pod, err)
		return
	}
	defer conn.Close()
	go func() {
		_, _ = io.Copy(conn, data)
		_ = conn.Close()
	}()
	_, _ = io.Copy(data, conn)
}

// tunnel makes of a WebSocket's messages the bytes of a connection.
type tunnel struct {
	*websocket.Conn
	rest []byte
}

func (t *tunnel) Read(to []byte) (n int, err error) {
	for len(t.rest) == 0 {
		if _, t.rest, err = t.ReadMessage(); err != nil {
			return 0, err
		}
	}
	n = copy(to, t.rest)
	t.rest = t.rest[n:]
	return n, nil
}

func (t *tunnel) Write(from []byte) (int, error) {
	return len(from), t.WriteMessage(websocket.BinaryMessage, from)
}

func (t *tunnel) Close() error {
	_ = t.Conn.Close() // the second time too
	return nil
}

func (t *tunnel) SetDeadline(at time.Time) error {
	return errors.Join(t.SetReadDeadline(at), t.SetWriteDeadline(at))
}
