package proc

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// listing is one cgroup of a container that is followed: its directory and its
// list of processes, kept open.
//
// On cgroup v2 an open cgroup.procs that is read from its beginning tells who is
// there now. On v1 it does not: the kernel keeps the list that it made for one
// reader and gives it to every read but the first after open(2), until nobody has
// read it for a second (kernel/cgroup/cgroup-v1.c cgroup_pidlist_start,
// CGROUP_PIDLIST_DESTROY_DELAY). Who reads more often than that is told the same
// for ever. So there the directory alone is kept, and the list opened for each look.
type listing struct {
	parent   *listing
	path     string // in its hierarchy
	fd       int    // of the directory; -1 where there are no descriptors left: it is then opened by its path
	procs    int    // of cgroup.procs: v2, or where a long list is read on; -1 otherwise
	keep     bool   // procs stays open
	children int    // directories in it when they were listed
	dirty    bool   // they are others now
	gone     bool

	text []byte // the whole list when it was last read
	now  []byte // what a look that is not through with a long list has read of it
}

// maxList bounds one list, some 150,000 pids.
const maxList = 1 << 20

// pass looks at the cgroups of a container, at most maxTurn of them.
func (m *Members) pass(g *member, budget *int) (changed, ended bool) {
	if len(g.dirs) == 0 {
		return false, true
	}
	others := len(g.dirs) - 1
	messed := false
	for i := range 1 + min(others, maxTurn-1) {
		d := g.dirs[0]
		if i > 0 {
			d = g.dirs[1+(g.turn+i-1)%others]
		}
		changed = m.list(g, d, budget) || changed
		messed = messed || d.gone || d.dirty && !g.cut
	}
	if others >= maxTurn {
		g.turn = (g.turn + maxTurn - 1) % others
	}
	if g.dirs[0].gone {
		return true, true
	}
	if messed {
		m.settle(g, budget)
		changed = true
	}
	return changed, false
}

// settle lets go of cgroups that were removed and takes in those that are new.
//
// Each directory in a directory is a link to it more (its ".."), so a count of
// links tells that one came, or one went. One that came while one went leaves the
// count as it was, but who went is noticed by himself, and then they are listed
// again. What is expected is the number of those that were listed, not the count at
// that time: whatever changed while they were listed is a difference at the next look.
func (m *Members) settle(g *member, budget *int) {
	left := g.dirs[:0]
	for _, d := range g.dirs {
		if d.parent != nil && d.parent.gone {
			d.gone = true
		}
		if !d.gone {
			left = append(left, d)
			continue
		}
		if d.parent != nil {
			d.parent.dirty = true
		}
		m.shut(d)
	}
	clear(g.dirs[len(left):])
	g.dirs = left
	var known map[string]bool
	for i := 0; i < len(g.dirs); i++ { // it grows on the way
		d := g.dirs[i]
		if !d.dirty || g.alone {
			continue
		}
		names, err := m.children(g, d)
		if err != nil {
			if !removed(err) {
				g.limit = fmt.Sprintf("listing cgroup %s: %v", printable(d.path), err)
			}
			continue
		}
		if known == nil {
			known = make(map[string]bool, len(g.dirs))
			for _, each := range g.dirs {
				known[each.path] = true
			}
		}
		d.children, d.dirty = len(names), false
		for _, name := range names {
			child := path.Join(d.path, name)
			switch {
			case known[child] || m.roots[g.hierarchy.at(child)] != nil:
			case len(g.dirs) >= maxInContainer || len(child) > maxPath || strings.Count(child, "/") > maxDepth:
				g.cut = true
			default:
				m.enter(g, d, child, budget)
			}
		}
	}
}

func (m *Members) children(g *member, d *listing) ([]string, error) {
	if d.fd < 0 {
		return m.reader.children(m.tree.fd, g.hierarchy.at(d.path))
	}
	return m.reader.children(d.fd, ".")
}

// enter takes one cgroup in and reads its list.
func (m *Members) enter(g *member, parent *listing, cgroup string, budget *int) {
	d := &listing{parent: parent, path: cgroup, fd: -1, procs: -1}
	// One container's many leave something for the others.
	if m.descriptors+2 <= m.most && len(g.dirs) < maxTurn {
		fd, err := open(m.tree.fd, g.hierarchy.at(cgroup), unix.O_DIRECTORY|unix.O_NOFOLLOW)
		switch {
		case removed(err):
			d.gone = true // and said at the next look
		case err != nil:
			g.limit = fmt.Sprintf("opening cgroup %s: %v", printable(cgroup), err)
		default:
			d.fd = fd
			d.keep = g.hierarchy.field == ""
			m.descriptors += 2
		}
	}
	g.dirs = append(g.dirs, d)
	if !d.gone {
		m.list(g, d, budget)
	}
	g.stale = true
}

// shut closes a cgroup's files.
func (m *Members) shut(d *listing) {
	if d.procs >= 0 {
		unix.Close(d.procs)
	}
	if d.fd >= 0 {
		unix.Close(d.fd)
		m.descriptors -= 2
	}
	d.fd, d.procs, d.gone = -1, -1, true
}

