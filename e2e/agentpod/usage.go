//go:build linux

package agentpod

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Usage is what a process has used, and holds.
type Usage struct {
	CPU                  time.Duration
	Resident             int64 // bytes
	Descriptors, Threads int
}

// UsageOf reads it from /proc; proc_pid_stat(5).
func UsageOf(pid int) (Usage, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return Usage{}, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	var numbers [4]int64
	for i, field := range []int{14, 15, 20, 24} { // as the man page counts them
		if numbers[i], err = strconv.ParseInt(fields[field-3], 10, 64); err != nil {
			return Usage{}, fmt.Errorf("%s/stat: field %d: %w", dir, field, err)
		}
	}
	open, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return Usage{}, err
	}
	const ticks = 100 // a second: USER_HZ
	return Usage{
		CPU:      time.Duration(numbers[0]+numbers[1]) * time.Second / ticks,
		Resident: numbers[3] * int64(os.Getpagesize()), Descriptors: len(open), Threads: int(numbers[2]),
	}, nil
}
