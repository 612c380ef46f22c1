package cri

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/drift"
)

// configuration is the part of containerd's CRI configuration, under the key
// "config" of a verbose Status, that tells how containers are made
// (internal/cri/config/config.go; the same names in 1.7). Registry passwords,
// which stand beside it, are not decoded. Other runtimes have no such key, or
// one of another form.
type configuration struct {
	StateDir   string `json:"stateDir"` // …/io.containerd.grpc.v1.cri
	Containerd struct {
		DefaultRuntime string `json:"defaultRuntimeName"`
		Runtimes       map[string]struct {
			BaseSpec string `json:"baseRuntimeSpec"`
		} `json:"runtimes"`
	} `json:"containerd"`
}

// crioBundles is where CRI-O keeps what it hands to the OCI runtime, by the
// default runroot of containers-common.
const crioBundles = "/run/containers/storage/overlay-containers/%s/userdata/config.json"

// configure asks the runtime how it is configured. What it does not tell is left
// empty: it explains causes, and decides nothing.
func (c *Client) configure(ctx context.Context, runtime *drift.Runtime) {
	if strings.EqualFold(runtime.Name, "cri-o") {
		c.bundles = crioBundles
	}
	answer, err := call(ctx, c, c.cri.Status, &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		return
	}
	config, err := decode[configuration]([]byte(answer.GetInfo()["config"]))
	if err != nil {
		return
	}
	runtime.DefaultHandler = clip(config.Containerd.DefaultRuntime)
	runtime.Handlers = make(map[string]drift.Handler, len(config.Containerd.Runtimes))
	for name, handler := range config.Containerd.Runtimes {
		runtime.Handlers[name] = drift.Handler{BaseSpec: clip(handler.BaseSpec)}
	}
	if state := filepath.Dir(config.StateDir); runtime.Name == "containerd" && filepath.IsAbs(state) {
		c.bundles = filepath.Join(state, "io.containerd.runtime.v2.task", criNamespace, "%s", "config.json")
	}
}

// maxBundle bounds a config.json: the half of [largeInfo] that is a spec.
const maxBundle = largeInfo / 2

// bundle reads what the OCI runtime read: the config.json that the runtime wrote
// and that a wrapper of the OCI runtime may have changed. It returns nil where the
// file cannot be read, as in a pod that does not have the runtime's folder.
func (c *Client) bundle(id string) *drift.OCI {
	if c.bundles == "" || id == "" || strings.ContainsAny(id, "/%\x00") || id == ".." {
		return nil
	}
	text, err := c.readBundle(filepath.Join("/", c.root, fmt.Sprintf(c.bundles, id)))
	if err != nil {
		return nil
	}
	s, err := decodeSpec(text)
	if err != nil {
		return nil
	}
	var f facts
	f.take(s)
	return f.oci
}

func (c *Client) readBundle(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fs.ErrInvalid
	case info.Size() > usualInfo: // one at a time, as large answers are
		c.large.Lock()
		defer c.large.Unlock()
	}
	text, err := io.ReadAll(io.LimitReader(file, maxBundle+1))
	if len(text) > maxBundle {
		return nil, errTooLarge
	}
	return text, err
}
