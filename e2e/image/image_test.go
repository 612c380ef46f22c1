//go:build linux

package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/capdrift/capdrift/e2e/provision"
)

const maxImage = 40 << 20 // bytes, unpacked

// needs skips a laptop that cannot build images.
func needs(t *testing.T) {
	t.Helper()
	why := ""
	if _, err := exec.LookPath("buildah"); err != nil {
		why = "needs buildah; run: make packages"
	}
	if os.Geteuid() != 0 {
		why = "needs root; run: sudo make test"
	}
	if why == "" {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("CI must build images: %s", why)
	}
	t.Skip(why)
}

func repository(t *testing.T) string {
	t.Helper()
	repo, err := provision.Repo()
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

// build builds the image of a copy of the sources, and returns the folder that it is in.
func build(t *testing.T, sources string) string {
	t.Helper()
	dir := t.TempDir()
	told, err := Build(t.Context(), sources, repository(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := os.ReadFile(filepath.Join(dir, "digest"))
	if err != nil || !strings.Contains(told, Name+" linux/"+runtime.GOARCH+" "+string(digest)) {
		t.Errorf("%v, the digest is %s, and make says %s", err, digest, told)
	}
	return dir
}

func TestImage(t *testing.T) {
	needs(t)
	dir := build(t, repository(t))
	archive := open(t, filepath.Join(dir, "capdrift.tar"))
	manifest, config := archive.image(t)
	digest, err := os.ReadFile(filepath.Join(dir, "digest"))
	if err != nil || archive.digest != string(digest) {
		t.Errorf("%v: the manifest is %s, the digest told %s", err, archive.digest, digest)
	}

	if config.Created != "2026-09-21T14:13:20Z" || config.OS != "linux" || config.Architecture != runtime.GOARCH {
		t.Errorf("made at %s for %s/%s", config.Created, config.OS, config.Architecture)
	}
	if c := config.Config; c.User != "0:0" || !slices.Equal(c.Entrypoint, []string{"/bin/capdrift"}) || len(c.Volumes) != 0 || len(c.ExposedPorts) != 0 {
		t.Errorf("config %+v", c)
	}
	for label, want := range map[string]string{
		"title": "capdrift", "version": Version, "revision": revision, "licenses": "Apache-2.0", "source": "https://github.com/capdrift/capdrift",
	} {
		if got := config.Config.Labels["org.opencontainers.image."+label]; got != want {
			t.Errorf("label %s is %q, want %q", label, got, want)
		}
	}

	if len(manifest.Layers) != 1 {
		t.Fatalf("%d layers", len(manifest.Layers))
	}
	files, size := layer(t, archive.blob(t, manifest.Layers[0].Digest))
	if got := slices.Sorted(maps.Keys(files)); !slices.Equal(got, []string{"bin/", "bin/capdrift"}) || size > maxImage {
		t.Errorf("files %q of %d bytes; want the program alone, of %d at most", got, size, maxImage)
	}
	program := files["bin/capdrift"]
	parsed, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range parsed.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the program wants a dynamic linker, which is not there")
		}
	}
	checkMaterials(t, filepath.Join(dir, "capdrift.spdx.json"), program)

	// Elsewhere, later, with other times on every file: the same.
	again := build(t, copySources(t))
	for _, file := range []string{"digest", "capdrift.spdx.json"} {
		first, err := os.ReadFile(filepath.Join(dir, file))
		second, err2 := os.ReadFile(filepath.Join(again, file))
		if err := errors.Join(err, err2); err != nil || !bytes.Equal(first, second) {
			t.Errorf("%s differs from one build to the next: %v\n%.200s\n%.200s", file, err, first, second)
		}
	}
}

func copySources(t *testing.T) string {
	t.Helper()
	to := t.TempDir()
	if err := provision.CopySources(t.Context(), repository(t), to); err != nil {
		t.Fatal(err)
	}
	return to
}

// checkMaterials: the SPDX document is about this program, and has what it is made of.
func checkMaterials(t *testing.T, file string, program []byte) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		SPDXVersion, DataLicense string
		CreationInfo             struct{ Created string }
		Packages                 []struct {
			SPDXID, Name, VersionInfo string
			Checksums                 []struct{ Algorithm, ChecksumValue string }
		}
		Relationships []struct{ SPDXElementID, RelatedSPDXElement, RelationshipType string }
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(program)
	if doc.SPDXVersion != "SPDX-2.3" || doc.CreationInfo.Created != "2026-09-21T14:13:20Z" || len(doc.Relationships) != len(doc.Packages) {
		t.Errorf("%s of %s, %d packages, %d relationships", doc.SPDXVersion, doc.CreationInfo.Created, len(doc.Packages), len(doc.Relationships))
	}
	ids := make(map[string]bool)
	versions := make(map[string]string)
	for _, p := range doc.Packages {
		if ids[p.SPDXID] {
			t.Errorf("two packages are %s", p.SPDXID)
		}
		ids[p.SPDXID], versions[p.Name] = true, p.VersionInfo
	}
	for _, wanted := range []string{"stdlib", "google.golang.org/grpc", "k8s.io/cri-api", "cel.dev/cel-go"} {
		if versions[wanted] == "" {
			t.Errorf("it does not have %s", wanted)
		}
	}
	about := doc.Packages[0]
	if about.Name != "github.com/capdrift/capdrift" || about.VersionInfo != Version || len(about.Checksums) != 1 || about.Checksums[0].ChecksumValue != hex.EncodeToString(sum[:]) {
		t.Errorf("it is about %+v, the program's sum is %x", about, sum)
	}
}

