//go:build linux

// Package agentpod is capdrift in a pod, as its chart (deploy/chart/templates/daemonset.yaml) runs
// it: with no capability, a read-only root, and of the host only /proc, the cgroup tree and the
// directory of the runtime's socket.
package agentpod

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/e2e/node"
)

// Program is where the binary is inside the pod, HostRoot where the host's root is.
const (
	Program  = "/bin/capdrift"
	HostRoot = "/host"
)

// dir is where the agent's own folder is inside the pod, journal where its journal is.
const (
	dir     = "/run/capdrift"
	journal = "/var/lib/capdrift"
)

// Pod is a pod that can run a capdrift binary, on the host's pids; proc is the /proc that it gets,
// user whose the processes are.
func Pod(n *node.Node, binary, proc string, user int64) node.Pod {
	sc := &cri.LinuxContainerSecurityContext{
		Capabilities:     &cri.Capability{DropCapabilities: []string{"ALL"}},
		NoNewPrivs:       true,
		ReadonlyRootfs:   true,
		RunAsUser:        &cri.Int64Value{Value: user},
		RunAsGroup:       &cri.Int64Value{Value: user},
		NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_NODE},
	}
	if AppArmor() {
		sc.Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
	}
	mount := func(host, inside string) *cri.Mount {
		return &cri.Mount{HostPath: host, ContainerPath: inside, Readonly: true}
	}
	return node.Pod{Security: sc, Shared: true, Mounts: []*cri.Mount{
		mount(binary, Program),
		mount(proc, HostRoot+"/proc"),
		mount("/sys/fs/cgroup", HostRoot+"/sys/fs/cgroup"),
		mount(n.SocketDir(), HostRoot+"/run/containerd"), // where it is looked for
	}}
}

// OwnPids takes the pod off the host's pids, as the chart does unless it is told otherwise.
func OwnPids(p node.Pod) node.Pod {
	p.Security.NamespaceOptions.Pid = cri.NamespaceMode_CONTAINER
	return p
}

// AppArmor reports whether the machine has it.
func AppArmor() bool {
	b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && strings.TrimSpace(string(b)) == "Y"
}

// Agent makes of p a pod that runs the agent. Its folder is own on the host, where agent.sock is
// its socket and journal its journal; what is in there becomes its user's. The settings are
// further lines of its configuration, none of node or api.
func Agent(p node.Pod, own string, settings ...string) (node.Pod, error) {
	config := append([]string{
		"node: {hostRoot: " + HostRoot + "}",
		"api: {socket: " + dir + "/agent.sock}",
	}, settings...)
	if err := os.WriteFile(filepath.Join(own, "agent.yaml"), []byte(strings.Join(config, "\n")+"\n"), 0o644); err != nil {
		return node.Pod{}, err
	}
	if err := os.MkdirAll(filepath.Join(own, "journal"), 0o700); err != nil {
		return node.Pod{}, err
	}
	user := int(p.Security.RunAsUser.Value)
	err := filepath.WalkDir(own, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chown(path, user, user)
	})
	if err != nil {
		return node.Pod{}, err
	}
	p.Command = []string{Program}
	p.Args = []string{"agent", "--config", dir + "/agent.yaml"}
	p.Mounts = append(p.Mounts,
		&cri.Mount{HostPath: own, ContainerPath: dir},
		&cri.Mount{HostPath: filepath.Join(own, "journal"), ContainerPath: journal})
	return p, nil
}
