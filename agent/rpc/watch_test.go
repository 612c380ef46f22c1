package rpc_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/capdrift/capdrift/agent"
	v1 "github.com/capdrift/capdrift/api/capdrift/v1"
	"github.com/capdrift/capdrift/drift"
)

func watching(t *testing.T, client v1.AgentServiceClient, request *v1.WatchRequest) v1.AgentService_WatchClient {
	t.Helper()
	ctx, cancel := context.WithCancel(soon(t))
	t.Cleanup(cancel)
	stream, err := client.Watch(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func isStatus(m *v1.WatchResponse) bool { return m.GetNodeStatus() != nil }

func isContainer(id string) func(*v1.WatchResponse) bool {
	return func(m *v1.WatchResponse) bool {
		return m.GetContainer() != nil && m.GetContainer().Container.Id == id && !m.GetContainer().Container.More
	}
}

func of(kind agent.ChangeKind, c drift.Container) agent.Change {
	return agent.Change{Kind: kind, Container: &c}
}

func found(kind agent.ChangeKind, f drift.Finding) agent.Change {
	return agent.Change{Kind: kind, Finding: &f}
}

func TestWatchTellsChangesAndResumes(t *testing.T) {
	f, options := served()
	client := v1.NewAgentServiceClient(onSocket(t, f, options))
	g := steady()
	report := g.report(1, 1)
	first := watching(t, client, &v1.WatchRequest{View: v1.ContainerView_CONTAINER_VIEW_FULL})
	messages(t, first, isStatus)
	opened := g.finding("new")
	resolved := found(agent.FindingResolved, opened)
	resolved.Resolved = "gone"
	f.publish(report,
		of(agent.ContainerAdded, g.container("a", 1)), found(agent.FindingOpened, opened),
		agent.Change{Kind: agent.StatusChanged, Component: &agent.Component{Name: "proc", Why: "denied"}}, of(agent.ContainerChanged, g.container("a", 2)),
		found(agent.FindingUpdated, opened), resolved, of(agent.ContainerRemoved, g.container("a", 0)), of(agent.ContainerAdded, g.container("end", 0)))
	told := messages(t, first, isContainer("end"))
	want := "ADDED:a OPENED:new status CHANGED:a UPDATED:new RESOLVED:new REMOVED:a ADDED:end"
	if got := kinds(told); got != want {
		t.Fatalf("told %s\nwant %s", got, want)
	}
	if told[5].GetFinding().Resolved != "gone" || len(told[3].GetContainer().Container.Processes) != 2 || told[0].Time == nil {
		t.Error("the changes do not tell all")
	}

	// From every message on, the rest comes, and nothing twice.
	for i, message := range told {
		again := watching(t, client, &v1.WatchRequest{After: message.ResumeToken, View: v1.ContainerView_CONTAINER_VIEW_FULL})
		if got := kinds(messages(t, again, isStatus)); got != "status" {
			t.Fatalf("it resumes with %s", got)
		}
		if i == len(told)-1 {
			continue
		}
		rest := strings.Fields(want)[i+1:]
		if got := kinds(messages(t, again, isContainer("end"))); got != strings.Join(rest, " ") {
			t.Errorf("after %d messages it goes on with %s", i+1, got)
		}
	}
}

func TestWatchSaysWhatIsLost(t *testing.T) {
	f, options := served()
	client := v1.NewAgentServiceClient(onSocket(t, f, options))
	first := messages(t, watching(t, client, &v1.WatchRequest{}), isStatus)
	token := first[len(first)-1].ResumeToken
	resumed := func(token string) []*v1.WatchResponse {
		t.Helper()
		return messages(t, watching(t, client, &v1.WatchRequest{After: token}), isStatus)
	}
	f.publish(steady().report(1, 0), agent.Change{Kind: agent.StatusChanged}, agent.Change{Kind: agent.StatusChanged}, agent.Change{Kind: agent.StatusChanged})
	f.forget()
	list := resumed(token)
	if got := kinds(list); got != "REASON_NOT_KEPT begin containers end status" || list[0].GetLost().GetChanges() != 3 {
		t.Errorf("after what is not kept: %s, %v", got, list[0])
	}
	// Whoever broke off in a snapshot gets another one, and has lost nothing.
	if got := kinds(resumed(list[2].ResumeToken)); got != "begin containers end status" {
		t.Errorf("after half a snapshot: %s", got)
	}
	for _, row := range []struct {
		position agent.Position
		want     string
	}{
		{agent.Position{BootID: "boot", Epoch: "another", Sequence: 9}, "REASON_OTHER_EPOCH"},
		{agent.Position{BootID: "another", Epoch: "another", Sequence: 9}, "REASON_OTHER_BOOT"},
		{agent.Position{BootID: "boot", Epoch: "epoch", Sequence: 0}, "REASON_UNKNOWN_POSITION"},
	} {
		f.mu.Lock()
		f.view.Position = row.position
		f.mu.Unlock()
		list := resumed(token)
		if list[0].GetLost().GetReason().String() != row.want || list[0].GetLost().Changes != nil {
			t.Errorf("%v, want %s", list[0], row.want)
		}
	}
	other, err := client.Watch(soon(t), &v1.WatchRequest{After: token, FindingFilter: `finding.kind == "x"`})
	if err == nil {
		_, err = other.Recv()
	}
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("a token of another filter: %v", err)
	}
}

func TestWatchTellsOnlyItsTopics(t *testing.T) {
	f, options := served()
	client := v1.NewAgentServiceClient(onSocket(t, f, options))
	findings := watching(t, client, &v1.WatchRequest{Topics: []v1.WatchTopic{v1.WatchTopic_WATCH_TOPIC_FINDINGS}})
	containers := watching(t, client, &v1.WatchRequest{Topics: []v1.WatchTopic{v1.WatchTopic_WATCH_TOPIC_CONTAINERS}})
	if got := kinds(messages(t, findings, isStatus)); got != "begin findings end status" {
		t.Error(got)
	}
	if got := kinds(messages(t, containers, isStatus)); got != "begin containers end status" {
		t.Error(got)
	}
	g := steady()
	f.publish(g.report(0, 0), of(agent.ContainerAdded, g.container("a", 0)), found(agent.FindingOpened, g.finding("f")), agent.Change{Kind: agent.StatusChanged, Coverage: &drift.Coverage{}})
	if got := kinds(messages(t, findings, isStatus)); got != "OPENED:f status" {
		t.Error(got)
	}
	if got := kinds(messages(t, containers, isStatus)); got != "ADDED:a status" {
		t.Error(got)
	}
}

// TestWatchFilters: a client whose filter chooses keeps a right picture when
// things come into it and leave it, also over a resume.
func TestWatchFilters(t *testing.T) {
	f, options := served()
	client := v1.NewAgentServiceClient(onSocket(t, f, options))
	g := steady()
	web, db := g.container("c", 0), g.container("c", 0)
	web.Name, db.Name = "web", "db"
	other := db
	other.ID = "other"
	end := web
	end.ID = "end"
	report := g.report(0, 0)
	report.Containers = []drift.Container{web, other}
	f.publish(report, agent.Change{Kind: agent.StatusChanged})
	request := &v1.WatchRequest{ContainerFilter: `name == "web"`, Topics: []v1.WatchTopic{v1.WatchTopic_WATCH_TOPIC_CONTAINERS}}
	stream := watching(t, client, request)
	begin := messages(t, stream, isStatus)
	if got := kinds(begin); got != "begin containers end status" || len(begin[1].GetContainers().Containers) != 1 || begin[2].GetSnapshotEnd().Containers != 1 {
		t.Fatal(begin)
	}
	f.publish(report, of(agent.ContainerChanged, other), of(agent.ContainerChanged, web), of(agent.ContainerChanged, db), of(agent.ContainerChanged, db),
		of(agent.ContainerChanged, web), of(agent.ContainerRemoved, db), of(agent.ContainerRemoved, other), of(agent.ContainerAdded, end))
	if got := kinds(messages(t, stream, isContainer("end"))); got != "CHANGED:c LEFT:c CHANGED:c REMOVED:c ADDED:end" {
		t.Errorf("told %s", got)
	}
	// One that resumes may have what it was told of before; it is told that these left.
	request.After = begin[3].ResumeToken
	if got := kinds(messages(t, watching(t, client, request), isContainer("end"))); got != "status LEFT:other CHANGED:c LEFT:c CHANGED:c REMOVED:c ADDED:end" {
		t.Errorf("resumed %s", got)
	}

	bad, good := g.finding("f"), g.finding("f")
	bad.Severity, good.Severity = drift.Critical, drift.Info
	last := g.finding("last")
	last.Severity = drift.High
	severe := watching(t, client, &v1.WatchRequest{FindingFilter: `finding.severity >= severity("high")`, Topics: []v1.WatchTopic{v1.WatchTopic_WATCH_TOPIC_FINDINGS}})
	messages(t, severe, isStatus)
	f.publish(report, found(agent.FindingOpened, good), found(agent.FindingUpdated, bad), found(agent.FindingUpdated, good), found(agent.FindingUpdated, bad),
		found(agent.FindingResolved, bad), found(agent.FindingOpened, good), found(agent.FindingResolved, good), found(agent.FindingOpened, last))
	told := messages(t, severe, func(m *v1.WatchResponse) bool { return m.GetFinding() != nil && m.GetFinding().Finding.Id == "last" })
	if got := kinds(told); got != "UPDATED:f LEFT:f UPDATED:f RESOLVED:f OPENED:last" {
		t.Errorf("told %s", got)
	}
}

// TestHeartbeatsCarryTheClientOn: what a filter leaves out need not be told again.
func TestHeartbeatsCarryTheClientOn(t *testing.T) {
	f, options := served()
	options.Limits.Heartbeat = 5 * time.Millisecond
	client := v1.NewAgentServiceClient(onSocket(t, f, options))
	stream := watching(t, client, &v1.WatchRequest{FindingFilter: `finding.kind == "none"`, Topics: []v1.WatchTopic{v1.WatchTopic_WATCH_TOPIC_FINDINGS}})
	begin := messages(t, stream, isStatus)
	f.publish(steady().report(0, 0), found(agent.FindingOpened, steady().finding("f")))
	before := begin[len(begin)-1].ResumeToken
	beats := messages(t, stream, func(m *v1.WatchResponse) bool { return m.GetHeartbeat() != nil && m.ResumeToken != before })
	if beat := beats[len(beats)-1].GetHeartbeat(); beat.Position.Sequence != 2 || beat.TakenAt == nil {
		t.Errorf("%v", beat)
	}
}

// TestSlowWatchersAreCutOff: one that does not read is told so, and neither the
// feed nor another watcher waits for it.
func TestSlowWatchersAreCutOff(t *testing.T) {
	for name, queue := range map[string]int{"by its patience": 1000, "by the feed": 10} {
		t.Run(name, func(t *testing.T) {
			f, options := served()
			f.queue = queue
			options.Limits.Send = 20 * time.Second
			if queue == 1000 {
				options.Limits.Send = time.Second
			}
			listener, target := unixListener(t)
			serve(t, f, options, listener)
			slowClient, client := v1.NewAgentServiceClient(connect(t, target)), v1.NewAgentServiceClient(connect(t, target))
			slow := watching(t, slowClient, &v1.WatchRequest{View: v1.ContainerView_CONTAINER_VIEW_FULL})
			messages(t, slow, isStatus)
			cut := <-watchers(f)
			quick := watching(t, client, &v1.WatchRequest{View: v1.ContainerView_CONTAINER_VIEW_FULL})
			messages(t, quick, isStatus)

			g := steady()
			const changes = 30
			for i := range changes {
				c := g.container(fmt.Sprint(i), 100)
				f.publish(drift.Report{}, of(agent.ContainerChanged, c))
				if got := messages(t, quick, isContainer(c.ID)); len(got) != 1 {
					t.Fatalf("change %d came in %d messages", i, len(got))
				}
			}
			if queue == 1000 {
				if ended := <-f.ended; ended != cut { // while it still does not read
					t.Error("another watcher was cut off")
				}
			}
			told := 0
			var err error
			for ; err == nil; told++ {
				_, err = slow.Recv()
			}
			reasons := slices.ContainsFunc(status.Convert(err).Details(), func(detail any) bool {
				info, ok := detail.(*errdetails.ErrorInfo)
				return ok && info.Reason == "WATCHER_TOO_SLOW"
			})
			if status.Code(err) != codes.ResourceExhausted || !reasons || told >= changes {
				t.Errorf("after %d messages: %v", told, err)
			}
		})
	}
}

// watchers yields those that watch now.
func watchers(f *feed) <-chan *subscription {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make(chan *subscription, len(f.active))
	for s := range f.active {
		list <- s
	}
	return list
}

func TestSoManyWatchersAndNoMore(t *testing.T) {
	f, options := served()
	options.Limits.Watches = 1
	client := v1.NewAgentServiceClient(onSocket(t, f, options))
	ctx, cancel := context.WithCancel(soon(t))
	one, err := client.Watch(ctx, &v1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	messages(t, one, isStatus)
	two, err := client.Watch(soon(t), &v1.WatchRequest{})
	if err == nil {
		_, err = two.Recv()
	}
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("the second: %v", err)
	}
	cancel()
	<-f.ended
	for { // its place is free a moment after its subscription ended
		again, err := client.Watch(soon(t), &v1.WatchRequest{})
		if err == nil {
			if _, err = again.Recv(); err == nil {
				break
			}
		}
		if status.Code(err) != codes.ResourceExhausted {
			t.Fatal(err)
		}
	}
}

func TestWatchEndsWithTheAgent(t *testing.T) {
	f, options := served()
	listener, target := unixListener(t)
	stop := serve(t, f, options, listener)
	stream := watching(t, v1.NewAgentServiceClient(connect(t, target)), &v1.WatchRequest{})
	messages(t, stream, isStatus)
	stop()
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("%v", err)
	}
}

// TestStopHasADeadline: a look that goes on does not keep the agent from ending.
func TestStopHasADeadline(t *testing.T) {
	f, options := served()
	options.Limits.Stop = 20 * time.Millisecond
	began := make(chan struct{})
	options.Scanner = scanner(func(ctx context.Context) (agent.View, error) {
		close(began)
		<-ctx.Done()
		return agent.View{}, ctx.Err()
	})
	listener, target := unixListener(t)
	stop := serve(t, f, options, listener)
	stream, err := v1.NewAgentServiceClient(connect(t, target)).Scan(soon(t), &v1.ScanRequest{})
	if err != nil {
		t.Fatal(err)
	}
	<-began
	stop()
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("%v", err)
	}
}
