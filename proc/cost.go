package proc

import (
	"time"

	"golang.org/x/sys/unix"
)

// What a process costs to be read is its own choice: its status lists its groups, of
// which setgroups(2) takes 65,536, and the kernel writes the text anew with a buffer of
// twice the size until it fits (fs/seq_file.c seq_read_iter). That is 700 KiB and 15 to
// 30 ms, a thousand times what another process costs; reading a part of it costs as
// much. So time is measured, and each container has its own.

// lap returns the processor time that the calling thread used since the last call;
// id is the process or thread that it was used for, 0 for anything else. The thread is
// locked meanwhile (runtime.LockOSThread).
type lap func(id int) time.Duration

// slowRead is from when on the processor time of a read is asked for: asking costs a
// system call, and reading an ordinary process not much more than twenty of them.
const slowRead = 500 * time.Microsecond

// uncertain bounds how much is charged by the clock on the wall before that.
const uncertain = 2 * time.Millisecond

// processorLaps measures by the processor time of the thread, so that nobody is charged
// for the time in which another program ran. Short reads are charged by the wall clock,
// which is read without a system call.
func processorLaps() lap {
	last, known := time.Now(), threadTime()
	var charged time.Duration // since known
	return func(int) time.Duration {
		now := time.Now()
		cost := now.Sub(last)
		last = now
		if cost < slowRead && charged < uncertain {
			charged += cost
			return cost
		}
		used := threadTime()
		cost = min(cost, max(0, used-known-charged))
		known, charged = used, 0
		return cost
	}
}

// threadTime is CLOCK_THREAD_CPUTIME_ID; clock_gettime(2).
func threadTime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// spent returns what the reader used since the last call.
func (r *reader) spent(id int) time.Duration {
	if r.lap == nil {
		return 0
	}
	return r.lap(id)
}
