package rpc

import (
	"errors"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/capdrift/capdrift/agent"
	v1 "github.com/capdrift/capdrift/api/capdrift/v1"
	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/policy"
)

// watch is one client's watch.
type watch struct {
	service     *Service
	out         *outbox[v1.WatchResponse]
	view        v1.ContainerView
	question    string
	containers  topic
	findings    topic
	at          agent.Position // everything up to it is told
	sentAnother bool           // since the last heartbeat was due
}

// topic is what a watch tells of, and what its client has of it.
type topic struct {
	chooser
	wanted bool
	// whole is true when the client's knowledge began with a snapshot of this
	// stream, so that what is not in has is not known to it.
	whole bool
	has   map[string]bool
}

// Watch implements [v1.AgentServiceServer].
func (s *Service) Watch(request *v1.WatchRequest, stream v1.AgentService_WatchServer) error {
	w := &watch{service: s, view: request.View, containers: topic{has: map[string]bool{}}, findings: topic{has: map[string]bool{}}}
	if err := knownView(request.View); err != nil {
		return err
	}
	for _, wanted := range request.Topics {
		if wanted != v1.WatchTopic_WATCH_TOPIC_CONTAINERS && wanted != v1.WatchTopic_WATCH_TOPIC_FINDINGS {
			return status.Errorf(codes.InvalidArgument, "topics: %d is not known", wanted)
		}
	}
	wants := func(t v1.WatchTopic) bool { return len(request.Topics) == 0 || slices.Contains(request.Topics, t) }
	w.containers.wanted, w.findings.wanted = wants(v1.WatchTopic_WATCH_TOPIC_CONTAINERS), wants(v1.WatchTopic_WATCH_TOPIC_FINDINGS)
	var err error
	if w.containers.chooser, err = s.chooseContainers("container_filter", request.ContainerFilter); err != nil {
		return err
	}
	if w.findings.chooser, err = s.choose("finding_filter", request.FindingFilter); err != nil {
		return err
	}
	w.question = question("watch", flag(w.containers.wanted), flag(w.findings.wanted), request.ContainerFilter, request.FindingFilter,
		max(request.View, v1.ContainerView_CONTAINER_VIEW_BASIC).String())
	var after watchToken
	if request.After != "" {
		if err := opened("after", request.After, &after); err != nil {
			return err
		}
		if after.Question != w.question {
			return otherQuestion("after")
		}
	}

	select {
	case s.watches <- struct{}{}:
		defer func() { <-s.watches }()
	default:
		return status.Errorf(codes.ResourceExhausted, "%d clients watch already", cap(s.watches))
	}
	if _, err := s.view(); err != nil {
		return err
	}
	subscription := s.feed.Watch(after.position())
	defer subscription.Close()
	w.out = newOutbox(stream, s.options.Limits.Send)
	defer w.out.close()
	return w.run(after.position(), subscription)
}

