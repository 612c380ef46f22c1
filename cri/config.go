package cri

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

// configuration is the part of a runtime's configuration, under the key "config" of
// a verbose Status, that tells how containers are made. Registry passwords, which
// stand beside it, are not decoded. Other runtimes have no such key, or one of
// another form.
type configuration struct {
	// containerd's (internal/cri/config/config.go; the same names in 1.7).
	StateDir   string `json:"stateDir"` // …/io.containerd.grpc.v1.cri
	Containerd struct {
		DefaultRuntime string `json:"defaultRuntimeName"`
		Runtimes       map[string]struct {
			Type     string        `json:"runtimeType"`
			BaseSpec string        `json:"baseRuntimeSpec"`
			Options  runtimeBinary `json:"options"`
		} `json:"runtimes"`
	} `json:"containerd"`
	// CRI-O's, since 1.33 (pkg/config/config.go). The form was recorded:
	// testdata/captures/cri-o-1.37.0/runtime-status.json.
	CRIO struct {
		DefaultRuntime string    `json:"DefaultRuntime"`
		Conmon         string    `json:"Conmon"`              // for handlers that name no monitor; deprecated
		Default        *defaults `json:"DefaultCapabilities"` // nil when not told; none is a setting
		Inheritable    *bool     `json:"AddInheritableCapabilities"`
		Runtimes       map[string]struct {
			Path        string `json:"RuntimePath"`
			Type        string `json:"RuntimeType"`
			Monitor     string `json:"MonitorPath"`
			ExecMonitor string `json:"MonitorExecCgroup"` // "" or "container"
		} `json:"Runtimes"`
	} `json:"crio"`
}

// runtimeBinary is one of the options that containerd hands to a shim, whose form is
// each shim's own: what does not look like runc's options has no such field.
type runtimeBinary string

func (b *runtimeBinary) UnmarshalJSON(text []byte) error {
	var options struct {
		BinaryName string `json:"BinaryName"`
	}
	if json.Unmarshal(text, &options) == nil {
		*b = runtimeBinary(clip(options.BinaryName))
	}
	return nil
}

// defaults are CRI-O's default_capabilities, with or without CAP_. It does not start with
// a name that it does not know.
type defaults struct {
	set     capdecode.Set
	unknown bool // some name is newer than every one known here
}

func (d *defaults) UnmarshalJSON(text []byte) error {
	var list []string
	if err := json.Unmarshal(text, &list); err != nil {
		return errForm
	}
	for _, name := range list {
		one, ok := capdecode.ParseName(name)
		if !ok {
			d.unknown = true
			continue
		}
		d.set |= capdecode.Of(one)
	}
	return nil
}

// decodeConfiguration reads the key "config" of a verbose Status: an object, or the
// same as JSON in a text.
func decodeConfiguration(text string) (configuration, error) {
	if strings.HasPrefix(text, `"`) {
		var inner string
		if err := json.Unmarshal([]byte(text), &inner); err != nil {
			return configuration{}, errForm
		}
		text = inner
	}
	return decode[configuration](strings.NewReader(text))
}

// crioBundles is where CRI-O keeps what it hands to the OCI runtime, by the
// default runroot of containers-common.
const crioBundles = "/run/containers/storage/overlay-containers/{id}/userdata/config.json"

// configure asks the runtime how it is configured. What it does not tell is left
// empty, and is then learnt from its containers or not known.
func (c *Client) configure(ctx context.Context, runtime *drift.Runtime) {
	if isCRIO(runtime.Name) {
		c.bundles = crioBundles
	}
	answer, err := call(ctx, c, c.cri.Status, &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		return
	}
	config, err := decodeConfiguration(answer.GetInfo()["config"])
	if err != nil {
		return
	}
	config.apply(runtime)
	if state := filepath.Dir(config.StateDir); runtime.Name == "containerd" && filepath.IsAbs(state) {
		c.bundles = filepath.Join(state, "io.containerd.runtime.v2.task", "{namespace}", "{id}", "config.json")
	}
}

func isCRIO(name string) bool { return strings.EqualFold(name, "cri-o") }

// apply takes the runtime's handlers, of whichever runtime it is.
func (config *configuration) apply(runtime *drift.Runtime) {
	runtime.Handlers = make(map[string]drift.Handler, len(config.Containerd.Runtimes)+len(config.CRIO.Runtimes))
	if isCRIO(runtime.Name) {
		runtime.DefaultHandler = clip(config.CRIO.DefaultRuntime)
		if told := config.CRIO.Default; told != nil && !told.unknown {
			runtime.Told = drift.Given{Default: &told.set, Inheritable: config.CRIO.Inheritable}
		}
		for name, handler := range config.CRIO.Runtimes {
			runtime.Handlers[name] = drift.Handler{
				Binary: clip(cmp.Or(handler.Path, name)), // it is looked for by the handler's name, crio.conf(5)
				Type:   clip(handler.Type), Monitor: clip(cmp.Or(handler.Monitor, config.CRIO.Conmon)),
				MonitorInContainer: handler.ExecMonitor == "container",
			}
		}
		return
	}
	runtime.DefaultHandler = clip(config.Containerd.DefaultRuntime)
	for name, handler := range config.Containerd.Runtimes {
		runtime.Handlers[name] = drift.Handler{BaseSpec: clip(handler.BaseSpec), Binary: string(handler.Options), Type: clip(handler.Type)}
	}
}

// maxBundle bounds a config.json. It is written to disk with up to six bytes for each
// of the 16 MiB that the runtime takes in one call (containerd, defaults/defaults.go),
// and is read without being held.
const maxBundle = 128 << 20

// bundle reads what the OCI runtime read: the config.json that the runtime wrote
// and that a wrapper of the OCI runtime may have changed. It fails where the file
// cannot be read, as in a pod that does not have the runtime's folder.
func (c *Client) bundle(ctx context.Context, namespace, id string) (facts, error) {
	if c.bundles == "" || !plainID(id) || !plainID(namespace) {
		return facts{}, fs.ErrNotExist
	}
	path := strings.NewReplacer("{namespace}", namespace, "{id}", id).Replace(c.bundles)
	file, err := os.Open(filepath.Join("/", c.root, path))
	if err != nil {
		var failed *fs.PathError
		if errors.As(err, &failed) {
			err = failed.Err
		}
		return facts{}, err
	}
	defer file.Close()
	switch info, err := file.Stat(); {
	case err != nil:
		return facts{}, err
	case !info.Mode().IsRegular():
		return facts{}, fs.ErrInvalid
	case info.Size() > maxBundle:
		return facts{}, fmt.Errorf("%w: %d bytes", errTooLarge, info.Size())
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	s, err := decodeSpec(untilDone{ctx, io.LimitReader(file, maxBundle)})
	if err != nil {
		return facts{}, err
	}
	var f facts
	f.take(s)
	if f.oci == nil {
		return facts{}, errors.New(strings.Join(f.missing, "; "))
	}
	return f, nil
}

// untilDone is a reader that fails once a context ends.
type untilDone struct {
	ctx context.Context
	io.Reader
}

func (r untilDone) Read(buffer []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(buffer)
}
