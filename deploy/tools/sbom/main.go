// Sbom writes to standard output what a Go program is made of, as SPDX 2.3 in JSON: the
// program with its SHA-256, and each module that was linked into it, as the toolchain recorded
// them in the file. The same file makes the same document.
package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spdx/tools-golang/spdx"
	"github.com/spdx/tools-golang/spdx/v2/common"
)

func main() {
	version := flag.String("version", "", "the program's version")
	created := flag.Int64("created", 0, "when, in seconds since 1970")
	flag.Parse()
	if err := run(flag.Arg(0), *version, time.Unix(*created, 0).UTC()); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func run(program, version string, created time.Time) error {
	if program == "" || version == "" {
		return errors.New("want sbom -version VERSION -created SECONDS PROGRAM")
	}
	content, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return err
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetIndent("", "  ")
	return encoder.Encode(document(filepath.Base(program), version, created, sha256.Sum256(content), info))
}

func document(name, version string, created time.Time, sum [sha256.Size]byte, info *buildinfo.BuildInfo) *spdx.Document {
	sha := hex.EncodeToString(sum[:])
	doc := &spdx.Document{
		SPDXVersion: spdx.Version, DataLicense: spdx.DataLicense, SPDXIdentifier: "DOCUMENT",
		DocumentName:      name + " " + version,
		DocumentNamespace: "https://" + info.Main.Path + "/spdx/" + sha,
		CreationInfo: &spdx.CreationInfo{
			Created: created.Format(time.RFC3339), Creators: []common.Creator{{CreatorType: "Tool", Creator: info.Main.Path + "/deploy/tools/sbom"}},
		},
	}
	main := module(info.Main.Path, version)
	main.PrimaryPackagePurpose = "APPLICATION"
	main.PackageLicenseDeclared = "Apache-2.0"
	main.PackageFileName = name
	main.PackageChecksums = []common.Checksum{{Algorithm: common.SHA256, Value: sha}}
	doc.Packages = append(doc.Packages, main)
	doc.Relationships = append(doc.Relationships, related("DOCUMENT", "DESCRIBES", main.PackageSPDXIdentifier))
	contains := func(path, version string) {
		one := module(path, version)
		doc.Packages = append(doc.Packages, one)
		doc.Relationships = append(doc.Relationships, related(main.PackageSPDXIdentifier, "CONTAINS", one.PackageSPDXIdentifier))
	}
	contains("stdlib", strings.TrimPrefix(info.GoVersion, "go"))
	for _, linked := range info.Deps {
		if linked.Replace != nil {
			linked = linked.Replace
		}
		contains(linked.Path, linked.Version)
	}
	return doc
}

// module is one Go module; its licence is said nowhere in the program.
func module(path, version string) *spdx.Package {
	return &spdx.Package{
		PackageName: path, PackageVersion: version, PackageSPDXIdentifier: identifier(path),
		PackageDownloadLocation: "NOASSERTION", PackageLicenseConcluded: "NOASSERTION", PackageLicenseDeclared: "NOASSERTION", PackageCopyrightText: "NOASSERTION",
		PackageExternalReferences: []*spdx.PackageExternalReference{{
			Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL, Locator: "pkg:golang/" + path + "@" + version,
		}},
	}
}

// identifier has the characters that SPDX allows.
func identifier(path string) common.ElementID {
	return common.ElementID("Package-" + strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.':
			return r
		}
		return '-'
	}, path))
}

func related(a common.ElementID, how string, b common.ElementID) *spdx.Relationship {
	return &spdx.Relationship{RefA: common.MakeDocElementID("", string(a)), RefB: common.MakeDocElementID("", string(b)), Relationship: how}
}
