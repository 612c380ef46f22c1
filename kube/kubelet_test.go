package kube

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// whatKubeletSays is a kubelet's answer: a static pod, one of the API server's
// with a secret in all places where one may be, one for Windows.
const whatKubeletSays = `{"kind":"PodList","apiVersion":"v1","metadata":{},"items":[
{"metadata":{"name":"etcd-node-1","namespace":"kube-system","uid":"0123456789abcdef0123456789abcdef","creationTimestamp":null,
 "annotations":{"kubernetes.io/config.hash":"0123456789abcdef0123456789abcdef","kubernetes.io/config.seen":"2026-02-03T04:05:06.789012345+01:00","kubernetes.io/config.source":"file"}},
 "spec":{"containers":[{"name":"etcd","image":"etcd"}]}},
{"metadata":{"name":"web","namespace":"shop","uid":"u-1","creationTimestamp":"2026-01-02T03:04:05Z","annotations":{"kubectl.kubernetes.io/last-applied-configuration":"hunter2"}},
 "spec":{"containers":[{"name":"app","env":[{"name":"A","value":"hunter2"}],"args":["hunter2"],"securityContext":{"capabilities":{"add":["SYS_TIME"]}}}]}},
{"metadata":{"name":"win","namespace":"shop","uid":"u-2"},"spec":{"os":{"name":"windows"},"containers":[{"name":"app"}]}}]}`

func serve(t *testing.T, start func(*httptest.Server), handler http.HandlerFunc) *httptest.Server {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // of clients that do not like its certificate
	start(server)
	t.Cleanup(server.Close)
	return server
}

// caFile writes the certificate of a server.
func caFile(t *testing.T, server *httptest.Server) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.crt")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(path, block, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestKubeletIsAsked(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	var seen []string
	server := serve(t, (*httptest.Server).StartTLS, func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.Method+" "+r.URL.Path+" "+r.Header.Get("Authorization"))
		io.WriteString(w, whatKubeletSays) //nolint:errcheck // the test sees what arrives
	})
	kubelet := Kubelet{URL: server.URL, CAFile: caFile(t, server), TokenFile: token}
	for _, text := range []string{"one\n", "two"} { // tokens are renewed
		if err := os.WriteFile(token, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		pods, err := kubelet.Pods(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if want := []string{"kube-system/etcd-node-1@0123456789abcdef0123456789abcdef", "shop/web@u-1"}; !slices.Equal(podNames(pods), want) {
			t.Errorf("got %q, want %q", podNames(pods), want)
		}
		if !pods.Whole || pods.Source != "kubelet at "+server.URL || len(pods.Limits) > 0 {
			t.Errorf("the source is %+v", pods)
		}
		if static := pods.Specs[0]; static.CRIUID != static.UID || static.Created.UTC().Format(time.RFC3339) != "2026-02-03T03:05:06Z" {
			t.Errorf("the static pod is %+v", static)
		}
		if text := fmt.Sprintf("%+v", pods); strings.Contains(text, secret) {
			t.Error("the secret got out")
		}
	}
	if want := []string{"GET /pods Bearer one", "GET /pods Bearer two"}; !slices.Equal(seen, want) {
		t.Errorf("it was asked %q, want %q", seen, want)
	}
}

func TestReadOnlyPortGetsNoToken(t *testing.T) {
	server := serve(t, (*httptest.Server).Start, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("the token went in the clear")
		}
		io.WriteString(w, whatKubeletSays) //nolint:errcheck // the test sees what arrives
	})
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	if pods, err := (Kubelet{URL: server.URL, TokenFile: "nowhere"}).Pods(t.Context()); err != nil || len(pods.Specs) != 2 {
		t.Errorf("got %v, %v", pods, err)
	}
}

