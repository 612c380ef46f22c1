package proc

import (
	"bytes"
	"errors"
	"path"

	"golang.org/x/sys/unix"
)

// pulse tells, for a hundredth of what a long list of pids costs, that nothing came or
// went in a cgroup and those below it: neither its count of tasks changed (pids.current)
// nor the processor time that it used (cpu.stat on v2, cpuacct.usage on v1). Who is born
// there, and who ends, uses processor time there; who is moved there asleep is one more.
// What is left is one that is moved in asleep while another is moved out asleep, of it or
// of another pod: until it runs it does nothing, and when it runs the pulse tells.
//
// Both files stay open: it takes microseconds to read them again. The second is read every
// second time: it tells only of who came while another went. And the first is not, while
// the count of the directory around, where all pods are, is what it was.
type pulse struct {
	directory string
	files     [2]int
	around    *count // nil where there is none
	users     int    // containers that it is felt for

	round  uint32 // in which it was felt last
	fresh  bool   // not felt yet
	now    beats  // what was felt then
	before beat   // what around said before that
	dead   bool   // or nothing
}

// beat is what a file said; cpu.stat begins with usage_usec.
type beat struct {
	text   [48]byte
	length int
}

// beats are what the two files said.
type beats [2]beat

// take reads an open file from its beginning, and tells whether it is still there.
func (b *beat) take(fd int) bool {
	for {
		n, err := unix.Pread(fd, b.text[:], 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		b.length = max(n, 0)
		return err == nil
	}
}

func (b *beat) same(other *beat) bool {
	return bytes.Equal(b.text[:b.length], other.text[:other.length])
}

// count is the count of tasks of a directory that pods share.
type count struct {
	directory string
	file      int
	users     int // pulses

	round uint32
	now   beat // nothing where the directory was removed
}

func (c *count) feel(round uint32) *beat {
	if c.round != round {
		c.round = round
		c.now.take(c.file)
	}
	return &c.now
}

func (b *beats) same(other *beats) bool {
	for i := range b {
		if !b[i].same(&other[i]) {
			return false
		}
	}
	return true
}

// vital is what is felt of a container: the pulse of the pod around it, which most often
// says that it need not be felt itself, and its own.
type vital struct {
	pulses [2]*pulse // nil where there is none
	felt   [2]beats  // before its lists were read in full
	steady bool      // felt is of when all was told
}

// attach opens what is felt of a container. There is nothing where no descriptors are
// left, or where processes are looked for in a hierarchy that does not count them.
func (m *Members) attach(g *member) {
	pod := path.Dir(g.root)
	g.pulses = [2]*pulse{m.openPulse(g.hierarchy, pod), m.openPulse(g.hierarchy, g.root)}
	if p := g.pulses[0]; p != nil && p.around == nil {
		p.around = m.openCount(g.hierarchy, path.Dir(pod))
	}
}

func (m *Members) openPulse(h hierarchy, root string) *pulse {
	directory := h.at(root)
	if p := m.pulses[directory]; p != nil {
		p.users++
		return p
	}
	usage := usageFile(h, root)
	if usage == "" || m.descriptors+2 > m.most {
		return nil
	}
	tasks, err := open(m.tree.fd, path.Join(directory, "pids.current"), unix.O_NOFOLLOW)
	if err != nil {
		return nil
	}
	used, err := open(m.tree.fd, usage, unix.O_NOFOLLOW)
	if err != nil {
		unix.Close(tasks)
		return nil
	}
	p := &pulse{directory: directory, files: [2]int{tasks, used}, users: 1, fresh: true}
	m.pulses[directory] = p
	m.descriptors += len(p.files)
	return p
}

// openCount opens the count of a directory, nil where it has none as the root has.
func (m *Members) openCount(h hierarchy, root string) *count {
	directory := h.at(root)
	c := m.counts[directory]
	if c == nil {
		if m.descriptors+1 > m.most {
			return nil
		}
		file, err := open(m.tree.fd, path.Join(directory, "pids.current"), unix.O_NOFOLLOW)
		if err != nil {
			return nil
		}
		c = &count{directory: directory, file: file}
		m.counts[directory] = c
		m.descriptors++
	}
	c.users++
	return c
}

// detach closes what nobody else is felt by.
func (m *Members) detach(g *member) {
	for _, p := range g.pulses {
		if p == nil {
			continue
		}
		if p.users--; p.users == 0 {
			for _, fd := range p.files {
				unix.Close(fd)
			}
			m.descriptors -= len(p.files)
			delete(m.pulses, p.directory)
			m.closeCount(p.around)
		}
	}
	g.vital = vital{}
}

func (m *Members) closeCount(c *count) {
	if c == nil {
		return
	}
	if c.users--; c.users == 0 {
		unix.Close(c.file)
		m.descriptors--
		delete(m.counts, c.directory)
	}
}

// feel reads a pulse, once in a round.
func (p *pulse) feel(round uint32) {
	if p.round == round {
		return
	}
	p.round = round
	between := round%2 != 0 && !p.fresh
	if p.around != nil {
		around := p.around.feel(round) // before what is below it
		calm := !p.fresh && !p.dead && around.length > 0 && around.same(&p.before)
		p.before = *around
		if calm {
			used := p.now[1]
			if between || p.now[1].take(p.files[1]) && p.now[1].same(&used) {
				return
			}
		}
	}
	p.dead, p.fresh = false, false
	for i, fd := range p.files {
		if i > 0 && between {
			break
		}
		if !p.now[i].take(fd) { // the cgroup was removed, perhaps
			p.now[i].length, p.dead = 0, true
		}
	}
}

// still tells whether a container's lists would say what they said before.
func (m *Members) still(g *member) bool {
	for i, p := range g.pulses {
		if p == nil {
			continue
		}
		p.feel(m.round)
		if g.steady && !p.dead && p.now.same(&g.felt[i]) && g.told() {
			if i > 0 && g.pulses[0] != nil {
				g.felt[0] = g.pulses[0].now // another container of the pod is why it changed
			}
			return true
		}
	}
	return false
}

// listedInFull enters that the lists were read after the pulses of this round were
// felt, and told nothing new.
func (g *member) listedInFull() {
	g.steady = g.pulses[1] != nil && !g.pulses[1].dead && g.told()
	for i, p := range g.pulses {
		if p != nil {
			g.felt[i] = p.now
		}
	}
}

// told tells whether nothing of a container is left to be read or to be said. One
// without processes may be removed at any time.
func (g *member) told() bool {
	if g.stale || g.limit != "" || len(g.known) == 0 || len(g.dirs) > maxTurn {
		return false
	}
	for _, d := range g.dirs {
		if len(d.now) > 0 || d.dirty || d.gone {
			return false
		}
	}
	return true
}
