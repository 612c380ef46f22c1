package rpc

import (
	"google.golang.org/protobuf/proto"

	v1 "github.com/capdrift/capdrift/api/capdrift/v1"
	"github.com/capdrift/capdrift/drift"
)

// aMessage is how many bytes of containers or findings one message gets. Only a
// single head, process or thread can make it more.
const aMessage = 1 << 20

// framing is what a list's item costs besides itself: its tag and its length.
const framing = 6

// cursor is a place within a container: the process and, of that one, the thread
// that comes next. The zero value is the container's begin.
type cursor struct{ process, thread int }

// parts fills one message after the other with containers.
type parts struct {
	view      v1.ContainerView
	undecided string // of the container that is added
	size      int
	list      []*v1.Container
}

// add puts as much of the container into the message as fits, from the cursor on.
// done is false when the message is full; next is where to go on in another one.
func (p *parts) add(c drift.Container, from cursor) (next cursor, done bool) {
	part := &v1.Container{Id: text(c.ID)}
	if from == (cursor{}) {
		part = headOf(c)
		part.Undecided = p.undecided
	}
	if !p.takes(proto.Size(part), len(p.list) == 0) {
		return from, false
	}
	p.list = append(p.list, part)
	if p.view != v1.ContainerView_CONTAINER_VIEW_FULL {
		return cursor{}, true
	}
	for at, first := from, true; at.process < len(c.Processes); first = false {
		process := &v1.Process{Pid: number(c.Processes[at.process].PID)}
		if at.thread == 0 {
			process = processHead(c.Processes[at.process])
		}
		// A part without any process would not get on.
		if !p.takes(proto.Size(process), first) {
			part.More = true
			return at, false
		}
		part.Processes = append(part.Processes, process)
		for threads := c.Processes[at.process].Threads; at.thread < len(threads); at.thread++ {
			thread := toThread(threads[at.thread])
			if !p.takes(proto.Size(thread), len(process.Threads) == 0) {
				process.More, part.More = true, true
				return at, false
			}
			process.Threads = append(process.Threads, thread)
		}
		at = cursor{process: at.process + 1}
	}
	return cursor{}, true
}

// takes counts an item in if it fits, or if it must.
func (p *parts) takes(size int, must bool) bool {
	if !must && p.size+size+framing > aMessage {
		return false
	}
	p.size += size + framing
	return true
}

// flush returns the message's containers and begins another one.
func (p *parts) flush() []*v1.Container {
	list := p.list
	p.list, p.size = nil, 0
	return list
}

// containersIn sends containers in as many messages as it takes, and returns how
// many there were.
func containersIn(containers []drift.Container, view v1.ContainerView, judge func(*drift.Container) (bool, string, error), send func([]*v1.Container) error) (uint32, error) {
	message, sent := parts{view: view}, uint32(0)
	for i := range containers {
		taken, undecided, err := judge(&containers[i])
		if err != nil {
			return sent, err
		}
		if !taken {
			continue
		}
		sent++
		message.undecided = undecided
		for at, done := message.add(containers[i], cursor{}); !done; at, done = message.add(containers[i], at) {
			if err := send(message.flush()); err != nil {
				return sent, err
			}
		}
	}
	if len(message.list) == 0 {
		return sent, nil
	}
	return sent, send(message.flush())
}

// findingsIn does the same with findings.
func findingsIn(findings []drift.Finding, judge func(*drift.Finding) (bool, string, error), send func([]*v1.Finding) error) (uint32, error) {
	var message []*v1.Finding
	size, sent := 0, uint32(0)
	for i := range findings {
		taken, undecided, err := judge(&findings[i])
		if err != nil {
			return sent, err
		}
		if !taken {
			continue
		}
		sent++
		finding := ToProtoFinding(findings[i])
		finding.Undecided = undecided
		more := proto.Size(finding) + framing
		if len(message) > 0 && size+more > aMessage {
			if err := send(message); err != nil {
				return sent, err
			}
			message, size = nil, 0
		}
		message, size = append(message, finding), size+more
	}
	if len(message) == 0 {
		return sent, nil
	}
	return sent, send(message)
}

// everyContainer and everyFinding judge nothing.
func everyContainer(*drift.Container) (bool, string, error) { return true, "", nil }

func everyFinding(*drift.Finding) (bool, string, error) { return true, "", nil }