func TestKubeletThatDoesNotAnswer(t *testing.T) {
	hang := make(chan struct{})
	other := serve(t, (*httptest.Server).Start, func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") })
	server := serve(t, (*httptest.Server).StartTLS, func(w http.ResponseWriter, r *http.Request) {
		var text string
		switch strings.TrimSuffix(r.URL.Path, "/pods") {
		case "/401":
			w.WriteHeader(http.StatusUnauthorized)
		case "/403":
			w.WriteHeader(http.StatusForbidden)
			text = "hunter2"
		case "/404":
			w.WriteHeader(http.StatusNotFound)
		case "/redirect":
			http.Redirect(w, r, other.URL, http.StatusFound)
		case "/html":
			text = "<html>hunter2"
		case "/empty":
			text = "{}"
		case "/mistyped":
			text = `{"kind":"PodList","items":[{"spec":{"containers":[{"name":31337}]}}]}`
		case "/cut":
			w.Header().Set("Content-Length", "1000")
		case "/hang":
			<-hang
		}
		io.WriteString(w, text) //nolint:errcheck // the test sees what arrives
	})
	t.Cleanup(func() { close(hang) })
	endless := serve(t, (*httptest.Server).Start, func(w http.ResponseWriter, _ *http.Request) {
		for chunk := strings.Repeat(" ", 1<<20); ; {
			if _, err := io.WriteString(w, chunk); err != nil {
				return
			}
		}
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := "https://" + listener.Addr().String()
	listener.Close()
	ca := caFile(t, server)
	for _, test := range []struct {
		what    string
		kubelet Kubelet
		want    string
	}{
		{"who is not known", Kubelet{URL: server.URL + "/401"}, "(401); give a service account's token with --kubelet-token-file"},
		{"who has no right", Kubelet{URL: server.URL + "/403"}, "nodes/proxy"},
		{"another service", Kubelet{URL: server.URL + "/404"}, "status 404"},
		{"a redirect", Kubelet{URL: server.URL + "/redirect"}, "status 302"},
		{"a web page", Kubelet{URL: server.URL + "/html"}, "is no PodList"},
		{"an empty object, which is not no pods", Kubelet{URL: server.URL + "/empty"}, "is no PodList"},
		{"a list of another form", Kubelet{URL: server.URL + "/mistyped"}, "is no PodList"},
		{"an answer that is cut off", Kubelet{URL: server.URL + "/cut"}, "unexpected EOF"},
		{"an endless answer", Kubelet{URL: endless.URL, most: 2 << 20}, "more than 2 MiB"},
		{"one that hangs", Kubelet{URL: server.URL + "/hang", Timeout: 50 * time.Millisecond}, "no answer within 50ms"},
		{"nobody", Kubelet{URL: closed}, "the read-only port 10255 is off by default"},
		{"http to https", Kubelet{URL: strings.Replace(server.URL, "https", "http", 1)}, "status 400"},
		{"https to http", Kubelet{URL: strings.Replace(other.URL, "http", "https", 1)}, "want http for the read-only port"},
		{"a token that is not there", Kubelet{URL: server.URL, TokenFile: "nowhere"}, "cannot read nowhere: no such file"},
		{"no token in the file", Kubelet{URL: server.URL, TokenFile: "/dev/null"}, "/dev/null is no token"},
		{"no CA in the file", Kubelet{URL: server.URL, CAFile: "/dev/null"}, "no certificate in PEM"},
		{"no URL", Kubelet{URL: "node-1:10250"}, "want https://NODE:10250"},
		{"a password in the URL", Kubelet{URL: "https://u:p@node-1"}, "want https://NODE:10250"},
	} {
		t.Run(test.what, func(t *testing.T) {
			if test.kubelet.CAFile == "" {
				test.kubelet.CAFile = ca
			}
			_, err := test.kubelet.Pods(t.Context())
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), secret) {
				t.Errorf("%v, want %s", err, test.want)
			}
		})
	}
	if _, err := (Kubelet{URL: closed}).Pods(t.Context()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%v, want ECONNREFUSED", err)
	}
	if _, err := (Kubelet{URL: server.URL}).Pods(t.Context()); err == nil || !strings.Contains(err.Error(), "--kubelet-ca-file") {
		t.Errorf("%v, want what to do about the certificate", err)
	}
	if _, err := (Kubelet{URL: server.URL + "/404", Insecure: true}).Pods(t.Context()); errors.As(err, new(x509.UnknownAuthorityError)) || !strings.Contains(err.Error(), "404") {
		t.Errorf("%v, want the status: any certificate is taken", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (Kubelet{URL: server.URL, CAFile: ca}).Pods(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
}
