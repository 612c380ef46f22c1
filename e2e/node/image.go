//go:build linux

package node

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"runtime"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	containerd "github.com/containerd/containerd/v2/client"
)

// The containerd namespaces used: the CRI's own, and docker's for containers that
// no CRI client sees.
const (
	criNamespace  = "k8s.io"
	mobyNamespace = "moby"
)

// importImage makes the image and imports it where the CRI and where docker look.
func (n *Node) importImage(ctx context.Context) error {
	actor, err := os.ReadFile(n.program("actor"))
	if err != nil {
		return err
	}
	archive, err := ImageArchive(actor)
	if err != nil {
		return err
	}
	for _, ns := range []string{criNamespace, mobyNamespace} {
		ctx := namespaces.WithNamespace(ctx, ns)
		images, err := n.client.Import(ctx, bytes.NewReader(archive))
		if err != nil {
			return fmt.Errorf("import image into %s: %w", ns, err)
		}
		for _, img := range images {
			if err := containerd.NewImage(n.client, img).Unpack(ctx, ""); err != nil {
				return fmt.Errorf("unpack image in %s: %w", ns, err)
			}
		}
	}
	return Until(ctx, "the CRI knows the image", func() (bool, error) {
		r, err := n.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: Image}})
		return err == nil && r.Image != nil, err
	})
}

// ImageArchive is Image, one layer with the given actor, in the form of `docker save`.
func ImageArchive(actor []byte) ([]byte, error) {
	layer, err := imageLayer(actor)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(layer)
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config":       map[string]any{"Entrypoint": []string{"/bin/actor"}, "Cmd": []string{"sleep"}, "Env": []string{"PATH=/bin"}},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(sum[:])}},
	})
	if err != nil {
		return nil, err
	}
	manifest, err := json.Marshal([]map[string]any{{
		"Config": "config.json", "RepoTags": []string{Image}, "Layers": []string{"layer.tar"},
	}})
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range []struct {
		name string
		data []byte
	}{{"layer.tar", layer}, {"config.json", config}, {"manifest.json", manifest}} {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.data))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), w.Close()
}

// imageLayer holds the actor three times: plain, setuid root, and with
// cap_net_raw+ep as file capability.
func imageLayer(actor []byte) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, dir := range []string{"bin/", "etc/", "proc/", "sys/", "dev/", "tmp/", "host/"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
			return nil, err
		}
	}
	for _, f := range []struct {
		name  string
		mode  int64
		xattr map[string]string
		data  []byte
	}{
		{"bin/actor", 0o755, nil, actor},
		{"bin/actor-setuid", 0o4755, nil, actor},
		{"bin/actor-filecap", 0o755, map[string]string{"SCHILY.xattr.security.capability": fileCapNetRaw}, actor},
		{"etc/passwd", 0o644, nil, []byte("root:x:0:0::/:/bin/actor\nuser:x:1000:1000::/:/bin/actor\n")},
		{"etc/group", 0o644, nil, []byte("root:x:0:\nuser:x:1000:\n")},
	} {
		h := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)), PAXRecords: f.xattr}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), w.Close()
}

// struct vfs_cap_data (include/uapi/linux/capability.h), revision 2, little endian:
// the effective flag, permitted bit 13 (NET_RAW), nothing inheritable.
const fileCapNetRaw = "\x01\x00\x00\x02" + "\x00\x20\x00\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00"
