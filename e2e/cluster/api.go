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
	"strconv"
	"strings"
	"time"

	"github.com/capdrift/capdrift/e2e/node"
)

// URL is the API server's, "https://127.0.0.1:PORT".
func (c *Cluster) URL() string { return c.api }

// Kubeconfig is the file with which a client of the API is the administrator.
func (c *Cluster) Kubeconfig() string { return c.path("admin.kubeconfig") }

// AdminToken is a bearer token by which a client of the API or of the kubelet is the
// administrator.
func (c *Cluster) AdminToken() string { return c.pki.adminToken }

func (c *Cluster) startControlPlane(ctx context.Context) error {
	ports, err := freePorts(3)
	if err != nil {
		return err
	}
	local := func(scheme string, port int) string { return scheme + "://127.0.0.1:" + strconv.Itoa(port) }
	store, peer := local("http", ports[0]), local("http", ports[1])
	c.api = local("https", ports[2])

	etcd, err := c.start("etcd",
		"--data-dir", c.path("etcd"), "--unsafe-no-fsync", "--log-level", "warn",
		"--listen-client-urls", store, "--advertise-client-urls", store,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)
	if err != nil {
		return err
	}
	tokens := fmt.Sprintf("%s,%s,1,system:masters\n%s,system:node:%s,2,system:nodes\n",
		c.pki.adminToken, adminUser, c.pki.nodeToken, nodeName)
	if err := os.WriteFile(c.path("tokens.csv"), []byte(tokens), 0o600); err != nil {
		return err
	}
	if err := c.writeKubeconfig(c.Kubeconfig(), adminUser, c.pki.adminToken); err != nil {
		return err
	}
	apiserver, err := c.start("kube-apiserver",
		"--etcd-servers", store,
		"--bind-address", "127.0.0.1", "--secure-port", strconv.Itoa(ports[2]),
		// Without a network there is no other address; and nobody asks for the service.
		"--advertise-address", "127.0.0.1", "--endpoint-reconciler-type", "none",
		"--service-cluster-ip-range", "10.0.0.0/24",
		"--tls-cert-file", c.pki.path("apiserver.crt"), "--tls-private-key-file", c.pki.path("apiserver.key"),
		"--client-ca-file", c.CA(), "--token-auth-file", c.path("tokens.csv"),
		"--authorization-mode", "Node,RBAC",
		"--service-account-issuer", "https://kubernetes.default.svc",
		"--service-account-key-file", c.pki.path("service-accounts.key"),
		"--service-account-signing-key-file", c.pki.path("service-accounts.key"),
		// Nobody makes each namespace's account "default", which it would demand.
		"--disable-admission-plugins", "ServiceAccount",
		"--allow-privileged",
	)
	if err != nil {
		return err
	}
	for what, path := range map[string]string{
		"the API server is ready":            "/readyz",
		"the default namespace is made":      "/api/v1/namespaces/default",
		"the kubelet's role in RBAC is made": "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:node",
	} {
		err := node.Until(ctx, what, func() (bool, error) {
			_, err := c.Request(ctx, http.MethodGet, path, nil)
			return err == nil, errors.Join(etcd.ended(), apiserver.ended())
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) writeKubeconfig(path, user, token string) error {
	config, err := json.MarshalIndent(map[string]any{
		"apiVersion":      "v1",
		"kind":            "Config",
		"current-context": "test",
		"clusters": []any{map[string]any{
			"name": "test", "cluster": map[string]string{"server": c.api, "certificate-authority": c.CA()},
		}},
		"users": []any{map[string]any{"name": user, "user": map[string]string{"token": token}}},
		"contexts": []any{map[string]any{
			"name": "test", "context": map[string]string{"cluster": "test", "user": user},
		}},
	}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, config, 0o600)
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
	return c.ask(ctx, method, c.api+path, c.pki.adminToken, body)
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

// CreateNamespace makes a namespace, which then lasts as long as the cluster.
func (c *Cluster) CreateNamespace(ctx context.Context, name string) error {
	body, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]string{"name": name},
	})
	if err != nil {
		return err
	}
	_, err = c.Request(ctx, http.MethodPost, "/api/v1/namespaces", body)
	return err
}

func podPath(namespace, name string) string {
	return "/api/v1/namespaces/" + namespace + "/pods/" + name
}

// CreatePod makes a pod of a manifest in JSON or YAML and, unless that names a node, binds it
// to the only one, as a scheduler would. It returns the pod's name.
func (c *Cluster) CreatePod(ctx context.Context, namespace string, manifest []byte) (name string, err error) {
	created, err := c.Request(ctx, http.MethodPost, "/api/v1/namespaces/"+namespace+"/pods", manifest)
	if err != nil {
		return "", err
	}
	var p pod
	if err := json.Unmarshal(created, &p); err != nil {
		return "", fmt.Errorf("created pod: %w in %q", err, created)
	}
	if p.Spec.NodeName != "" {
		return p.Metadata.Name, nil
	}
	binding, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Binding",
		"metadata": map[string]string{"name": p.Metadata.Name},
		"target":   map[string]string{"apiVersion": "v1", "kind": "Node", "name": nodeName},
	})
	if err != nil {
		return "", err
	}
	_, err = c.Request(ctx, http.MethodPost, podPath(namespace, p.Metadata.Name)+"/binding", binding)
	return p.Metadata.Name, err
}

// Pod is a pod as JSON: from the API, or from the kubelet where there is none.
func (c *Cluster) Pod(ctx context.Context, namespace, name string) ([]byte, error) {
	b, found, err := c.findPod(ctx, namespace, name)
	if err == nil && !found {
		err = fmt.Errorf("there is no pod %s/%s", namespace, name)
	}
	return b, err
}

func (c *Cluster) findPod(ctx context.Context, namespace, name string) ([]byte, bool, error) {
	if !c.cfg.APIServer {
		return c.kubeletPod(ctx, namespace, name)
	}
	b, err := c.Request(ctx, http.MethodGet, podPath(namespace, name), nil)
	var refused *StatusError
	if errors.As(err, &refused) && refused.Code == http.StatusNotFound {
		return nil, false, nil
	}
	return b, err == nil, err
}

// AwaitRunning waits until all containers of a pod that are to run do, ephemeral ones too,
// and returns the pod as JSON. A container that cannot run is an error at once.
func (c *Cluster) AwaitRunning(ctx context.Context, namespace, name string) ([]byte, error) {
	ctx, cancel := c.within(ctx, time.Minute)
	defer cancel()
	var last []byte
	err := node.Until(ctx, "pod "+namespace+"/"+name+" runs", func() (bool, error) {
		b, found, err := c.findPod(ctx, namespace, name)
		if err != nil || !found {
			return false, err // a static pod comes when the kubelet has seen its file
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
// pod may be whose file was removed, in the kubelet.
func (c *Cluster) AwaitGone(ctx context.Context, namespace, name string) error {
	ctx, cancel := c.within(ctx, time.Minute)
	defer cancel()
	err := node.Until(ctx, "pod "+namespace+"/"+name+" is gone", func() (bool, error) {
		if _, found, err := c.findPod(ctx, namespace, name); err != nil || found {
			return false, err
		}
		_, found, err := c.kubeletPod(ctx, namespace, name)
		return !found, err
	})
	if err != nil {
		return c.withLogs(err)
	}
	return nil
}