func flag(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// run tells the snapshot, if there is one, and then the changes.
func (w *watch) run(after agent.Position, subscription agent.Subscription) error {
	view, whole := subscription.Snapshot()
	if whole {
		if after != (agent.Position{}) {
			if err := w.lost(after, view.Position); err != nil {
				return err
			}
		}
		if err := w.snapshot(view); err != nil {
			return err
		}
	} else {
		w.at = after
		var err error
		if view, err = w.service.view(); err != nil {
			return err
		}
	}
	if err := w.status(w.at, w.service.options.Now(), components(view), &view.Report.Coverage); err != nil {
		return err
	}
	beat := time.NewTicker(w.service.options.Limits.Heartbeat)
	defer beat.Stop()
	for {
		select {
		case change, open := <-subscription.Changes():
			if !open {
				return ended(subscription.Err())
			}
			if err := w.change(change); err != nil {
				return err
			}
		case <-beat.C:
			w.containers.renew()
			w.findings.renew()
			if err := w.heartbeat(); err != nil {
				return err
			}
		case <-w.out.ctx.Done():
			return status.FromContextError(w.out.ctx.Err()).Err()
		case <-w.service.ending:
			return errEnding
		}
	}
}

func ended(err error) error {
	switch {
	case errors.Is(err, agent.ErrSlow):
		return errSlow
	case err != nil:
		return status.Error(codes.Unavailable, text(err.Error()))
	}
	return errEnding
}

// send sends an event after which the client goes on at the position that is told.
func (w *watch) send(event *v1.WatchResponse, at agent.Position, when time.Time) error {
	event.ResumeToken = sealed(watchToken{Question: w.question, BootID: at.BootID, Epoch: at.Epoch, Sequence: at.Sequence})
	event.Time = moment(when)
	w.sentAnother = true
	return w.out.send(event)
}

// lost says why the client cannot go on where it was.
func (w *watch) lost(after, now agent.Position) error {
	lost := &v1.Lost{Reason: v1.Lost_REASON_NOT_KEPT}
	switch {
	case after.BootID != now.BootID:
		lost.Reason = v1.Lost_REASON_OTHER_BOOT
	case after.Epoch != now.Epoch:
		lost.Reason = v1.Lost_REASON_OTHER_EPOCH
	case after.Sequence > now.Sequence:
		lost.Reason = v1.Lost_REASON_UNKNOWN_POSITION
	default:
		missing := now.Sequence - after.Sequence
		lost.Changes = &missing
	}
	return w.send(&v1.WatchResponse{Event: &v1.WatchResponse_Lost{Lost: lost}}, agent.Position{}, w.service.options.Now())
}

// snapshot tells a whole view.
func (w *watch) snapshot(view agent.View) error {
	when := view.Report.TakenAt
	begin := &v1.SnapshotBegin{Look: ToProtoLook(view.Report), Position: ToProtoPosition(view.Position)}
	if err := w.send(&v1.WatchResponse{Event: &v1.WatchResponse_SnapshotBegin{SnapshotBegin: begin}}, agent.Position{}, when); err != nil {
		return err
	}
	end := &v1.SnapshotEnd{}
	var err error
	if w.containers.wanted {
		judge := noting(&w.containers, w.containers.judgeContainers(&view.Report), func(c *drift.Container) string { return c.ID })
		end.Containers, err = containersIn(view.Report.Containers, w.view, judge, func(some []*v1.Container) error {
			return w.send(&v1.WatchResponse{Event: &v1.WatchResponse_Containers{Containers: &v1.SnapshotContainers{Containers: some}}}, agent.Position{}, when)
		})
		if err != nil {
			return err
		}
	}
	if w.findings.wanted {
		judge := noting(&w.findings, w.findings.judgeFindings(&view.Report), func(f *drift.Finding) string { return f.ID })
		end.Findings, err = findingsIn(view.Report.Findings, judge, func(some []*v1.Finding) error {
			return w.send(&v1.WatchResponse{Event: &v1.WatchResponse_Findings{Findings: &v1.SnapshotFindings{Findings: some}}}, agent.Position{}, when)
		})
		if err != nil {
			return err
		}
	}
	w.containers.whole, w.findings.whole, w.at = true, true, view.Position
	return w.send(&v1.WatchResponse{Event: &v1.WatchResponse_SnapshotEnd{SnapshotEnd: end}}, w.at, when)
}

// noting judges, and notes what the client gets.
func noting[T any](t *topic, judge func(*T) (bool, string, error), id func(*T) string) func(*T) (bool, string, error) {
	return func(item *T) (bool, string, error) {
		taken, undecided, err := judge(item)
		if taken && t.filter != nil {
			t.has[id(item)] = true
		}
		return taken, undecided, err
	}
}

// fate is what a change means to a client whose filter chooses.
type fate int

const (
	untold fate = iota // it is nothing to this client
	told
	left // what the client has is not taken by its filter any more
)

// decide says what to tell of a change, and notes what the client then has.
func (t *topic) decide(id string, taken, isNew, isGone bool) fate {
	if t.filter == nil {
		return told
	}
	has, noted := t.has[id]
	mayHave := has || !noted && !t.whole && !isNew
	if taken && !isGone {
		t.has[id] = true
	} else if t.whole || isGone {
		delete(t.has, id)
	} else {
		t.has[id] = false
	}
	switch {
	case taken || has && isGone:
		return told
	case mayHave:
		return left
	}
	return untold
}

// change tells one change, if it is anything to this client. Then the client has
// come to its position, told or not.
func (w *watch) change(change agent.Change) error {
	defer func() { w.at = change.Position }()
	switch {
	case change.Container != nil:
		return w.container(change)
	case change.Finding != nil:
		return w.finding(change)
	case change.Component != nil:
		return w.status(change.Position, change.At, []*v1.Component{ToProtoComponent(*change.Component)}, change.Coverage)
	case change.Coverage != nil:
		return w.status(change.Position, change.At, nil, change.Coverage)
	}
	return nil
}

func (w *watch) status(at agent.Position, when time.Time, components []*v1.Component, coverage *drift.Coverage) error {
	event := &v1.NodeStatus{Components: components}
	if coverage != nil {
		event.Coverage = ToProtoCoverage(*coverage)
	}
	return w.send(&v1.WatchResponse{Event: &v1.WatchResponse_NodeStatus{NodeStatus: event}}, at, when)
}

var containerChanges = map[agent.ChangeKind]v1.ContainerChange_Kind{
	agent.ContainerAdded:   v1.ContainerChange_KIND_ADDED,
	agent.ContainerChanged: v1.ContainerChange_KIND_CHANGED,
	agent.ContainerRemoved: v1.ContainerChange_KIND_REMOVED,
}

func (w *watch) container(change agent.Change) error {
	if !w.containers.wanted {
		return nil
	}
	view, _ := w.service.feed.View()
	taken, undecided := w.containers.takesChange(change.Container.ID, policy.Subject{
		Node: &view.Report.Node, Runtime: view.Report.Runtime, Container: change.Container,
	})
	tell := func(kind v1.ContainerChange_Kind, container *v1.Container, at agent.Position) error {
		return w.send(&v1.WatchResponse{Event: &v1.WatchResponse_Container{Container: &v1.ContainerChange{Kind: kind, Container: container}}}, at, change.At)
	}
	switch w.containers.decide(change.Container.ID, taken, change.Kind == agent.ContainerAdded, change.Kind == agent.ContainerRemoved) {
	case untold:
		return nil
	case left:
		return tell(v1.ContainerChange_KIND_LEFT, &v1.Container{Id: text(change.Container.ID)}, change.Position)
	}
	kind := containerChanges[change.Kind]
	message := parts{view: w.view, undecided: undecided}
	at, done := message.add(*change.Container, cursor{})
	for ; !done; at, done = message.add(*change.Container, at) {
		// Whoever resumes after a part has not had the change.
		if err := tell(kind, message.flush()[0], w.at); err != nil {
			return err
		}
	}
	return tell(kind, message.flush()[0], change.Position)
}

var findingChanges = map[agent.ChangeKind]v1.FindingChange_Kind{
	agent.FindingOpened:   v1.FindingChange_KIND_OPENED,
	agent.FindingUpdated:  v1.FindingChange_KIND_UPDATED,
	agent.FindingResolved: v1.FindingChange_KIND_RESOLVED,
}

func (w *watch) finding(change agent.Change) error {
	if !w.findings.wanted {
		return nil
	}
	view, _ := w.service.feed.View()
	var container *drift.Container
	var process *drift.Process
	at := slices.IndexFunc(view.Report.Containers, func(c drift.Container) bool { return c.ID == change.Finding.ContainerID })
	if at >= 0 {
		container = &view.Report.Containers[at]
		if at := slices.IndexFunc(container.Processes, func(p drift.Process) bool {
			return p.PID == change.Finding.PID && (change.Finding.StartTime == 0 || p.StartTime == change.Finding.StartTime)
		}); at >= 0 {
			process = &container.Processes[at]
		}
	}
	taken, undecided := w.findings.takesChange(change.Finding.ContainerID, policy.Subject{
		Node: &view.Report.Node, Runtime: view.Report.Runtime, Container: container, Process: process, Finding: change.Finding,
	})
	event := &v1.FindingChange{Kind: findingChanges[change.Kind], Resolved: text(change.Resolved)}
	switch w.findings.decide(change.Finding.ID, taken, change.Kind == agent.FindingOpened, change.Kind == agent.FindingResolved) {
	case untold:
		return nil
	case left:
		event = &v1.FindingChange{Kind: v1.FindingChange_KIND_LEFT, Finding: &v1.Finding{Id: text(change.Finding.ID)}}
	case told:
		event.Finding = ToProtoFinding(*change.Finding)
		event.Finding.Undecided = undecided
	}
	return w.send(&v1.WatchResponse{Event: &v1.WatchResponse_Finding{Finding: event}}, change.Position, change.At)
}

// heartbeat tells that all is well, unless something else just did. Its token
// spares the client what was not for it.
func (w *watch) heartbeat() error {
	if w.sentAnother {
		w.sentAnother = false
		return nil
	}
	view, ok := w.service.feed.View()
	if !ok {
		return errNotYet
	}
	beat := &v1.Heartbeat{Position: ToProtoPosition(view.Position), TakenAt: timestamppb.New(view.Report.TakenAt)}
	err := w.send(&v1.WatchResponse{Event: &v1.WatchResponse_Heartbeat{Heartbeat: beat}}, w.at, w.service.options.Now())
	w.sentAnother = false
	return err
}
