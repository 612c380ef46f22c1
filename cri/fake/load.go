package fake

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/api/types/task"
	"google.golang.org/protobuf/encoding/protojson"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Load reads a directory of captures, named <runtime>-<version>, with a
// directory for each container in which info.json and status.json are what the
// runtime answered (testdata/captures/README.md). Containers that the runtime
// refused to make are left out.
//
// The captures hold no sandboxes: Load makes one for each container, which, like
// most of CRI-O's, has no process of its own.
func Load(dir string) (*Node, error) {
	base := filepath.Base(dir)
	dash := strings.LastIndexByte(base, '-')
	if dash < 0 {
		return nil, fmt.Errorf("%s: want a directory named <runtime>-<version>", dir)
	}
	node := &Node{Name: base[:dash], Version: base[dash+1:]}
	if node.Name == "containerd" {
		node.Version = "v" + node.Version // as it says it
		node.Tasks = map[string][]*Task{"k8s.io": nil}
	}
	cases, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, one := range cases {
		if !one.IsDir() {
			continue
		}
		if err := node.load(filepath.Join(dir, one.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	if err := node.configure(filepath.Join(dir, "runtime-status.json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if len(node.Containers) == 0 {
		return nil, fmt.Errorf("%s: no captured containers", dir)
	}
	return node, nil
}

// configure takes the runtime's configuration as a verbose Status tells it.
func (n *Node) configure(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var status struct {
		Config json.RawMessage `json:"config"`
	}
	if err := json.Unmarshal(text, &status); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	n.Config = string(status.Config)
	return nil
}

func (n *Node) load(dir string) error {
	info, err := os.ReadFile(filepath.Join(dir, "info.json"))
	if err != nil {
		return err
	}
	message, err := os.ReadFile(filepath.Join(dir, "status.json"))
	if err != nil {
		return err
	}
	status := &runtimeapi.ContainerStatus{}
	if err := protojson.Unmarshal(message, status); err != nil {
		return fmt.Errorf("%s: status.json: %w", dir, err)
	}
	var parts struct {
		SandboxID   string          `json:"sandboxID"`
		PID         uint32          `json:"pid"`
		RuntimeSpec json.RawMessage `json:"runtimeSpec"`
	}
	if err := json.Unmarshal(info, &parts); err != nil {
		return fmt.Errorf("%s: info.json: %w", dir, err)
	}
	container := &Container{SandboxID: parts.SandboxID, Status: status, Info: string(info)}
	if n.Name == "cri-o" {
		container.Listed = status.GetImageId()
	}
	n.Containers = append(n.Containers, container)
	labels := status.GetLabels()
	n.Sandboxes = append(n.Sandboxes, &Sandbox{
		Status: &runtimeapi.PodSandboxStatus{
			Id: parts.SandboxID, State: runtimeapi.PodSandboxState_SANDBOX_READY, CreatedAt: status.GetCreatedAt(),
			Metadata: &runtimeapi.PodSandboxMetadata{
				Namespace: labels["io.kubernetes.pod.namespace"], Name: labels["io.kubernetes.pod.name"], Uid: labels["io.kubernetes.pod.uid"],
			},
		},
		Info: `{"runtimeSpec":{}}`,
	})
	if n.Tasks != nil {
		n.Tasks["k8s.io"] = append(n.Tasks["k8s.io"], &Task{
			ID: status.GetId(), PID: parts.PID, Status: task.Status_RUNNING, Runtime: "io.containerd.runc.v2", Spec: string(parts.RuntimeSpec),
		})
	}
	return nil
}
