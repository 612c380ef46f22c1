package proc

import (
	"bytes"
	"math"
	"strconv"

	"github.com/capdrift/capdrift/capdecode"
)

// Status is /proc/PID/status or /proc/PID/task/TID/status, proc_pid_status(5),
// as far as it matters here. It refers to the text that it was parsed from.
type Status struct {
	State      byte // R, S, D, T, t, Z, X, I …
	Tgid       int
	PID        int
	PPid       int
	UID        [4]uint32 // real, effective, saved, file system
	Depth      int       // pid namespaces below the reader's, its own counted; 0 before Linux 4.1
	Kthread    int       // -1 when not told, before Linux 6.8
	Threads    int
	Caps       capdecode.Sets // Ambient is empty before Linux 4.3, which has none
	NoAmbient  bool           // there is no line of it
	NoNewPrivs int            // 0, 1; -1 when not told, before Linux 4.10
	Seccomp    int            // 0 off, 1 strict, 2 filter; -1 when not told

	name, pids []byte
	memory     bool // it has an address space of its own
}

// Comm returns the process's name, which is its own to choose: any bytes. The
// kernel writes a newline as \n and a backslash as \\ (fs/proc/array.c
// proc_task_name), so a name can never begin a line of the file.
func (s *Status) Comm() string {
	if bytes.IndexByte(s.name, '\\') < 0 {
		return string(s.name)
	}
	comm := make([]byte, 0, len(s.name))
	for i := 0; i < len(s.name); i++ {
		c := s.name[i]
		if c == '\\' && i+1 < len(s.name) {
			switch next := s.name[i+1]; next {
			case 'n':
				c, i = '\n', i+1
			case '\\':
				i++
			}
		}
		comm = append(comm, c)
	}
	return string(comm)
}

// NamespacePIDs returns the pid in each pid namespace, the reader's first.
func (s *Status) NamespacePIDs() []int {
	if s.Depth == 0 {
		return nil
	}
	list := make([]int, 0, s.Depth)
	for rest := s.pids; ; {
		var pid uint32
		var ok bool
		if pid, rest, ok = column(rest); !ok {
			return list
		}
		list = append(list, int(pid))
	}
}

// ended tells whether the task itself runs no more: a zombie or dead.
func (s *Status) ended() bool { return s.State == 'Z' || s.State == 'X' || s.State == 'x' }

// kernel tells whether it is a kernel thread. Before Linux 6.8 the file does not
// say so, but a living task without memory of its own below kthreadd (pid 2
// wherever the kernel's first pid namespace is shown) is one.
func (s *Status) kernel() bool {
	if s.Kthread >= 0 {
		return s.Kthread == 1
	}
	return !s.memory && !s.ended() && (s.PPid == 2 || s.PID == 2 && s.PPid == 0)
}

// The lines that matter, in the order in which the kernel writes them
// (fs/proc/array.c proc_pid_status).
const (
	lineName = iota
	lineState
	lineTgid
	linePID
	linePPid
	lineUID
	lineNSpid
	lineKthread
	lineVMSize
	lineThreads
	lineCapInh
	lineCapPrm
	lineCapEff
	lineCapBnd
	lineCapAmb
	lineNoNewPrivs
	lineSeccomp
)

// requiredLines are those without which nothing can be said of a task; the
// others are newer than some kernels, or not written for every task.
var requiredLines = [...]struct {
	line int
	name string
}{
	{lineName, "Name"}, {lineState, "State"}, {lineTgid, "Tgid"}, {linePID, "Pid"}, {linePPid, "PPid"}, {lineUID, "Uid"}, {lineThreads, "Threads"},
	{lineCapInh, "CapInh"}, {lineCapPrm, "CapPrm"}, {lineCapEff, "CapEff"}, {lineCapBnd, "CapBnd"},
}

