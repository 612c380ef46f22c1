package proc

// Bound lowers the bounds on what members keep open, tell in one call of one
// container, and read in one call.
func (m *Members) Bound(descriptors, appear, text, buffer int) {
	m.most, m.appear, m.text, m.buf = descriptors, appear, text, make([]byte, buffer)
}

// Open tells how many descriptors members reckon with.
func (m *Members) Open() int { return m.descriptors }

// Steady tells whether a container's lists will not be read while its pulse is what it is.
func (m *Members) Steady(id string) bool { return m.byID[id] != nil && m.byID[id].steady }
