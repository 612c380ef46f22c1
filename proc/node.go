package proc

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

// Node tells which machine and kernel this is, and what about it cannot be seen
// by this reader.
func (fs *FS) Node() (drift.Node, []drift.Limit, error) {
	dir, err := openDirectory(fs.proc)
	if err != nil {
		return drift.Node{}, nil, err
	}
	defer unix.Close(dir)
	r := newReader(dir)

	var node drift.Node
	var last string
	for _, each := range []struct {
		file string
		to   *string
	}{
		{"sys/kernel/random/boot_id", &node.BootID},
		{"sys/kernel/osrelease", &node.Kernel},
		{"sys/kernel/cap_last_cap", &last},
		// That of the reader's own UTS namespace (kernel/utsname_sysctl.c), so
		// a pod's own name where the pod has one.
		{"sys/kernel/hostname", &node.Name},
	} {
		text, err := r.file(dir, each.file)
		if err != nil {
			return drift.Node{}, nil, fmt.Errorf("reading %s/%s: %w", fs.proc, each.file, err)
		}
		*each.to = string(bytes.TrimSpace(text))
	}
	n, err := strconv.ParseUint(last, 10, 8)
	if err != nil || capdecode.Cap(n) > capdecode.MaxCap {
		return drift.Node{}, nil, &MalformedError{File: fs.proc + "/sys/kernel/cap_last_cap", What: "not a capability: " + strconv.QuoteToASCII(clip([]byte(last)))}
	}
	node.CapLastCap = capdecode.Cap(n)
	// From the kernel, not from uptime and the reader's clock: two looks then give one
	// process one start, and a picture of a /proc the one that it was taken with.
	if text, err := r.file(dir, "stat"); err == nil {
		if node.BootTime, err = parseBootTime(text); err != nil {
			return drift.Node{}, nil, locate(err, fs.proc+"/stat")
		}
	}

	var limits []drift.Limit
	var limit *drift.Limit
	if node.UserNamespace, _, limit, err = fs.firstUserNamespace(r); err != nil {
		return drift.Node{}, nil, err
	}
	if limit != nil {
		limits = append(limits, *limit)
	}
	node.Mount = r.rootMount(1)
	if r.foreign() {
		limits = append(limits, drift.Limit{
			What: "which processes are in which cgroup",
			Why:  "this program runs in a pid namespace of its own, where cgroup.procs does not tell the node's pids, so each process is asked for its cgroup; run it in the node's (hostPID: true)",
		})
	}
	t, err := openTree(fs.cgroup, r.cgroupMounts(fs.cgroup), r.hierarchies())
	if err != nil {
		return node, append(limits, drift.Limit{What: "which processes are in which container", Why: err.Error(), Blind: true, Code: drift.GapCgroups}), nil
	}
	defer t.close()
	node.CgroupMode = t.mode
	return node, limits, nil
}

// firstUserNamespace reads that of pid 1, says what a reader who cannot will
// miss, and whether he may tell namespaces by their inode at all.
func (fs *FS) firstUserNamespace(r *reader) (u drift.UserNamespace, inodes bool, limit *drift.Limit, err error) {
	if u, err = r.userNamespace(&look{inodes: true}, 1); err != nil {
		return u, false, nil, err
	}
	if u.UIDMap == nil {
		_, err := r.statusOf("1")
		return u, false, fs.hidden(r, err), nil
	}
	self, _ := r.statusOf("self")
	if inodes = u.Inode != 0 || self.Caps.Effective.Has(capSysPtrace); !inodes {
		limit = &drift.Limit{
			What: "the identity of user namespaces",
			Why:  "/ns/user of other processes may not be read, so they are judged by their maps; CAP_SYS_PTRACE would tell their identity",
		}
	}
	if u.Inode == 0 && r.isInitial(u, self) {
		// Nobody needs to read it where pid 1 is init itself.
		u.Inode = drift.InitialUserNamespace
	}
	return u, inodes, limit, nil
}

// isInitial reports whether the user namespace of pid 1 is the kernel's first one, by what
// the reader may see of himself: he is in the kernel's first pid namespace, whose init
// pid 1 is; or he is in the first user namespace, below which no container of this node
// could be if pid 1 were in another.
func (r *reader) isInitial(u drift.UserNamespace, self Status) bool {
	return self.Depth == 1 && r.inode("self/ns/pid") == initialPIDNamespace ||
		r.inode("self/ns/user") == drift.InitialUserNamespace && len(u.UIDMap) == 1 && u.UIDMap[0] == drift.IDRange{Length: math.MaxUint32}
}

const (
	capSysPtrace        = 19         // capabilities(7)
	initialPIDNamespace = 0xEFFFFFFC // PROC_PID_INIT_INO, include/linux/proc_ns.h
)

