//go:build linux

package conformance

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/moby/sys/capability"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A request is what a CRI client asks for, as far as it decides capabilities.
type request struct {
	Add           []string `json:"add,omitempty"`
	Drop          []string `json:"drop,omitempty"`
	Ambient       []string `json:"ambient,omitempty"`
	Privileged    bool     `json:"privileged,omitempty"`
	NoNewPrivs    bool     `json:"noNewPrivs,omitempty"`
	RunAsUser     *int64   `json:"runAsUser,omitempty"`     // the image's user is root
	UserNamespace string   `json:"userNamespace,omitempty"` // podUsers, nodeUsers; else not said
}

// What a request may say of its user namespace.
const (
	podUsers  = "pod"  // one of the pod's own
	nodeUsers = "node" // the node's
)

func (r request) String() string {
	b, err := json.Marshal(r)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// security is the request in the CRI's terms.
func (r request) security() *cri.LinuxContainerSecurityContext {
	sc := &cri.LinuxContainerSecurityContext{
		Privileged: r.Privileged,
		NoNewPrivs: r.NoNewPrivs,
		NamespaceOptions: &cri.NamespaceOption{
			Network: cri.NamespaceMode_NODE,
			Pid:     cri.NamespaceMode_CONTAINER,
		},
	}
	if r.Add != nil || r.Drop != nil || r.Ambient != nil {
		sc.Capabilities = &cri.Capability{AddCapabilities: r.Add, DropCapabilities: r.Drop, AddAmbientCapabilities: r.Ambient}
	}
	if r.RunAsUser != nil {
		sc.RunAsUser = &cri.Int64Value{Value: *r.RunAsUser}
	}
	switch r.UserNamespace {
	case podUsers:
		ids := []*cri.IDMapping{{HostId: 100000, Length: 65536}}
		sc.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids}
		// In the host's network containerd 1.7 cannot start it: it mounts a sysfs for it, which only
		// the owner of the network namespace may.
		sc.NamespaceOptions.Network = cri.NamespaceMode_POD
	case nodeUsers:
		sc.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_NODE}
	}
	return sc
}

// generate makes request number i of a seed. What it makes is likely to hit itself: the
// lists speak of the same few capabilities, in spellings that a runtime may or may not
// take for the same.
func generate(seed uint64, i int) request {
	g := generator{rand.New(rand.NewPCG(seed, uint64(i)))}
	pool := make([]string, 1+g.IntN(4))
	for i := range pool {
		pool[i] = g.name()
	}
	r := request{Add: g.list(pool), Drop: g.list(pool)}
	if g.percent(15) {
		r.Ambient = g.list(pool)
	}
	r.Privileged = g.percent(12)
	r.NoNewPrivs = g.percent(30)
	if g.percent(60) {
		uid := pick(g, []int64{0, 1000, 65534})
		r.RunAsUser = &uid
	}
	switch n := g.IntN(100); {
	case n < 20:
		r.UserNamespace = podUsers
	case n < 25:
		r.UserNamespace = nodeUsers
	}
	return r
}

type generator struct{ *rand.Rand }

func (g generator) percent(n int) bool { return g.IntN(100) < n }

func pick[T any](g generator, of []T) T { return of[g.IntN(len(of))] }

// usual are those that containerd gives by default (pkg/oci/spec.go, defaultUnixCaps).
var usual = []string{
	"CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID",
	"SETFCAP", "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
}

// everyName has the names of all capabilities, "CHOWN" first.
var everyName = func() []string {
	known := capability.ListKnown()
	names := make([]string, len(known))
	for i, c := range known {
		names[i] = strings.ToUpper(c.String())
	}
	return names
}()

func (g generator) name() string {
	switch n := g.IntN(100); {
	case n < 45:
		return pick(g, usual)
	case n < 55:
		return "SYS_RESOURCE" // which the root of a build machine may not hold
	default:
		return pick(g, everyName)
	}
}

