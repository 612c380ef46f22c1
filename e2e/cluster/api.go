//go:build linux

package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/capdrift/capdrift/e2e/node"
)

const apiPort = "6443"

// api is the API server's URL.
func (c *Cluster) api() string { return "https://" + c.plane.address.String() + ":" + apiPort }

// Kubeconfig is the file with which a client of the API is the administrator.
func (c *Cluster) Kubeconfig() string { return c.path("admin.kubeconfig") }

// AdminToken is a bearer token by which a client of the API or of the kubelet is the
// administrator.
func (c *Cluster) AdminToken() string { return c.pki.adminToken }

// CA is the file with the certificate of the authority that signed those of the servers.
func (c *Cluster) CA() string { return c.path("ca.crt") }

// User is a kubeconfig of somebody whom the API server knows by these names, and who may do what RBAC
// gives them: nothing yet.
func (c *Cluster) User(name string, groups ...string) (kubeconfig string, err error) {
	user, err := c.pki.User(name, groups...)
	if err != nil {
		return "", err
	}
	text, err := c.kubeconfigFor(user)
	if err != nil {
		return "", err
	}
	kubeconfig = c.path(newToken() + ".kubeconfig") // names are anything
	return kubeconfig, os.WriteFile(kubeconfig, []byte(text), 0o600)
}

// kubeconfigFor needs no other file, so that it serves on every machine.
func (c *Cluster) kubeconfigFor(user Credentials) (string, error) {
	return jsonText(map[string]any{
		"apiVersion":      "v1",
		"kind":            "Config",
		"current-context": "test",
		"clusters": []any{map[string]any{
			"name": "test", "cluster": map[string]any{"server": c.api(), "certificate-authority-data": []byte(c.pki.Certificate())},
		}},
		"users": []any{map[string]any{"name": "test", "user": map[string]any{
			"client-certificate-data": []byte(user.Certificate), "client-key-data": []byte(user.Key),
		}}},
		"contexts": []any{map[string]any{
			"name": "test", "context": map[string]string{"cluster": "test", "user": "test"},
		}},
	})
}

// StatusError says that the API server or the kubelet refused.
type StatusError struct {
	Request string // method and URL
	Code    int    // HTTP's
	Message string
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("%s: %d %s: %s", e.Request, e.Code, http.StatusText(e.Code), e.Message)
}

// Request asks the API as its administrator and returns the answer's body. The body may be
// JSON or YAML; of a PATCH it is a strategic merge in JSON.
func (c *Cluster) Request(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	return c.ask(ctx, method, c.api()+path, c.pki.adminToken, body)
}

func (c *Cluster) ask(ctx context.Context, method, url, token string, body []byte) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	switch {
	case method == http.MethodPatch:
		r.Header.Set("Content-Type", "application/strategic-merge-patch+json")
	case bytes.HasPrefix(bytes.TrimSpace(body), []byte("{")):
		r.Header.Set("Content-Type", "application/json")
	default:
		r.Header.Set("Content-Type", "application/yaml")
	}
	answer, err := c.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, url, err)
	}
	if answer.StatusCode/100 != 2 {
		message := strings.TrimSpace(string(b))
		var status struct{ Message string }
		if json.Unmarshal(b, &status) == nil && status.Message != "" {
			message = status.Message
		}
		return nil, &StatusError{Request: method + " " + url, Code: answer.StatusCode, Message: message}
	}
	return b, nil
}

// CreateNamespace makes a namespace and waits until pods may be made in it.
func (c *Cluster) CreateNamespace(ctx context.Context, name string) error {
	body, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]string{"name": name},
	})
	if err != nil {
		return err
	}
	if _, err := c.Request(ctx, http.MethodPost, "/api/v1/namespaces", body); err != nil {
		return err
	}
	ctx, cancel := c.within(ctx, time.Minute)
	defer cancel()
	return node.Until(ctx, "namespace "+name+" has an account for pods", func() (bool, error) {
		return c.exists(ctx, "/api/v1/namespaces/"+name+"/serviceaccounts/default")
	})
}