// archive is an OCI image layout in a tar file.
type archive struct {
	files  map[string][]byte
	digest string
}

func open(t *testing.T, file string) archive {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return archive{files: untar(t, f)}
}

func untar(t *testing.T, from io.Reader) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	for r := tar.NewReader(from); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeDir || h.Uid != 0 || h.Gid != 0 || h.Mode&0o7022 != 0 {
			t.Errorf("%s is of type %c, mode %o, user %d", h.Name, h.Typeflag, h.Mode, h.Uid)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = content
	}
}

// layer unpacks a layer, and tells how large it is.
func layer(t *testing.T, blob []byte) (files map[string][]byte, size int) {
	t.Helper()
	unzipped, err := gzip.NewReader(bytes.NewReader(blob))
	if err != nil {
		t.Fatal(err)
	}
	files = untar(t, unzipped)
	for _, content := range files {
		size += len(content)
	}
	return files, size
}

// blob is what a digest names, if it does.
func (a archive) blob(t *testing.T, digest string) []byte {
	t.Helper()
	content := a.files["blobs/"+strings.Replace(digest, ":", "/", 1)]
	if sum := sha256.Sum256(content); digest != "sha256:"+hex.EncodeToString(sum[:]) {
		t.Fatalf("no blob is %s", digest)
	}
	return content
}

type imageManifest struct {
	Config descriptor
	Layers []descriptor
}

type descriptor struct{ Digest string }

type imageConfig struct {
	Created, OS, Architecture string
	Config                    struct {
		User                  string
		Entrypoint, Cmd       []string
		Labels                map[string]string
		Volumes, ExposedPorts map[string]any
	}
}

// image is the only image of the archive.
func (a *archive) image(t *testing.T) (m imageManifest, c imageConfig) {
	t.Helper()
	var index struct{ Manifests []descriptor }
	if err := json.Unmarshal(a.files["index.json"], &index); err != nil || len(index.Manifests) != 1 {
		t.Fatalf("index %s: %v", a.files["index.json"], err)
	}
	a.digest = index.Manifests[0].Digest
	if err := json.Unmarshal(a.blob(t, a.digest), &m); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(a.blob(t, m.Config.Digest), &c); err != nil {
		t.Fatal(err)
	}
	return m, c
}
