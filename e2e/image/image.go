//go:build linux

// Package image builds the image as a release does, for tests; its own look at what is in it.
package image

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/capdrift/capdrift/e2e/provision"
)

// Settings that make the image the same whenever and wherever it is built.
const (
	Version  = provision.Version
	Name     = "ghcr.io/capdrift/capdrift:" + Version
	revision = "0123456789abcdef0123456789abcdef01234567"
	epoch    = "1790000000"
)

// Build builds the image of the sources in a folder by their Makefile, with the tools of the
// repository that built programs are cached in, and puts into dir what `make image` does. It
// returns what make said.
func Build(ctx context.Context, sources, repo, dir string) (told string, err error) {
	make := exec.CommandContext(ctx, "make", "--no-print-directory", "-C", sources, "image",
		"IMAGE_DIR="+dir, "SBOM="+filepath.Join(repo, ".cache", "tools", "sbom"))
	make.Env = append(os.Environ(), "MAKEFLAGS=", "VERSION="+Version, "REVISION="+revision, "SOURCE_DATE_EPOCH="+epoch)
	text, err := make.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("make image: %w\n%s", err, text)
	}
	return string(text), nil
}

// Archive is the file in the folder of Build's that `docker save` would make.
func Archive(dir string) string { return filepath.Join(dir, "capdrift.docker.tar") }
