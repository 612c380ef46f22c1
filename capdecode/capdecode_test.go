package capdecode_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/capability"

	"github.com/capdrift/capdrift/capdecode"
)

// kernelNames is include/uapi/linux/capability.h in bit order. When the module
// that names capabilities learns a new one, TestKnownList fails until somebody
// has added it here, and so has read what the new capability allows.
var kernelNames = strings.Fields(`
	CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID CAP_SETUID
	CAP_SETPCAP CAP_LINUX_IMMUTABLE CAP_NET_BIND_SERVICE CAP_NET_BROADCAST CAP_NET_ADMIN CAP_NET_RAW
	CAP_IPC_LOCK CAP_IPC_OWNER CAP_SYS_MODULE CAP_SYS_RAWIO CAP_SYS_CHROOT CAP_SYS_PTRACE CAP_SYS_PACCT
	CAP_SYS_ADMIN CAP_SYS_BOOT CAP_SYS_NICE CAP_SYS_RESOURCE CAP_SYS_TIME CAP_SYS_TTY_CONFIG CAP_MKNOD
	CAP_LEASE CAP_AUDIT_WRITE CAP_AUDIT_CONTROL CAP_SETFCAP CAP_MAC_OVERRIDE CAP_MAC_ADMIN CAP_SYSLOG
	CAP_WAKE_ALARM CAP_BLOCK_SUSPEND CAP_AUDIT_READ CAP_PERFMON CAP_BPF CAP_CHECKPOINT_RESTORE`)

func TestKnownList(t *testing.T) {
	known := capability.ListKnown()
	if len(known) != len(kernelNames) {
		t.Fatalf("moby/sys/capability knows %d capabilities, this list names %d: add the new ones", len(known), len(kernelNames))
	}
	for i, name := range kernelNames {
		c := capdecode.Cap(i)
		if !c.Known() || c.String() != name {
			t.Errorf("capability %d is named %s, want %s", i, c, name)
		}
		if back, ok := capdecode.ParseCap(name); !ok || back != c {
			t.Errorf("ParseCap(%s) = %d, %v; want %d", name, back, ok, c)
		}
	}
}

func TestParseCap(t *testing.T) {
	accepted := map[string]capdecode.Cap{
		"CAP_NET_ADMIN": 12, "cap_net_admin": 12, "net_admin": 12, "NET_ADMIN": 12, "Net_Admin": 12,
		"CAP_41": 41, "cap_41": 41, "41": 41, "0": 0, "63": 63, "CAP_CHOWN": 0, "checkpoint_restore": 40,
	}
	for name, want := range accepted {
		if got, ok := capdecode.ParseCap(name); !ok || got != want {
			t.Errorf("ParseCap(%q) = %d, %v; want %d", name, got, ok, want)
		}
	}
	for _, name := range []string{"", "CAP_", "ALL", "CAP_ALL", "BOGUS", "CAP_CAP_NET_ADMIN", "64", "CAP_64", "100", "041", "+1", "-1", "NET ADMIN", "net_admin\n", "cap_0x1"} {
		if got, ok := capdecode.ParseCap(name); ok {
			t.Errorf("ParseCap(%q) = %d, want it refused", name, got)
		}
	}
}

func TestSetForms(t *testing.T) {
	for _, row := range []struct {
		hex, names string
		count      int
	}{
		{"00000000a80425fb", "the 14 defaults of containerd and Docker", 14},
		{"00000000000005fb", "the 9 defaults of CRI-O", 9},
		{"00000000800405fb", "the 11 defaults of Podman", 11},
		{"000001ffffffffff", "all of Linux 5.9 and newer", 41},
		{"000001fffeffffff", "all but CAP_SYS_RESOURCE", 40},
		{"ffffffffffffffff", "every bit, as kernels before 3.x printed a full set", 64},
		{"0000000000000000", "none", 0},
	} {
		set, err := capdecode.ParseHex(row.hex)
		if err != nil {
			t.Fatal(err)
		}
		if set.Len() != row.count || set.Hex() != row.hex || len(set.Names()) != row.count {
			t.Errorf("%s (%s): %d capabilities, hex %s", row.hex, row.names, set.Len(), set.Hex())
		}
	}
	unknownBit := capdecode.Of(10, 41)
	if got := strings.Join(unknownBit.Names(), " "); got != "CAP_NET_BIND_SERVICE CAP_41" {
		t.Errorf("names = %s", got)
	}
	if got := unknownBit.String(); got != "cap_net_bind_service,41" {
		t.Errorf("text = %s", got)
	}
	if got := capdecode.Full(40); got.Hex() != "000001ffffffffff" {
		t.Errorf("Full(40) = %s", got.Hex())
	}
	if got := capdecode.Full(63); got.Len() != 64 {
		t.Errorf("Full(63) has %d capabilities", got.Len())
	}
}

