package rpc_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	"github.com/capdrift/capdrift/agent/rpc"
	v1 "github.com/capdrift/capdrift/api/capdrift/v1"
	"github.com/capdrift/capdrift/drift"
)

// toldTo is a watch's stream that ends once the watch has told what it begins with.
type toldTo struct {
	grpc.ServerStream
	ctx    context.Context
	cancel context.CancelFunc
	list   []*v1.WatchResponse
}

func (s *toldTo) Context() context.Context { return s.ctx }

func (s *toldTo) Send(m *v1.WatchResponse) error {
	if s.list = append(s.list, m); isStatus(m) {
		s.cancel()
	}
	return nil
}

// FuzzTokens: whatever is in a token, it is refused, or another place of the same
// answer.
func FuzzTokens(f *testing.F) {
	fed, options := served()
	report := steady().report(7, 9)
	report.Containers[0] = steady().container("0000", 3000) // comes in parts
	fed.publish(report)
	options.Limits.Heartbeat = time.Hour
	service, ctx := rpc.NewService(fed, options), context.Background()
	full := v1.ContainerView_CONTAINER_VIEW_FULL
	watch := func(token string) ([]*v1.WatchResponse, error) {
		stream := &toldTo{}
		stream.ctx, stream.cancel = context.WithCancel(ctx)
		defer stream.cancel()
		err := service.Watch(&v1.WatchRequest{After: token}, stream)
		for len(fed.ended) > 0 {
			<-fed.ended
		}
		return stream.list, err
	}

	containers, err := service.ListContainers(ctx, &v1.ListContainersRequest{PageSize: 1, View: full})
	if err != nil {
		f.Fatal(err)
	}
	one, err := service.GetContainer(ctx, &v1.GetContainerRequest{Id: "0000"})
	if err != nil {
		f.Fatal(err)
	}
	findings, err := service.ListFindings(ctx, &v1.ListFindingsRequest{PageSize: 1})
	if err != nil {
		f.Fatal(err)
	}
	told, _ := watch("")
	for _, token := range []string{containers.NextPageToken, one.NextPageToken, findings.NextPageToken, told[0].ResumeToken, told[len(told)-1].ResumeToken} {
		inside, err := base64.RawURLEncoding.DecodeString(token)
		if err != nil || len(inside) == 0 {
			f.Fatalf("%q: %v", token, err)
		}
		f.Add(inside)
	}
	f.Fuzz(func(t *testing.T, inside []byte) {
		token := base64.RawURLEncoding.EncodeToString(inside)
		right := func(call string, answered bool, err error) {
			if answered == (status.Code(err) == codes.InvalidArgument) {
				t.Errorf("%s: %v", call, err)
			}
		}
		containers, err := service.ListContainers(ctx, &v1.ListContainersRequest{PageToken: token, View: full})
		right("containers", containers != nil, err)
		one, err := service.GetContainer(ctx, &v1.GetContainerRequest{PageToken: token, Id: "0000"})
		right("container", one != nil, err)
		if one != nil && one.Container.Id != "0000" {
			t.Errorf("another container: %v", one)
		}
		findings, err := service.ListFindings(ctx, &v1.ListFindingsRequest{PageToken: token})
		right("findings", findings != nil, err)
		told, err := watch(token)
		right("watch", len(told) > 0, err)
	})
}

// comes is a scan's stream of what is given.
type comes struct {
	grpc.ClientStream
	list []*v1.ScanResponse
}

func (s *comes) Recv() (*v1.ScanResponse, error) {
	if len(s.list) == 0 {
		return nil, io.EOF
	}
	first := s.list[0]
	s.list = s.list[1:]
	return first, nil
}

// FuzzReadScan: whatever an agent sends, the client has a report that it can tell
// again, or an error.
func FuzzReadScan(f *testing.F) {
	// Small ones, which the fuzzer can take apart.
	look := rpc.ToProtoLook(drift.Report{Node: drift.Node{Name: "n"}, TakenAt: time.Unix(1, 0)})
	head := &v1.ScanResponse{Part: &v1.ScanResponse_Head{Head: look}}
	part := func(more bool) *v1.ScanResponse {
		c := rpc.ToProtoContainer(drift.Container{ID: "c", Observation: drift.Observed, Processes: []drift.Process{{PID: 1, Observation: drift.Observed}}})
		c.More = more
		return &v1.ScanResponse{Part: &v1.ScanResponse_Containers{Containers: &v1.SnapshotContainers{Containers: []*v1.Container{c}}}}
	}
	finding := &v1.ScanResponse{Part: &v1.ScanResponse_Findings{Findings: &v1.SnapshotFindings{Findings: []*v1.Finding{rpc.ToProtoFinding(drift.Finding{ID: "f", Severity: drift.High})}}}}
	end := func(containers, findings uint32) *v1.ScanResponse {
		return &v1.ScanResponse{Part: &v1.ScanResponse_End{End: &v1.SnapshotEnd{Containers: containers, Findings: findings}}}
	}
	for _, messages := range [][]*v1.ScanResponse{
		{head, end(0, 0)}, {head, part(false), finding, end(1, 1)}, {head, part(true), part(false), end(1, 0)}, {head, part(true), end(1, 0)},
		{end(0, 0)}, {head, head, end(0, 0), end(0, 0)}, {{}},
	} {
		var seed bytes.Buffer
		for _, message := range messages {
			if _, err := protodelim.MarshalTo(&seed, message); err != nil {
				f.Fatal(err)
			}
		}
		f.Add(seed.Bytes())
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		stream, reader, ended := &comes{}, bytes.NewReader(wire), (*v1.SnapshotEnd)(nil)
		for {
			message := &v1.ScanResponse{}
			if protodelim.UnmarshalFrom(reader, message) != nil {
				break
			}
			if ended == nil {
				ended = message.GetEnd()
			}
			stream.list = append(stream.list, message)
		}
		report, err := rpc.ReadScan(stream)
		if err != nil {
			return
		}
		if ended == nil || len(report.Containers) != int(ended.Containers) || len(report.Findings) != int(ended.Findings) || len(stream.list) != 0 {
			t.Errorf("%d containers and %d findings of %v", len(report.Containers), len(report.Findings), ended)
		}
		for _, c := range report.Containers {
			if _, err := proto.Marshal(rpc.ToProtoContainer(c)); err != nil {
				t.Error(err)
			}
		}
		for _, finding := range report.Findings {
			if _, err := proto.Marshal(rpc.ToProtoFinding(finding)); err != nil {
				t.Error(err)
			}
		}
	})
}
