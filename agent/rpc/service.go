package rpc

import (
	"context"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/capdrift/capdrift/agent"
	v1 "github.com/capdrift/capdrift/api/capdrift/v1"
	"github.com/capdrift/capdrift/drift"
)

// Scanner looks at the node now.
type Scanner interface {
	Scan(context.Context) (agent.View, error)
}

// Identity is who answers.
type Identity struct {
	Version  string
	Started  time.Time
	NodeName string
}

// Options are what a [Service] needs beside the feed.
type Options struct {
	Identity Identity
	Scanner  Scanner // nil for an agent that cannot look on demand
	Limits   Limits
	Now      func() time.Time
}

// Limits bound what clients can cost the agent. A zero is no limit but the value
// of [DefaultLimits].
type Limits struct {
	Watches   int           // at the same time
	Scans     int           // one that looks, and those that wait for their turn
	Send      time.Duration // for one message of a stream; who takes longer is cut off
	Heartbeat time.Duration // after so long without a message
	Scan      time.Duration // for one look
	Filter    int           // steps of some 30 ns that a call's filter takes; a watch's, for the changes of each container from heartbeat to heartbeat

	Connections int           // on each listener; what comes above is closed
	Handshake   time.Duration // to get from accepted to speaking HTTP/2
	Silence     time.Duration // of a client before it is asked whether it is there; it has a third of that to answer
	Streams     int           // at the same time, of one connection
	Arrival     time.Duration // for a request to come whole, once it has begun
	Request     int           // bytes
	Stop        time.Duration // for calls to end after the agent is told to
	Age         time.Duration // of a TCP connection; its client is then looked at again
}

// DefaultLimits serve a dozen clients well and stand thousands badly.
func DefaultLimits() Limits {
	return Limits{
		Watches: 64, Scans: 4, Send: 10 * time.Second, Heartbeat: 15 * time.Second, Scan: time.Minute,
		Filter: 30_000_000, Connections: 128, Handshake: 5 * time.Second, Silence: 30 * time.Second, Streams: 32,
		Arrival: 10 * time.Second, Request: 64 << 10, Stop: 5 * time.Second, Age: time.Hour,
	}
}

func (l Limits) orDefaults() Limits {
	d := DefaultLimits()
	or(&l.Watches, d.Watches)
	or(&l.Scans, d.Scans)
	or(&l.Send, d.Send)
	or(&l.Heartbeat, d.Heartbeat)
	or(&l.Scan, d.Scan)
	or(&l.Filter, d.Filter)
	or(&l.Connections, d.Connections)
	or(&l.Handshake, d.Handshake)
	or(&l.Silence, d.Silence)
	or(&l.Streams, d.Streams)
	or(&l.Arrival, d.Arrival)
	or(&l.Request, d.Request)
	or(&l.Stop, d.Stop)
	or(&l.Age, d.Age)
	return l
}

func or[T int | time.Duration](value *T, instead T) {
	if *value <= 0 {
		*value = instead
	}
}

// Service answers capdrift.v1.AgentService from a feed.
type Service struct {
	v1.UnimplementedAgentServiceServer
	feed    agent.Feed
	options Options
	watches chan struct{} // a place for each
	queue   chan struct{} // of scans, with the one that looks
	look    chan struct{} // one place
	ending  chan struct{} // closed when streams are to end
}

// NewService makes a service of its parts.
func NewService(feed agent.Feed, options Options) *Service {
	options.Limits = options.Limits.orDefaults()
	if options.Now == nil {
		options.Now = time.Now
	}
	return &Service{
		feed: feed, options: options, watches: make(chan struct{}, options.Limits.Watches),
		queue: make(chan struct{}, options.Limits.Scans), look: make(chan struct{}, 1), ending: make(chan struct{}),
	}
}

var errNotYet = status.Error(codes.Unavailable, "the agent has not looked at its node yet; ask again in a moment")

func (s *Service) view() (agent.View, error) {
	view, ok := s.feed.View()
	if !ok {
		return view, errNotYet
	}
	return view, nil
}

