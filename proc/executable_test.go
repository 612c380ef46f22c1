package proc

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// procReader returns what reads programs of this machine's /proc.
func procReader(t *testing.T) (*programs, *reader) {
	t.Helper()
	dir, err := openDirectory("/proc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(dir) })
	return newPrograms(time.Now), newReader(dir)
}

// runs starts a program of this test's file, which the given path has, and returns its pid.
func runs(t *testing.T, path string) int {
	t.Helper()
	c := exec.Command(path)
	c.Env = append(os.Environ(), "CAPDRIFT_PROC_ACTOR=sleep")
	in, err1 := c.StdinPipe()
	out, err2 := c.StdoutPipe()
	if err := errors.Join(err1, err2, c.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close(); _ = c.Wait() })
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return c.Process.Pid
}

// ownFile is the file of this test, and its hash.
func ownFile(t *testing.T) (path string, content []byte, sum string) {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if content, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	hash := sha256.Sum256(content)
	return path, content, hex.EncodeToString(hash[:])
}

func TestExecutable(t *testing.T) {
	p, r := procReader(t)
	own, content, ownSum := ownFile(t)
	copied := func(name string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, content, 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, test := range []struct {
		name string
		pid  func(t *testing.T) (pid int, path string)
		sum  string
		why  string
	}{
		{
			name: "a program is known by its path and hash", sum: ownSum,
			pid: func(*testing.T) (int, string) { return os.Getpid(), own },
		},
		{
			name: "a program that was deleted is hashed all the same, and its name is kept as it is", sum: ownSum,
			pid: func(t *testing.T) (int, string) {
				path := copied("a\x1b[2J b")
				pid := runs(t, path)
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
				return pid, path + " (deleted)"
			},
		},
		{
			name: "a program in memory only is shown as such", sum: ownSum,
			pid: func(t *testing.T) (int, string) {
				fd, err := unix.MemfdCreate("hidden", 0)
				if err != nil {
					t.Fatal(err)
				}
				file := os.NewFile(uintptr(fd), "memfd")
				defer file.Close()
				if _, err := file.Write(content); err != nil {
					t.Fatal(err)
				}
				return runs(t, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)), "/memfd:hidden (deleted)"
			},
		},
		{
			name: "a sparse file is as large as it says", why: "more than the 256 MiB that are hashed",
			pid: func(t *testing.T) (int, string) {
				path := copied("sparse")
				if err := os.Truncate(path, maxExecutable+1); err != nil {
					t.Fatal(err)
				}
				return runs(t, path), path
			},
		},
		{
			name: "a kernel thread, or a process that has ended, has no program", why: "it has none, or has ended",
			pid: func(*testing.T) (int, string) { return 1 << 30, "" },
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			pid, want := test.pid(t)
			for _, turn := range []string{"read", "known"} {
				path, sum, why := p.executable(r, pid)
				if path != want || sum != test.sum || why != test.why && (test.why == "" || !strings.HasSuffix(why, test.why)) {
					t.Errorf("%s: path %q, hash %q, why %q", turn, path, sum, why)
				}
			}
		})
	}
	if len(p.reading) != 0 {
		t.Error("a file is still being read")
	}
}

func TestExecutableWithoutPrivilege(t *testing.T) {
	for _, test := range []struct {
		err  error
		want string
	}{
		{unix.EACCES, "it may not be read without CAP_SYS_PTRACE"},
		{unix.EPERM, "it may not be read without CAP_SYS_PTRACE"},
		{unix.ESRCH, "it has none, or has ended"},
		{unix.ENAMETOOLONG, "it could not be read: file name too long"},
	} {
		if got := refused(test.err); got != test.want {
			t.Errorf("%v: %q, want %q", test.err, got, test.want)
		}
	}
}

// Opening a file on some file systems hands the reader to whoever serves them.
func TestExecutableIsOpenedOnKnownFileSystemsOnly(t *testing.T) {
	const process = "30 29 0:50 / / rw,relatime shared:1 master:2 - overlay overlay rw,lowerdir=/l\n" +
		"31 30 0:51 / /x\\040- rw - fuse.ext4 evil rw\n" +
		"32 30 0:52 / /y rw - overlay overlay rw,lowerdir=/x\n" +
		"33 30 0:53 / /z rw - tmpfs tmpfs rw\n" +
		"34 30 0:54 / /n rw - nfs4 server:/ rw\n"
	const node = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n99 1 0:50 / /run/rootfs rw - overlay overlay rw\n98 1 0:52 / /else rw - tmpfs t rw\n"
	for _, test := range []struct {
		name   string
		fdinfo string
		want   string
	}{
		{"the image's layers, which the node mounted", "pos:\t0\nflags:\t012000000\nmnt_id:\t30\nino:\t7\n", ""},
		{"FUSE, whatever it calls itself", "mnt_id:\t31\n", `type "fuse.ext4", which may keep a reader waiting`},
		{"an overlay of the container's own making, over anything", "mnt_id:\t32\n", "its file is on an overlay that was not mounted by the node"},
		{"a file system in memory", "mnt_id:\t33\n", ""},
		{"another machine's file system", "mnt_id:\t34\n", `type "nfs4", which may keep a reader waiting`},
		{"a program of the node, whose process moved into a container", "mnt_id:\t1\n", ""},
		{"a mount that was detached", "mnt_id:\t77\n", "its file is on a mount that is not visible"},
		{"a kernel that tells no mount", "pos:\t0\n", "which mount its file is on could not be told"},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := t.TempDir()
			for name, text := range map[string]string{"7/mountinfo": process, "1/mountinfo": node, "self/fdinfo/5": test.fdinfo} {
				path := filepath.Join(root, name)
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
					t.Fatal(err)
				}
			}
			dir, err := openDirectory(root)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(dir)
			why := newPrograms(time.Now).foreign(newReader(dir), 7, 5, 1<<40)
			if why != test.want && (test.want == "" || !strings.HasSuffix(why, test.want)) {
				t.Errorf("%q, want %q", why, test.want)
			}
		})
	}
}

