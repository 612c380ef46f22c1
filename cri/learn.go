package cri

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// failure is what is kept of a container whose facts no source told. It is asked again
// at a later inventory, after ever more of them: one whose status is slow or large does
// not cost that much each time.
type failure struct {
	facts facts
	err   error
	wait  int // inventories until it is asked again
	next  int // the wait after that
}

const (
	// maxWait is how many inventories go by at most.
	maxWait = 64
	// largeWait is how many go by at least where the answer is too large: it will be again.
	largeWait = 15
	// endedTime is how long one inventory takes for containers that ended.
	endedTime = 2 * time.Second
	// endedKey follows the key of facts that were asked for after the container ended, and
	// lack what is told of those that run.
	endedKey = "\x00ended"
)

func (f failure) again(s *subject) failure {
	wait := f.next
	if errors.Is(s.err, errTooLarge) {
		wait = max(wait, largeWait)
	}
	return failure{facts: s.facts, err: s.err, wait: wait, next: min(2*wait+1, maxWait)}
}

// learn asks for the facts that are not known yet, several at once, and forgets
// those of containers that are gone.
func (c *Client) learn(ctx context.Context, running, ended []*subject) {
	c.learnRunning(ctx, running)
	c.learnEnded(ctx, ended)
	if ctx.Err() != nil {
		return
	}
	known := make(map[string]facts, len(running)+len(ended))
	failures := make(map[string]failure)
	for _, s := range running {
		if s.err == nil {
			known[s.key] = s.facts
		} else if failed := c.failures[s.key]; !s.asked {
			failed.wait--
			failures[s.key] = failed
		} else if s.settled {
			failures[s.key] = failed.again(s)
		}
	}
	for _, s := range ended {
		if ran, ok := c.known[s.key]; ok {
			known[s.key] = ran
		} else if s.asked {
			known[s.key+endedKey] = s.facts
		}
	}
	c.known, c.failures = known, failures
}

func (c *Client) learnRunning(ctx context.Context, running []*subject) {
	var group errgroup.Group
	group.SetLimit(c.parallel)
	var unanswered silences
	for _, s := range running {
		if known, ok := c.known[s.key]; ok {
			s.facts = known
			continue
		}
		if failed := c.failures[s.key]; failed.wait > 0 {
			s.facts, s.err = failed.facts, failed.err
			continue
		}
		group.Go(func() error {
			c.find(ctx, s, &unanswered)
			return nil
		})
	}
	_ = group.Wait() // no error: each is kept with its container
}

// learnEnded asks once for what was declared for the containers that did not run while
// this client looked. Those for whom there is no time are asked for next time.
func (c *Client) learnEnded(ctx context.Context, ended []*subject) {
	ctx, cancel := context.WithTimeout(ctx, endedTime)
	defer cancel()
	var group errgroup.Group
	group.SetLimit(c.parallel)
	for _, s := range ended {
		known, ok := c.known[s.key]
		if !ok {
			known, s.asked = c.known[s.key+endedKey]
		}
		if ok || s.asked {
			s.facts = known
			continue
		}
		group.Go(func() error {
			if ctx.Err() != nil {
				s.err = errLater
				return nil
			}
			s.asked = true
			if s.facts, s.err = s.ask(ctx); s.err != nil && !errors.Is(s.err, errVanished) {
				s.facts.lacks(s.err.Error())
				s.facts.undeclared, s.err = true, nil
			}
			return nil
		})
	}
	_ = group.Wait()
}

// silences counts the questions of one inventory that stayed without an answer: a
// runtime that hangs costs a few timeouts, not one for each container.
type silences struct{ statuses, records atomic.Int64 }

func note(count *atomic.Int64, err error) {
	if errors.Is(err, context.DeadlineExceeded) {
		count.Add(1)
	}
}

// hangs reports whether no more questions of a kind are worth asking.
func (c *Client) hangs(count *atomic.Int64) bool { return count.Load() >= int64(c.parallel) }

// find asks for the facts of one container, and where its status fails looks for them
// elsewhere.
func (c *Client) find(ctx context.Context, s *subject, unanswered *silences) {
	s.asked = true
	hangs := c.hangs(&unanswered.statuses)
	if hangs {
		s.err = fmt.Errorf("%s: not asked, because %d questions before it stayed without an answer", c.path, unanswered.statuses.Load())
	} else {
		s.facts, s.err = s.ask(ctx)
		note(&unanswered.statuses, s.err)
		hangs = errors.Is(s.err, context.DeadlineExceeded)
	}
	if s.err == nil || ctx.Err() != nil || errors.Is(s.err, errVanished) || errors.Is(s.err, errLater) {
		return
	}
	if s.runs != nil && !hangs {
		runs, err := s.runs(ctx)
		note(&unanswered.statuses, err)
		switch {
		case errors.Is(err, errVanished) || err == nil && !runs:
			s.err = errVanished
			return
		case err != nil && !errors.Is(err, errTooLarge):
			return // it is not this container alone that it does not tell of
		}
	}
	c.elsewhere(ctx, s, unanswered)
	s.settled = s.err == nil || !errors.Is(s.err, errLater) && (!hangs || c.answers(ctx, s, unanswered))
	s.facts.undeclared = s.settled && s.err != nil
}

// answers reports whether the runtime tells in few words of a container whose verbose
// status stayed without an answer: then that is the container's own affair.
func (c *Client) answers(ctx context.Context, s *subject, unanswered *silences) bool {
	if s.runs == nil || c.hangs(&unanswered.statuses) {
		return false
	}
	_, err := s.runs(ctx)
	note(&unanswered.statuses, err)
	return err == nil
}

// elsewhere takes what was declared for a container from where its verbose status is
// not needed. That status may be too large to send, which a pod's author can bring
// about: nothing that he writes may hide the container. So it is taken from containerd's
// own record, which has the same OCI spec and the same CRI config, and else from the
// bundle's config.json, which the runtime wrote for the OCI runtime and which is read at
// any size. Where neither tells, the container is told as one without a declaration, to
// be judged by less.
func (c *Client) elsewhere(ctx context.Context, s *subject, unanswered *silences) {
	why, f := s.err, s.facts
	notes := ""
	if c.containerd && s.runs != nil && !c.hangs(&unanswered.records) {
		recorded, err := c.recorded(ctx, s.namespace, s.id)
		note(&unanswered.records, err)
		switch {
		case errors.Is(err, errLater):
			s.err = err
			return
		case err != nil:
			notes = fmt.Sprintf("; containerd's own record of it: %v", err)
		}
		f = recorded
		if s.Sandbox {
			f.cri = nil
		}
		if !c.hangs(&unanswered.records) {
			f.pid = c.taskPID(ctx, s.namespace, s.id)
		}
	}
	bundle, err := c.bundle(ctx, s.namespace, s.id)
	f.bundle = bundle.oci
	switch {
	case f.oci != nil:
		s.err = nil
	case err == nil:
		f.oci, f.cgroupPath, f.missing, f.weak = bundle.oci, bundle.cgroupPath, bundle.missing, true
		f.handler = bundle.handler
		s.err = nil
	default:
		if !errors.Is(err, fs.ErrNotExist) {
			notes += fmt.Sprintf("; its config.json: %v", err)
		}
		s.err = fmt.Errorf("%w%s", why, notes)
	}
	s.facts = f
}
