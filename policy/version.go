package policy

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
)

// Version is the minor number of a version 1.x of Kubernetes. The Pod Security
// Standards ask for other things in other versions.
type Version int

// LatestVersion is the newest version that the embedded packs know changes of. A later
// one is judged as this.
const LatestVersion Version = 37

func (v Version) String() string { return fmt.Sprintf("v1.%d", int(v)) }

var versionForm = regexp.MustCompile(`^v?1\.(0|[1-9][0-9]{0,2})(\.[0-9]{1,3})?$`)

// ParseVersion reads "1.34", "v1.34" or "v1.34.2", of which the last number decides
// nothing, and "latest".
func ParseVersion(text string) (Version, error) {
	if text == "latest" {
		return LatestVersion, nil
	}
	parts := versionForm.FindStringSubmatch(text)
	if parts == nil {
		return 0, fmt.Errorf("%.32q is no version of Kubernetes: want 1.34, or latest", text)
	}
	minor, err := strconv.Atoi(parts[1])
	return Version(minor), err
}

// At returns the policy as it judges in a version of Kubernetes. [Compile] makes one
// that judges in the latest.
func (p *Policy) At(v Version) *Policy {
	at := *p
	at.version = v
	return &at
}

// ByVersion reports whether any rule asks for other things in other versions of
// Kubernetes.
func (p *Policy) ByVersion() bool {
	return slices.ContainsFunc(p.rules, func(rule *Rule) bool {
		return slices.ContainsFunc([]*Filter{rule.Applies, rule.Declared, rule.Actual}, func(f *Filter) bool { return f != nil && f.Reads("kubernetes") })
	})
}

// Version returns the version of Kubernetes by which the policy judges.
func (p *Policy) Version() Version { return p.version }
