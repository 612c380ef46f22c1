package rpc

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	v1 "github.com/capdrift/capdrift/api/capdrift/v1"
	"github.com/capdrift/capdrift/drift"
)

const (
	defaultPage = 100
	maxPage     = 1000
)

func pageSize(asked int32) (int, error) {
	switch {
	case asked < 0:
		return 0, status.Errorf(codes.InvalidArgument, "page_size: %d is negative", asked)
	case asked == 0:
		return defaultPage, nil
	}
	return min(int(asked), maxPage), nil
}

func knownView(view v1.ContainerView) error {
	if view < v1.ContainerView_CONTAINER_VIEW_UNSPECIFIED || view > v1.ContainerView_CONTAINER_VIEW_FULL {
		return status.Errorf(codes.InvalidArgument, "view: %d is not known", view)
	}
	return nil
}

// ListContainers implements [v1.AgentServiceServer].
func (s *Service) ListContainers(ctx context.Context, request *v1.ListContainersRequest) (*v1.ListContainersResponse, error) {
	size, err := pageSize(request.PageSize)
	if err != nil {
		return nil, err
	}
	if err := knownView(request.View); err != nil {
		return nil, err
	}
	filter, err := s.chooseContainers("filter", request.Filter)
	if err != nil {
		return nil, err
	}
	asked := question("containers", request.Filter, max(request.View, v1.ContainerView_CONTAINER_VIEW_BASIC).String())
	var after pageToken
	if err := after.open(request.PageToken, asked); err != nil {
		return nil, err
	}
	view, err := s.view()
	if err != nil {
		return nil, err
	}
	var rest []*drift.Container
	for i := range view.Report.Containers {
		c := &view.Report.Containers[i]
		if c.ID > after.ID || c.ID == after.ID && after.Within != nil {
			rest = append(rest, c)
		}
	}
	slices.SortFunc(rest, func(a, b *drift.Container) int { return strings.Compare(a.ID, b.ID) })

	page, judge, last := parts{view: request.View}, filter.judgeContainers(&view.Report), after
	response := &v1.ListContainersResponse{Position: ToProtoPosition(view.Position)}
	if after.Within != nil && (len(rest) == 0 || rest[0].ID != after.ID) {
		page.list = append(page.list, &v1.Container{Id: after.ID}) // it is gone, and nothing more of it follows
	}
	for _, c := range rest {
		if ctx.Err() != nil {
			return nil, status.FromContextError(ctx.Err()).Err()
		}
		var place *within
		if c.ID == after.ID { // it was judged before
			place = after.Within
		} else {
			taken, undecided, err := judge(c)
			if err != nil {
				return nil, err
			}
			if !taken {
				last = pageToken{ID: c.ID}
				continue
			}
			page.undecided = undecided
		}
		begun := len(page.list)
		if begun == size {
			response.NextPageToken = last.sealed(asked)
			break
		}
		if place = page.addFrom(*c, place); place == nil {
			last = pageToken{ID: c.ID}
			continue
		}
		if len(page.list) > begun { // a part of it is in
			last = pageToken{ID: c.ID, Within: place}
		}
		response.NextPageToken = last.sealed(asked)
		break
	}
	response.Containers = page.flush()
	return response, nil
}

// addFrom adds a container from the place on, which is nil for its begin, in an
// order that stays when its processes change. It returns where to go on, nil when
// all of it is in.
func (p *parts) addFrom(c drift.Container, place *within) *within {
	if p.view == v1.ContainerView_CONTAINER_VIEW_FULL {
		c.Processes = slices.SortedFunc(slices.Values(c.Processes), func(a, b drift.Process) int {
			return cmp.Or(cmp.Compare(a.PID, b.PID), cmp.Compare(a.StartTime, b.StartTime))
		})
	}
	next, done := p.add(c, place.in(c.Processes))
	if done {
		return nil
	}
	if next.process == len(c.Processes) {
		return &within{}
	}
	process := c.Processes[next.process]
	place = &within{PID: process.PID, Start: process.StartTime}
	if next.thread > 0 {
		place.TID = process.Threads[next.thread-1].TID
	}
	return place
}

