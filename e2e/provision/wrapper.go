package provision

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

// Versions of what only some tests need.
const (
	// Containerd17Version is the newest of the older line that many nodes still run.
	Containerd17Version = "1.7.35"
	KubernetesVersion   = "1.36.3"
	EtcdVersion         = "3.7.3"

	NetworkPluginsVersion = "1.9.1"
	HelmVersion           = "4.3.1"
	KubeconformVersion    = "0.8.0"

	PrometheusOperatorVersion = "0.85.0"
)

// A wrapper builds what `go install package@version` refuses, because the module's go.mod
// says replace or exclude, or wants a newer toolchain than is needed: a module made for
// the purpose requires it instead, and repeats what matters of that.
type wrapper struct {
	name, version, takes string
	module               string
	programs             []program
	// staging is the version under which the folders that go.mod replaces modules by are
	// published; empty if there are none.
	staging string
	ldflags string // besides -s -w
}

type program struct{ name, pkg string }

var containerd17 = wrapper{
	name: "containerd", version: Containerd17Version, takes: "one to two minutes",
	module: "github.com/containerd/containerd",
	programs: []program{
		{"containerd", "github.com/containerd/containerd/cmd/containerd"},
		{"containerd-shim-runc-v2", "github.com/containerd/containerd/cmd/containerd-shim-runc-v2"},
	},
	ldflags: "-X github.com/containerd/containerd/version.Version=v" + Containerd17Version,
}

var kubernetes = []wrapper{
	{
		name: "kubernetes", version: KubernetesVersion, takes: "four to eight minutes",
		module: "k8s.io/kubernetes",
		programs: []program{
			{"kubelet", "k8s.io/kubernetes/cmd/kubelet"},
			{"kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"},
			{"kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"},
			{"kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"},
			{"kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"},
			{"kubectl", "k8s.io/kubernetes/cmd/kubectl"},
		},
		// k8s.io/api v0.36.3 belongs to Kubernetes v1.36.3, and so on.
		staging: "0" + strings.TrimPrefix(KubernetesVersion, "1"),
		ldflags: "-X k8s.io/component-base/version.gitVersion=v" + KubernetesVersion,
	},
	{
		name: "etcd", version: EtcdVersion, takes: "about a minute",
		module:   "go.etcd.io/etcd/server/v3",
		programs: []program{{"etcd", "go.etcd.io/etcd/server/v3"}},
	},
}

// Containerd17 is Build with containerd 1.7 and its shim instead of the current ones.
func Containerd17(ctx context.Context, c Config) (string, error) {
	return c.fill("containerd-1.7", func(programs string) error {
		if err := c.wrap(ctx, containerd17, programs); err != nil {
			return err
		}
		if err := c.install(ctx, runc, programs); err != nil {
			return err
		}
		return c.buildOwn(ctx, programs)
	})
}

// Containerd17FromEnv returns the folder that CAPDRIFT_E2E_CONTAINERD17 names, else it builds
// it as FromEnv does.
func Containerd17FromEnv(ctx context.Context, progress io.Writer) (string, error) {
	return fromEnv(ctx, "CAPDRIFT_E2E_CONTAINERD17", progress, Containerd17)
}

// The plugins of the network of pods, from https://www.cni.dev/plugins.
var networkPlugins = module{
	name: "cni-plugins", version: NetworkPluginsVersion, takes: "about 20 seconds",
	packages: []string{
		"github.com/containernetworking/plugins/plugins/main/ptp",
		"github.com/containernetworking/plugins/plugins/main/loopback",
		"github.com/containernetworking/plugins/plugins/ipam/host-local",
	},
	env:   []string{"CGO_ENABLED=0"},
	flags: []string{"-ldflags=-s -w"},
}