func TestParseHexRefuses(t *testing.T) {
	for _, text := range []string{"", "0", "a80425fb", "00000000a80425fb0", "0x000000a80425fb", "00000000a80425fg", "-0000000a80425fb", strings.Repeat("f", 1<<20)} {
		if set, err := capdecode.ParseHex(text); err == nil {
			t.Errorf("ParseHex(%.20q) = %s, want an error", text, set.Hex())
		} else if len(err.Error()) > 200 {
			t.Errorf("error repeats %d bytes of its input", len(err.Error()))
		}
	}
}

func TestParseSet(t *testing.T) {
	for text, want := range map[string]string{
		"a80425fb": "00000000a80425fb", "0x400": "0000000000000400", "0X400": "0000000000000400", "000001ffffffffff": "000001ffffffffff",
		"ALL": "000001ffffffffff", "cap_all": "000001ffffffffff", "net_admin,CAP_NET_RAW": "0000000000003000", "net_admin NET_RAW 41": "0000020000003000",
		"cap_chown,cap_kill,41": "0000020000000021", "": "0000000000000000", "21": "0000000000200000",
	} {
		if got, err := capdecode.ParseSet(text, 40); err != nil || got.Hex() != want {
			t.Errorf("ParseSet(%q) = %s, %v; want %s", text, got.Hex(), err, want)
		}
	}
	for _, text := range []string{"bogus", "0x", "0xg", "net_admin,bogus", "0x1ffffffffffffffff", "CAP_CAP_NET_RAW"} {
		if got, err := capdecode.ParseSet(text, 40); err == nil {
			t.Errorf("ParseSet(%q) = %s, want an error", text, got.Hex())
		}
	}
}

func TestUnknownNamesAreKept(t *testing.T) {
	// An OCI runtime takes full names only: NET_RAW without its prefix means nothing to it.
	set, unknown := capdecode.ParseOCINames([]string{"CAP_NET_RAW", "NET_RAW", "CAP_BOGUS", "CAP_41"})
	if set != capdecode.Of(13) || !slices.Equal(unknown, []string{"NET_RAW", "CAP_BOGUS", "CAP_41"}) {
		t.Errorf("ParseOCINames = %s, %q", set, unknown)
	}
}

