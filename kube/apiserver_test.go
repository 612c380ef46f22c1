package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// apiFake is an API server with the pods of one node.
type apiFake struct {
	t *testing.T

	mu       sync.Mutex
	version  int
	pods     map[string]string // by name: its JSON without metadata
	broken   int               // answer with this status
	lists    int
	watchers map[chan string]bool // events, as JSON; closed to end the watch
}

func newAPIFake(t *testing.T) (*apiFake, *httptest.Server) {
	fake := &apiFake{t: t, version: 1, pods: make(map[string]string), watchers: make(map[chan string]bool)}
	server := serve(t, (*httptest.Server).StartTLS, fake.serve)
	t.Cleanup(fake.endWatches) // before the server waits for its connections
	return fake, server
}

func (f *apiFake) json(name string) string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":%q,"namespace":"shop","uid":"u-%s","resourceVersion":"%d",
"annotations":{"a":"hunter2"},"managedFields":[{"manager":"hunter2"}]},
"spec":{"nodeName":"node-1","containers":[{"name":"app","env":[{"name":"A","value":"hunter2"}],"securityContext":{"privileged":true}}]}}`, name, name, f.version)
}

// put adds a pod and tells those who watch.
func (f *apiFake) put(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.version++
	f.pods[name] = f.json(name)
	for events := range f.watchers {
		events <- fmt.Sprintf(`{"type":"ADDED","object":%s}`, f.pods[name])
	}
}

func (f *apiFake) remove(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.version++
	for events := range f.watchers {
		events <- fmt.Sprintf(`{"type":"DELETED","object":%s}`, f.json(name))
	}
	delete(f.pods, name)
}

// breakDown answers with a status from now on, and ends the watches.
func (f *apiFake) breakDown(status int) {
	f.mu.Lock()
	f.broken = status
	f.mu.Unlock()
	f.endWatches()
}

func (f *apiFake) endWatches() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for events := range f.watchers {
		close(events)
	}
	clear(f.watchers)
}

// state is how often it was asked for a list, and how many watch.
func (f *apiFake) state() (lists, watching int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lists, len(f.watchers)
}

func (f *apiFake) serve(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet || r.URL.Path != "/api/v1/pods" || r.URL.Query().Get("fieldSelector") != "spec.nodeName=node-1" {
		f.t.Errorf("it was asked %s %s", r.Method, r.URL)
	}
	if got := r.Header.Get("Authorization"); got != "Bearer sesame" {
		f.t.Errorf("it was asked by %q", got)
	}
	w.Header().Set("Content-Type", "application/json")
	f.mu.Lock()
	if f.broken != 0 {
		w.WriteHeader(f.broken)
		fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","code":%d,"reason":%q,"message":"\u001b[31m%s"}`, f.broken,
			map[int]string{401: "Unauthorized", 403: "Forbidden"}[f.broken], strings.Repeat("x", 5_000))
		f.mu.Unlock()
		return
	}
	if r.URL.Query().Get("watch") == "" {
		f.lists++
		items := slices.Collect(maps.Values(f.pods))
		fmt.Fprintf(w, `{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"%d"},"items":[%s]}`, f.version, strings.Join(items, ","))
		f.mu.Unlock()
		return
	}
	events := make(chan string, 10)
	f.watchers[events] = true
	w.WriteHeader(http.StatusOK)
	w.(http.Flusher).Flush()
	f.mu.Unlock()
	for {
		select {
		case event, more := <-events:
			if !more {
				return
			}
			io.WriteString(w, event+"\n") //nolint:errcheck // the test sees what arrives
			w.(http.Flusher).Flush()
		case <-r.Context().Done():
			f.mu.Lock()
			delete(f.watchers, events)
			f.mu.Unlock()
			return
		}
	}
}

