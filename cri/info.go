package cri

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/capdrift/capdrift/drift"
)

// facts is what the runtime told of one container beyond the list. It does not
// change while the container lives.
type facts struct {
	pid        int
	spoofed    bool   // a CRI-O sandbox without a process of its own
	name       string // outside the CRI, where no list tells it
	image      image
	handler    string // as CRI-O noted it on the sandbox
	shim       string // containerd's runtime type
	binary     string // the OCI runtime that the shim was told to call
	cgroupPath string
	cri        *drift.CRI
	privileged *bool // where the runtime tells that and no more of its CRI config
	oci        *drift.OCI
	bundle     *drift.OCI // what the OCI runtime read, where it could be read
	missing    []string   // why this is not all
	// weak is true where the runtime could not tell what was declared, and its bundle did;
	// undeclared where no source did, for a reason of this container's own.
	weak, undeclared bool
}

func (f *facts) lacks(what string) { f.missing = append(f.missing, what) }

// info is the JSON under the key "info" of a verbose status, the same key on
// every runtime. containerd fills in all of it (internal/cri/server
// container_status.go, podsandbox/types/sandbox_info.go) but privileged, which is
// in its config; CRI-O pid, privileged and runtimeSpec (server/container_status.go),
// cri-dockerd the pid (core/convert.go).
//
// It is not the CRI's own types on purpose: ContainerConfig holds the
// environment, and its KeyValue changed type between cri-api 0.36.0 and 0.36.3.
type info struct {
	PID            int        `json:"pid"`
	Image          string     `json:"image"` // of a sandbox
	RuntimeType    string     `json:"runtimeType"`
	RuntimeOptions binaryName `json:"runtimeOptions"`
	Config         *config    `json:"config"`
	RuntimeSpec    *spec      `json:"runtimeSpec"`
	Privileged     *bool      `json:"privileged"`
}

// config is the part of the CRI ContainerConfig that decides privileges.
// False, zero and empty fields are absent from it.
type config struct {
	Linux struct {
		SecurityContext struct {
			Capabilities struct {
				Add        names `json:"add_capabilities"`
				Drop       names `json:"drop_capabilities"`
				AddAmbient names `json:"add_ambient_capabilities"`
			} `json:"capabilities"`
			Privileged      bool `json:"privileged"`
			NoNewPrivileges bool `json:"no_new_privs"`
			RunAsUser       *struct {
				Value int64 `json:"value"` // absent for root
			} `json:"run_as_user"`
			NamespaceOptions struct {
				UserNamespace *struct {
					Mode int `json:"mode"` // absent for POD, which is a namespace of its own; NODE is 2
				} `json:"userns_options"`
			} `json:"namespace_options"`
			Seccomp *struct {
				Type int `json:"profile_type"` // absent for RuntimeDefault
			} `json:"seccomp"`
			ReadOnlyRootFilesystem bool `json:"readonly_rootfs"`
		} `json:"security_context"`
	} `json:"linux"`
}

// layer makes the CRI layer of a config, bounded.
func (f *facts) layer(c *config) *drift.CRI {
	security := c.Linux.SecurityContext
	layer := drift.CRI{
		Add:        f.bound(security.Capabilities.Add, maxListed, "added capabilities of the CRI config"),
		Drop:       f.bound(security.Capabilities.Drop, maxListed, "dropped capabilities of the CRI config"),
		AddAmbient: f.bound(security.Capabilities.AddAmbient, maxListed, "ambient capabilities of the CRI config"),
		Privileged: security.Privileged, NoNewPrivileges: security.NoNewPrivileges,
		UserNamespace:          security.NamespaceOptions.UserNamespace != nil && security.NamespaceOptions.UserNamespace.Mode == 0,
		ReadOnlyRootFilesystem: security.ReadOnlyRootFilesystem,
	}
	if security.RunAsUser != nil {
		layer.RunAsUser = &security.RunAsUser.Value
	}
	if security.Seccomp != nil {
		layer.SeccompProfile = new(seccompProfile(security.Seccomp.Type))
	}
	return &layer
}

// seccompProfile names a type of profile as a pod spec does; SecurityProfile of
// the CRI.
func seccompProfile(profileType int) string {
	switch profileType {
	case 0:
		return "RuntimeDefault"
	case 1:
		return "Unconfined"
	case 2:
		return "Localhost"
	}
	return strconv.Itoa(profileType) // newer than this table
}

// DecodeContainerConfig reads a CRI ContainerConfig in JSON, as crictl takes it
// and as containerd shows it in a verbose status. An error never quotes it.
func DecodeContainerConfig(text []byte) (drift.CRI, error) {
	c, err := decode[config](bytes.NewReader(text))
	if err != nil {
		return drift.CRI{}, fmt.Errorf("the CRI container config %w", err)
	}
	var f facts
	layer := f.layer(&c)
	if len(f.missing) > 0 {
		return drift.CRI{}, errors.New("the CRI container config is too long: " + strings.Join(f.missing, "; "))
	}
	return *layer, nil
}

