//go:build linux

package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os"
)

// Places on a node.
const (
	kubeletFile     = "/etc/kubernetes/kubelet.json"
	proxyKubeconfig = "/etc/kubernetes/kube-proxy.kubeconfig"
	manifests       = "/etc/kubernetes/manifests"
)

// KubeletURL is the kubelet's read-only port, which anybody may ask: "http://ADDRESS:PORT".
func (n *Node) KubeletURL() string { return "http://" + n.Address() + ":10255" }

// KubeletSecureURL is the kubelet's authenticated port, "https://ADDRESS:PORT". It takes
// certificates of the cluster's authority and bearer tokens: the administrator's and those of
// service accounts. To read /pods an account needs the verb get of the resource nodes/pods or
// nodes/proxy.
func (n *Node) KubeletSecureURL() string { return "https://" + n.Address() + ":10250" }

// kubeletConfig is kubelet.config.k8s.io/v1beta1; the file may be JSON.
func kubeletConfig(nameServer netip.Addr) map[string]any {
	return map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",

		"containerRuntimeEndpoint": "unix://" + RuntimeSocket,
		"staticPodPath":            manifests,
		"clusterDNS":               []string{nameServer.String()},
		"clusterDomain":            "cluster.local",
		"volumePluginDir":          "/var/lib/kubelet/plugins", // its default is in /usr

		"readOnlyPort":      10255,
		"tlsCertFile":       pkiFolder + "kubelet.crt",
		"tlsPrivateKeyFile": pkiFolder + "kubelet.key",
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true},
			"x509":      map[string]any{"clientCAFile": pkiFolder + "ca.crt"},
		},
		"authorization": map[string]any{"mode": "Webhook"},

		"cgroupDriver":           "cgroupfs",
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

		"makeIPTablesUtilChains": false, // kube-proxy uses nftables

		"syncFrequency":             "1s",
		"fileCheckFrequency":        "1s",
		"nodeStatusUpdateFrequency": "1s",
	}
}

// KubeletPods is what the kubelet answers on /pods: a PodList.
func (n *Node) KubeletPods(ctx context.Context) ([]byte, error) {
	return n.cluster.ask(ctx, http.MethodGet, n.KubeletURL()+"/pods", "", nil)
}

// WriteStatic makes a static pod of a manifest in JSON or YAML, or changes it. The
// kubelet appends "-" and its node's name to the pod's.
func (n *Node) WriteStatic(name string, manifest []byte) error {
	// Renamed, lest the kubelet reads half of it. It ignores names that begin with a dot.
	tmp := n.Path(manifests, "."+name)
	if err := os.WriteFile(tmp, manifest, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, n.staticFile(name))
}

// RemoveStatic ends a static pod.
func (n *Node) RemoveStatic(name string) error { return os.Remove(n.staticFile(name)) }

func (n *Node) staticFile(name string) string { return n.Path(manifests, name+".yaml") }

// runs tells whether the node's kubelet knows a pod.
func (n *Node) runs(ctx context.Context, namespace, name string) (bool, error) {
	list, err := n.KubeletPods(ctx)
	if err != nil {
		return false, err
	}
	var pods struct{ Items []pod }
	if err := json.Unmarshal(list, &pods); err != nil {
		return false, fmt.Errorf("the kubelet's /pods: %w in %q", err, list)
	}
	for _, p := range pods.Items {
		if p.Metadata.Namespace == namespace && p.Metadata.Name == name {
			return true, nil
		}
	}
	return false, nil
}
