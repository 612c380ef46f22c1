package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/capdrift/capdrift/agent"
)

// handBackStart hands back what only the start needed of the program's own file, once the
// node was looked at: it is mapped into memory, and was half of what an agent held. A page
// that is needed again is there again, from the page cache.
func handBackStart(ctx context.Context, feed agent.Feed, log *slog.Logger) error {
	watch := feed.Watch(agent.Position{})
	stop := context.AfterFunc(ctx, watch.Close)
	defer stop()
	defer watch.Close()
	for _, looked := feed.View(); !looked; _, looked = feed.View() {
		if _, more := <-watch.Changes(); !more {
			return nil
		}
	}
	if err := adviseOwnPages(unix.MADV_DONTNEED); err != nil {
		log.Debug("the pages that the start needed stay resident", "why", err)
	}
	return nil
}

// adviseOwnPages is madvise(2) about all pages of the program's file that nobody can write,
// so that none of them differs from the file; proc_pid_maps(5).
func adviseOwnPages(advice uintptr) error {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer maps.Close()
	var failed error
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		var from, to uintptr
		var access string
		if n, _ := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &access); n != 3 || access != "r--p" && access != "r-xp" ||
			!strings.HasSuffix(lines.Text(), " "+program) {
			continue
		}
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, from, to-from, advice); errno != 0 {
			failed = fmt.Errorf("madvise of %x-%x: %w", from, to, errno)
		}
	}
	return errors.Join(failed, lines.Err())
}
