package proc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

// captured reads a file of a process that a real runtime started.
func captured(t testing.TB, name, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../testdata/captures", name, "proc", file))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestParseStatusOfCaptures(t *testing.T) {
	names, err := filepath.Glob("../testdata/captures/*/*/proc/status")
	if err != nil || len(names) == 0 {
		t.Fatalf("no captures: %v", err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if s, err := ParseStatus(text); err != nil || s.Comm() != "sleep" || s.State != 'S' || s.PID == 0 || s.Threads != 1 || s.Kthread != 0 || s.Seccomp < 0 {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
	for _, row := range []struct {
		capture    string
		prm, bnd   string
		uid        uint32
		noNewPrivs int
		pids       []int
	}{
		{capture: "containerd-2.4.2/default", prm: "00000000a80425fb", bnd: "00000000a80425fb", pids: []int{21565, 1}},
		{capture: "containerd-2.4.2/drop-all", prm: "0000000000000000", bnd: "0000000000000000"},
		{capture: "containerd-2.4.2/nonroot", prm: "0000000000000000", bnd: "00000000a80425fb", uid: 1000},
		{capture: "containerd-2.4.2/restricted", prm: "0000000000000000", bnd: "0000000000000400", uid: 1000, noNewPrivs: 1},
		{capture: "containerd-2.4.2/userns", prm: "00000000a80425fb", bnd: "00000000a80425fb", uid: 100000},
		{capture: "cri-o-1.37.0/default", prm: "00000000000005fb", bnd: "00000000000005fb"},
	} {
		s, err := ParseStatus(captured(t, row.capture, "status"))
		if err != nil || s.Caps.Permitted.Hex() != row.prm || s.Caps.Effective.Hex() != row.prm || s.Caps.Bounding.Hex() != row.bnd || s.UID[1] != row.uid || s.NoNewPrivs != row.noNewPrivs {
			t.Errorf("%s: %+v, %v", row.capture, s, err)
		}
		if row.pids != nil && !slices.Equal(s.NamespacePIDs(), row.pids) {
			t.Errorf("%s: pids %v, want %v", row.capture, s.NamespacePIDs(), row.pids)
		}
	}
}

// old is what the kernel of RHEL 7 (3.10) writes, as far as it matters.
const old = "Name:\tbash\nState:\tS (sleeping)\nTgid:\t7\nPid:\t7\nPPid:\t1\nUid:\t0\t0\t0\t0\nVmSize:\t  10 kB\nThreads:\t1\n" +
	"CapInh:\t0000000000000000\nCapPrm:\t0000001fffffffff\nCapEff:\t0000001fffffffff\nCapBnd:\t0000001fffffffff\nSeccomp:\t0\n"

func TestParseStatusKeepsAbsentApartFromZero(t *testing.T) {
	s, err := ParseStatus([]byte(old))
	if err != nil {
		t.Fatal(err)
	}
	if s.NoNewPrivs != -1 || s.noNewPrivileges() != nil || s.Kthread != -1 || s.Depth != 0 || s.NamespacePIDs() != nil || s.Seccomp != 0 || !s.Caps.Ambient.Empty() || !s.NoAmbient {
		t.Errorf("%+v", s)
	}
}

func TestParseStatusOfHostileNames(t *testing.T) {
	for written, comm := range map[string]string{
		`CapEff:\tffffffffffffffff`:         `CapEff:\tffffffffffffffff`, // a backslash that the kernel did not write
		"CapEff:\tffffffffffffffff":         "CapEff:\tffffffffffffffff",
		`a\nCapEff:` + "\tffffffffffffffff": "a\nCapEff:\tffffffffffffffff",
		`\\n`:                               `\n`,
		`\\\n`:                              "\\\n",
		"\x1b[2J\xff\xfe":                   "\x1b[2J\xff\xfe",
		"":                                  "",
		`\`:                                 `\`,
	} {
		s, err := ParseStatus([]byte(strings.Replace(old, "bash", written, 1)))
		if err != nil || s.Comm() != comm || s.Caps.Effective.Hex() != "0000001fffffffff" {
			t.Errorf("name %q: comm %q, effective %s, %v", written, s.Comm(), s.Caps.Effective.Hex(), err)
		}
	}
}

func TestParseStatusRefuses(t *testing.T) {
	whole := string(captured(t, "containerd-2.4.2/default", "status"))
	replaced := func(from, to string) string {
		t.Helper()
		if !strings.Contains(whole, from) {
			t.Fatalf("no %q in the capture", from)
		}
		return strings.Replace(whole, from, to, 1)
	}
	for why, text := range map[string]string{
		"empty":                            "",
		"no CapEff":                        replaced("CapEff:\t00000000a80425fb\n", ""),
		"no CapBnd":                        replaced("CapBnd:\t00000000a80425fb\n", ""),
		"no CapInh":                        replaced("CapInh:\t0000000000000000\n", ""),
		"no CapPrm":                        replaced("CapPrm:\t00000000a80425fb\n", ""),
		"no Uid":                           replaced("Uid:\t0\t0\t0\t0\n", ""),
		"no Threads":                       replaced("Threads:\t1\n", ""),
		"17 digits":                        replaced("CapEff:\t0", "CapEff:\t00"),
		"15 digits":                        replaced("CapEff:\t0", "CapEff:\t"),
		"no hexadecimal":                   replaced("CapEff:\t0", "CapEff:\tg"),
		"a word after the set":             replaced("CapEff:\t00000000a80425fb", "CapEff:\t00000000a80425fb x"),
		"CapEff twice":                     replaced("CapBnd:", "CapEff:\t0000000000000000\nCapBnd:"),
		"CapEff before its place":          replaced("Umask:", "CapEff:\tffffffffffffffff\nUmask:"),
		"another Name further down":        whole + "Name:\tinit\n",
		"another NoNewPrivs at the end":    whole + "NoNewPrivs:\t1\n",
		"three uids":                       replaced("Uid:\t0\t0\t0\t0", "Uid:\t0\t0\t0"),
		"five uids":                        replaced("Uid:\t0\t0\t0\t0", "Uid:\t0\t0\t0\t0\t0"),
		"a negative uid":                   replaced("Uid:\t0", "Uid:\t-1"),
		"a uid of 33 bits":                 replaced("Uid:\t0", "Uid:\t4294967296"),
		"no state":                         replaced("State:\tS (sleeping)", "State:\t"),
		"a state that is no letter":        replaced("State:\tS", "State:\t7"),
		"NoNewPrivs 2":                     replaced("NoNewPrivs:\t0", "NoNewPrivs:\t2"),
		"Seccomp 3":                        replaced("Seccomp:\t0", "Seccomp:\t3"),
		"a pid in letters":                 replaced("NSpid:\t21565", "NSpid:\tx"),
		"no pid":                           replaced("NSpid:\t21565\t1", "NSpid:\t"),
		"cut before the capabilities":      whole[:strings.Index(whole, "CapInh")],
		"cut in the middle of CapEff":      whole[:strings.Index(whole, "CapEff")+10],
		"cut in the middle of its last":    whole[:len(whole)-1],
		"10 MiB of nothing":                strings.Repeat("x", 10<<20),
		"10 MiB of lines":                  strings.Repeat("x\n", 5<<20),
		"a name with a newline of its own": replaced("Name:\tsleep", "Name:\tsleep\nCapEff:\tffffffffffffffff"),
	} {
		s, err := ParseStatus([]byte(text))
		var malformed *MalformedError
		if !errors.As(err, &malformed) || s.name != nil || s.Threads != 0 {
			t.Errorf("%s: %+v, %v", why, s, err)
		} else if len(err.Error()) > 400 {
			t.Errorf("%s: the error repeats %d bytes of its input", why, len(err.Error()))
		}
	}
}

func TestParseStatusAllocatesNothing(t *testing.T) {
	text := captured(t, "containerd-2.4.2/default", "status")
	if n := testing.AllocsPerRun(100, func() { _, _ = ParseStatus(text) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestKernelThreads(t *testing.T) {
	noMemory := strings.Replace(old, "VmSize:\t  10 kB\n", "", 1)
	for why, row := range map[string]struct {
		text string
		want bool
	}{
		"a shell":                                     {old, false},
		"the kernel says so":                          {strings.Replace(old, "VmSize", "Kthread:\t1\nVmSize", 1), true},
		"the kernel denies it":                        {strings.Replace(strings.Replace(noMemory, "PPid:\t1", "PPid:\t2", 1), "Threads", "Kthread:\t0\nThreads", 1), false},
		"below kthreadd and without memory":           {strings.Replace(noMemory, "PPid:\t1", "PPid:\t2", 1), true},
		"below pid 2 with memory":                     {strings.Replace(old, "PPid:\t1", "PPid:\t2", 1), false},
		"without memory elsewhere":                    {noMemory, false},
		"a zombie below pid 2 of another namespace":   {strings.Replace(strings.Replace(noMemory, "PPid:\t1", "PPid:\t2", 1), "S (sleeping)", "Z (zombie)", 1), false},
		"a process that calls itself a kernel thread": {strings.Replace(old, "bash", "kworker/0:1", 1), false},
	} {
		s, err := ParseStatus([]byte(row.text))
		if err != nil || s.kernel() != row.want {
			t.Errorf("%s: %v, %v", why, s.kernel(), err)
		}
	}
}

func TestParseStat(t *testing.T) {
	whole := string(captured(t, "containerd-2.4.2/default", "stat"))
	for name, want := range map[string]uint64{
		"sleep": 277437, "a b": 277437, ") S 1 2 3": 277437, "((": 277437, "x)\n(y": 277437, "": 277437,
	} {
		if got, err := parseStat([]byte(strings.Replace(whole, "sleep", name, 1))); err != nil || got != (stat{start: want}) {
			t.Errorf("name %q: %+v, %v", name, got, err)
		}
	}
	flags := strings.Fields(whole)[8]
	if got, err := parseStat([]byte(strings.Replace(whole, " "+flags+" ", " 4194368 ", 1))); err != nil || !got.forked { // 0x400040
		t.Errorf("a process that has executed nothing: %+v, %v", got, err)
	}
	for _, text := range []string{"", "1 (x", "1 (x) S 1 2 3", whole[:strings.Index(whole, "277437")+3], strings.Replace(whole, "277437", "-1", 1), strings.Replace(whole, "277437", "27743x", 1), strings.Replace(whole, " "+flags+" ", " x ", 1)} {
		if got, err := parseStat([]byte(text)); err == nil || got != (stat{}) {
			t.Errorf("%.40q: %+v, want an error", text, got)
		}
	}
}

func TestParseMounts(t *testing.T) {
	for text, want := range map[string][]int{
		"":                                       nil,
		"23 28 0:22 / /proc rw - proc proc rw\n": {23},
		"23 28 0:22 / /proc rw - proc proc rw\n28 1 254:0 / / rw - ext4 /dev/vda rw\n":              {28, 23},
		"28 1 254:0 / / rw - ext4 /dev/vda rw\nx 1 0:1 / /x rw - tmpfs x rw\n29 1 0:1 / /y rw - \n": {28},
		"0 1 0:1 / / rw - tmpfs x rw\n":           nil,
		"99999999999 1 0:1 / / rw - tmpfs x rw\n": nil,
	} {
		if got := parseMounts([]byte(text)); !slices.Equal(got, want) {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

func FuzzParseMounts(f *testing.F) {
	f.Add([]byte("23 28 0:22 / /proc rw - proc proc rw\n28 1 254:0 / / rw - ext4 /dev/vda rw\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, id := range parseMounts(text) {
			if id <= 0 || !bytes.Contains(text, []byte(strconv.Itoa(id))) {
				t.Fatalf("%q: mount %d", text, id)
			}
		}
	})
}

func FuzzParseCgroupMounts(f *testing.F) {
	f.Add([]byte("40 30 0:30 /docker/x /sys/fs/cgroup/pids rw shared:9 - cgroup cgroup rw,pids\n41 30 0:31 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for directory, root := range parseCgroupMounts(text, "/sys/fs/cgroup") {
			if directory == "" || directory[0] == '/' || directory == ".." || strings.HasPrefix(directory, "../") || !bytes.Contains(text, []byte(root)) {
				t.Fatalf("%q: %q at %q", text, root, directory)
			}
		}
	})
}

func TestParseUptime(t *testing.T) {
	if up, err := parseUptime([]byte("2775.07 5300.12\n")); err != nil || up != 2775*time.Second+70*time.Millisecond {
		t.Errorf("%v, %v", up, err)
	}
	for _, text := range []string{"", "x.00 1", "1 2", "1.5 2", "-1.00 2", "1.-5 2"} {
		if up, err := parseUptime([]byte(text)); err == nil {
			t.Errorf("%q: %v, want an error", text, up)
		}
	}
	if got := age(time.Second, 50); got != 500*time.Millisecond {
		t.Errorf("age = %v", got)
	}
	if got := age(time.Second, 150); got != 0 {
		t.Errorf("age of what started after the clock was read = %v", got)
	}
}

func TestParseIDMap(t *testing.T) {
	for text, want := range map[string][]drift.IDRange{
		"":                                   {},
		"         0          0 4294967295\n": {{Inside: 0, Outside: 0, Length: 4294967295}},
		"0 100000 65536\n65536 200000 1\n":   {{Inside: 0, Outside: 100000, Length: 65536}, {Inside: 65536, Outside: 200000, Length: 1}},
	} {
		if got, err := parseIDMap("uid_map", []byte(text)); err != nil || got == nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"0 0", "0 0\n", "0 0 1 1\n", "0 0 0\n", "a 0 1\n", "0 0 4294967296\n", "-1 0 1\n", strings.Repeat("0 0 1\n", 341), "0 0 1\n0 0"} {
		if got, err := parseIDMap("uid_map", []byte(text)); err == nil || got != nil {
			t.Errorf("%.20q: %v, want an error", text, got)
		}
	}
}

const id, other = "5b9acb833b06e73a6550954b75742b750404c7ab7ca5e07fbdd58a981cecb3a6", "a7836eeae1c125e9e43262b053daf5f989f9f2fcb908c775b7207167f093a290"

func TestContainerName(t *testing.T) {
	for base, want := range map[string]string{
		id: id, "cri-containerd-" + id + ".scope": id, "crio-" + id + ".scope": id, "crio-" + id: id, "docker-" + id + ".scope": id,
		"crio-conmon-" + id[1:] + ".scope": "", "libpod-conmon-x.scope": "", "x-conmon-" + id: id, "conmon-" + id: id, "crio-conmon-x-" + id: id,
		"libpod-" + id + ".scope": id, "nerdctl-" + id + ".scope": id, id + ".scope": id, "cri-containerd-demo.scope": "",
	} {
		if got, ok := containerName(base); !ok || got != want {
			t.Errorf("%s: %q, %v", base, got, ok)
		}
	}
	for _, base := range []string{
		"", "/", "crio-conmon-" + id + ".scope", "crio-conmon-" + id, "libpod-conmon-" + id + ".scope", "libpod-conmon-" + id, "docker-demo.service", "docker.service",
		id[1:], "0" + id, strings.ToUpper(id), "pod" + id, "kubepods.slice", "session-1.scope", "docker-", id + ".slice",
	} {
		if got, ok := containerName(base); ok {
			t.Errorf("%s is taken for container %q", base, got)
		}
	}
}

func TestOutermostContainer(t *testing.T) {
	for cgroup, want := range map[string]string{
		"/kubepods/besteffort/podx/" + id:                  "/kubepods/besteffort/podx/" + id,
		"/kubepods/besteffort/podx/" + id + "/" + other:    "/kubepods/besteffort/podx/" + id,
		"/machine.slice/libpod-" + id + ".scope/container": "/machine.slice/libpod-" + id + ".scope",
		"/" + id: "/" + id,
		"/system.slice/docker-" + id + ".scope/kubelet.slice/crio-" + other: "/system.slice/docker-" + id + ".scope",
		"/system.slice/ssh.service":                                         "",
		"/":                                                                 "",
	} {
		if got, _, ok := outermostContainer(cgroup); ok != (want != "") || got != want {
			t.Errorf("%s: %q", cgroup, got)
		}
	}
}

func TestSpecPaths(t *testing.T) {
	for spec, want := range map[string][]string{
		"/kubepods/burstable/pod1/" + id: {"/kubepods/burstable/pod1/" + id},
		"kubepods/x":                     {"/kubepods/x"},
		"../../etc":                      {"/etc"},
		"/":                              nil, "": nil, "..": nil, "/a/..": nil,
		"kubepods-burstable-pod1_2.slice:cri-containerd:" + id: {"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cri-containerd-" + id + ".scope"},
		"kubepods.slice:crio:" + id:                            {"/kubepods.slice/crio-" + id + ".scope"},
		":runc:demo":                                           {"/system.slice/runc-demo.scope"},
		"-.slice:runc:demo":                                    {"/runc-demo.scope"},
		"user.slice::demo":                                     {"/user.slice/demo.scope", "/user.slice/-demo.scope"},
		"a.slice::b.slice":                                     {"/a.slice/b.slice"},
		"a--b.slice:x:y":                                       {"/a--b.slice:x:y"}, // no slice: a path with colons
		"/a:b:c":                                               {"/a:b:c"},
		"a.slice:../..:x":                                      {"/a.slice:../..:x"},
	} {
		if got := specPaths(spec); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", spec, got, want)
		}
	}
}

func TestParseCgroup(t *testing.T) {
	v1 := captured(t, "cri-o-1.37.0/default", "cgroup")
	for _, row := range []struct{ text, controller, want string }{
		{string(v1), "pids", "/kubepods/besteffort/poduid-default/crio-" + other},
		{string(v1), "name=systemd", "/kubepods/besteffort/poduid-default/crio-" + other},
		{string(v1), "", "/kubepods/besteffort/poduid-default/crio-" + other},
		{"4:cpu,cpuacct:/a\n0::/b\n", "cpuacct", "/a"},
		{"4:cpu,cpuacct:/a\n0::/b\n", "", "/b"},
		{"0::/../../kubepods/x\n", "", "/../../kubepods/x"},
		{"0::/..\n", "", "/.."},
		{"0::/\n", "", "/"},
		{"0::/..a\n", "", "/..a"},
		{"0::/named so (deleted)\n", "", "/named so (deleted)"},
		{"3:name=a:/x:y\n", "name=a", "/x:y"},
		{"3:pids:/x:y::/z\n", "pids", "/x:y::/z"},
		{"13:name=pids:/forged\n8:pids:/true\n", "pids", "/true"},
		{"13:name=pids:/forged\n8:pids:/true\n", "name=pids", "/forged"},
		{"13:name=pids:/forged\n", "pids", ""},
		{"8:pids:/a\n", "name=pids", ""},
		{"3:cpu,name=pids:/a\n2:pids:/b\n", "pids", "/b"},
		{"3:cpu,name=pids:/a\n", "cpu", "/a"},
		{"3:cpuset:/a\n2:cpu:/b\n", "cpu", "/b"},
		{"3:pids:/a\\0128:pids:/b\n", "pids", "/a\\0128:pids:/b"},
		{"0::/b\n", "pids", ""},
		{"", "", ""}, {"0:", "", ""}, {"0::b\n", "", ""},
	} {
		if got, ok := parseCgroup([]byte(row.text), row.controller); got != row.want || ok != (row.want != "") {
			t.Errorf("%.30q, %q: %q, %v", row.text, row.controller, got, ok)
		}
	}
}

func TestParseHidepid(t *testing.T) {
	const other = "31 23 0:28 / /sys rw - tmpfs tmpfs rw,hidepid=2\n"
	for text, want := range map[string]string{
		"22 27 0:21 / /proc rw,relatime - proc proc rw\n":                                                       " ",
		"22 27 0:21 / /proc rw,relatime shared:5 - proc proc rw,gid=26,hidepid=invisible\n":                     "invisible 26",
		"22 27 0:21 / /proc rw - proc proc rw,hidepid=2\n":                                                      "invisible ",
		"22 27 0:21 / /proc rw - proc proc rw,hidepid=1\n":                                                      "noaccess ",
		"22 27 0:21 / /proc rw - proc proc rw,hidepid=ptraceable\n":                                             "ptraceable ",
		"22 27 0:21 / /proc rw - proc proc rw,hidepid=2\n23 22 0:22 / /proc rw - proc proc rw,hidepid=0\n":      " ",
		"22 27 0:21 / /host/proc rw - proc proc rw,hidepid=2\n":                                                 " ",
		"22 27 0:21 / /proc rw - proc proc rw,hidepid=4\n22 27 0:21 / /host/proc rw - proc proc rw\nnonsense\n": "ptraceable ",
	} {
		hidepid, gid := parseHidepid([]byte(other+text), "/proc")
		if hidepid+" "+gid != want {
			t.Errorf("%s: %q %q, want %q", text, hidepid, gid, want)
		}
	}
}

func FuzzParseStatus(f *testing.F) {
	f.Add(captured(f, "containerd-2.4.2/userns", "status"))
	f.Add([]byte(old))
	f.Add([]byte(strings.Replace(old, "bash", `a\n\\CapEff:`, 1)))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := ParseStatus(text)
		if err != nil {
			if s.name != nil || s.Threads != 0 || s.Caps != (capdecode.Sets{}) {
				t.Fatalf("an error and a value: %+v, %v", s, err)
			}
			return
		}
		// Each set is told by one line that begins with its name.
		for key, set := range map[string]string{"CapPrm": s.Caps.Permitted.Hex(), "CapEff": s.Caps.Effective.Hex(), "CapBnd": s.Caps.Bounding.Hex()} {
			lines := 0
			for line := range bytes.Lines(text) {
				if value, ok := bytes.CutPrefix(line, []byte(key+":")); ok {
					lines++
					if !strings.EqualFold(strings.TrimLeft(string(value), " \t"), set+"\n") {
						t.Fatalf("%s is %s, its line %q", key, set, line)
					}
				}
			}
			if lines != 1 {
				t.Fatalf("%d lines %s", lines, key)
			}
		}
		if s.Depth != len(s.NamespacePIDs()) || len(s.Comm()) > len(s.name) {
			t.Fatalf("%+v", s)
		}
	})
}

func TestParseBootTime(t *testing.T) {
	for _, test := range []struct {
		text string
		want int64 // -1 for none
	}{
		{"cpu  1 2 3\nintr 4 btime 5\nctxt 6\nbtime 1767323045\nprocesses 7\n", 1767323045},
		{"cpu  1 2 3\nctxt 6\n", -1},
		{"btime \n", -1},
		{"btime -1\n", -1},
		{"btime 99999999999999\n", -1},
	} {
		at, err := parseBootTime([]byte(test.text))
		var malformed *MalformedError
		if test.want < 0 && (!errors.As(err, &malformed) || !at.IsZero()) || test.want >= 0 && (err != nil || at.Unix() != test.want || at.Location() != time.UTC) {
			t.Errorf("%q: %v, %v", test.text, at, err)
		}
	}
}

func FuzzParseBootTime(f *testing.F) {
	f.Add([]byte("ctxt 6\nbtime 1767323045\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		at, err := parseBootTime(text)
		if _, wrong := at.MarshalJSON(); (err == nil) == at.IsZero() || wrong != nil {
			t.Errorf("%q: %v, %v, %v", text, at, err, wrong)
		}
	})
}

func FuzzParseStat(f *testing.F) {
	f.Add("sleep", uint64(277437))
	f.Add(") S 1 (", uint64(1))
	f.Fuzz(func(t *testing.T, name string, start uint64) {
		text := fmt.Sprintf("1 (%s) S %s%d 2560000\n", name, strings.Repeat("1 ", 18), start)
		if got, err := parseStat([]byte(text)); err != nil || got.start != start || got.forked {
			t.Fatalf("%q: %+v, %v", text, got, err)
		}
		if got, err := parseStat([]byte(name)); err != nil && got != (stat{}) {
			t.Fatalf("an error and a value: %+v", got)
		}
	})
}

func FuzzParseIDMap(f *testing.F) {
	f.Add([]byte("         0          0 4294967295\n"))
	f.Add([]byte("0 100000 65536\n65536 200000 1\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		ranges, err := parseIDMap("uid_map", text)
		if (err == nil) != (ranges != nil) {
			t.Fatalf("%v, %v", ranges, err)
		}
		var again bytes.Buffer
		for _, r := range ranges {
			fmt.Fprintf(&again, "%10d %10d %10d\n", r.Inside, r.Outside, r.Length)
		}
		if back, err := parseIDMap("uid_map", again.Bytes()); ranges != nil && (err != nil || !slices.Equal(back, ranges)) {
			t.Fatalf("%v written and read again is %v, %v", ranges, back, err)
		}
	})
}

func FuzzParseCgroup(f *testing.F) {
	f.Add("0::/../../kubepods/x\n", "")
	f.Add("8:pids:/a\n0::/\n", "pids")
	f.Fuzz(func(t *testing.T, text, controller string) {
		cgroup, ok := parseCgroup([]byte(text), controller)
		if ok != (cgroup != "") || ok && cgroup[0] != '/' || strings.Contains(cgroup, "\n") {
			t.Fatalf("%q: %q, %v", text, cgroup, ok)
		}
	})
}

func FuzzSpecPaths(f *testing.F) {
	f.Add("kubepods-burstable-pod1_2.slice:cri-containerd:" + id)
	f.Add("/kubepods/../..")
	f.Fuzz(func(t *testing.T, spec string) {
		for _, p := range specPaths(spec) {
			// It lies below the root and nowhere else.
			if p == "/" || p != filepath.Clean(p) || !strings.HasPrefix(p, "/") {
				t.Fatalf("%q: %q", spec, p)
			}
		}
	})
}

func FuzzParsePIDs(f *testing.F) {
	f.Add([]byte("1\n0\n2147483647\n"), 3)
	f.Fuzz(func(t *testing.T, text []byte, cut int) {
		whole, zeros, rest, err := parsePIDs(nil, text)
		if cut < 0 || cut > len(text) || err != nil {
			return
		}
		// Read in two parts it says the same.
		first, zeros1, rest1, err := parsePIDs(nil, text[:cut])
		if err != nil {
			return // the first part ends in a line that is too long to be one
		}
		both, zeros2, rest2, err := parsePIDs(first, append(bytes.Clone(rest1), text[cut:]...))
		if err != nil || !slices.Equal(both, whole) || zeros1+zeros2 != zeros || !bytes.Equal(rest, rest2) {
			t.Fatalf("%q: %v %d %q, in two parts %v %d %q, %v", text, whole, zeros, rest, both, zeros1+zeros2, rest2, err)
		}
	})
}