// list reads a cgroup's list, or a part of a long one, and tells whether it is
// another than it was, or of one that is not read in full yet may be.
func (m *Members) list(g *member, d *listing, budget *int) (changed bool) {
	n, end, err := m.part(g, d)
	switch {
	case err == nil:
	case removed(err):
		d.gone = true
		return true
	case errors.Is(err, unix.EOPNOTSUPP):
		// It holds threads. Their processes are listed by the cgroup above that is not
		// threaded itself; cgroups(7) "Creating a threaded subtree".
		if d.parent == nil {
			g.limit = "its cgroup is a threaded one and lists no processes"
		}
		changed, d.text, d.now = len(d.text) > 0, d.text[:0], d.now[:0]
	default:
		g.limit = fmt.Sprintf("reading the processes of cgroup %s: %v", printable(d.path), err)
	}
	if err == nil {
		*budget -= n
		changed = d.compare(m.buf[:n], end)
		if len(d.now) > maxList {
			g.limit = fmt.Sprintf("cgroup %s lists more processes than fit into 1 MiB", printable(d.path))
			d.text, d.now = append(d.text[:0], d.now[:bytes.LastIndexByte(d.now, '\n')+1]...), d.now[:0]
			end = true
		}
	}
	if d.procs >= 0 && !d.keep && (end || err != nil) {
		unix.Close(d.procs)
		d.procs = -1
	}
	if !g.alone {
		m.links(g, d)
	}
	return changed
}

// compare takes in what a read yielded and tells whether it differs from before.
func (d *listing) compare(part []byte, end bool) (changed bool) {
	if end && len(d.now) == 0 {
		if bytes.Equal(part, d.text) {
			return false
		}
		d.text = append(d.text[:0], part...)
		return true
	}
	d.now = append(d.now, part...)
	if !end {
		return !bytes.HasPrefix(d.text, d.now)
	}
	changed = !bytes.Equal(d.now, d.text)
	d.text, d.now = d.now, d.text[:0]
	return changed
}

// part reads into the buffer what comes next of a list: all of it, or as much as
// fits.
func (m *Members) part(g *member, d *listing) (n int, end bool, err error) {
	if d.procs < 0 {
		if d.procs, err = m.openProcs(g, d); err != nil {
			d.procs = -1
			d.now = d.now[:0]
			return 0, false, err
		}
	}
	for !end && n < len(m.buf) {
		var got int
		if d.keep {
			got, err = unix.Pread(d.procs, m.buf[n:], int64(len(d.now)+n))
		} else {
			got, err = unix.Read(d.procs, m.buf[n:])
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			d.now = d.now[:0]
			return 0, false, err
		}
		end = got < min(lastRead, len(m.buf)-n)
		n += got
	}
	return n, end, nil
}

var procsName = [...]byte{'c', 'g', 'r', 'o', 'u', 'p', '.', 'p', 'r', 'o', 'c', 's', 0}

// openProcs opens a cgroup's list. x/sys allocates the name anew for each call,
// which at several calls a second for each container is all that would be allocated.
func (m *Members) openProcs(g *member, d *listing) (int, error) {
	if d.fd < 0 {
		return open(m.tree.fd, path.Join(g.hierarchy.at(d.path), "cgroup.procs"), 0)
	}
	for {
		fd, _, errno := unix.Syscall6(unix.SYS_OPENAT, uintptr(d.fd), uintptr(unsafe.Pointer(&procsName[0])),
			unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY, 0, 0, 0)
		switch errno {
		case 0:
			return int(fd), nil
		case unix.EINTR:
		default:
			return -1, errno
		}
	}
}

// links notices by the count of links that a cgroup has other children than it had.
func (m *Members) links(g *member, d *listing) {
	var st unix.Stat_t
	var err error
	if d.fd < 0 {
		err = unix.Fstatat(m.tree.fd, g.hierarchy.at(d.path), &st, unix.AT_SYMLINK_NOFOLLOW)
	} else {
		err = unix.Fstat(d.fd, &st)
	}
	switch {
	case err != nil && removed(err), err == nil && st.Nlink == 0:
		d.gone = true
	case err != nil:
		g.limit = fmt.Sprintf("cgroup %s: %v", printable(d.path), err)
	case int(st.Nlink) != d.children+2:
		d.dirty = true
	}
}

// listed returns the pids in all cgroups of a container, in order. Of a long list
// that is being read on, both what it told before and what it tells now count.
func (m *Members) listed(g *member) []int {
	list := m.pids[:0]
	zeros := 0
	for _, d := range g.dirs {
		for _, text := range [...][]byte{d.text, d.now} {
			more, n, rest, err := parsePIDs(list, text)
			if err == nil && len(rest) > 0 && len(d.now) == 0 {
				err = &MalformedError{File: "cgroup.procs", What: "cut in the middle of a line"}
			}
			if err != nil {
				g.limit = fmt.Sprintf("cgroup %s: %v", printable(d.path), err)
				continue
			}
			list, zeros = more, zeros+n
		}
	}
	if zeros > 0 {
		g.limit = fmt.Sprintf("%d of its processes have no number in this pid namespace", zeros)
	}
	m.pids = list
	slices.Sort(list)
	return slices.Compact(list)
}