// GetNode implements [v1.AgentServiceServer].
func (s *Service) GetNode(context.Context, *v1.GetNodeRequest) (*v1.GetNodeResponse, error) {
	me := s.options.Identity
	response := &v1.GetNodeResponse{Agent: &v1.Agent{Version: text(me.Version), StartedAt: moment(me.Started), NodeName: text(me.NodeName)}}
	view, ok := s.feed.View()
	if !ok {
		return response, nil
	}
	response.Look, response.Position, response.Components = ToProtoLook(view.Report), ToProtoPosition(view.Position), components(view)
	response.Policy = ToProtoPolicy(view.Policy)
	open, accepted := make(map[drift.Severity]int), make(map[drift.Severity]int)
	for _, finding := range view.Report.Findings {
		if finding.Exception != "" {
			accepted[finding.Severity]++
		} else {
			open[finding.Severity]++
		}
	}
	for _, severity := range drift.Severities() {
		response.Findings = append(response.Findings, &v1.SeverityCount{
			Severity: severities[severity], Count: count(open[severity]), Accepted: count(accepted[severity]),
		})
	}
	return response, nil
}

func components(view agent.View) []*v1.Component {
	var list []*v1.Component
	for _, component := range view.Status {
		list = append(list, ToProtoComponent(component))
	}
	slices.SortFunc(list, func(a, b *v1.Component) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// Scan implements [v1.AgentServiceServer].
func (s *Service) Scan(_ *v1.ScanRequest, stream v1.AgentService_ScanServer) error {
	if s.options.Scanner == nil {
		return status.Error(codes.Unimplemented, "this agent does not look on demand")
	}
	view, err := s.scan(stream.Context())
	if err != nil {
		return err
	}
	out := newOutbox(stream, s.options.Limits.Send)
	defer out.close()
	if err := out.send(&v1.ScanResponse{Part: &v1.ScanResponse_Head{Head: ToProtoLook(view.Report)}}); err != nil {
		return err
	}
	containers, err := containersIn(view.Report.Containers, v1.ContainerView_CONTAINER_VIEW_FULL, everyContainer, func(some []*v1.Container) error {
		return out.send(&v1.ScanResponse{Part: &v1.ScanResponse_Containers{Containers: &v1.SnapshotContainers{Containers: some}}})
	})
	if err != nil {
		return err
	}
	findings, err := findingsIn(view.Report.Findings, everyFinding, func(some []*v1.Finding) error {
		return out.send(&v1.ScanResponse{Part: &v1.ScanResponse_Findings{Findings: &v1.SnapshotFindings{Findings: some}}})
	})
	if err != nil {
		return err
	}
	return out.send(&v1.ScanResponse{Part: &v1.ScanResponse_End{End: &v1.SnapshotEnd{Containers: containers, Findings: findings}}})
}

// scan waits for its turn and looks.
func (s *Service) scan(ctx context.Context) (agent.View, error) {
	select {
	case s.queue <- struct{}{}:
		defer func() { <-s.queue }()
	default:
		return agent.View{}, status.Errorf(codes.ResourceExhausted, "%d scans are asked for already; ask again in a moment", cap(s.queue))
	}
	ctx, cancel := context.WithTimeout(ctx, s.options.Limits.Scan)
	defer cancel()
	select {
	case s.look <- struct{}{}:
		defer func() { <-s.look }()
	case <-ctx.Done():
		return agent.View{}, status.FromContextError(ctx.Err()).Err()
	case <-s.ending:
		return agent.View{}, errEnding
	}
	view, err := s.options.Scanner.Scan(ctx)
	switch {
	case ctx.Err() != nil:
		return view, status.FromContextError(ctx.Err()).Err()
	case err != nil:
		return view, status.Errorf(codes.Unavailable, "looking at the node: %s", text(err.Error()))
	}
	return view, nil
}

// ReadScan receives the whole report of a scan; what came in parts is joined.
func ReadScan(stream v1.AgentService_ScanClient) (drift.Report, error) {
	var look *v1.Look
	var containers []*v1.Container
	var findings []*v1.Finding
	for {
		message, err := stream.Recv()
		if err != nil {
			return drift.Report{}, err // io.EOF too: the end has not come
		}
		switch part := message.Part.(type) {
		case *v1.ScanResponse_Head:
			look = part.Head
		case *v1.ScanResponse_Containers:
			containers = append(containers, part.Containers.GetContainers()...)
		case *v1.ScanResponse_Findings:
			findings = append(findings, part.Findings.GetFindings()...)
		case *v1.ScanResponse_End:
			if _, err := stream.Recv(); err == nil {
				return drift.Report{}, status.Error(codes.DataLoss, "the agent goes on after the end of its report")
			}
			report, err := FromProtoReport(look, containers, findings)
			if err == nil && (len(report.Containers) != int(part.End.GetContainers()) || len(report.Findings) != int(part.End.GetFindings())) {
				return drift.Report{}, status.Errorf(codes.DataLoss, "of %d containers and %d findings, %d and %d came",
					part.End.GetContainers(), part.End.GetFindings(), len(report.Containers), len(report.Findings))
			}
			return report, err
		}
	}
}