func TestProgramsBoundTheirWork(t *testing.T) {
	now := time.Unix(1000, 0)
	p := newPrograms(func() time.Time { return now })
	large := fileVersion{device: 1, inode: 1, size: hashBudget/2 + 1}
	other := fileVersion{device: 2, inode: 1, size: 1}
	for _, step := range []struct {
		name string
		of   fileVersion
		ends bool // the one before
		wait time.Duration
		want string
	}{
		{name: "the first file is read", of: large},
		{name: "nobody waits for it once it is overdue", of: other, wait: hashWait, want: "the file of another program is being read, and takes long"},
		{name: "when it is done the next one is read", of: other, ends: true},
		{name: "who has used up his budget is refused", of: large, ends: true, want: "more than 256 MiB of its file system were hashed within a minute"},
		{name: "others are not", of: other},
		{name: "a minute later he may again", of: large, ends: true, wait: time.Minute},
	} {
		if step.ends {
			p.end(step.of, "")
		}
		now = now.Add(step.wait)
		if got := p.begin(step.of); got != step.want {
			t.Errorf("%s: %q, want %q", step.name, got, step.want)
		}
	}
	p.end(large, "")
	for inode := range uint64(3 * keptHashes) {
		if why := p.begin(fileVersion{device: inode, inode: inode}); why != "" {
			t.Fatal(why)
		}
		p.end(fileVersion{device: inode, inode: inode}, "00")
	}
	if n := len(p.sums); n == 0 || n > keptHashes {
		t.Errorf("the cache holds %d hashes, want at most %d", n, keptHashes)
	}
}

func TestProgramsWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPrograms(time.Now)
		first, second := fileVersion{inode: 1}, fileVersion{inode: 2}
		if why := p.begin(first); why != "" {
			t.Fatal(why)
		}
		next := make(chan string, 1)
		go func() { next <- p.begin(second) }()
		synctest.Wait()
		if len(next) != 0 {
			t.Fatalf("it did not wait: %q", <-next)
		}
		p.end(first, "")
		if why := <-next; why != "" {
			t.Errorf("the first file was read in time: %q", why)
		}
	})
}

func TestHashOfWhatChanges(t *testing.T) {
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, bytes.Repeat([]byte{1}, 100), 0o755); err != nil {
		t.Fatal(err)
	}
	opened := func() int {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	fd := opened()
	before, err := versionOf(fd)
	if err != nil {
		t.Fatal(err)
	}
	if sum, why := hashOf(fd, before); sum == "" || why != "" {
		t.Errorf("a file that stays as it is: %q, %q", sum, why)
	}
	if err := os.WriteFile(path, bytes.Repeat([]byte{1}, 1<<20), 0o755); err != nil {
		t.Fatal(err)
	}
	if sum, why := hashOf(opened(), before); sum != "" || why != "its file changed while it was read" {
		t.Errorf("a file that grows: %q, %q", sum, why)
	}
}

func TestParseArguments(t *testing.T) {
	for _, test := range []struct {
		name, text string
		want       []string
	}{
		{"a kernel thread has none", "", nil},
		{"each ends with a zero byte, and may be empty", "sh\x00-c\x00\x00", []string{"sh", "-c", ""}},
		{"a program that wrote its own title has one", "nginx: worker", []string{"nginx: worker"}},
		{"long ones are cut", "sh\x00" + strings.Repeat("x", maxArguments), []string{"sh", strings.Repeat("x", maxArguments-3) + "…"}},
	} {
		if got := parseArguments([]byte(test.text)); !slices.Equal(got, test.want) {
			t.Errorf("%s: %.40q, want %.40q", test.name, got, test.want)
		}
	}
	_, r := procReader(t)
	if got := r.arguments(os.Getpid()); len(got) == 0 || got[0] != os.Args[0] {
		t.Errorf("this test's are %q, want %q", got, os.Args)
	}
}

func FuzzParseMount(f *testing.F) {
	f.Add("36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue", "mnt_id:\t36")
	f.Add("36 35 98:0 - - - - - x", "mnt_id:\t")
	f.Fuzz(func(t *testing.T, line, fdinfo string) {
		if m, ok := parseMount([]byte(line)); ok && (m.id < 0 || m.device == "" || m.kind == "" || !strings.Contains(line, " - "+m.kind)) {
			t.Errorf("%q: %+v", line, m)
		}
		if id, ok := parseMountID([]byte(fdinfo)); ok && (id < 0 || !strings.Contains(fdinfo, "mnt_id:\t")) {
			t.Errorf("%q: %d", fdinfo, id)
		}
		if joined := strings.Join(parseArguments([]byte(line)), "\x00"); len(line) <= maxArguments && strings.TrimSuffix(line, "\x00") != joined {
			t.Errorf("%q: %q", line, joined)
		}
	})
}