// Kubernetes returns a folder that holds what package cluster is made of: etcd, the programs of the
// control plane, kubelet, kube-proxy, network plugins, the programs machine and nameserver, and
// what Build's holds for the node below, where runc has the seccomp that a kubelet asks for; and
// kubectl.
func Kubernetes(ctx context.Context, c Config) (string, error) {
	return c.fill("kubernetes", func(programs string) error {
		if err := c.install(ctx, containerd, programs); err != nil {
			return err
		}
		if err := c.installRuncWithSeccomp(ctx, programs); err != nil {
			return err
		}
		for _, w := range kubernetes {
			if err := c.wrap(ctx, w, programs); err != nil {
				return err
			}
		}
		if err := c.install(ctx, networkPlugins, programs); err != nil {
			return err
		}
		return c.buildOwn(ctx, programs, "./machine", "./nameserver")
	})
}

// KubernetesFromEnv returns the folder that CAPDRIFT_E2E_KUBERNETES names, else it builds it
// as FromEnv does.
func KubernetesFromEnv(ctx context.Context, progress io.Writer) (string, error) {
	return fromEnv(ctx, "CAPDRIFT_E2E_KUBERNETES", progress, Kubernetes)
}

// wrap builds a wrapper's programs unless the cache has them, and links them into the
// programs folder.
func (c Config) wrap(ctx context.Context, w wrapper, programs string) error {
	recipe := w
	recipe.takes = "" // decides nothing
	return c.once(w.name, w.version, w.takes, recipe, programs, func(into string) error {
		dir, err := os.MkdirTemp(c.Cache, ".wrapper-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		if err := w.writeGoMod(ctx, filepath.Join(dir, "go.mod")); err != nil {
			return err
		}
		// All at once, so that one is linked while another is compiled. -mod=mod: the go command
		// writes the rest of go.mod, and go.sum.
		args := []string{"build", "-mod=mod", "-ldflags=-s -w " + w.ldflags, "-o", into + "/"}
		for _, p := range w.programs {
			args = append(args, p.pkg)
		}
		if err := run(ctx, dir, []string{"CGO_ENABLED=0"}, args...); err != nil {
			return err
		}
		return w.rename(into)
	})
}

// rename gives the programs of packages that are named otherwise their names.
func (w wrapper) rename(into string) error {
	for _, p := range w.programs {
		if built := p.builtAs(); built != p.name {
			if err := os.Rename(filepath.Join(into, built), filepath.Join(into, p.name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// builtAs is the name that the go command gives the program: the package's, without a major version.
func (p program) builtAs() string {
	if base := path.Base(p.pkg); !regexp.MustCompile(`^v\d+$`).MatchString(base) {
		return base
	}
	return path.Base(path.Dir(p.pkg))
}

// writeGoMod writes the go.mod of the module that requires w's, with the published modules
// in place of the folders that w's own go.mod names.
func (w wrapper) writeGoMod(ctx context.Context, file string) error {
	mod := fmt.Sprintf("module wrapper\n\ngo 1.26.0\n\nrequire %s v%s\n", w.module, w.version)
	// Also before anything is asked, lest the go command takes the go.mod of a folder above.
	if err := os.WriteFile(file, []byte(mod), 0o644); err != nil {
		return err
	}
	if w.staging == "" {
		return nil
	}
	dir := filepath.Dir(file)
	var module struct{ GoMod string }
	if err := goJSON(ctx, dir, &module, "mod", "download", "-json", w.module); err != nil {
		return err
	}
	var own struct {
		Replace []struct{ Old, New struct{ Path string } }
	}
	if err := goJSON(ctx, dir, &own, "mod", "edit", "-json", module.GoMod); err != nil {
		return err
	}
	for _, r := range own.Replace {
		if !strings.HasPrefix(r.New.Path, "./") {
			return fmt.Errorf("%s replaces %s by %s, which is not one of its folders", module.GoMod, r.Old.Path, r.New.Path)
		}
		mod += fmt.Sprintf("replace %s => %[1]s v%s\n", r.Old.Path, w.staging)
	}
	return os.WriteFile(file, []byte(mod), 0o644)
}

// goJSON runs a go command that prints JSON.
func goJSON(ctx context.Context, dir string, into any, args ...string) error {
	out, err := output(ctx, dir, nil, args...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, into); err != nil {
		return fmt.Errorf("go %s: %w in %q", strings.Join(args, " "), err, out)
	}
	return nil
}
