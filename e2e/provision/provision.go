// Package provision builds the programs of a real node from the Go module proxy:
// containerd, its shim, runc, and from this repository capdrift and the actor. Some tests
// have containerd 1.7 instead, or all that a Kubernetes cluster is made of besides.
//
// All are static, so that they serve on the machine itself, inside a container
// and inside a virtual machine alike, and stripped, because runc copies itself and the virtual
// machine loads all of them at each start. What has a version is built once and
// kept in a cache folder under that version; what comes from this repository is built anew each
// time, which Go's build cache makes quick.
package provision

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Versions of what makes a node.
const (
	ContainerdVersion = "2.4.2"
	RuncVersion       = "1.5.2"
)

// Config says where the sources are and where built programs go.
type Config struct {
	Repo     string    // the root folder of the capdrift repository
	Cache    string    // a folder of ours alone, by convention Repo/.cache/e2e
	Progress io.Writer // one line before each step that takes time
}

// FromEnv returns the folder with the programs: the one that CAPDRIFT_E2E_PROGRAMS names,
// which needs neither Go nor the sources; else it builds them from the
// repository around the working directory.
func FromEnv(ctx context.Context, progress io.Writer) (string, error) {
	return fromEnv(ctx, "CAPDRIFT_E2E_PROGRAMS", progress, Build)
}

func fromEnv(ctx context.Context, variable string, progress io.Writer, build func(context.Context, Config) (string, error)) (string, error) {
	if dir := os.Getenv(variable); dir != "" {
		return dir, nil
	}
	repo, err := Repo()
	if err != nil {
		return "", fmt.Errorf("%w, or set %s to a folder with the built programs", err, variable)
	}
	return build(ctx, Config{Repo: repo, Cache: filepath.Join(repo, ".cache", "e2e"), Progress: progress})
}

// Repo finds the root folder of the repository that the working directory is in.
func Repo() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "e2e", "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("not inside the capdrift repository; run from there")
		}
		dir = parent
	}
}

// A module is something that `go install` builds from the module proxy.
type module struct {
	name, version, takes string
	packages             []string
	env, flags           []string
}

var containerd = module{
	name: "containerd", version: ContainerdVersion, takes: "one to two minutes",
	packages: []string{
		"github.com/containerd/containerd/v2/cmd/containerd",
		"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
	},
	env:   []string{"CGO_ENABLED=0"},
	flags: []string{"-ldflags=-s -w"},
}

// runc enters namespaces in C. Without the tag "seccomp" it needs no libseccomp.
var runc = module{
	name: "runc", version: RuncVersion, takes: "about 20 seconds",
	packages: []string{"github.com/opencontainers/runc"},
	env:      []string{"CGO_ENABLED=1"},
	flags: []string{
		"-tags=osusergo netgo static_build",
		"-ldflags=-s -w -linkmode external -extldflags -static",
	},
}

// Build returns a folder that holds containerd, containerd-shim-runc-v2, runc, capdrift and
// actor. Several processes may call it at once: the second waits for the first.
func Build(ctx context.Context, c Config) (string, error) {
	return c.fill("programs", func(programs string) error {
		for _, m := range []module{containerd, runc} {
			if err := c.install(ctx, m, programs); err != nil {
				return err
			}
		}
		return c.buildOwn(ctx, programs)
	})
}

// fill makes a folder in the cache and has programs put into it by one process at a time.
func (c Config) fill(name string, put func(programs string) error) (string, error) {
	programs := filepath.Join(c.Cache, name)
	if err := os.MkdirAll(programs, 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(filepath.Join(c.Cache, ".lock"))
	if err != nil {
		return "", err
	}
	defer func() { _ = unlock() }()
	if err := put(programs); err != nil {
		return "", err
	}
	return programs, nil
}

// buildOwn builds what comes from this repository: of e2e the actor, and more if named.
func (c Config) buildOwn(ctx context.Context, programs string, more ...string) error {
	c.say("building what is this repository's …")
	for _, pkg := range append([]string{"./actor"}, more...) {
		if err := c.build(ctx, filepath.Join(c.Repo, "e2e"), pkg, programs); err != nil {
			return err
		}
	}
	return c.build(ctx, c.Repo, "./cmd/capdrift", programs)
}

func (c Config) say(format string, args ...any) {
	if c.Progress != nil {
		fmt.Fprintf(c.Progress, format+"\n", args...)
	}
}

// install builds a module's programs unless the cache has this version, and links them
// into the programs folder.
func (c Config) install(ctx context.Context, m module, programs string) error {
	return c.once(m.name, m.version, m.takes, m, programs, func(into string) error { return m.build(ctx, into) })
}

func (m module) build(ctx context.Context, into string) error {
	args := append([]string{"install"}, m.flags...)
	for _, p := range m.packages {
		args = append(args, p+"@v"+m.version)
	}
	return run(ctx, into, append(m.env, "GOBIN="+into), args...)
}

// once builds programs unless the cache has them of this version and recipe (all that
// decides what is built), and links them into the programs folder.
func (c Config) once(name, version, takes string, recipe any, programs string, build func(into string) error) error {
	sum := sha256.Sum256(fmt.Append(nil, recipe))
	cached := filepath.Join(c.Cache, fmt.Sprintf("%s-%s-%s-%x", name, version, runtime.GOARCH, sum[:4]))
	if _, err := os.Stat(cached); errors.Is(err, fs.ErrNotExist) {
		c.say("building %s %s (%s, once) …", name, version, takes)
		tmp, err := os.MkdirTemp(c.Cache, ".install-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tmp)
		began := time.Now()
		if err := build(tmp); err != nil {
			return fmt.Errorf("build %s %s: %w", name, version, err)
		}
		c.say("built %s %s in %s", name, version, time.Since(began).Round(time.Second))
		if err := os.Rename(tmp, cached); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	entries, err := os.ReadDir(cached)
	if err != nil {
		return err
	}
	for _, e := range entries {
		target := filepath.Join(programs, e.Name())
		if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.Link(filepath.Join(cached, e.Name()), target); err != nil {
			return err
		}
	}
	return nil
}

// Version is what capdrift says it is, in images too: the plugin warns of agents of another.
const Version = "v0.0.0-test"

// build compiles one of our own commands. It replaces rather than overwrites:
// the old file may be running.
func (c Config) build(ctx context.Context, dir, pkg, programs string) error {
	tmp, err := os.MkdirTemp(c.Cache, ".build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	name := filepath.Base(pkg)
	built := filepath.Join(tmp, name)
	if err := run(ctx, dir, []string{"CGO_ENABLED=0"}, "build", "-tags=grpcnotrace", "-ldflags=-s -w -X main.version="+Version, "-o", built, pkg); err != nil {
		return fmt.Errorf("build %s: %w", name, err)
	}
	return os.Rename(built, filepath.Join(programs, name))
}

func run(ctx context.Context, dir string, env []string, args ...string) error {
	_, err := output(ctx, dir, env, args...)
	return err
}

// output runs a go command and returns what it wrote to standard output.
func output(ctx context.Context, dir string, env []string, args ...string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "GOWORK=off"), env...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("go %s: %w\n%s%s", strings.Join(args, " "), err, stdout.Bytes(), stderr.Bytes())
	}
	return stdout.Bytes(), nil
}

func lock(path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f.Close, nil
}
