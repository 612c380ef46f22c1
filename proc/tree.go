package proc

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds on a cgroup tree, which a privileged container or one with a delegated
// cgroup can grow as it likes. A node with 250 pods has some 2,000 directories,
// systemd inside a container some 100.
const (
	maxDirectories = 1 << 16 // of the whole tree, containers' own parts left out
	maxInContainer = 1 << 12 // of one container
	maxDepth       = 64
	maxPath        = 1 << 10 // bytes
)

// The modes of a cgroup tree.
const (
	modeV1     = "v1"
	modeHybrid = "hybrid"
	modeV2     = "v2"
)

// tree is an open cgroup tree, /sys/fs/cgroup.
type tree struct {
	fd   int
	root string
	mode string
	// hierarchies are where processes are looked for, the best first.
	hierarchies []hierarchy
	// again are the directories at which a hierarchy is mounted once more below itself.
	again map[string]bool
}

// hierarchy is one hierarchy of cgroups: below its own directory on v1 and
// hybrid, the whole tree on v2.
type hierarchy struct {
	directory string // "" on v2
	field     string // what /proc/PID/cgroup calls it, as in [parseCgroup]
	// base is which cgroup is at the root of the tree, where that is not the hierarchy's own
	// root: on a node that is itself a container, without a cgroup namespace, as of kind and
	// k3d on v1. It is "" where it is the root, or not known.
	base string
}

// inside returns where in the tree a cgroup is by its path as /proc/PID/cgroup tells it, the
// root of those outside the tree.
func (h hierarchy) inside(told string) string {
	switch {
	case h.base == "" || strings.HasPrefix(told+"/", "/../"):
		return told
	case told == h.base || !below(told, h.base):
		return "/"
	}
	return strings.TrimPrefix(told, h.base)
}

// openTree opens the tree and finds its mode by its looks: cgroup.controllers is
// in the root of every cgroup2 file system (Linux 4.5) and nowhere else; the
// hierarchies of v1 are directories in a tmpfs, "unified" beside them on hybrid
// (systemd, CGROUP_DELEGATION "Three Scenarios").
//
// On v1 a container is in every hierarchy, or should be: pids and memory are
// those that every runtime makes, systemd has one that only names. On hybrid
// runtimes limit by the v1 controllers and may leave the unified part alone, so
// that comes last.
//
// A directory's name alone does not tell which hierarchy is mounted there: one that
// has only a name may be called "pids". told, any process's /proc/PID/cgroup, says
// which hierarchies the kernel has; it is empty where it could not be read. mounts, as of
// [reader.cgroupMounts], say which part of each is in the tree.
func openTree(root string, mounts map[string]string, told []byte) (*tree, error) {
	fd, err := openDirectory(root)
	if err != nil {
		return nil, err
	}
	t := &tree{fd: fd, root: root}
	if t.exists("cgroup.controllers") {
		t.mode, t.hierarchies = modeV2, []hierarchy{{}}
		t.mounted(mounts)
		return t, nil
	}
	names, err := newReader(-1).children(fd, ".")
	if err != nil {
		t.close()
		return nil, fmt.Errorf("listing %s: %w", root, err)
	}
	names = slices.DeleteFunc(names, func(name string) bool { return !t.exists(name + "/cgroup.procs") })
	t.mode = modeV1
	for _, name := range names {
		h := hierarchy{directory: name, field: fieldOf(name, told)}
		if h.field == "" {
			t.mode = modeHybrid
		}
		t.hierarchies = append(t.hierarchies, h)
	}
	slices.SortStableFunc(t.hierarchies, func(a, b hierarchy) int { return preference(a.field) - preference(b.field) })
	if len(t.hierarchies) == 0 {
		t.close()
		return nil, fmt.Errorf("%s holds no cgroup hierarchy: mount the node's there", root)
	}
	t.mounted(mounts)
	return t, nil
}

// mounted takes in what of each hierarchy is mounted, and where once more: kind mounts the
// node's own part at the path at which /proc/PID/cgroup tells it, so that each cgroup has
// two paths in the tree.
func (t *tree) mounted(mounts map[string]string) {
	t.again = make(map[string]bool)
	for i := range t.hierarchies {
		h := &t.hierarchies[i]
		root, ok := mounts[h.at("/")]
		if !ok {
			continue
		}
		if root != "/" && !strings.HasPrefix(root+"/", "/../") {
			h.base = root
		}
		for directory, other := range mounts {
			if other == root && directory != h.at("/") && (h.directory == "" || strings.HasPrefix(directory, h.directory+"/")) {
				t.again[directory] = true
			}
		}
	}
}

// cgroupMounts returns which cgroup is mounted where in the tree below root, for this reader: by
// the directory relative to root, "." for root itself.
func (r *reader) cgroupMounts(root string) map[string]string {
	text, err := r.file(r.proc, "self/mountinfo")
	if err != nil {
		return nil
	}
	return parseCgroupMounts(text, root)
}

// fieldOf returns how /proc/PID/cgroup names the hierarchy in a directory: by the first
// controller of "cpu,cpuacct", or by its name where it has nothing else. The kernel
// lists every controller in at most one hierarchy, so one that it lists is not merely
// a name.
func fieldOf(directory string, told []byte) string {
	const onlyNamed = "systemd"
	controller, _, _ := strings.Cut(directory, ",")
	_, controls := parseCgroup(told, controller)
	_, names := parseCgroup(told, "name="+directory)
	switch {
	case directory == "unified":
		return ""
	case !controls && (names || directory == onlyNamed):
		return "name=" + directory
	}
	return controller
}

