//go:build linux

package microvm

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// cache is the folder that the whole module shares.
const cache = "../../.cache/microvm"

// TestGuest boots once for all of this: the machine is what the package doc
// promises, statuses and output arrive, a process left behind ends with it.
func TestGuest(t *testing.T) {
	commands := []Command{
		{Args: []string{"probe", "check"}},
		{Args: []string{"/usr/local/bin/probe", "exit"}},
		{Args: []string{"probe", "killed"}},
		{Args: []string{"/no/such/program"}},
		{Args: []string{"probe", "forge"}},
		{Args: []string{"probe", "print"}, Dir: "/usr/local", Env: []string{"PROBE=here"}},
		{Args: []string{"probe", "orphan"}},
		{Args: []string{"probe", "flood"}},
	}
	var out bytes.Buffer
	statuses, err := run(t, t.Context(), Config{Commands: commands, Output: &out})
	flood := strings.Repeat("x", 63) + "\n"
	text := strings.ReplaceAll(out.String(), flood, "")
	t.Logf("output:\n%s", text)
	if want := []int{0, 7, 128 + 15, 127, 0, 0, 0, 0}; err != nil || !slices.Equal(statuses, want) {
		t.Errorf("statuses %v, err %v, want %v", statuses, err, want)
	}
	for _, want := range []string{
		"all checks passed\n",
		"/no/such/program: no such file",
		"dir=/usr/local PROBE=here HOME=/root\n",
		"on stderr\n",
		"hanging\n", // the orphan
		"flood ends\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("output lacks %q", want)
		}
	}
	if n := strings.Count(out.String(), flood); n != 1<<14 {
		t.Errorf("%d lines of the flood arrived, want %d", n, 1<<14)
	}
}

func TestSystemd(t *testing.T) {
	var out bytes.Buffer
	statuses, err := run(t, t.Context(), Config{
		Systemd: true,
		Output:  &out,
		Commands: []Command{
			{Args: []string{"probe", "check"}},
			{Args: []string{"probe", "cgroup"}},
			{Args: []string{"probe", "scope"}},
			{Args: []string{"systemctl", "is-active", "kubepods-besteffort.slice"}},
			{Args: []string{"probe", "orphan"}},
			{Args: []string{"probe", "exit"}},
		},
	})
	t.Logf("output:\n%s", &out)
	if want := []int{0, 0, 0, 0, 0, 7}; err != nil || !slices.Equal(statuses, want) {
		t.Errorf("statuses %v, err %v, want %v", statuses, err, want)
	}
	for _, want := range []string{
		"all checks passed\n",
		"0::/system.slice/microvm.service\n",
		"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/cri-containerd-probe.scope\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("output lacks %q", want)
		}
	}
}

func TestContextCutsHangingCommand(t *testing.T) {
	hung := errors.New("the command hung, as it should")
	ctx, cut := context.WithCancelCause(t.Context())
	defer cut(nil)
	statuses, err := run(t, ctx, Config{
		Commands: []Command{{Args: []string{"probe", "exit"}}, {Args: []string{"probe", "hang"}}},
		Output:   &watch{want: "hanging\n", then: func() { cut(hung) }},
	})
	if !errors.Is(err, hung) || !slices.Equal(statuses, []int{7}) {
		t.Errorf("statuses %v, err %v, want [7] and %q", statuses, err, hung)
	}
}

func TestPanicIsAnError(t *testing.T) {
	statuses, err := run(t, t.Context(), Config{
		Commands: []Command{{Args: []string{"probe", "exit"}}, {Args: []string{"probe", "panic"}}},
	})
	if !errors.Is(err, ErrPanic) || !strings.Contains(err.Error(), "sysrq triggered crash") {
		t.Errorf("Run: %v, want ErrPanic and the console", err)
	}
	if !slices.Equal(statuses, []int{7}) {
		t.Errorf("statuses %v, want [7]", statuses)
	}
}

func TestDecode(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     []int
		ok       bool
	}{
		{"nothing", "", nil, true},
		{"two commands", `{"command":0,"status":0}` + "\n" + `{"command":1,"status":9}` + "\n", []int{0, 9}, true},
		{"a command left out", `{"command":1,"status":0}` + "\n", nil, false},
		{"a command twice", `{"command":0,"status":0}` + "\n" + `{"command":0,"status":0}` + "\n", []int{0}, false},
		{"a line cut in the middle", `{"command":0,"sta`, nil, false},
	} {
		got, err := decode(strings.NewReader(c.in))
		if !slices.Equal(got, c.want) || (err == nil) != c.ok {
			t.Errorf("%s: %v, %v, want %v, ok %v", c.name, got, err, c.want, c.ok)
		}
	}
}

// run boots a guest with the probe in it. Boots wait more than they compute, so
// the tests go side by side.
func run(t *testing.T, ctx context.Context, cfg Config) ([]int, error) {
	t.Helper()
	needHost(t)
	t.Parallel()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	cfg.Cache = cache
	cfg.Files = map[string]string{"/usr/local/bin/probe": buildProbe(t)}
	cfg.Logf = t.Logf
	return Run(ctx, cfg)
}

// needHost skips where a person runs the tests on a machine that cannot boot
// the guest. In CI there is no such excuse.
func needHost(t *testing.T) {
	t.Helper()
	if os.Getenv("CI") != "" || os.Geteuid() == 0 {
		return
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("needs qemu-system-x86_64: install the package qemu-system-x86, or run as root to have it installed")
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Skip("needs Debian: there is no apt-get to take the kernel with")
	}
}

func buildProbe(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "probe")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", file, "./internal/probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return file
}

// watch is a buffer that reports once when it contains a text.
type watch struct {
	data bytes.Buffer
	want string
	then func()
}

func (w *watch) Write(p []byte) (int, error) {
	w.data.Write(p)
	// The text may come in two pieces.
	if end := w.data.Bytes()[max(0, w.data.Len()-len(p)-len(w.want)):]; bytes.Contains(end, []byte(w.want)) {
		w.then()
	}
	return len(p), nil
}
