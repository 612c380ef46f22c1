//go:build linux

package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// setName renames the leader. The kernel keeps 15 bytes.
func setName(value string, _ []string) error {
	name, err := strconv.Unquote(`"` + value + `"`)
	if err != nil {
		return err
	}
	b, err := unix.BytePtrFromString(name)
	if err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(b)), 0, 0, 0)
}

// capSets is what capset(2) takes: two 32-bit halves.
type capSets [2]unix.CapUserData

func (s *capSets) setHeld(mask uint64) {
	for i := range s {
		s[i].Permitted = uint32(mask >> (32 * i))
		s[i].Effective = s[i].Permitted
	}
}

func (s *capSets) setInheritable(mask uint64) {
	for i := range s {
		s[i].Inheritable = uint32(mask >> (32 * i))
	}
}

func header() *unix.CapUserHeader {
	return &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
}

func currentCaps() (s capSets, err error) {
	err = unix.Capget(header(), &s[0])
	return s, err
}

// capsetAll changes every thread of the process: capset(2) itself changes one.
func capsetAll(change func(*capSets)) error {
	s, err := currentCaps()
	if err != nil {
		return err
	}
	change(&s)
	return allThreads(unix.SYS_CAPSET, uintptr(unsafe.Pointer(header())), uintptr(unsafe.Pointer(&s[0])), 0)
}

func allThreads(trap, a1, a2, a3 uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall6(trap, a1, a2, a3, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

func setCaps(value string, _ []string) error {
	mask, err := strconv.ParseUint(value, 16, 64)
	if err != nil {
		return err
	}
	return capsetAll(func(s *capSets) { s.setHeld(mask) })
}

func setInheritable(value string, _ []string) error {
	mask, err := strconv.ParseUint(value, 16, 64)
	if err != nil {
		return err
	}
	return capsetAll(func(s *capSets) { s.setInheritable(mask) })
}

func limitBounding(value string, _ []string) error {
	mask, err := strconv.ParseUint(value, 16, 64)
	if err != nil {
		return err
	}
	for c := uintptr(0); c < 64; c++ {
		if _, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0); err != nil {
			break // past the last capability of this kernel
		}
		if mask>>c&1 == 1 {
			continue
		}
		if err := allThreads(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0); err != nil {
			return fmt.Errorf("drop %d: %w", c, err)
		}
	}
	return nil
}

func setUID(value string, _ []string) error {
	uid, err := strconv.Atoi(value)
	if err != nil {
		return err
	}
	id := uintptr(uid)
	return allThreads(unix.SYS_SETRESUID, id, id, id)
}

func setNoNewPrivs(string, []string) error {
	return allThreads(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0)
}

// keepInWorker makes the bug that a scan of leaders misses: the program drops
// root, and one thread keeps capabilities.
//
// Only this thread sets PR_SET_KEEPCAPS (it is per thread), so that the
// setresuid of all threads clears the permitted set of all the others.
func keepInWorker(value string, _ []string) error {
	sets, life, limited := strings.Cut(value, ":")
	mask, err := strconv.ParseUint(sets, 16, 64)
	if err != nil {
		return err
	}
	var d time.Duration
	if limited {
		if d, err = time.ParseDuration(life); err != nil {
			return err
		}
	}
	prepared, dropped, done := make(chan error), make(chan struct{}), make(chan error)
	go func() {
		runtime.LockOSThread()
		prepared <- unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0)
		<-dropped
		done <- keepOnThisThread(mask)
		if limited {
			<-time.After(d)
			if err := keepOnThisThread(0); err != nil {
				fatal(err)
			}
		}
		select {}
	}()
	if err := <-prepared; err != nil {
		return err
	}
	if err := setUID("1000", nil); err != nil {
		return err
	}
	close(dropped)
	return <-done
}

func keepOnThisThread(mask uint64) error {
	s, err := currentCaps()
	if err != nil {
		return err
	}
	s.setHeld(mask)
	return unix.Capset(header(), &s[0])
}

func execSelf(path string, rest []string) error {
	return unix.Exec(path, append([]string{path}, rest...), os.Environ())
}
