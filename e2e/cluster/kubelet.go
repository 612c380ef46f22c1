//go:build linux

package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/capdrift/capdrift/e2e/node"
)

type kubeletPorts struct{ secure, readOnly int }

// KubeletURL is the kubelet's read-only port, which anybody may ask: "http://127.0.0.1:PORT".
func (c *Cluster) KubeletURL() string {
	return "http://127.0.0.1:" + strconv.Itoa(c.kubelet.readOnly)
}

// KubeletSecureURL is the kubelet's authenticated port, "https://127.0.0.1:PORT". It
// takes the administrator's certificate and, with an API server, which it then asks who
// may do what, bearer tokens too: the administrator's and those of service accounts. To
// read /pods an account needs the verb get of the resource nodes/pods or nodes/proxy.
func (c *Cluster) KubeletSecureURL() string {
	return "https://127.0.0.1:" + strconv.Itoa(c.kubelet.secure)
}

// CA is the file with the certificate of the authority that signed those of the servers.
func (c *Cluster) CA() string { return c.pki.path("ca.crt") }

// AdminCertificate names the files of a client's certificate and key for every server.
func (c *Cluster) AdminCertificate() (certificate, key string) {
	return c.pki.path("admin.crt"), c.pki.path("admin.key")
}

// config is kubelet.config.k8s.io/v1beta1; the file may be JSON.
func (c *Cluster) kubeletConfig() map[string]any {
	authorization := "AlwaysAllow" // of who has a certificate; nobody could be asked
	if c.cfg.APIServer {
		authorization = "Webhook"
	}
	return map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",

		"containerRuntimeEndpoint": c.node.Endpoint(),
		"staticPodPath":            c.path("static"),
		"podLogsDir":               c.path("logs"),
		"volumePluginDir":          c.path("plugins"),
		// No name server: pods have the host's network, and not every machine has the file.
		"resolvConf": "",

		"address":           "127.0.0.1",
		"port":              c.kubelet.secure,
		"readOnlyPort":      c.kubelet.readOnly,
		"healthzPort":       0, // the read-only port tells too
		"tlsCertFile":       c.pki.path("kubelet.crt"),
		"tlsPrivateKeyFile": c.pki.path("kubelet.key"),
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": c.cfg.APIServer},
			"x509":      map[string]any{"clientCAFile": c.CA()},
		},
		"authorization": map[string]any{"mode": authorization},

		"cgroupDriver":           "cgroupfs",
		"cgroupRoot":             c.cgroup(),
		"failCgroupV1":           false,
		"enforceNodeAllocatable": []string{},
		"failSwapOn":             false,
		"oomScoreAdj":            0, // lower needs CAP_SYS_RESOURCE

		// A full disk or memory of a test machine is not the kubelet's to mend.
		"localStorageCapacityIsolation": false,
		"evictionHard": map[string]string{
			"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
			"imagefs.available": "0%", "imagefs.inodesFree": "0%",
		},
		"imageGCHighThresholdPercent": 100,

		"makeIPTablesUtilChains": false, // the host's
		"protectKernelDefaults":  false,

		"syncFrequency":             "1s",
		"fileCheckFrequency":        "1s",
		"nodeStatusUpdateFrequency": "1s",
	}
}

func (c *Cluster) startKubelet(ctx context.Context) error {
	ports, err := freePorts(2)
	if err != nil {
		return err
	}
	c.kubelet = kubeletPorts{secure: ports[0], readOnly: ports[1]}
	for _, dir := range []string{"static", "logs", "plugins", "kubelet"} {
		if err := os.Mkdir(c.path(dir), 0o755); err != nil {
			return err
		}
	}
	if err := shareMounts(c.path("kubelet")); err != nil {
		return fmt.Errorf("share the kubelet's folder: %w", err)
	}
	config, err := json.MarshalIndent(c.kubeletConfig(), "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.path("kubelet.json"), config, 0o600); err != nil {
		return err
	}
	args := []string{
		"--config", c.path("kubelet.json"), "--root-dir", c.path("kubelet"), "--cert-dir", c.path("pki"),
		"--hostname-override", nodeName, "--v", "2",
	}
	if c.cfg.APIServer {
		path := c.path("kubelet.kubeconfig")
		if err := c.writeKubeconfig(path, "system:node:"+nodeName, c.pki.nodeToken); err != nil {
			return err
		}
		args = append(args, "--kubeconfig", path)
	}
	s, err := c.start("kubelet", args...)
	if err != nil {
		return err
	}
	err = node.Until(ctx, "the kubelet is healthy", func() (bool, error) {
		_, err := c.ask(ctx, http.MethodGet, c.KubeletURL()+"/healthz", "", nil)
		return err == nil, s.ended()
	})
	if err != nil || !c.cfg.APIServer {
		return err
	}
	return node.Until(ctx, "the kubelet has registered its node", func() (bool, error) {
		_, err := c.Request(ctx, http.MethodGet, "/api/v1/nodes/"+nodeName, nil)
		return err == nil, s.ended()
	})
}

// KubeletPods is what the kubelet answers on /pods: a PodList.
func (c *Cluster) KubeletPods(ctx context.Context) ([]byte, error) {
	return c.ask(ctx, http.MethodGet, c.KubeletURL()+"/pods", "", nil)
}

// WriteStatic makes a static pod of a manifest in JSON or YAML, or changes it. The
// kubelet appends "-" and its node's name to the pod's.
func (c *Cluster) WriteStatic(name string, manifest []byte) error {
	// Renamed, lest the kubelet reads half of it. It ignores names that begin with a dot.
	tmp := c.path("static", "."+name)
	if err := os.WriteFile(tmp, manifest, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, c.staticFile(name))
}

// RemoveStatic ends a static pod.
func (c *Cluster) RemoveStatic(name string) error { return os.Remove(c.staticFile(name)) }

func (c *Cluster) staticFile(name string) string {
	return filepath.Join(c.path("static"), name+".yaml")
}

// kubeletPod finds a pod in what the kubelet tells; false when it is not there.
func (c *Cluster) kubeletPod(ctx context.Context, namespace, name string) ([]byte, bool, error) {
	list, err := c.KubeletPods(ctx)
	if err != nil {
		return nil, false, err
	}
	var pods struct{ Items []json.RawMessage }
	if err := json.Unmarshal(list, &pods); err != nil {
		return nil, false, fmt.Errorf("the kubelet's /pods: %w in %q", err, list)
	}
	for _, item := range pods.Items {
		var p pod
		if err := json.Unmarshal(item, &p); err != nil {
			return nil, false, fmt.Errorf("the kubelet's /pods: %w in %q", err, item)
		}
		if p.Metadata.Namespace == namespace && p.Metadata.Name == name {
			return item, true, nil
		}
	}
	return nil, false, nil
}

// shareMounts makes a folder a mount with shared propagation. A kubelet does it itself
// where it finds none, while it moves a socket into the folder: over the new mount the
// move fails, and the kubelet ends (pkg/volume/util/hostutil MakeRShared).
func shareMounts(dir string) error {
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	return unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, "")
}