// ParseStatus reads the text of /proc/PID/status. A set that is missing, cut or
// told twice is an error (a [*MalformedError]), never an empty set: each line
// counts once and in its place. It allocates nothing unless it fails.
func ParseStatus(text []byte) (Status, error) {
	s := Status{Kthread: -1, NoNewPrivs: -1, Seccomp: -1}
	last, seen := -1, uint32(0)
	for rest := text; len(rest) > 0; {
		end := bytes.IndexByte(rest, '\n')
		if end < 0 {
			return Status{}, malformedStatus("cut in the middle of line", rest)
		}
		line := rest[:end]
		rest = rest[end+1:]
		colon := bytes.IndexByte(line, ':')
		if colon < 0 {
			continue
		}
		at, ok := s.set(line[:colon], line[colon+1:])
		switch {
		case at < 0:
			continue
		case at <= last:
			return Status{}, malformedStatus("twice or out of its place is line", line)
		case !ok:
			return Status{}, malformedStatus("not what the kernel writes is line", line)
		}
		last = at
		seen |= 1 << at
	}
	s.NoAmbient = seen>>lineCapAmb&1 == 0
	for _, r := range requiredLines {
		if seen>>r.line&1 == 0 {
			return Status{}, malformedStatus("there is no line", []byte(r.name))
		}
	}
	return s, nil
}

// set takes the value of one line and returns which line it is, -1 for one that
// does not matter, and whether the value is well formed.
func (s *Status) set(key, value []byte) (line int, ok bool) {
	value = trimBlank(value)
	switch string(key) {
	case "Name":
		s.name = value
		return lineName, true
	case "State":
		if len(value) == 0 || (value[0]|0x20) < 'a' || (value[0]|0x20) > 'z' {
			return lineState, false
		}
		s.State = value[0]
		return lineState, true
	case "Tgid":
		return lineTgid, number(value, &s.Tgid)
	case "Pid":
		return linePID, number(value, &s.PID)
	case "PPid":
		return linePPid, number(value, &s.PPid)
	case "Uid":
		for i := range s.UID {
			if s.UID[i], value, ok = column(value); !ok {
				return lineUID, false
			}
		}
		return lineUID, len(value) == 0
	case "NSpid":
		s.pids = value
		for ok = true; ok && len(value) > 0; s.Depth++ {
			_, value, ok = column(value)
		}
		return lineNSpid, ok && s.Depth > 0
	case "Kthread":
		return lineKthread, flag(value, 1, &s.Kthread)
	case "VmSize":
		s.memory = true
		return lineVMSize, true
	case "Threads":
		return lineThreads, number(value, &s.Threads)
	case "CapInh":
		s.Caps.Inheritable, ok = capdecode.HexBytes(value)
		return lineCapInh, ok
	case "CapPrm":
		s.Caps.Permitted, ok = capdecode.HexBytes(value)
		return lineCapPrm, ok
	case "CapEff":
		s.Caps.Effective, ok = capdecode.HexBytes(value)
		return lineCapEff, ok
	case "CapBnd":
		s.Caps.Bounding, ok = capdecode.HexBytes(value)
		return lineCapBnd, ok
	case "CapAmb":
		s.Caps.Ambient, ok = capdecode.HexBytes(value)
		return lineCapAmb, ok
	case "NoNewPrivs":
		return lineNoNewPrivs, flag(value, 1, &s.NoNewPrivs)
	case "Seccomp":
		return lineSeccomp, flag(value, 2, &s.Seccomp)
	}
	return -1, false
}

func malformedStatus(what string, line []byte) error {
	return &MalformedError{File: "status", What: what + " " + strconv.QuoteToASCII(clip(line))}
}

// clip bounds what an error repeats of a hostile file.
func clip(text []byte) string {
	const most = 64
	if len(text) > most {
		return string(text[:most]) + "…"
	}
	return string(text)
}

func trimBlank(text []byte) []byte {
	for len(text) > 0 && (text[0] == ' ' || text[0] == '\t') {
		text = text[1:]
	}
	return text
}

// column takes the first of the decimal numbers that a line holds, parted by
// blanks, and returns what follows it.
func column(text []byte) (n uint32, rest []byte, ok bool) {
	text = trimBlank(text)
	digits := 0
	for ; digits < len(text) && '0' <= text[digits] && text[digits] <= '9'; digits++ {
		d := uint32(text[digits] - '0')
		if n > (math.MaxUint32-d)/10 {
			return 0, nil, false
		}
		n = n*10 + d
	}
	rest = trimBlank(text[digits:])
	return n, rest, digits > 0 && (len(rest) == 0 || len(rest) < len(text)-digits)
}

// number reads a line that holds one number, a pid or a count.
func number(text []byte, to *int) bool {
	n, rest, ok := column(text)
	*to = int(n)
	return ok && len(rest) == 0 && n <= math.MaxInt32
}

// flag reads a line that holds one digit up to most.
func flag(text []byte, most int, to *int) bool {
	return number(text, to) && *to <= most
}