// TestParseText holds the table against what cap_from_text(3) of libcap 2.66 returned
// for the same texts.
func TestParseText(t *testing.T) {
	full := capdecode.Full(40)
	for text, want := range map[string]capdecode.Sets{
		"":                            {},
		"=":                           {},
		"=ep":                         {Effective: full, Permitted: full},
		"=ep cap_sys_resource-ep":     {Effective: full.Minus(1 << 24), Permitted: full.Minus(1 << 24)},
		"=ep 38,39,40-ep":             {Effective: capdecode.Full(37), Permitted: capdecode.Full(37)},
		"= cap_chown,cap_kill,37+eip": {Effective: 0x2000000021, Permitted: 0x2000000021, Inheritable: 0x2000000021},
		"cap_net_raw=ep":              {Effective: 1 << 13, Permitted: 1 << 13},
		"CAP_CHOWN=ep":                {Effective: 1, Permitted: 1},
		"cap_chown,cap_kill+eip":      {Effective: 0x21, Permitted: 0x21, Inheritable: 0x21},
		"cap_chown=p cap_chown+e-p":   {Effective: 1},
		"cap_chown=e+p":               {Effective: 1, Permitted: 1},
		"cap_chown=+p":                {Permitted: 1},
		"cap_chown+e-p+i":             {Effective: 1, Inheritable: 1},
		"cap_chown=":                  {},
		"cap_chown=ee":                {Effective: 1},
		"cap_chown=p\tcap_kill=e":     {Effective: 1 << 5, Permitted: 1},
		"all=i cap_net_admin-i 41+p ": {Inheritable: full.Minus(1 << 12), Permitted: 1 << 41},
		"cap_chown,ALL+ep":            {Effective: full, Permitted: full},
		"=p =e":                       {Effective: full},
		"0x10=ep":                     {Effective: 1 << 16, Permitted: 1 << 16},
		"0x1b=e":                      {Effective: 1 << 27},
		"010=ep":                      {Effective: 1 << 8, Permitted: 1 << 8},
		"16=ep":                       {Effective: 1 << 16, Permitted: 1 << 16},
		"63=p":                        {Permitted: 1 << 63},
	} {
		if got, err := capdecode.ParseText(text, 40); err != nil || got != want {
			t.Errorf("ParseText(%q) = %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{
		"cap_chown", "cap_bogus=ep", "=x", "cap_chown=e q", "CAP_CHOWN=EP", "chown=ep", "net_admin+p", "64=ep", "cap_chown=e=p", "cap_chown+e=p",
		"cap_chown+", "cap_chown-", "cap_chown+e-", "+ep", "-ep", "=e=p", "=ep-i", "=+p", "cap_chown,=ep", ",cap_chown=ep", "cap_chown, cap_kill=ep",
		"cap_chown=e,cap_kill=p", "a80425fb=ep", "0xa80425fb=ep", "cap_41=ep", "cap_all=ep", "08=ep", "0b1=ep", "0o10=ep", "1_0=ep", "0x=ep", "63,64=e", "+1=ep", "==", "=ep=", "=ep!",
	} {
		if got, err := capdecode.ParseText(text, 40); err == nil {
			t.Errorf("ParseText(%q) = %+v, want an error", text, got)
		}
	}
}

// pastedOf is what was read of a text, a line for each set.
func pastedOf(list []capdecode.Pasted) (lines []string) {
	for _, one := range list {
		if one.Set != nil {
			lines = append(lines, one.Set.Hex())
		}
		for _, named := range one.Named {
			if !named.Set.Empty() || len(one.Named) == 1 {
				lines = append(lines, named.Name+" "+named.Set.Hex())
			}
		}
	}
	return lines
}

func TestParsePasted(t *testing.T) {
	const status = "Name:\tx\nUmask:\t0022\nSigCgt:\t0000000000000000\nCapInh:\t0000000000000000\nCapPrm:\t0000000000000400\r\nCapEff:\t0000000000000400\nCapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000000\nNoNewPrivs:\t0\n"
	const capsh = "Current: cap_kill=ep\nBounding set =cap_chown,cap_kill,41\nAmbient set =\nCurrent IAB: !cap_sys_resource\nSecurebits: 00/0x0/1'b0 (no-new-privs=0)\n" +
		" secure-noroot: no (unlocked)\nuid=0(root) euid=0(root)\ngid=0(root)\ngroups=\nGuessed mode: HYBRID (4)\n"
	for _, test := range []struct {
		what, text string
		want       []string
	}{
		{"a bitmap", "00000000a80425fb", []string{"00000000a80425fb"}},
		{"names", " NET_ADMIN, 41 ", []string{"0000020000001000"}},
		{"a list of an OCI spec", "[\"CAP_CHOWN\",\n \"CAP_KILL\"]", []string{"0000000000000021"}},
		{"a line of a status", "CapEff:\t0000000000000400", []string{"effective 0000000000000400"}},
		{"one with spaces for the tab", "CapBnd: 0000000000000400 ", []string{"bounding 0000000000000400"}},
		{"a whole status", status, []string{"inheritable 0000000000000000", "permitted 0000000000000400", "effective 0000000000000400", "bounding 00000000a80425fb", "ambient 0000000000000000"}},
		{"capsh's state", "Current: = cap_chown,37+eip", []string{"effective 0000002000000001", "permitted 0000002000000001", "inheritable 0000002000000001"}},
		{"capsh's bounding set", "Bounding set =cap_chown,cap_kill", []string{"bounding 0000000000000021"}},
		{"an empty ambient set", "Ambient set =", []string{"ambient 0000000000000000"}},
		{"capsh's whole output", capsh, []string{"effective 0000000000000020", "permitted 0000000000000020", "bounding 0000020000000021", "ambient 0000000000000000"}},
		{"capsh --decode", "0x0000020000000021=cap_chown,cap_kill,41", []string{"0000020000000021"}},
		{"an empty set of it", "0x0000000000000000=", []string{"0000000000000000"}},
		{"getpcaps", "1: cap_chown=ep", []string{"effective 0000000000000001", "permitted 0000000000000001"}},
		{"getpcaps of several processes", "1: cap_chown=p\n22: cap_kill=p\n", []string{"permitted 0000000000000001", "permitted 0000000000000020"}},
		{"getpcaps of old", "Capabilities for `1': = cap_chown+e", []string{"effective 0000000000000001"}},
		{"getcap", "/usr/bin/ping cap_net_raw=ep", []string{"effective 0000000000002000", "permitted 0000000000002000"}},
		{"getcap of old", "/usr/bin/ping = cap_net_raw+p", []string{"permitted 0000000000002000"}},
		{"getcap of a path with spaces", "./my app/x y cap_net_raw=p cap_chown+p", []string{"permitted 0000000000002001"}},
		{"getcap -n", "/bin/x cap_net_raw=p [rootid=1000]", []string{"permitted 0000000000002000"}},
		{"a field of an audit record", "cap_pp=0000003fffffffff", []string{"permitted 0000003fffffffff"}},
		{"an audit record", "type=BPRM_FCAPS msg=audit(1.2:3): fver=2 fp=0000000000002000 fi=0000000000000000 fe=1 old_pp=0000000000000000 pe=0000000000002000",
			[]string{"file's permitted 0000000000002000", "effective 0000000000002000"}},
	} {
		t.Run(test.what, func(t *testing.T) {
			list, err := capdecode.ParsePasted(test.text, 40)
			if got := pastedOf(list); err != nil || !slices.Equal(got, test.want) {
				t.Errorf("got %q, %v, want %q", got, err, test.want)
			}
		})
	}
	for what, text := range map[string]string{
		"names that are not the bitmap's":       "0x0000000000000001=cap_kill",
		"a bitmap that is too short":            "CapEff:\t400",
		"a label that is none":                  "CapXxx:\t0000000000000400",
		"names and bitmaps":                     "cap_chown 0x10 0x11",
		"a word":                                "none",
		"a file without a path":                 "ping cap_net_raw=ep",
		"a file with names that are none":       "/bin/ping cap_nett_raw=ep",
		"a file without a set":                  "/bin/ping",
		"a list of something else":              "[1]",
		"a list of names that are none":         "[\"CAP_X\"]",
		"a bounding set of names that are none": "Bounding set =chown",
		"other lines alone":                     "uid=0(root)\ngid=0(root)",
		"a line that nobody prints":             "CapEff:\t0000000000000400\nhello world",
		"more than is read":                     strings.Repeat("x", 2<<20),
		"more lines than are read":              strings.Repeat("1: =\n", 20_000),
	} {
		if list, err := capdecode.ParsePasted(text, 40); err == nil {
			t.Errorf("%s: %q", what, pastedOf(list))
		} else if len(err.Error()) > 400 {
			t.Errorf("%s: the error repeats its input: %v", what, err)
		}
	}
}

func TestJSON(t *testing.T) {
	text, err := json.Marshal(capdecode.Of(12, 41))
	if err != nil || string(text) != `{"hex":"0000020000001000","names":["CAP_NET_ADMIN","CAP_41"]}` {
		t.Errorf("JSON = %s, %v", text, err)
	}
	var back capdecode.Set
	if err := json.Unmarshal(text, &back); err != nil || back != capdecode.Of(12, 41) {
		t.Errorf("back = %s, %v", back, err)
	}
	if err := json.Unmarshal([]byte(`{"names":["CAP_KILL"]}`), &back); err == nil {
		t.Error("a set without hex was accepted: absent is not zero")
	}
}

// TestDecodesAsCapsh holds ten thousand random bitmaps against libcap's own
// decoder (Debian's libcap2-bin, which `make test` installs).
func TestDecodesAsCapsh(t *testing.T) {
	if _, err := exec.LookPath("capsh"); err != nil {
		if os.Getenv("CI") == "" {
			t.Skip("capsh is not installed (apt-get install libcap2-bin)")
		}
		t.Fatal(err)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	const rounds, perRound = 10, 1000
	for range rounds {
		var arguments []string
		var want strings.Builder
		for range perRound {
			set := capdecode.Set(random.Uint64())
			if random.IntN(2) == 0 {
				set &= capdecode.Full(40)
			}
			arguments = append(arguments, "--decode="+set.Hex())
			fmt.Fprintf(&want, "0x%s=%s\n", set.Hex(), set)
		}
		got, err := exec.Command("capsh", arguments...).Output()
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != want.String() {
			gotLines, wantLines := strings.Split(string(got), "\n"), strings.Split(want.String(), "\n")
			for i := range wantLines {
				if gotLines[i] != wantLines[i] {
					t.Fatalf("capsh says %s, we say %s", gotLines[i], wantLines[i])
				}
			}
		}
	}
}

func FuzzParseCap(f *testing.F) {
	for _, seed := range []string{"CAP_NET_ADMIN", "net_admin", "ALL", "CAP_41", "63", "CAP_CAP_CHOWN"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		c, ok := capdecode.ParseCap(name)
		if !ok {
			return
		}
		if back, ok := capdecode.ParseCap(c.String()); !ok || back != c {
			t.Fatalf("%q is %d, but its name %s parses to %d, %v", name, c, c, back, ok)
		}
	})
}

func FuzzParseHex(f *testing.F) {
	for _, seed := range []string{"00000000a80425fb", "ffffffffffffffff", "0", "00000000A80425FB"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		set, err := capdecode.ParseHex(text)
		if err == nil && set.Hex() != strings.ToLower(text) {
			t.Fatalf("%q printed again is %q", text, set.Hex())
		}
	})
}

func FuzzParseSet(f *testing.F) {
	for _, seed := range []string{"a80425fb", "net_admin,CAP_KILL 41", "ALL", "0x1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		set, err := capdecode.ParseSet(text, 40)
		if err != nil {
			return
		}
		for _, form := range []string{"0x" + set.Hex(), set.String(), strings.Join(set.Names(), ",")} {
			if back, err := capdecode.ParseSet(form, 40); err != nil || back != set {
				t.Fatalf("%q is %s, but %q parses to %s, %v", text, set.Hex(), form, back.Hex(), err)
			}
		}
	})
}

