package proc

import (
	"bytes"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxMountText bounds what is read of a mountinfo. The kernel writes it line by line as
// it is read (fs/proc_namespace.c), and a container may have as many mounts as it likes;
// the root's comes first but where the process was moved to another root.
const maxMountText = 4 << 10

// mountText returns the beginning of /proc/PID/mountinfo, whole lines only. It takes no
// privilege (mounts_open_common asks for none), unlike the identity of the namespace.
func (r *reader) mountText(pid int) []byte {
	fd, err := open(r.proc, r.of(pid, "mountinfo"), 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	n, err := unix.Read(fd, r.buf[:maxMountText])
	if err != nil {
		return nil
	}
	return r.buf[:bytes.LastIndexByte(r.buf[:n], '\n')+1]
}

// rootMount returns the id of the mount at a process's root directory. The ids of mounts
// are unique on the node while they are there, and a mount is in one mount namespace, so
// whoever has the same is in the same namespace. It is 0 where it could not be read, and
// the id of the first mount where the root itself is none.
func (r *reader) rootMount(pid int) int {
	ids := parseMounts(r.mountText(pid))
	if len(ids) == 0 {
		return 0
	}
	return ids[0]
}

// parseMounts returns the ids of the mounts in a part of mountinfo, the one at "/" first;
// proc_pid_mountinfo(5): "36 35 98:0 /mnt1 /mnt2 rw,noatime …". A line that is none ends
// the list.
func parseMounts(text []byte) (ids []int) {
	for line := range bytes.Lines(text) {
		field, rest, _ := bytes.Cut(line, []byte{' '})
		id, err := strconv.ParseInt(string(field), 10, 32)
		if err != nil || id <= 0 {
			return ids
		}
		ids = append(ids, int(id))
		if columns := bytes.SplitN(rest, []byte{' '}, 5); len(columns) == 5 && string(columns[3]) == "/" {
			ids[0], ids[len(ids)-1] = ids[len(ids)-1], ids[0]
		}
	}
	return ids
}

// parseCgroupMounts returns which cgroup is mounted at and below a directory, by the directory
// relative to it ("." for itself): the root and the mount point of each cgroup file system
// in a mountinfo, proc_pid_mountinfo(5).
func parseCgroupMounts(text []byte, below string) map[string]string {
	mounts := make(map[string]string)
	for line := range bytes.Lines(text) {
		mount, super, _ := bytes.Cut(line, []byte(" - "))
		kind, _, _ := bytes.Cut(super, []byte{' '})
		fields := strings.Fields(string(mount))
		if len(fields) < 6 || string(kind) != "cgroup" && string(kind) != "cgroup2" {
			continue
		}
		if rest, ok := strings.CutPrefix(fields[4], path.Clean(below)); ok && (rest == "" || rest[0] == '/') {
			mounts[path.Join(".", "./"+rest)] = fields[3] // what is mounted later lies on top
		}
	}
	return mounts
}