// binaryName is one field of runtimeOptions, whose form is each shim's own: what
// does not look like runc's options has no such field.
type binaryName string

func (b *binaryName) UnmarshalJSON(text []byte) error {
	var options struct {
		BinaryName string `json:"binary_name"`
	}
	if json.Unmarshal(text, &options) == nil {
		*b = binaryName(clip(options.BinaryName))
	}
	return nil
}

// maxListed is more than a [collector] keeps of one list: all that it kept is shown.
const maxListed = 2 * maxNames

// facts returns what a verbose status tells of a container or a sandbox.
func (v *verbose) facts() (facts, error) {
	if !v.told {
		var f facts
		f.lacks("the runtime gives no verbose status")
		return f, nil
	}
	in := v.info
	if in.PID < 0 {
		return facts{}, errors.New("the verbose status has a negative pid")
	}
	f := facts{pid: in.PID, image: image{name: clip(in.Image)}, shim: clip(in.RuntimeType), binary: string(in.RuntimeOptions)}
	f.take(in.RuntimeSpec)
	if in.Config != nil {
		f.cri = f.layer(in.Config)
	} else {
		f.privileged = in.Privileged
	}
	return f, nil
}

// sandbox is facts for a pod's sandbox. Its config declares no capabilities
// (LinuxSandboxSecurityContext has none), so it is no CRI layer.
func (v *verbose) sandbox() (facts, error) {
	f, err := v.facts()
	f.cri, f.privileged = nil, nil
	f.spoofed = err == nil && v.told && f.pid == 0
	return f, err
}

// guests are the words by which the shims and OCI runtimes are
// known whose containers the host's /proc does not show: their processes run on
// another kernel, or the pid is that of a monitor.
var guests = map[string]string{
	"runsc": "gVisor", "gvisor": "gVisor",
	"kata": "Kata Containers", "firecracker": "Firecracker", "rund": "a virtual machine", "krun": "a virtual machine",
	"libkrun": "a virtual machine", "urunc": "a virtual machine", "nerdbox": "a virtual machine", "vm": "a virtual machine",
	"qemu": "a virtual machine", "cloudhypervisor": "a virtual machine", "microvm": "a virtual machine", "runhcs": "a virtual machine",
	"wasm": "WebAssembly", "wasmtime": "WebAssembly", "wasmedge": "WebAssembly", "wasmer": "WebAssembly", "wamr": "WebAssembly",
	"spin": "WebAssembly", "slight": "WebAssembly", "lunatic": "WebAssembly", "wws": "WebAssembly",
}

// unsupported tells why the host's /proc does not show the container's processes, or
// nothing when it does. The shim and the OCI runtime decide: those of the container, else
// those that its handler is configured with. A handler's name is free text, and counts
// only where the runtime tells neither.
func (f *facts) unsupported(handler string, config drift.Handler) string {
	shim, binary := f.shim, f.binary
	if shim == "" {
		shim, binary = config.Type, config.Binary
	}
	if shim == "" && binary == "" {
		return inGuest(guestOf(handler), "runtime class", handler)
	}
	if why := inGuest(guestOf(binary), "OCI runtime", binary); why != "" {
		return why
	}
	switch shim {
	case "", "oci", "pod": // CRI-O calls an OCI runtime, which is none of a guest
		return ""
	case "vm": // CRI-O calls a shim in the place of an OCI runtime
		return inGuest("a virtual machine", "runtime_type", shim)
	}
	if why := inGuest(guestOf(shim), "shim", shim); why != "" {
		return why
	}
	// A false alarm about a hypervisor's own process would be worse than to say
	// that a shim is not known: only runc's takes every OCI runtime.
	if !slices.Contains(words(shim), "runc") && shim != "io.containerd.runtime.v1.linux" {
		return fmt.Sprintf("its shim %q is not known to run containers on this kernel", shim)
	}
	return ""
}

func inGuest(guest, by, name string) string {
	if guest == "" {
		return ""
	}
	return fmt.Sprintf("it runs in %s (%s %q)", guest, by, name)
}

func guestOf(name string) string {
	for _, word := range words(name) {
		if guest := guests[word]; guest != "" {
			return guest
		}
	}
	return ""
}

// words splits "io.containerd.kata-qemu.v2" and the last part of "/opt/gvisor/runsc".
func words(name string) []string {
	return strings.FieldsFunc(strings.ToLower(path.Base(name)), func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') })
}