// in finds the place among processes in order. What was there may have ended.
func (w *within) in(processes []drift.Process) cursor {
	if w == nil {
		return cursor{}
	}
	at, found := slices.BinarySearchFunc(processes, w, func(p drift.Process, w *within) int {
		return cmp.Or(cmp.Compare(p.PID, w.PID), cmp.Compare(p.StartTime, w.Start))
	})
	if !found || w.TID == 0 {
		return cursor{process: at}
	}
	threads := processes[at].Threads
	next := slices.IndexFunc(threads, func(t drift.Thread) bool { return t.TID > w.TID })
	if next < 0 {
		return cursor{process: at + 1}
	}
	return cursor{process: at, thread: next}
}

// GetContainer implements [v1.AgentServiceServer].
func (s *Service) GetContainer(_ context.Context, request *v1.GetContainerRequest) (*v1.GetContainerResponse, error) {
	asked := question("container", request.Id)
	var after pageToken
	if err := after.open(request.PageToken, asked); err != nil {
		return nil, err
	}
	view, err := s.view()
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(view.Report.Containers, func(c drift.Container) bool { return c.ID == request.Id })
	if at < 0 {
		return nil, status.Errorf(codes.NotFound, "the node has no container of id %.128q; ids are given in full", text(request.Id))
	}
	part := parts{view: v1.ContainerView_CONTAINER_VIEW_FULL}
	response := &v1.GetContainerResponse{Position: ToProtoPosition(view.Position)}
	if place := part.addFrom(view.Report.Containers[at], after.Within); place != nil {
		response.NextPageToken = pageToken{ID: request.Id, Within: place}.sealed(asked)
	}
	response.Container = part.list[0]
	return response, nil
}

// ListFindings implements [v1.AgentServiceServer].
func (s *Service) ListFindings(ctx context.Context, request *v1.ListFindingsRequest) (*v1.ListFindingsResponse, error) {
	size, err := pageSize(request.PageSize)
	if err != nil {
		return nil, err
	}
	filter, err := s.choose("filter", request.Filter)
	if err != nil {
		return nil, err
	}
	asked := question("findings", request.Filter)
	var after pageToken
	if err := after.open(request.PageToken, asked); err != nil {
		return nil, err
	}
	view, err := s.view()
	if err != nil {
		return nil, err
	}
	order := func(a, b *drift.Finding) int {
		return cmp.Or(cmp.Compare(b.Severity, a.Severity), strings.Compare(a.ID, b.ID))
	}
	before := &drift.Finding{ID: after.ID, Severity: drift.Severity(after.Severity)}
	var rest []*drift.Finding
	for i := range view.Report.Findings {
		if f := &view.Report.Findings[i]; request.PageToken == "" || order(f, before) > 0 {
			rest = append(rest, f)
		}
	}
	slices.SortFunc(rest, order)

	judge, last, bytes := filter.judgeFindings(&view.Report), after, 0
	response := &v1.ListFindingsResponse{Position: ToProtoPosition(view.Position)}
	for _, f := range rest {
		if ctx.Err() != nil {
			return nil, status.FromContextError(ctx.Err()).Err()
		}
		taken, undecided, err := judge(f)
		if err != nil {
			return nil, err
		}
		if taken {
			finding := ToProtoFinding(*f)
			finding.Undecided = undecided
			bytes += proto.Size(finding) + framing
			if n := len(response.Findings); n == size || n > 0 && bytes > aMessage {
				response.NextPageToken = last.sealed(asked)
				break
			}
			response.Findings = append(response.Findings, finding)
		}
		last = pageToken{ID: f.ID, Severity: int(f.Severity)}
	}
	return response, nil
}
