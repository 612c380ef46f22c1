package policy

import (
	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

// Thousands of processes differ in very little of what rules ask: those that agree in
// all that a condition reads are judged once.

// task is a process, or a thread in the form of one.
type task struct {
	*drift.Process
	tid int // 0 of a process
}

// tasksOf lists what is judged of a container: a runtime's own stage is not yet its
// program.
func tasksOf(c *drift.Container) []task {
	tasks := make([]task, 0, len(c.Processes))
	for i := range c.Processes {
		p := &c.Processes[i]
		if p.Observation == drift.Starting {
			continue
		}
		tasks = append(tasks, task{p, 0})
		for _, t := range p.Threads {
			one := *p
			one.Name, one.UID, one.NoNewPrivileges, one.Seccomp, one.Caps = t.Name, t.UID, t.NoNewPrivileges, t.Seccomp, t.Caps
			if t.UID != p.UID && (p.ContainerUID == nil || *p.ContainerUID != p.UID) {
				one.ContainerUID = nil // only where both are the same number is a thread's known too
			} else if t.UID != p.UID {
				one.ContainerUID = new(t.UID)
			}
			tasks = append(tasks, task{&one, t.TID})
		}
	}
	return tasks
}

// aspect is a set of the fields that decide what a process may do.
type aspect uint8

const (
	byCaps aspect = 1 << iota
	byUID
	byContainerUID
	byNoNewPrivileges
	bySeccomp
	byRelation
	byAll // something else, by which each process is another
)

var aspects = map[string]aspect{
	"caps": byCaps, "uid": byUID, "containerUid": byContainerUID, "noNewPrivileges": byNoNewPrivileges, "seccomp": bySeccomp,
}

// aspectsOf tells what a condition reads of its process.
func aspectsOf(f *Filter) aspect {
	var tells aspect
	for _, fact := range f.facts {
		if fact.path[0] != "process" {
			continue
		}
		by := byAll
		if len(fact.path) > 1 {
			if known, ok := aspects[fact.path[1]]; ok {
				by = known
			} else if fact.path[1] == "userNamespace" && len(fact.path) == 3 && fact.path[2] != "inode" {
				by = byRelation
			}
		}
		tells |= by
	}
	return tells
}

// credentials are a task's, as far as an aspect looks at them; -1 is not known.
type credentials struct {
	caps                          capdecode.Sets
	uid, containerUID             int64
	noNewPrivileges, seccomp, all int
	relation                      drift.Relation
}

func (t task) credentials(tells aspect) credentials {
	key := credentials{}
	if tells&byCaps != 0 {
		key.caps = t.Caps
	}
	if tells&byUID != 0 {
		key.uid = int64(t.UID)
	}
	if tells&byContainerUID != 0 {
		key.containerUID = -1
		if t.ContainerUID != nil {
			key.containerUID = int64(*t.ContainerUID)
		}
	}
	if tells&byNoNewPrivileges != 0 {
		switch {
		case t.NoNewPrivileges == nil:
			key.noNewPrivileges = -1
		case *t.NoNewPrivileges:
			key.noNewPrivileges = 1
		}
	}
	if tells&bySeccomp != 0 {
		key.seccomp = -1
		if t.Seccomp != nil {
			key.seccomp = *t.Seccomp
		}
	}
	if tells&byRelation != 0 {
		key.relation = t.UserNamespace.Relation
	}
	return key
}

// group is tasks that agree in an aspect.
type group struct {
	first *drift.Process // whom the condition is put to
	size  int
	named []Task // the first maxTasks of them, never changed: outcomes share it
}

// alike lists the container's tasks, together those that agree in an aspect.
func (b *bench) alike(tells aspect) []group {
	if groups, done := b.groups[tells]; done {
		return groups
	}
	if b.tasks == nil {
		b.tasks, b.groups = tasksOf(b.container), make(map[aspect][]group)
	}
	var groups []group
	at, of, named := make(map[credentials]int), make([]int, len(b.tasks)), 0
	for i, t := range b.tasks {
		key := t.credentials(tells)
		if tells&byAll != 0 {
			key.all = i
		}
		known, ok := at[key]
		if !ok {
			known = len(groups)
			at[key] = known
			groups = append(groups, group{first: t.Process})
		}
		of[i] = known
		if groups[known].size++; groups[known].size <= maxTasks {
			named++
		}
	}
	room := make([]Task, named) // for all: this is asked of every container for every kind of rule
	for i := range groups {
		size := min(groups[i].size, maxTasks)
		groups[i].named, room = room[:0:size], room[size:]
	}
	for i, t := range b.tasks {
		if g := &groups[of[i]]; len(g.named) < cap(g.named) {
			g.named = append(g.named, Task{t.PID, t.tid, t.StartTime, t.Name})
		}
	}
	b.groups[tells] = groups
	return groups
}

// setProcess makes the shared variables about another process.
func (v *vars) setProcess(p *drift.Process) {
	v.subject.Process, v.process = p, processView{}
}
