package proc

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOpenFilesKnowTheirProcess holds what [reader.process] builds on: a file
// that was opened tells of its process or of none, also when the pid is given to
// another one, and an inode is one process's.
func TestOpenFilesKnowTheirProcess(t *testing.T) {
	dir, err := openDirectory(New("/", Options{}).proc)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dir)
	r := newReader(dir)
	first := exec.Command("sleep", "100000")
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	pid := first.Process.Pid
	var files []int
	for _, file := range []string{"status", "stat"} {
		fd, err := open(dir, r.of(pid, file), 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		files = append(files, fd)
	}
	if s, err := r.status(files[0], pid); err != nil || s.PID != pid {
		t.Fatalf("while it lives: %+v, %v", s, err)
	}
	l := look{all: true}
	p, born, err := r.process(&l, nil, pid)
	if err != nil {
		t.Fatal(err)
	}
	// Known again, and its stat not asked: the wrong start time comes back.
	born.start++
	l.births = births{born}
	if again, _, err := r.process(&l, nil, pid); err != nil || again.StartTime != p.StartTime+1 {
		t.Errorf("known from before: %+v, %v", again, err)
	}
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait()
	gone := func(when string) {
		for _, fd := range files {
			if _, err := unix.Seek(fd, 0, 0); err != nil {
				t.Fatal(err)
			}
			if text, err := r.read(fd); !errors.Is(outcome("x", err), ErrVanished) {
				t.Errorf("%s: %q, %v", when, text, err)
			}
		}
	}
	gone("after its end")

	// The next process gets the number after the one written here.
	for range 100 {
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0); err != nil {
			if os.Geteuid() == 0 && os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
		second := exec.Command("sleep", "100000")
		if err := second.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = second.Process.Kill(); _ = second.Wait() }()
		if second.Process.Pid == pid {
			if s, err := r.statusOf(strconv.Itoa(pid)); err != nil || s.PID != pid {
				t.Fatalf("the second of that pid: %+v, %v", s, err)
			}
			gone("while another has its pid")
			other, bornLater, err := r.process(&l, nil, pid)
			if err != nil || bornLater.inode == born.inode && bornLater.made == born.made || other.StartTime < p.StartTime {
				t.Errorf("taken for the first: %+v, %v", bornLater, err)
			}
			return
		}
	}
	t.Fatalf("pid %d was not given again in 100 tries", pid)
}
