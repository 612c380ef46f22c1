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
// What is left is one that is moved in asleep while another is moved out asleep: until it
// runs it does nothing, and when it runs the pulse tells.
//
// Both files stay open: it takes microseconds to read them again. The second is read
// every second time: it tells only of who came while another went.
type pulse struct {
	directory string
	files     [2]int
	users     int // containers that it is felt for

	round uint32 // in which it was felt last
	fresh bool   // not felt yet
	now   beats  // what was felt then
	dead  bool   // or nothing
}

// beats are what the two files said; cpu.stat begins with usage_usec.
type beats [2]struct {
	text   [48]byte
	length int
}

func (b *beats) same(other *beats) bool {
	for i := range b {
		if !bytes.Equal(b[i].text[:b[i].length], other[i].text[:other[i].length]) {
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
	for i, root := range [2]string{path.Dir(g.root), g.root} {
		g.pulses[i] = m.openPulse(g.hierarchy, root)
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
		}
	}
	g.vital = vital{}
}

// feel reads a pulse, once in a round.
func (p *pulse) feel(round uint32) {
	if p.round == round {
		return
	}
	p.round, p.dead = round, false
	defer func() { p.fresh = false }()
	for i, fd := range p.files {
		if i > 0 && !p.fresh && round%2 != 0 {
			break
		}
		b := &p.now[i]
		for again := true; again; {
			n, err := unix.Pread(fd, b.text[:], 0)
			again = errors.Is(err, unix.EINTR)
			if b.length = n; err != nil && !again { // the cgroup was removed, perhaps
				b.length, p.dead = 0, true
			}
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