// kubeconfig names the server and a token.
func kubeconfig(t *testing.T, server *httptest.Server) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config")
	text, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "main",
		"clusters": []any{map[string]any{"name": "c", "cluster": map[string]any{"server": server.URL, "certificate-authority": caFile(t, server)}}},
		"users":    []any{map[string]any{"name": "u", "user": map[string]any{"token": "sesame"}}},
		"contexts": []any{map[string]any{"name": "main", "context": map[string]any{"cluster": "c", "user": "u"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(5 * time.Second)
	for !condition() {
		select {
		case <-deadline:
			t.Fatalf("not within five seconds: %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// asked is an API server's client on a clock of its own: each minute asks once.
func asked(t *testing.T, server *httptest.Server) (a *APIServer, minute func() ([]string, error)) {
	t.Helper()
	a, err := NewAPIServer(APIServerOptions{Kubeconfig: kubeconfig(t, server), NodeName: "node-1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	clock := time.Unix(1_800_000_000, 0)
	a.now = func() time.Time { return clock }
	return a, func() ([]string, error) {
		clock = clock.Add(time.Minute)
		pods, err := a.Pods(t.Context())
		if text := fmt.Sprintf("%+v %+v", pods, a.store.List()); strings.Contains(text, secret) {
			t.Error("the secret got out")
		}
		if err == nil && (!pods.Whole || pods.Source != "API server "+server.URL) {
			t.Errorf("the source is %+v", pods)
		}
		return podNames(pods), err
	}
}

func (a *APIServer) isUp() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.up
}

func TestAPIServerIsWatched(t *testing.T) {
	fake, server := newAPIFake(t)
	fake.put("web")
	a, minute := asked(t, server)
	expect := func(want ...string) {
		t.Helper()
		if got, err := minute(); err != nil || !slices.Equal(got, want) {
			t.Fatalf("got %q, %v, want %q", got, err, want)
		}
	}

	expect("shop/web@u-web")
	if lists, watching := fake.state(); lists != 1 || watching != 0 || a.isUp() {
		t.Fatalf("one look made %d lists and %d watches, want one list", lists, watching)
	}
	expect("shop/web@u-web")
	eventually(t, "a watch is up", a.isUp)
	lists, _ := fake.state()

	fake.put("db")
	eventually(t, "the watch told of the new pod", func() bool { return len(a.store.List()) == 2 })
	expect("shop/db@u-db", "shop/web@u-web")
	fake.remove("web")
	eventually(t, "the watch told of the pod's end", func() bool { return len(a.store.List()) == 1 })
	expect("shop/db@u-db")
	if now, _ := fake.state(); now != lists {
		t.Errorf("with a watch %d more lists were made", now-lists)
	}
}

func TestAnAnswerThatIsDoubtedIsNotTheWatchs(t *testing.T) {
	fake, server := newAPIFake(t)
	a, minute := asked(t, server)
	for range 2 {
		if _, err := minute(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "a watch is up", a.isUp)
	if _, err := minute(); err != nil {
		t.Fatal(err)
	}
	// The watch does not tell: as if its connection were dead.
	fake.mu.Lock()
	fake.pods["late"] = fake.json("late")
	fake.mu.Unlock()
	second := a.now().Add(time.Second)
	a.now = func() time.Time { return second }
	pods, err := a.Pods(t.Context())
	if want := []string{"shop/late@u-late"}; err != nil || !slices.Equal(podNames(pods), want) {
		t.Errorf("got %q, %v, want %q", podNames(pods), err, want)
	}
}

func TestABrokenWatchIsNotBelieved(t *testing.T) {
	fake, server := newAPIFake(t)
	fake.put("web")
	a, minute := asked(t, server)
	for range 2 {
		if _, err := minute(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "a watch is up", a.isUp)
	fake.breakDown(http.StatusForbidden)
	eventually(t, "the end of the watch is noticed", func() bool { return !a.isUp() })
	if got, err := minute(); err == nil || !strings.Contains(err.Error(), "list and watch on pods") {
		t.Errorf("got %q, %v, want what is needed", got, err)
	}
	if len(a.store.List()) != 1 {
		t.Error("the store was lost; then this test proves nothing")
	}

	// It is back, with another pod, which the watch missed.
	fake.breakDown(0)
	fake.put("new")
	if got, err := minute(); err != nil || len(got) != 2 {
		t.Errorf("got %q, %v, want both pods", got, err)
	}
	eventually(t, "a watch is up again", a.isUp)
	if got, err := minute(); err != nil || len(got) != 2 {
		t.Errorf("got %q, %v, want both pods", got, err)
	}
}

func TestAPIServerThatRefuses(t *testing.T) {
	fake, server := newAPIFake(t)
	_, minute := asked(t, server)
	for status, want := range map[int]string{
		http.StatusUnauthorized: "may have expired", http.StatusForbidden: "list and watch on pods",
		http.StatusTeapot: `\x1b[31m`, http.StatusFound: "API server",
	} {
		fake.breakDown(status)
		if _, err := minute(); err == nil || !strings.Contains(err.Error(), want) || len(err.Error()) > 500 {
			t.Errorf("%d: %v, want %s", status, err, want)
		}
	}
	fake.breakDown(0)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	a, err := NewAPIServer(APIServerOptions{Kubeconfig: kubeconfig(t, server), NodeName: "node-1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Pods(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Pods(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v, want net.ErrClosed", err)
	}
}

func TestConfigurationsThatCannotBeUsed(t *testing.T) {
	for _, name := range []string{"KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "KUBECONFIG"} {
		t.Setenv(name, "")
	}
	t.Setenv("HOME", t.TempDir())
	_, server := newAPIFake(t)
	good := kubeconfig(t, server)
	bad := filepath.Join(t.TempDir(), "bad")
	if err := os.WriteFile(bad, []byte("users: [{user: {token: [hunter2]}}]"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		what string
		o    APIServerOptions
		want string
	}{
		{"no node", APIServerOptions{Kubeconfig: good}, "--node-name"},
		{"not in a cluster", APIServerOptions{Kubeconfig: InCluster, NodeName: "n"}, "not in a pod"},
		{"nowhere", APIServerOptions{NodeName: "n"}, "no kubeconfig was found"},
		{"no such file", APIServerOptions{Kubeconfig: "nowhere", NodeName: "n"}, "cannot read nowhere: no such file"},
		{"no such context", APIServerOptions{Kubeconfig: good, Context: "other", NodeName: "n"}, `no context "other"`},
		{"not a kubeconfig", APIServerOptions{Kubeconfig: bad, NodeName: "n"}, "cannot be used"},
	} {
		if a, err := NewAPIServer(test.o); err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v, %v, want %s", test.what, a, err, test.want)
		}
	}
}

func TestNothingRunsAfterClose(t *testing.T) {
	fake, server := newAPIFake(t)
	a, minute := asked(t, server)
	for range 2 {
		if _, err := minute(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "a watch is up", a.isUp)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "nobody watches", func() bool { _, watching := fake.state(); return watching == 0 })
	stacks := func() string {
		text := make([]byte, 1<<20)
		return string(text[:runtime.Stack(text, true)])
	}
	eventually(t, "no goroutine of client-go is left", func() bool {
		return !strings.Contains(stacks(), "client-go/tools/cache") && !strings.Contains(stacks(), "apimachinery/pkg/watch")
	})
}
