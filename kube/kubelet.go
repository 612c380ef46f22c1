package kube

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	kjson "sigs.k8s.io/json"

	"github.com/capdrift/capdrift/drift"
)

// Kubelet asks a node's kubelet for its pods. It knows static pods by the uid by
// which the runtime knows them.
type Kubelet struct {
	URL       string        // https://NODE:10250, or http://127.0.0.1:10255 where the read-only port is on
	TokenFile string        // a bearer token, read anew each time; sent over https only
	CAFile    string        // what signed the kubelet's certificate; empty for the system's
	Insecure  bool          // take any certificate: the token goes to whoever answers
	Timeout   time.Duration // of the whole call; 10 s when zero

	most int64 // bytes of its answer; maxAnswer when zero
}

// Pods asks for all pods of the node, with a connection of its own.
func (k Kubelet) Pods(ctx context.Context) (drift.Pods, error) {
	place, err := url.Parse(k.URL)
	if err != nil || place.Host == "" || place.Scheme != "https" && place.Scheme != "http" || place.User != nil {
		return drift.Pods{}, fmt.Errorf("the kubelet's URL %.100q: want https://NODE:10250, or http://127.0.0.1:10255", k.URL)
	}
	source := "kubelet at " + place.Scheme + "://" + place.Host
	fail := func(err error) (drift.Pods, error) { return drift.Pods{}, fmt.Errorf("%s: %w", source, err) }
	if k.Timeout <= 0 {
		k.Timeout = 10 * time.Second
	}
	if k.most <= 0 {
		k.most = maxAnswer
	}
	timed, cancel := context.WithTimeout(ctx, k.Timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(timed, http.MethodGet, place.JoinPath("pods").String(), nil)
	if err != nil {
		return fail(errors.New("this is no URL to ask"))
	}
	request.Header.Set("Accept", "application/json")
	tlsConfig := &tls.Config{InsecureSkipVerify: k.Insecure}
	if place.Scheme == "https" {
		if err := k.identify(request, tlsConfig); err != nil {
			return fail(err)
		}
	}
	client := http.Client{
		// No proxy: the kubelet is on this node. A connection for each call, so that
		// renewed certificates are seen.
		Transport: &http.Transport{TLSClientConfig: tlsConfig, DisableKeepAlives: true, ForceAttemptHTTP2: true},
		// A redirect would take the token elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	answer, err := client.Do(request)
	if err != nil {
		if ctx.Err() != nil {
			return fail(ctx.Err())
		}
		return fail(k.unreachable(err))
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fail(refused(answer.StatusCode))
	}
	text, err := io.ReadAll(http.MaxBytesReader(nil, answer.Body, k.most))
	var tooLong *http.MaxBytesError
	switch {
	case errors.As(err, &tooLong):
		return fail(fmt.Errorf("the answer is %w: more than %d MiB", ErrTooLarge, k.most>>20))
	case err != nil && ctx.Err() != nil:
		return fail(ctx.Err())
	case err != nil:
		return fail(k.unreachable(err))
	}
	var list podList
	if err := kjson.UnmarshalCaseSensitivePreserveInts(text, &list); err != nil || list.Kind != "PodList" {
		return fail(errors.New("the answer is no PodList; is this the kubelet's port?")) // and is not quoted
	}
	return tell(list.Items, source), nil
}

// identify reads the token and the CA.
func (k Kubelet) identify(request *http.Request, config *tls.Config) error {
	if k.CAFile != "" {
		pem, err := os.ReadFile(k.CAFile)
		if err != nil {
			return unreadable(err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("%s has no certificate in PEM", shown(k.CAFile))
		}
	}
	if k.TokenFile == "" {
		return nil
	}
	token, err := os.ReadFile(k.TokenFile)
	if err != nil {
		return unreadable(err)
	}
	text := strings.TrimSpace(string(token))
	if text == "" || strings.ContainsAny(text, "\r\n") {
		return fmt.Errorf("%s is no token", shown(k.TokenFile))
	}
	request.Header.Set("Authorization", "Bearer "+text)
	return nil
}

func (k Kubelet) unreachable(err error) error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	var unknown x509.UnknownAuthorityError
	var misnamed x509.HostnameError
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer within %v: %w", k.Timeout, context.DeadlineExceeded)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w; the read-only port 10255 is off by default, and 10250 wants https and a token", syscall.ECONNREFUSED)
	case errors.As(err, &unknown):
		return errors.New("its certificate is signed by an unknown authority; give that CA with --kubelet-ca-file: often the node's own " +
			"/var/lib/kubelet/pki/kubelet.crt, or the cluster's where serverTLSBootstrap is on")
	case errors.As(err, &misnamed):
		return errors.New("its certificate is for another name; ask it by the node's name or address")
	case errors.Is(err, http.ErrSchemeMismatch):
		return errors.New("it does not speak TLS there; want http for the read-only port 10255")
	}
	return errors.New(shown(err.Error()))
}

// refused says what to do about a status.
func refused(status int) error {
	switch status {
	case http.StatusUnauthorized:
		return errors.New("it does not accept who asks (401); give a service account's token with --kubelet-token-file, and see that the kubelet has webhook authentication")
	case http.StatusForbidden:
		return errors.New("who asks may not read its pods (403); the ClusterRole needs the verb get on nodes/proxy, " +
			"or on nodes/pods from Kubernetes 1.33 on")
	}
	return fmt.Errorf("it answers with status %d; want the kubelet's own port, which serves /pods", status)
}
