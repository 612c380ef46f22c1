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

// parseStat returns the start time, field 22 of /proc/PID/stat, in ticks since
// boot. Field 2 is the process's own name in parentheses, raw, and so may hold
// parentheses, blanks and newlines itself: the last ")" ends it, for all that
// follows is numbers and one letter.
func parseStat(text []byte) (start uint64, err error) {
	const afterName = 22 - 3 // fields from the third up to the one before
	end := bytes.LastIndexByte(text, ')')
	if end < 0 {
		return 0, &MalformedError{File: "stat", What: "no name in parentheses"}
	}
	rest := bytes.TrimLeft(text[end+1:], " ")
	for range afterName {
		_, after, found := bytes.Cut(rest, []byte{' '})
		if !found {
			return 0, &MalformedError{File: "stat", What: "cut before the start time, field 22"}
		}
		rest = after
	}
	field, _, found := bytes.Cut(rest, []byte{' '})
	start, err = strconv.ParseUint(string(field), 10, 64)
	if err != nil || !found {
		return 0, &MalformedError{File: "stat", What: "no start time in field 22 but " + strconv.QuoteToASCII(clip(field))}
	}
	return start, nil
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