// list is an add or a drop list, nil at times.
func (g generator) list(pool []string) []string {
	var list []string
	switch n := g.IntN(100); {
	case n < 28:
		return nil
	case n < 32: // whole
		for _, name := range everyName {
			list = append(list, g.spell(name))
		}
	}
	for range 1 + g.IntN(5) {
		switch n := g.IntN(100); {
		case n < 70:
			list = append(list, g.spell(pick(g, pool)))
		case n < 85:
			list = append(list, pick(g, alls))
		default:
			list = append(list, g.oddity())
		}
	}
	g.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

// alls are spellings of ALL, not all of which a runtime understands.
var alls = []string{
	"ALL", "ALL", "ALL", "ALL", "all", "all", "All", "aLL", "CAP_ALL", "cap_all", "CAP_CAP_ALL", " ALL", "ALL ", "АLL", "*",
}

// spell writes a capability's name as people, and attackers, write it.
func (g generator) spell(name string) string {
	number := strconv.Itoa(slices.Index(everyName, name))
	switch g.IntN(24) {
	case 0, 1, 2:
		return strings.ToLower(name)
	case 3, 4:
		return g.mixed(name)
	case 5, 6:
		return "CAP_" + name
	case 7:
		return "cap_" + strings.ToLower(name)
	case 8:
		return g.mixed("CAP_" + name)
	case 9:
		return "CAP_CAP_" + name
	case 10:
		return pick(g, []string{" ", "\t", "\u00a0"}) + name
	case 11:
		return name + pick(g, []string{" ", "\n", "\x00", "\u200b"})
	case 12:
		return g.lookalike(name)
	case 13:
		return g.lookalike("CAP_" + name)
	case 14:
		return pick(g, []string{number, "CAP_" + number, "0" + number})
	case 15:
		return strings.ReplaceAll(name, "_", pick(g, []string{"-", " ", ""}))
	default:
		return name
	}
}

func (g generator) mixed(name string) string {
	return strings.Map(func(r rune) rune {
		if g.percent(50) {
			return unicode.ToLower(r)
		}
		return r
	}, name)
}

// lookalike replaces letters by others that look the same, or that some way of folding
// case makes the same.
func (g generator) lookalike(name string) string {
	return strings.Map(func(r rune) rune {
		others := map[rune][]rune{
			'S': {'ſ'},           // long s: its capital is S
			'I': {'ı', 'İ', 'і'}, // dotless i: its capital is I; dotted I; Ukrainian i
			'K': {'\u212a'},      // Kelvin sign: its small letter is k
			'A': {'А', 'Ａ'},      // Cyrillic, full width
			'C': {'С'},           // Cyrillic
			'N': {'Ｎ'},           // full width
		}[r]
		if others == nil || g.percent(30) {
			return r
		}
		return pick(g, others)
	}, name)
}

// oddity is a name of nothing. The longest are as long as capdrift keeps a name whole: 256 bytes.
func (g generator) oddity() string {
	return pick(g, []string{
		"", "_", "CAP_", "cap_", "BOGUS", "bogus", "CAP_BOGUS", "NET_ADMINS", "NET_ADMIN,SYS_ADMIN", "NONE",
		"41", "63", "64", "CAP_41", "CAP_63", "CAP_64", "-1", "0x2000", "SYS ADMIN", "SYS_ADMIN;", "'SYS_ADMIN'",
		"\u212aILL", "ſETUID", "straße", "ŉ", "🂡", "\u2028", "---", "# x", "&a", "{}",
		strings.Repeat("long_", 1+g.IntN(50)) + strconv.Itoa(g.IntN(10)),
	})
}

// document is the request as `crictl create` takes it.
func (r request) document(name string) ([]byte, error) {
	b, err := json.Marshal(&cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name},
		Image:    &cri.ImageSpec{Image: "x"},
		Linux:    &cri.LinuxContainerConfig{SecurityContext: r.security()},
	})
	if err != nil {
		return nil, fmt.Errorf("request %v: %w", r, err)
	}
	return b, nil
}

// What makes the generated requests worth their time, counted in the smaller of the two sizes.
func TestGenerateMakesInterplay(t *testing.T) {
	counts := make(map[string]int)
	const size = 150
	for i := range size {
		r := generate(1, i)
		if again := generate(1, i); again.String() != r.String() {
			t.Fatalf("number %d: first %v, then %v", i, r, again)
		}
		for _, name := range slices.Concat(r.Add, r.Drop, r.Ambient) {
			if !utf8.ValidString(name) {
				t.Errorf("number %d: %q is not UTF-8, which the CRI refuses", i, name)
			}
		}
		short := func(names []string) (list []string) {
			for _, name := range names {
				list = append(list, strings.TrimPrefix(strings.ToUpper(name), "CAP_"))
			}
			return list
		}
		add, drop := short(r.Add), short(r.Drop)
		for what, is := range map[string]bool{
			"ALL added":        slices.Contains(add, "ALL"),
			"ALL dropped":      slices.Contains(drop, "ALL"),
			"ALL in both":      slices.Contains(add, "ALL") && slices.Contains(drop, "ALL"),
			"a name in both":   slices.ContainsFunc(add, func(name string) bool { return name != "ALL" && slices.Contains(drop, name) }),
			"a duplicate":      len(add) > len(slices.Compact(slices.Sorted(slices.Values(add)))),
			"a prefix":         slices.ContainsFunc(r.Drop, func(name string) bool { return strings.HasPrefix(strings.ToUpper(name), "CAP_") }),
			"a foreign letter": slices.ContainsFunc(r.Drop, func(name string) bool { return len(name) > utf8.RuneCountInString(name) }),
			"an ambient one":   r.Ambient != nil,
			"no lists":         r.Add == nil && r.Drop == nil,
			"privileged":       r.Privileged,
			"no_new_privs":     r.NoNewPrivs,
			"root":             r.RunAsUser != nil && *r.RunAsUser == 0,
			"another user":     r.RunAsUser != nil && *r.RunAsUser != 0,
			"user namespace":   r.UserNamespace == podUsers,
			"the node's":       r.UserNamespace == nodeUsers,
		} {
			if is {
				counts[what]++
			} else {
				counts[what] += 0
			}
		}
	}
	for what, n := range counts {
		if n < 5 || n > size-5 {
			t.Errorf("%s: %d of %d", what, n, size)
		}
	}
	if testing.Verbose() {
		t.Log(counts)
	}
}
