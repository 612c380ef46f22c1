//go:build linux

package microvm

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/capdrift/capdrift/e2e/microvm/internal/wire"
)

// initramfs is everything that goes into the guest's root.
type initramfs struct {
	init      string // the built guest program
	modules   []string
	moduleDir string
	packages  []string          // unpacked Debian packages
	files     map[string]string // guest path → host path
	plan      wire.Plan
}

// etc is what programs expect of a machine and no package brings.
var etc = map[string]string{
	"etc/group":       "root:x:0:\nnogroup:x:65534:\n",
	"etc/hostname":    "microvm\n",
	"etc/hosts":       "127.0.0.1 localhost microvm\n::1 localhost\n",
	"etc/machine-id":  "6d6963726f766d206d616368696e6521\n",
	"etc/os-release":  "ID=debian\nNAME=\"Debian GNU/Linux\"\nPRETTY_NAME=\"Debian GNU/Linux (microVM)\"\n",
	"etc/passwd":      "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
	"etc/resolv.conf": "nameserver 127.0.0.1\n",
}

// skipped are parts of packages that nothing in the guest needs.
var skipped = []string{
	"usr/share/bash-completion", "usr/share/doc", "usr/share/info", "usr/share/lintian", "usr/share/locale",
	"usr/share/man", "usr/share/zsh", "usr/lib/x86_64-linux-gnu/gconv", "lib/systemd/system-generators",
}

// write makes the archive. It is not compressed: the copy costs a fraction of a
// second, inflating it under emulation costs several.
func (i initramfs) write(file string) error {
	f, err := os.Create(file)
	if err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	defer f.Close()
	buf := bufio.NewWriterSize(f, 1<<20)
	a := newArchive(buf)

	// The kernel gives init its descriptors 0 to 2 from here, and Go's runtime
	// wants /dev/null, before anything can be mounted.
	a.charDevice("dev/console", 5, 1)
	a.charDevice("dev/null", 1, 3)
	// A merged /usr, as Debian 12 has it; the kernel follows the links when it
	// unpacks what a package has in /sbin or /lib.
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
		a.dir("usr/" + d)
		a.symlink(d, "usr/"+d)
	}
	for _, d := range []string{"etc", "mnt", "proc", "root", "run", "sys", "tmp", "var"} {
		a.dir(d)
	}
	if err := addFile(a, "init", i.init); err != nil {
		return err
	}

	plan := i.plan
	for _, m := range i.modules {
		rel, err := filepath.Rel(i.moduleDir, m)
		if err != nil {
			return fmt.Errorf("initramfs: %w", err)
		}
		guest := path.Join("/usr/lib/modules", filepath.Base(i.moduleDir), filepath.ToSlash(rel))
		plan.Modules = append(plan.Modules, guest)
		if err := addFile(a, guest, m); err != nil {
			return err
		}
	}
	data, err := json.Marshal(plan)
	if err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	a.text(wire.PlanPath, 0o644, string(data))

	if plan.Systemd {
		a.text(systemdUnitPath, 0o644, systemdUnit)
	}
	for guest, host := range i.files {
		if err := addTree(a, guest, host); err != nil {
			return err
		}
	}
	for name, text := range etc {
		a.text(name, 0o644, text)
	}
	for _, p := range i.packages {
		if err := addTree(a, "", p); err != nil {
			return err
		}
	}
	if err := a.close(); err != nil {
		return err
	}
	if err := buf.Flush(); err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	return f.Close()
}

// addTree adds a host file, or a folder with all in it, under a guest path.
func addTree(a *archive, guest, host string) error {
	// Only a link below the named path is kept as a link.
	host, err := filepath.EvalSymlinks(host)
	if err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	err = filepath.WalkDir(host, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(host, p)
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path.Join("/", guest, filepath.ToSlash(rel)), "/")
		switch d.Type() {
		case fs.ModeDir:
			for _, s := range skipped {
				if name == s {
					return fs.SkipDir
				}
			}
			a.dir(name)
		case fs.ModeSymlink:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			a.symlink(name, target)
		case 0:
			return addFile(a, name, p)
		default:
			return fmt.Errorf("%s is %s, neither file, folder nor link", p, d.Type())
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	return nil
}

func addFile(a *archive, guest, host string) error {
	f, err := os.Open(host)
	if err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	a.file(guest, info.Mode(), info.Size(), f)
	return a.err
}
