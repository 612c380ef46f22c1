package proc

import (
	"bytes"
	"strconv"
	"time"
)

// userHz is the unit of the clock ticks in /proc: USER_HZ is 100 on every
// architecture that runs containers (include/asm-generic/param.h), whatever the
// kernel's own tick.
const userHz = 100

// stat is what matters here of /proc/PID/stat, proc_pid_stat(5).
type stat struct {
	start uint64 // field 22: ticks since boot
	// Of field 9: it has executed nothing since it was forked; it is about to end.
	forked, exiting bool
}

// forkedNoExec is PF_FORKNOEXEC, include/linux/sched.h: fork(2) sets it and execve(2)
// clears it (kernel/fork.c copy_process, fs/exec.c begin_new_exec).
const forkedNoExec = 0x40

// exitingFlag is PF_EXITING, include/linux/sched.h; kernel/exit.c exit_signals.
const exitingFlag = 0x4

// stat reads /proc/PID/stat.
func (r *reader) stat(pid int) (stat, error) {
	text, err := r.file(r.proc, r.of(pid, "stat"))
	if err != nil {
		return stat{}, readError(r.of(pid, "stat"), err)
	}
	s, err := parseStat(text)
	return s, locate(err, r.of(pid, "stat"))
}

// parseStat reads the text of /proc/PID/stat. Field 2 is the process's own name in parentheses, raw, and so may hold
// parentheses, blanks and newlines itself: the last ")" ends it, for all that
// follows is numbers and one letter.
func parseStat(text []byte) (stat, error) {
	const (
		firstField  = 3 // after the name
		flagsField  = 9
		startsField = 22
	)
	end := bytes.LastIndexByte(text, ')')
	if end < 0 {
		return stat{}, &MalformedError{File: "stat", What: "no name in parentheses"}
	}
	var s stat
	rest := bytes.TrimLeft(text[end+1:], " ")
	for at := firstField; at <= startsField; at++ {
		field, after, found := bytes.Cut(rest, []byte{' '})
		if !found {
			return stat{}, &MalformedError{File: "stat", What: "cut before the end of the start time, field 22"}
		}
		rest = after
		if at != flagsField && at != startsField {
			continue
		}
		n, err := strconv.ParseUint(string(field), 10, 64)
		if err != nil {
			return stat{}, &MalformedError{File: "stat", What: "no number in field " + strconv.Itoa(at) + " but " + strconv.QuoteToASCII(clip(field))}
		}
		if at == startsField {
			s.start = n
		} else {
			s.forked, s.exiting = n&forkedNoExec != 0, n&exitingFlag != 0
		}
	}
	return s, nil
}

// parseUptime returns the time since boot, the first field of /proc/uptime, on
// the clock that start times are told in: both are CLOCK_BOOTTIME, both shifted
// by the reader's time namespace (fs/proc/array.c do_task_stat, fs/proc/uptime.c).
func parseUptime(text []byte) (time.Duration, error) {
	field, _, _ := bytes.Cut(text, []byte{' '})
	whole, hundredths, found := bytes.Cut(field, []byte{'.'})
	s, err := strconv.ParseUint(string(whole), 10, 32)
	cs, err2 := strconv.ParseUint(string(hundredths), 10, 8)
	if err != nil || err2 != nil || !found || len(hundredths) != 2 {
		return 0, &MalformedError{File: "uptime", What: "does not begin with seconds and hundredths: " + strconv.QuoteToASCII(clip(field))}
	}
	return time.Duration(s)*time.Second + time.Duration(cs)*10*time.Millisecond, nil
}

// parseBootTime returns the time of the boot, the line btime of /proc/stat, in UTC. It
// is told in whole seconds and shifted by the reader's time namespace, as start times
// are (fs/proc/stat.c show_stat). It moves when somebody sets the node's clock.
func parseBootTime(text []byte) (time.Time, error) {
	for line := range bytes.SplitSeq(text, []byte{'\n'}) {
		digits, found := bytes.CutPrefix(line, []byte("btime "))
		if !found {
			continue
		}
		s, err := strconv.ParseInt(string(digits), 10, 38) // thousands of years; JSON has four digits for one
		if err != nil || s < 0 {
			return time.Time{}, &MalformedError{File: "stat", What: "no boot time in btime but " + strconv.QuoteToASCII(clip(digits))}
		}
		return time.Unix(s, 0).UTC(), nil
	}
	return time.Time{}, &MalformedError{File: "stat", What: "no line btime"}
}

// age returns how long ago a process started.
func age(uptime time.Duration, start uint64) time.Duration {
	// A process may be younger than the reading of the clock.
	return max(0, uptime-time.Duration(start)*(time.Second/userHz))
}
