package drift_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

// FuzzRemedy holds the promise of what is to be pasted: it means the same on every
// runtime, and nothing in it is ignored. And nothing that a pod's author writes gets
// into it but names of capabilities.
func FuzzRemedy(f *testing.F) {
	for _, seed := range [][2]string{
		{"CAP_SYS_ADMIN", "CAP_NET_RAW"}, {"", "CAP_ALL"}, {"all,NET_ADMIN", "net_admin"}, {"NETADMIN,cap-chown", "BOGUS"},
		{"ALL", "ALL"}, {"\u212aILL", "ſetuid"}, {"NET_RAW]\n    privileged: true #", " NET_RAW "}, {"CAP_CAP_CHOWN", "cap_all,chown"},
	} {
		f.Add(seed[0], seed[1], int64(0))
		f.Add(seed[0], seed[1], int64(1000))
	}
	f.Fuzz(func(t *testing.T, add, drop string, user int64) {
		pod := drift.PodSecurity{Add: strings.Split(add, ","), Drop: strings.Split(drop, ",")}
		if user %= 1 << 31; user >= 0 {
			pod.RunAsUser = &user
		}
		for _, runtime := range drift.Runtimes() {
			p := drift.Predict(runtime, "here", "app", &pod, drift.CRI{}, nil, drift.Stock(runtime, 40))
			if (p.Refused == "") != (p.OCI != nil) || p.Refused != "" && len(p.AtStart)+len(p.Findings) > 0 {
				t.Fatalf("%+v", p)
			}
			for _, start := range p.AtStart {
				if c := start.Caps; !c.Effective.Within(c.Permitted) || !c.Permitted.Within(p.OCI.Bounding|p.OCI.Inheritable|p.OCI.Permitted) || !c.Ambient.Within(c.Permitted&c.Inheritable) {
					t.Fatalf("%s cannot start with %+v of %+v", start.User, c, p.OCI)
				}
			}
			for _, found := range p.Findings {
				if found.Paste == "" || strings.Contains(found.Paste, "sysctls") {
					continue
				}
				mended := drift.PodSecurity{Add: pasted(t, found.Paste, "add"), Drop: pasted(t, found.Paste, "drop")}
				for _, other := range drift.Runtimes() {
					after := drift.Predict(other, "here", "app", &mended, drift.CRI{}, nil, drift.Stock(other, 40))
					if after.Refused != "" {
						t.Fatalf("%q, %q: %s refuses what is to be pasted: %s\n%s", pod.Add, pod.Drop, other, after.Refused, found.Paste)
					}
					for _, still := range after.Findings {
						if still.Kind == drift.UnknownName || still.Cause == drift.CausePrefix {
							t.Fatalf("%q, %q: pasted on %s and still %+v\n%s", pod.Add, pod.Drop, other, still, found.Paste)
						}
					}
				}
			}
		}
	})
}

// pasted reads a list out of a securityContext as it is suggested, every line of
// which must be one that is known.
func pasted(t *testing.T, yaml, key string) (names []string) {
	t.Helper()
	for line := range strings.Lines(yaml) {
		line = strings.TrimSpace(line)
		list, ok := strings.CutPrefix(line, key+": [")
		if ok {
			names = strings.Split(strings.TrimSuffix(list, "]"), ", ")
		}
		known := []string{"securityContext:", "capabilities:", "capabilities: {}", "runAsUser: 0", "runAsNonRoot: false"}
		if !slices.Contains(known, line) && !strings.HasPrefix(line, "add: [") && !strings.HasPrefix(line, "drop: [") {
			t.Fatalf("to be pasted: %q", line)
		}
	}
	for _, name := range names {
		if c, ok := capdecode.ParseName(name); (!ok || "CAP_"+name != c.String()) && name != "ALL" {
			t.Fatalf("%q is to be pasted", name)
		}
	}
	return names
}

func TestPredict(t *testing.T) {
	no, seven := false, uint32(7)
	for what, row := range map[string]struct {
		pod     drift.PodSecurity
		image   *uint32
		users   []string
		refused string
	}{
		"the image decides who runs it":            {users: []string{"root", "non-root"}},
		"the image's user, where it is known":      {image: &seven, users: []string{"7"}},
		"runAsNonRoot rules root out":              {pod: drift.PodSecurity{RunAsNonRoot: true}, users: []string{"non-root"}},
		"runAsUser decides":                        {pod: drift.PodSecurity{RunAsUser: uid(0)}, image: &seven, users: []string{"root"}},
		"privileged without escalation":            {pod: drift.PodSecurity{Privileged: true, AllowPrivilegeEscalation: &no}, refused: "the API server refuses"},
		"SYS_ADMIN with its prefix, no escalation": {pod: drift.PodSecurity{Add: []string{"CAP_SYS_ADMIN"}, AllowPrivilegeEscalation: &no}, refused: "the API server refuses"},
		"SYS_ADMIN, no escalation, which is taken": {pod: drift.PodSecurity{Add: []string{"SYS_ADMIN"}, AllowPrivilegeEscalation: &no}, users: []string{"root", "non-root"}},
		"root, which must not be root":             {pod: drift.PodSecurity{RunAsUser: uid(0), RunAsNonRoot: true}, refused: "the kubelet refuses"},
		"an image of root, which must not be root": {pod: drift.PodSecurity{RunAsNonRoot: true}, image: new(uint32), refused: "the kubelet refuses"},
	} {
		t.Run(what, func(t *testing.T) {
			p := drift.Predict(drift.Containerd, "here", "app", &row.pod, drift.CRI{}, row.image, drift.Stock(drift.Containerd, 40))
			var users []string
			for _, start := range p.AtStart {
				users = append(users, start.User)
			}
			if !slices.Equal(users, row.users) || (p.Refused == "") != (row.refused == "") || !strings.Contains(p.Refused, row.refused) {
				t.Errorf("%+v", p)
			}
		})
	}
}