// exists tells whether the API has something.
func (c *Cluster) exists(ctx context.Context, path string) (bool, error) {
	_, err := c.Request(ctx, http.MethodGet, path, nil)
	var refused *StatusError
	if errors.As(err, &refused) && refused.Code == http.StatusNotFound {
		return false, nil
	}
	return err == nil, err
}

func podPath(namespace, name string) string {
	return "/api/v1/namespaces/" + namespace + "/pods/" + name
}

// CreatePod makes a pod of a manifest in JSON or YAML, and returns its name.
func (c *Cluster) CreatePod(ctx context.Context, namespace string, manifest []byte) (name string, err error) {
	created, err := c.Request(ctx, http.MethodPost, "/api/v1/namespaces/"+namespace+"/pods", manifest)
	if err != nil {
		return "", err
	}
	var p pod
	if err := json.Unmarshal(created, &p); err != nil {
		return "", fmt.Errorf("created pod: %w in %q", err, created)
	}
	return p.Metadata.Name, nil
}

// Pod is a pod as JSON.
func (c *Cluster) Pod(ctx context.Context, namespace, name string) ([]byte, error) {
	return c.Request(ctx, http.MethodGet, podPath(namespace, name), nil)
}

// AwaitRunning waits until all containers of a pod that are to run do, ephemeral ones too,
// and returns the pod as JSON. A container that cannot run is an error at once.
func (c *Cluster) AwaitRunning(ctx context.Context, namespace, name string) ([]byte, error) {
	ctx, cancel := c.within(ctx, time.Minute)
	defer cancel()
	var last []byte
	err := node.Until(ctx, "pod "+namespace+"/"+name+" runs", func() (bool, error) {
		b, err := c.Pod(ctx, namespace, name)
		var refused *StatusError
		if errors.As(err, &refused) && refused.Code == http.StatusNotFound {
			return false, nil // a static pod comes when the kubelet has seen its file
		}
		if err != nil {
			return false, err
		}
		last = b
		var p pod
		if err := json.Unmarshal(b, &p); err != nil {
			return false, err
		}
		return p.running()
	})
	if err != nil {
		return nil, c.withLogs(fmt.Errorf("%w\nthe pod was last:\n%s", err, last))
	}
	return last, nil
}

// AddEphemeral adds an ephemeral container, given as JSON, to a running pod.
func (c *Cluster) AddEphemeral(ctx context.Context, namespace, name string, container []byte) error {
	patch, err := json.Marshal(map[string]any{
		"spec": map[string]any{"ephemeralContainers": []json.RawMessage{container}},
	})
	if err != nil {
		return err
	}
	_, err = c.Request(ctx, http.MethodPatch, podPath(namespace, name)+"/ephemeralcontainers", patch)
	return err
}

// DeletePod ends a pod, gives its containers one second for it, and waits until it is gone.
func (c *Cluster) DeletePod(ctx context.Context, namespace, name string) error {
	ctx, cancel := c.within(ctx, time.Minute)
	defer cancel()
	_, err := c.Request(ctx, http.MethodDelete, podPath(namespace, name), []byte(`{"gracePeriodSeconds": 1}`))
	if err != nil {
		return err
	}
	return c.AwaitGone(ctx, namespace, name)
}

// AwaitGone waits until a pod is not there any more: neither in the API nor, as a static
// pod may be whose file was removed, in a kubelet.
func (c *Cluster) AwaitGone(ctx context.Context, namespace, name string) error {
	ctx, cancel := c.within(ctx, time.Minute)
	defer cancel()
	err := node.Until(ctx, "pod "+namespace+"/"+name+" is gone", func() (bool, error) {
		if found, err := c.exists(ctx, podPath(namespace, name)); err != nil || found {
			return false, err
		}
		for _, n := range c.Nodes {
			if found, err := n.runs(ctx, namespace, name); err != nil || found {
				return false, err
			}
		}
		return true, nil
	})
	if err != nil {
		return c.withLogs(err)
	}
	return nil
}
