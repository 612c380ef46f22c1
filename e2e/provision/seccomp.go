package provision

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A kubelet has every sandbox filtered by seccomp, for which runc needs libseccomp.
var runcWithSeccomp = module{
	name: "runc", version: RuncVersion, takes: "about 20 seconds",
	packages: runc.packages,
	// libseccomp is not installed: nothing to ask pkg-config for.
	env: []string{"CGO_ENABLED=1", "PKG_CONFIG=true"},
	flags: []string{
		"-tags=osusergo netgo static_build seccomp",
		"-ldflags=-s -w -linkmode external -extldflags -static",
	},
}

// installRuncWithSeccomp builds runc with the libseccomp of Debian's archive.
func (c Config) installRuncWithSeccomp(ctx context.Context, programs string) error {
	m := runcWithSeccomp
	return c.once(m.name, m.version, m.takes, m, programs, func(into string) error {
		tmp, err := os.MkdirTemp(c.Cache, ".libseccomp-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tmp)
		if err := download(ctx, tmp, "libseccomp-dev"); err != nil {
			return err
		}
		libraries, err := filepath.Glob(filepath.Join(tmp, "usr", "lib", "*", "libseccomp.a"))
		if err != nil || len(libraries) != 1 {
			return fmt.Errorf("libseccomp-dev has %d libseccomp.a, want one", len(libraries))
		}
		m.env = append(m.env,
			"CGO_CFLAGS=-g -O2 -I"+filepath.Join(tmp, "usr", "include"),
			"CGO_LDFLAGS=-g -O2 -L"+filepath.Dir(libraries[0])+" -lseccomp")
		return m.build(ctx, into)
	})
}

// download unpacks a Debian package into dir, without installing it.
func download(ctx context.Context, dir, pkg string) error {
	command := func(name string, args ...string) error {
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
		}
		return nil
	}
	// Sandbox: _apt cannot write to our folder and apt would warn of it.
	get := []string{"-q", "-o", "APT::Sandbox::User=root", "download", pkg}
	if err := command("apt-get", get...); err != nil {
		// The lists may be missing, or older than what the archive still has.
		if uerr := command("apt-get", "-q", "update"); uerr != nil {
			return fmt.Errorf("%w\n%w", err, uerr)
		}
		if err := command("apt-get", get...); err != nil {
			return err
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, pkg+"_*.deb"))
	if err != nil || len(files) != 1 {
		return fmt.Errorf("apt-get downloaded %d of %s, want one", len(files), pkg)
	}
	return command("dpkg", "-x", files[0], dir)
}
