//go:build linux

package node

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
)

// The runtime handlers of every node, beside the default one.
const (
	// HandlerWide has a base_runtime_spec that gives every container BaseCapability too.
	HandlerWide = "wide"
	// HandlerWrapped calls runc through a wrapper that edits each config.json: it adds
	// WrapperCapability to all sets but the ambient one.
	HandlerWrapped = "wrapped"
	// HandlerSlow calls runc through a wrapper that gives each container a hook which takes
	// seconds, before the container's program is started.
	HandlerSlow = "slow"
)

// What the two handlers add.
const (
	BaseCapability    = "CAP_SYS_PTRACE"
	WrapperCapability = "CAP_SYS_CHROOT"
)

// BaseSpec is the path of HandlerWide's base runtime spec.
func (n *Node) BaseSpec() string { return filepath.Join(n.Root, "base-spec.json") }

// Wrapper is the path of HandlerWrapped's program. The actor is it under that name.
func (n *Node) Wrapper() string { return filepath.Join(n.Root, "runc-wrapper") }

// slowWrapper is the path of HandlerSlow's program, slowHook that of its hook.
func (n *Node) slowWrapper() string { return filepath.Join(n.Root, "runc-slow") }
func (n *Node) slowHook() string    { return filepath.Join(n.Root, "slow-hook") }

func (n *Node) makeHandlers(ctx context.Context) error {
	spec, err := oci.GenerateSpec(namespaces.WithNamespace(ctx, "k8s.io"), nil, &containers.Container{ID: "base"})
	if err != nil {
		return err
	}
	caps := spec.Process.Capabilities
	for _, set := range []*[]string{&caps.Bounding, &caps.Effective, &caps.Permitted} {
		*set = append(*set, BaseCapability)
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	if err := os.WriteFile(n.BaseSpec(), text, 0o644); err != nil {
		return err
	}
	for _, link := range []string{n.Wrapper(), n.slowWrapper(), n.slowHook()} {
		if err := os.Symlink(n.program("actor"), link); err != nil {
			return err
		}
	}
	return nil
}
