package policy

import "slices"

// Merge makes one judgement of those that the same policy made of several reports,
// at the same time.
func Merge(all []Judgement) Judgement {
	var m Judgement
	for i, one := range all {
		m.Results = append(m.Results, one.Results...)
		m.Findings = append(m.Findings, one.Findings...)
		if i == 0 {
			m.At, m.Controls, m.Exceptions = one.At, slices.Clone(one.Controls), slices.Clone(one.Exceptions)
			continue
		}
		for at, count := range one.Controls {
			m.Controls[at].merge(count)
		}
		for at, use := range one.Exceptions {
			m.Exceptions[at].merge(use)
		}
	}
	return m
}

func (c *ControlCount) merge(other ControlCount) {
	c.Declared.merge(other.Declared)
	c.Actual.merge(other.Actual)
	c.Disagreements += other.Disagreements
	c.Excepted += other.Excepted
}

func (t *Tally) merge(other Tally) {
	t.Pass += other.Pass
	t.Fail += other.Fail
	t.Unknown += other.Unknown
	t.NotApplicable += other.NotApplicable
}

// merge keeps that an exception was used anywhere; whether it expired is the same
// everywhere.
func (u *ExceptionUse) merge(other ExceptionUse) {
	u.Results += other.Results
	u.Findings += other.Findings
	u.Unknown += other.Unknown
	if u.State == ExceptionUnused {
		u.State = other.State
	}
}