func FuzzParseText(f *testing.F) {
	for _, seed := range []string{"=ep", "cap_chown,cap_kill+eip", "=ep cap_sys_resource-ep", "all=i"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		sets, err := capdecode.ParseText(text, 40)
		if err != nil {
			return
		}
		form := ""
		for _, part := range []struct {
			flag string
			set  capdecode.Set
		}{{"e", sets.Effective}, {"i", sets.Inheritable}, {"p", sets.Permitted}} {
			if !part.set.Empty() {
				form += part.set.String() + "+" + part.flag + " "
			}
		}
		if back, err := capdecode.ParseText(form, 40); err != nil || back != sets {
			t.Fatalf("%q is %+v, but %q is %+v, %v", text, sets, form, back, err)
		}
	})
}

func FuzzParsePasted(f *testing.F) {
	for _, seed := range []string{"CapEff:\t00000000a80425fb", "Current: =ep\nuid=0(root)", "/a b cap_chown=ep [rootid=1]", "cap_pp=0000003fffffffff", `["ALL"]`, "0x0000000000000001=cap_chown", "1: ="} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		list, err := capdecode.ParsePasted(text, 40)
		if (err == nil) != (len(list) > 0) && err == nil {
			t.Fatalf("%q is nothing, and no error", text)
		}
		for _, one := range list {
			if err == nil && (one.Set == nil) == (one.Named == nil) {
				t.Fatalf("%q has %+v", text, one)
			}
		}
	})
}
