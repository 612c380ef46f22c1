package drift

import (
	"fmt"
	"strings"
	"testing"
)

// TestWhatNamesAreLikelyToMean: a name that no runtime takes has been meant as something,
// and where that is clear a person need not look it up.
func TestWhatNamesAreLikelyToMean(t *testing.T) {
	for name, want := range map[string]string{
		"SYS_ADM": "SYS_ADMIN", "NET_ADMN": "NET_ADMIN", "SYSADMIN": "SYS_ADMIN", "NET_RAWS": "NET_RAW", "net-admin": "NET_ADMIN",
		"CAP NET ADMIN": "NET_ADMIN", "CAP_CAP_KILL": "KILL", "NTE_RAW": "NET_RAW", "SYS_PTRAC": "SYS_PTRACE", "BPFF": "BPF", "CHECKPOINT_RESTOR": "CHECKPOINT_RESTORE",
		"NET_RАW": "NET_RAW", // its A is Cyrillic
		"*":       "ALL", "'*'": "ALL", " * ": "ALL", "CAP_*": "ALL", `"ALL"`: "ALL", "“ALL”": "ALL", "ALLL": "ALL",
		"ALL,NET_RAW": "ALL", "NET_RAW, SYS_TIME": "NET_RAW SYS_TIME", "CHOWN;KIL": "CHOWN KILL",
		"SETID":    "", // SETUID as well as SETGID
		"ILL":      "", // ALL as well as KILL
		"NET_*":    "",
		"NET":      "", // there are four
		"PRIVILEG": "", "": "", "   ": "", "CAP": "", "CAP_": "", "“”": "", "NET_RAW,BOGUS": "",
		strings.Repeat("NET_RAW,", 100):         "",
		"SYS_ADMIN" + strings.Repeat("_X", 100): "",
	} {
		if got := strings.Join(likely(name).names(), " "); got != want {
			t.Errorf("%q is likely %q, want %q", name, got, want)
		}
	}
}

// TestEveryNameIsItsOwn: no name of a capability is a slip of another's.
func TestEveryNameIsItsOwn(t *testing.T) {
	for text, want := range squeezedNames() {
		if got, ok := likelyOne(strings.ToUpper(text)); !ok || got != want {
			t.Errorf("%s is likely %v", text, got.names())
		}
	}
}

func FuzzLikely(f *testing.F) {
	for _, name := range []string{"SYS_ADM", "*", "“ALL”,x", "\xff\x00", strings.Repeat("é", 90)} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		for _, written := range plain([]string{name}) {
			if strings.ContainsFunc(written, func(r rune) bool { return (r < 'A' || r > 'Z') && r != '_' }) {
				t.Errorf("%q becomes %q", name, written)
			}
		}
	})
}

// BenchmarkIntent is of the longest lists of slips that a pod's author can have kept.
func BenchmarkIntent(b *testing.B) {
	var names []string
	for i := range 1024 {
		names = append(names, fmt.Sprintf("SYS_PTRACE%04x", i))
	}
	for b.Loop() {
		intentOf(names, names, 40)
	}
}
