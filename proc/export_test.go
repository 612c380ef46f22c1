package proc

import (
	"time"

	"github.com/capdrift/capdrift/capdecode"
)

// Costs has reading a process or thread cost what is told of its number, instead of
// what it costs here.
func (fs *FS) Costs(of func(id int) time.Duration) {
	fs.laps = func() lap { return of }
}

// Holds has processes asked for their sets elsewhere than by capget(2).
func (fs *FS) Holds(held func(pid int) (capdecode.Sets, bool)) { fs.held = held }

// Bound lowers the bounds on what members keep open, tell in one call of one
// container, and read in one call.
func (m *Members) Bound(descriptors, appear, text, buffer int) {
	m.most, m.appear, m.text, m.buf = descriptors, appear, text, make([]byte, buffer)
}

// Open tells how many descriptors members reckon with.
func (m *Members) Open() int { return m.descriptors }

// Steady tells whether a container's lists will not be read while its pulse is what it is.
func (m *Members) Steady(id string) bool { return m.byID[id] != nil && m.byID[id].steady }
