package main

import (
	"io/fs"
	"syscall"
)

// inodeOf returns the file's inode, 0 where the system has none.
func inodeOf(info fs.FileInfo) uint64 {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return stat.Ino
	}
	return 0
}
