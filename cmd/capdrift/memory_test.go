package main

import (
	"bytes"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPagesAreHandedBack: less of the program's file is resident after, and it runs on.
func TestPagesAreHandedBack(t *testing.T) {
	if err := adviseOwnPages(unix.MADV_POPULATE_READ); err != nil {
		t.Fatal(err)
	}
	before := residentFile(t)
	if err := adviseOwnPages(unix.MADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	if after := residentFile(t); after >= before/2 {
		t.Errorf("%d KiB of files are resident, before %d", after, before)
	}
}

// residentFile is what of files is resident, in KiB.
func residentFile(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := bytes.Cut(status, []byte("\nRssFile:"))
	kib, err := strconv.Atoi(string(bytes.Fields(rest)[0]))
	if err != nil {
		t.Fatal(err)
	}
	return kib
}
