package rpc

import (
	"context"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/capdrift/capdrift/agent"
	v1 "github.com/capdrift/capdrift/api/capdrift/v1"
)

// The names that the health service knows, beside that of the agent's service,
// which is as ready as the agent is.
const (
	HealthLiveness   = "liveness"   // it looks at the node; the empty name means the same
	HealthReadiness  = "readiness"  // it has looked at the node
	HealthComponents = "component." // and the component's name: it fares well
)

// stalled is for how many sweeps nobody looked at the node when the agent is not alive: it
// may hang in a read that never ends, which a restart ends.
const stalled = 10

// health answers from the feed, so that nothing has to be kept up to date.
type health struct {
	grpc_health_v1.UnimplementedHealthServer
	service *Service
}

const (
	serving    = grpc_health_v1.HealthCheckResponse_SERVING
	notServing = grpc_health_v1.HealthCheckResponse_NOT_SERVING
	unknown    = grpc_health_v1.HealthCheckResponse_SERVICE_UNKNOWN
)

func (h *health) status(name string) grpc_health_v1.HealthCheckResponse_ServingStatus {
	view, looked := h.service.feed.View()
	return h.statusIn(view, looked, name)
}

// alive reports whether the node was looked at within the last sweeps. Before the first look
// what counts is when the agent was started.
func (h *health) alive(view agent.View, looked bool) bool {
	last := h.service.options.Identity.Started
	if looked {
		last = view.Report.TakenAt
	}
	return view.Sweep == 0 || last.IsZero() || h.service.options.Now().Sub(last) < stalled*view.Sweep
}

func (h *health) statusIn(view agent.View, looked bool, name string) grpc_health_v1.HealthCheckResponse_ServingStatus {
	well := func(ok bool) grpc_health_v1.HealthCheckResponse_ServingStatus {
		if ok {
			return serving
		}
		return notServing
	}
	switch name {
	case "", HealthLiveness:
		return well(h.alive(view, looked))
	case HealthReadiness, v1.AgentService_ServiceDesc.ServiceName:
		return well(looked)
	}
	if component, ok := strings.CutPrefix(name, HealthComponents); ok {
		for _, known := range view.Status {
			if known.Name == component {
				return well(known.OK)
			}
		}
	}
	return unknown
}

// Check implements [grpc_health_v1.HealthServer].
func (h *health) Check(_ context.Context, request *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	found := h.status(request.Service)
	if found == unknown {
		return nil, status.Errorf(codes.NotFound, "no health of %.64q is known", text(request.Service))
	}
	return &grpc_health_v1.HealthCheckResponse{Status: found}, nil
}

// probes answers for whoever asks: it says nothing of the agent's parts, which is to say
// of the node, and keeps nothing open.
type probes struct {
	grpc_health_v1.UnimplementedHealthServer
	health *health
}

// Check implements [grpc_health_v1.HealthServer].
func (p *probes) Check(ctx context.Context, request *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	switch request.Service {
	case "", HealthLiveness, HealthReadiness:
		return p.health.Check(ctx, request)
	}
	return nil, status.Errorf(codes.NotFound, "only %s and %s are answered here", HealthLiveness, HealthReadiness)
}

// List implements [grpc_health_v1.HealthServer].
func (h *health) List(context.Context, *grpc_health_v1.HealthListRequest) (*grpc_health_v1.HealthListResponse, error) {
	view, looked := h.service.feed.View()
	names := []string{"", HealthLiveness, HealthReadiness, v1.AgentService_ServiceDesc.ServiceName}
	for _, component := range view.Status {
		names = append(names, HealthComponents+component.Name)
	}
	statuses := make(map[string]*grpc_health_v1.HealthCheckResponse, len(names))
	for _, name := range names {
		statuses[text(name)] = &grpc_health_v1.HealthCheckResponse{Status: h.statusIn(view, looked, name)}
	}
	return &grpc_health_v1.HealthListResponse{Statuses: statuses}, nil
}

// Watch implements [grpc_health_v1.HealthServer].
func (h *health) Watch(request *grpc_health_v1.HealthCheckRequest, stream grpc_health_v1.Health_WatchServer) error {
	select {
	case h.service.watches <- struct{}{}:
		defer func() { <-h.service.watches }()
	default:
		return status.Errorf(codes.ResourceExhausted, "%d clients watch already", cap(h.service.watches))
	}
	out := newOutbox(stream, h.service.options.Limits.Send)
	defer out.close()
	look := time.NewTicker(time.Second)
	defer look.Stop()
	told := grpc_health_v1.HealthCheckResponse_ServingStatus(-1)
	for {
		if now := h.status(request.Service); now != told {
			told = now
			if err := out.send(&grpc_health_v1.HealthCheckResponse{Status: now}); err != nil {
				return err
			}
		}
		select {
		case <-look.C:
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-h.service.ending:
			return errEnding
		}
	}
}