// hierarchies returns the /proc/PID/cgroup of some process, which lists every
// hierarchy of the kernel; nothing where it cannot be read. The bytes are the reader's
// until its next call.
func (r *reader) hierarchies() []byte {
	for _, process := range []string{"self", "1"} {
		if text, err := r.file(r.proc, process+"/cgroup"); err == nil {
			return text
		}
	}
	return nil
}

func preference(field string) int {
	order := []string{"pids", "memory", "name=systemd", "another", ""}
	if at := slices.Index(order, field); at >= 0 {
		return at
	}
	return slices.Index(order, "another")
}

func (t *tree) close() { unix.Close(t.fd) }

func (t *tree) exists(name string) bool {
	var st unix.Stat_t
	return unix.Fstatat(t.fd, name, &st, 0) == nil
}

// at returns where a cgroup path of the hierarchy is, relative to the tree's root.
func (h hierarchy) at(cgroup string) string {
	if relative := path.Join(h.directory, strings.TrimPrefix(cgroup, "/")); relative != "" {
		return relative
	}
	return "."
}

// children lists the directories in a directory of the tree, by name and in order.
func (r *reader) children(tree int, directory string) ([]string, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(tree, directory, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, err
	}
	if st.Nlink == 2 {
		return nil, nil // each directory in it would be one more link: its ".."
	}
	fd, err := open(tree, directory, unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var names []string
	err = r.entries(fd, func(name []byte, kind byte) {
		if kind == unix.DT_DIR {
			names = append(names, string(name))
		}
	})
	slices.Sort(names)
	return names, err
}

// walk calls visit with the cgroup paths at and below dir, parents first; visit
// tells whether to go on below. What cannot be listed is left out, and said by
// the first error; cut says that a bound was met.
func (r *reader) walk(t *tree, h hierarchy, dir string, most int, visit func(dir string) bool) (cut bool, err error) {
	pending := []string{dir}
	for seen := 0; len(pending) > 0; seen++ {
		if seen == most {
			return true, err
		}
		dir := pending[len(pending)-1]
		pending = pending[:len(pending)-1]
		if !visit(dir) {
			continue
		}
		names, failure := r.children(t.fd, h.at(dir))
		if failure != nil && !removed(failure) && err == nil {
			err = fmt.Errorf("listing cgroup %s: %w", printable(dir), failure)
		}
		for _, name := range slices.Backward(names) {
			child := path.Join(dir, name)
			if t.again[h.at(child)] {
				continue
			}
			if len(child) > maxPath || strings.Count(child, "/") > maxDepth || len(pending) == most {
				cut = true
				continue
			}
			pending = append(pending, child)
		}
	}
	return cut, err
}

// removed tells whether a cgroup is gone: ENODEV is what its open files answer.
// Only an empty one can be removed.
func removed(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) }

// members adds the processes in one directory to list. Zeros are processes that
// the reader's pid namespace cannot number.
func (r *reader) members(t *tree, h hierarchy, dir string, list []int) (pids []int, zeros int, err error) {
	pids, zeros, err = r.procs(t.fd, path.Join(h.at(dir), "cgroup.procs"), list)
	switch {
	case removed(err):
		return list, 0, nil
	case errors.Is(err, unix.EOPNOTSUPP):
		// A threaded cgroup holds threads, whose processes may be above it;
		// cgroups(7) "Creating a threaded subtree".
		var tids []int
		tids, zeros, err = r.procs(t.fd, path.Join(h.at(dir), "cgroup.threads"), nil)
		pids = list
		r.spent(0)
		for _, tid := range tids {
			if r.threaded >= threadedTime {
				return pids, zeros, fmt.Errorf("the threaded cgroup %s: asking its threads for their process takes more than %v of processor time", printable(dir), threadedTime)
			}
			text, err := r.file(r.proc, r.of(tid, "status"))
			r.threaded += r.spent(tid)
			if err != nil {
				continue // ended
			}
			if s, err := ParseStatus(text); err == nil {
				pids = append(pids, s.Tgid)
			}
		}
	}
	if err != nil {
		return list, 0, fmt.Errorf("reading the processes of cgroup %s: %w", printable(dir), err)
	}
	return pids, zeros, nil
}

// threadedTime bounds how long the threads in a container's threaded cgroups are asked
// for their process.
const threadedTime = 20 * time.Millisecond

// procs reads a list of pids of whatever length.
func (r *reader) procs(tree int, file string, list []int) (pids []int, zeros int, err error) {
	fd, err := open(tree, file, 0)
	if err != nil {
		return list, 0, err
	}
	defer unix.Close(fd)
	pids = list
	for kept := 0; ; {
		n, err := unix.Read(fd, r.buf[kept:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return list, 0, err
		}
		end := n < min(lastRead, len(r.buf)-kept)
		var more int
		var rest []byte
		if pids, more, rest, err = parsePIDs(pids, r.buf[:kept+n]); err != nil {
			return list, 0, err
		}
		zeros += more
		switch kept = copy(r.buf, rest); {
		case end && kept > 0:
			return list, 0, &MalformedError{File: file, What: "cut in the middle of a line"}
		case end:
			return pids, zeros, nil
		}
	}
}
