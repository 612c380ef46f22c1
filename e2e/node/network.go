//go:build linux

package node

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
)

// cni is the folder for network plugins and their configuration: the machine's own are never used.
func (n *Node) cni() string { return filepath.Join(n.Root, "cni") }

// addNetwork makes the network of pods that do not have the host's.
func (n *Node) addNetwork() error {
	if err := os.Mkdir(n.cni(), 0o755); err != nil || n.cfg.NetworkPlugin == "" {
		return err
	}
	for _, name := range []string{"loopback", "network"} { // the first is containerd's wish
		if err := os.Symlink(n.cfg.NetworkPlugin, filepath.Join(n.cni(), name)); err != nil {
			return err
		}
	}
	list := `{"cniVersion":"` + cniVersion + `","name":"pods","plugins":[{"type":"network"}]}`
	return os.WriteFile(filepath.Join(n.cni(), "network.conflist"), []byte(list), 0o644)
}

const cniVersion = "0.3.1"

// NoNetwork is a CNI plugin that makes nothing and says that all is well
// (https://www.cni.dev/docs/spec): pods have a network namespace of their own, and nothing in it.
// A test binary that finds CNI_COMMAND in its environment may call it and end, and so name itself
// as Config.NetworkPlugin.
func NoNetwork(stdout io.Writer) error {
	answer := map[string]any{"cniVersion": cniVersion}
	switch os.Getenv("CNI_COMMAND") {
	case "VERSION":
		answer["supportedVersions"] = []string{cniVersion}
	case "ADD":
		answer["interfaces"] = []map[string]any{{"name": os.Getenv("CNI_IFNAME"), "sandbox": os.Getenv("CNI_NETNS")}}
		// An address, without which containerd does not start the pod, of those for
		// documentation (RFC 5737).
		answer["ips"] = []map[string]any{{"version": "4", "interface": 0, "address": "192.0.2.1/32"}}
	default: // DEL, CHECK
		return nil
	}
	return json.NewEncoder(stdout).Encode(answer)
}
