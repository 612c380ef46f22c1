//go:build linux

// Package workload has containers as one meets them on nodes: what their pod specs say, what
// the kubelet makes of that for the runtime, and what somebody does to them afterwards.
package workload

import (
	"cmp"
	"context"
	"encoding/json"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/e2e/node"
)

// Workload is a pod of one container.
type Workload struct {
	About                      string // in a few words
	Namespace, Name, Container string
	Security                   SecurityContext
	OwnUsers                   bool     // hostUsers: false
	List                       string   // in which the pod spec has it; default "containers"
	Handler                    string   // of its runtime class; default containerd's
	Steps                      []string // what its program does before it is ready
	// Then is what somebody does to it; nil for nothing.
	Then func(ctx context.Context, n *node.Node, c *node.Container) error
}

// SecurityContext is the container's, as far as capdrift reads it, in the form of a pod spec
// (k8s.io/api/core/v1).
type SecurityContext struct {
	Privileged               bool          `json:"privileged,omitempty"`
	AllowPrivilegeEscalation *bool         `json:"allowPrivilegeEscalation,omitempty"`
	RunAsUser                *int64        `json:"runAsUser,omitempty"`
	RunAsNonRoot             bool          `json:"runAsNonRoot,omitempty"`
	Capabilities             *Capabilities `json:"capabilities,omitempty"`
}

// Capabilities are the two lists of a pod spec.
type Capabilities struct {
	Add  []string `json:"add,omitempty"`
	Drop []string `json:"drop,omitempty"`
}

// Restricted is what the Pod Security Standards' Restricted profile asks of a container, but
// for seccomp, which the node's runc is built without.
func Restricted() SecurityContext {
	return SecurityContext{
		AllowPrivilegeEscalation: new(false), RunAsNonRoot: true, RunAsUser: new(int64(1000)),
		Capabilities: &Capabilities{Drop: []string{"ALL"}},
	}
}

// cri is what the kubelet makes of it (pkg/kubelet/kuberuntime/security_context.go).
func (s SecurityContext) cri() *cri.LinuxContainerSecurityContext {
	config := &cri.LinuxContainerSecurityContext{
		Privileged: s.Privileged,
		NoNewPrivs: s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation,
	}
	if s.RunAsUser != nil {
		config.RunAsUser = &cri.Int64Value{Value: *s.RunAsUser}
	}
	if s.Capabilities != nil {
		config.Capabilities = &cri.Capability{AddCapabilities: s.Capabilities.Add, DropCapabilities: s.Capabilities.Drop}
	}
	return config
}

// Pod is the workload as the node is told of it.
func (w Workload) Pod() node.Pod {
	security := w.Security.cri()
	if w.OwnUsers {
		ids := []*cri.IDMapping{{HostId: 100000, Length: 65536}}
		security.NamespaceOptions = &cri.NamespaceOption{
			Network:       cri.NamespaceMode_NODE,
			Pid:           cri.NamespaceMode_CONTAINER,
			UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids},
		}
	}
	steps := append([]string{"name=" + w.Container}, w.Steps...)
	return node.Pod{
		Namespace: w.Namespace, Name: w.Name, Container: w.Container, Handler: w.Handler,
		Security: security, Args: append(steps, "ready", "sleep"),
	}
}

// Run starts the workload, and does to it what is done to it.
func (w Workload) Run(ctx context.Context, n *node.Node) (*node.Container, error) {
	c, err := n.Run(ctx, w.Pod())
	if err == nil && w.Then != nil {
		err = w.Then(ctx, n, c)
	}
	return c, err
}

// Manifests are the workloads' pod specs, which a scanner of manifests reads.
func Manifests(workloads ...Workload) ([]byte, error) {
	type object map[string]any
	items := make([]object, len(workloads))
	for i, w := range workloads {
		spec := object{"containers": []object{{"name": "app", "image": node.Image}}} // a pod has one there whatever else it has
		spec[cmp.Or(w.List, "containers")] = []object{{"name": w.Container, "image": node.Image, "securityContext": w.Security}}
		if w.OwnUsers {
			spec["hostUsers"] = false
		}
		items[i] = object{
			"apiVersion": "v1", "kind": "Pod",
			"metadata": object{"namespace": w.Namespace, "name": w.Name},
			"spec":     spec,
		}
	}
	return json.MarshalIndent(object{"apiVersion": "v1", "kind": "List", "items": items}, "", "  ")
}