// hidden explains why pid 1 cannot be seen.
func (fs *FS) hidden(r *reader, cause error) *drift.Limit {
	if cause == nil {
		return &drift.Limit{What: "user namespaces", Why: fs.proc + "/1/uid_map may not be read, so which is the node's own is not known", Blind: true, Code: drift.GapNamespaces}
	}
	l := &drift.Limit{What: "processes of other users", Blind: true, Code: drift.GapHidden}
	text, err := r.file(r.proc, "self/mountinfo")
	option, gid := "", ""
	if err == nil {
		option, gid = parseHidepid(text, fs.proc)
	}
	switch {
	case option == "":
		l.Why = fmt.Sprintf("pid 1 is not visible in %s: %v", fs.proc, cause)
	case gid != "" && option != "ptraceable":
		l.Why = fmt.Sprintf("%s is mounted with hidepid=%s; run with the group %s (its gid= option) or with CAP_SYS_PTRACE", fs.proc, option, gid)
	default:
		l.Why = fmt.Sprintf("%s is mounted with hidepid=%s; run with CAP_SYS_PTRACE, or as group 0 where the mount names no gid=", fs.proc, option)
	}
	return l
}

// foreign tells whether the reader's pid namespace is another than that of the
// /proc it reads: NSpid then tells of both.
func (r *reader) foreign() bool {
	s, err := r.statusOf("self")
	return err == nil && s.Depth > 1
}

// parseHidepid returns the hidepid and gid options of the mount at path, by the
// text of /proc/PID/mountinfo, proc_pid_mountinfo(5); "" when it hides nothing.
func parseHidepid(text []byte, path string) (hidepid, gid string) {
	for line := range bytes.SplitSeq(text, []byte{'\n'}) {
		mount, super, found := bytes.Cut(line, []byte(" - proc "))
		fields := strings.Fields(string(mount))
		if !found || len(fields) < 6 || fields[4] != path {
			continue
		}
		hidepid, gid = "", "" // what is mounted later lies on top
		_, options, _ := strings.Cut(string(super), " ")
		for option := range strings.SplitSeq(options, ",") {
			switch name, value, _ := strings.Cut(option, "="); name {
			case "hidepid":
				hidepid = value
			case "gid":
				gid = value
			}
		}
		switch hidepid { // numbers before Linux 5.8
		case "0", "off":
			hidepid = ""
		case "1":
			hidepid = "noaccess"
		case "2":
			hidepid = "invisible"
		case "4":
			hidepid = "ptraceable"
		}
	}
	return hidepid, gid
}

// statusOf reads the status of a process named otherwise than by number.
func (r *reader) statusOf(name string) (Status, error) {
	text, err := r.file(r.proc, name+"/status")
	if err != nil {
		return Status{}, outcome(name+"/status", err)
	}
	s, err := ParseStatus(text)
	return s, locate(err, name+"/status")
}

// Process reads one process, its differing threads within the budget included.
// Errors are [ErrVanished], [ErrUnreadable], a [*MalformedError], or about /proc itself.
func (fs *FS) Process(pid int) (drift.Process, error) {
	dir, err := openDirectory(fs.proc)
	if err != nil {
		return drift.Process{}, err
	}
	defer unix.Close(dir)
	r := newReader(dir)
	l, err := fs.look(r)
	if err != nil {
		return drift.Process{}, err
	}
	l.all = true
	p, _, err := r.process(&l, nil, pid)
	if err != nil {
		return drift.Process{}, fmt.Errorf("process %d: %w", pid, err)
	}
	if _, _, _, err := r.threads(&p, fs.options.Threads, 0, 0); err != nil && !errors.Is(err, ErrVanished) {
		return drift.Process{}, fmt.Errorf("threads of process %d: %w", pid, err)
	}
	return p, nil
}

// look reads what all processes are read against.
func (fs *FS) look(r *reader) (look, error) {
	text, err := r.file(r.proc, "uptime")
	if err != nil {
		return look{}, fmt.Errorf("reading %s/uptime: %w", fs.proc, err)
	}
	var l look
	if l.uptime, err = parseUptime(text); err != nil {
		return look{}, locate(err, fs.proc+"/uptime")
	}
	l.programs, l.arguments = fs.programs, fs.options.Arguments
	l.foreign, l.hides, l.mount = r.foreign(), r.hides(), r.rootMount(1)
	l.node, l.inodes, _, err = fs.firstUserNamespace(r)
	return l, err
}

// hides tells whether this /proc keeps processes from the reader, as with hidepid:
// pid 1 is always there, and nobody who sees less than all sees it.
func (r *reader) hides() bool {
	_, err := r.statusOf("1")
	return err != nil
}
