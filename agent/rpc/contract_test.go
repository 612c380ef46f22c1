package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/agent/rpc"
	v1 "github.com/capdrift/capdrift/api/capdrift/v1"
	"github.com/capdrift/capdrift/drift"
)

// contract is what any client may rely on; it uses nothing but the wire.
func contract(t *testing.T, conn *grpc.ClientConn, local bool) {
	client, ctx := v1.NewAgentServiceClient(conn), soon(t)

	node, err := client.GetNode(ctx, &v1.GetNodeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if node.Agent.Version != "v1.2.3" || node.Look.Node.Name == "" || node.Position.Sequence != 1 || len(node.Components) != 2 ||
		node.Components[0].Name != "journal" || node.Components[0].Ok || node.Components[0].Why == "" || len(node.Findings) != 5 {
		t.Errorf("node: %v", node)
	}
	counted, accepted := uint32(0), uint32(0)
	for _, one := range node.Findings {
		counted, accepted = counted+one.Count, accepted+one.Accepted
	}
	if p := node.Policy; p == nil || strings.Join(p.Packs, " ") != "cis own" || p.Rules != 9 || p.LoadedAt == nil || p.Pending != 1 || p.Unknown != 3 ||
		len(p.Exceptions) != 1 || p.Exceptions[0].Id != "debugging" || p.Exceptions[0].State != "expired" || p.Exceptions[0].Expires == nil || p.Exceptions[0].Findings != 2 {
		t.Errorf("policy: %v", p)
	}

	var ids []string
	for request := (&v1.ListContainersRequest{PageSize: 3}); ; {
		page, err := client.ListContainers(ctx, request)
		if err != nil {
			t.Fatal(err)
		}
		if len(page.Containers) > 3 {
			t.Errorf("%d containers in a page of 3", len(page.Containers))
		}
		for _, c := range page.Containers {
			ids = append(ids, c.Id)
			if len(c.Processes) != 0 || c.More {
				t.Errorf("%s came with processes, which nobody asked for", c.Id)
			}
		}
		if request.PageToken = page.NextPageToken; request.PageToken == "" {
			break
		}
	}
	if strings.Join(ids, " ") != "0000 0001 0002 0003 0004 0005 0006" {
		t.Errorf("the pages have %q", ids)
	}

	one, err := client.GetContainer(ctx, &v1.GetContainerRequest{Id: "0003"})
	if err != nil || one.Container.Id != "0003" || int(one.Container.ProcessCount) != len(one.Container.Processes) || one.NextPageToken != "" {
		t.Errorf("container: %v, %v", one, err)
	}
	filtered, err := client.ListContainers(ctx, &v1.ListContainersRequest{Filter: `id == "0002"`, View: v1.ContainerView_CONTAINER_VIEW_FULL})
	if err != nil || len(filtered.Containers) != 1 || filtered.Containers[0].Id != "0002" || filtered.NextPageToken != "" || filtered.Containers[0].Undecided != "" {
		t.Errorf("the filter takes %v, %v", filtered, err)
	}

	worst := v1.Severity_SEVERITY_CRITICAL
	found, excepted := map[string]bool{}, uint32(0)
	for request := (&v1.ListFindingsRequest{PageSize: 2}); ; {
		page, err := client.ListFindings(ctx, request)
		if err != nil {
			t.Fatal(err)
		}
		for _, finding := range page.Findings {
			if finding.Severity > worst || found[finding.Id] {
				t.Errorf("%s came out of order or twice", finding.Id)
			}
			worst, found[finding.Id] = finding.Severity, true
			if finding.Exception != "" {
				excepted++
			}
		}
		if request.PageToken = page.NextPageToken; request.PageToken == "" {
			break
		}
	}
	if len(found) != 9 {
		t.Errorf("the pages have %d findings of 9", len(found))
	}
	if accepted != excepted || counted+accepted != 9 || accepted == 0 || counted == 0 {
		t.Errorf("of 9 findings %d are accepted and %d not, by the node; by the findings %d are", accepted, counted, excepted)
	}
	rules, err := client.ListFindings(ctx, &v1.ListFindingsRequest{Filter: `has(finding.exception) && has(finding.rule) == (finding.rule != "")`})
	if err != nil || len(rules.Findings) != int(excepted) {
		t.Errorf("the filter takes %d findings, %v", len(rules.GetFindings()), err)
	}

	scan, err := client.Scan(ctx, &v1.ScanRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if report, err := rpc.ReadScan(scan); err != nil || len(report.Containers) != 7 || len(report.Findings) != 9 {
		t.Errorf("the scan has %d containers, %d findings, %v", len(report.Containers), len(report.Findings), err)
	}

	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	watch, err := client.Watch(watching, &v1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	list := messages(t, watch, func(m *v1.WatchResponse) bool { return m.GetNodeStatus() != nil })
	if got := kinds(list); got != "begin containers findings end status" {
		t.Errorf("a watch begins with %s", got)
	}

	health := grpc_health_v1.NewHealthClient(conn)
	for name, want := range map[string]grpc_health_v1.HealthCheckResponse_ServingStatus{
		"": grpc_health_v1.HealthCheckResponse_SERVING, "liveness": grpc_health_v1.HealthCheckResponse_SERVING,
		"readiness": grpc_health_v1.HealthCheckResponse_SERVING, "capdrift.v1.AgentService": grpc_health_v1.HealthCheckResponse_SERVING,
		"component.runtime": grpc_health_v1.HealthCheckResponse_SERVING, "component.journal": grpc_health_v1.HealthCheckResponse_NOT_SERVING,
	} {
		if response, err := health.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: name}); err != nil || response.Status != want {
			t.Errorf("health of %q: %v, %v", name, response, err)
		}
	}
	if _, err := health.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: "component.nothing"}); status.Code(err) != codes.NotFound {
		t.Errorf("health of a component that is not there: %v", err)
	}
	if all, err := health.List(ctx, &grpc_health_v1.HealthListRequest{}); err != nil || len(all.Statuses) != 6 {
		t.Errorf("health of all: %v, %v", all, err)
	}
	healthWatch, err := health.Watch(watching, &grpc_health_v1.HealthCheckRequest{Service: "readiness"})
	if err != nil {
		t.Fatal(err)
	}
	if first, err := healthWatch.Recv(); err != nil || first.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("watched health: %v, %v", first, err)
	}

	reflection, err := grpc_reflection_v1.NewServerReflectionClient(conn).ServerReflectionInfo(watching)
	if err != nil {
		t.Fatal(err)
	}
	_ = reflection.Send(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}})
	if _, err := reflection.Recv(); (err == nil) != local || !local && status.Code(err) != codes.Unimplemented {
		t.Errorf("reflection: %v", err)
	}
}

// kinds names messages in a row.
func kinds(list []*v1.WatchResponse) string {
	var names []string
	for _, message := range list {
		switch event := message.Event.(type) {
		case *v1.WatchResponse_SnapshotBegin:
			names = append(names, "begin")
		case *v1.WatchResponse_SnapshotEnd:
			names = append(names, "end")
		case *v1.WatchResponse_Containers:
			names = append(names, "containers")
		case *v1.WatchResponse_Findings:
			names = append(names, "findings")
		case *v1.WatchResponse_NodeStatus:
			names = append(names, "status")
		case *v1.WatchResponse_Lost:
			names = append(names, event.Lost.Reason.String())
		case *v1.WatchResponse_Heartbeat:
			names = append(names, "heartbeat")
		case *v1.WatchResponse_Container:
			names = append(names, strings.TrimPrefix(event.Container.Kind.String(), "KIND_")+":"+event.Container.Container.Id)
		case *v1.WatchResponse_Finding:
			names = append(names, strings.TrimPrefix(event.Finding.Kind.String(), "KIND_")+":"+event.Finding.Finding.Id)
		}
	}
	return strings.Join(names, " ")
}

// served is a feed with something in it, and the options to serve it.
func served() (*feed, rpc.Options) {
	f := newFeed()
	f.publish(steady().report(7, 9), agent.Change{Kind: agent.StatusChanged, Coverage: &drift.Coverage{}})
	return f, rpc.Options{
		Identity: rpc.Identity{Version: "v1.2.3", Started: time.Unix(1_700_000_000, 0), NodeName: "node"},
		Scanner: scanner(func(context.Context) (agent.View, error) {
			view, _ := f.View()
			return view, nil
		}),
	}
}

func TestContractOverUnixSocket(t *testing.T) {
	f, options := served()
	contract(t, onSocket(t, f, options), true)
}

func TestRefusals(t *testing.T) {
	f, options := served()
	client := v1.NewAgentServiceClient(onSocket(t, f, options))
	ctx := soon(t)
	page, err := client.ListContainers(ctx, &v1.ListContainersRequest{PageSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	containers := func(request *v1.ListContainersRequest) error {
		_, err := client.ListContainers(ctx, request)
		return err
	}
	for name, row := range map[string]struct {
		err  error
		code codes.Code
		says string
	}{
		"a token for another filter":    {containers(&v1.ListContainersRequest{PageToken: page.NextPageToken, Filter: "sandbox"}), codes.InvalidArgument, "another request"},
		"a token for another view":      {containers(&v1.ListContainersRequest{PageToken: page.NextPageToken, View: v1.ContainerView_CONTAINER_VIEW_FULL}), codes.InvalidArgument, "another request"},
		"a token that is none":          {containers(&v1.ListContainersRequest{PageToken: "!"}), codes.InvalidArgument, "page_token"},
		"a token without end":           {containers(&v1.ListContainersRequest{PageToken: strings.Repeat("A", 5000)}), codes.InvalidArgument, "page_token"},
		"a negative page":               {containers(&v1.ListContainersRequest{PageSize: -1}), codes.InvalidArgument, "page_size"},
		"an unknown view":               {containers(&v1.ListContainersRequest{View: 9}), codes.InvalidArgument, "view"},
		"a filter over other things":    {containers(&v1.ListContainersRequest{Filter: `finding.kind == "x"`}), codes.InvalidArgument, "finding"},
		"a filter that is too long":     {containers(&v1.ListContainersRequest{Filter: strings.Repeat("a", 5000)}), codes.InvalidArgument, "4096"},
		"a request that is too large":   {containers(&v1.ListContainersRequest{Filter: strings.Repeat("a", 2<<20)}), codes.ResourceExhausted, "larger than max"},
		"the same token, the same view": {containers(&v1.ListContainersRequest{PageToken: page.NextPageToken, View: v1.ContainerView_CONTAINER_VIEW_BASIC}), codes.OK, ""},
	} {
		if status.Code(row.err) != row.code || row.err != nil && !strings.Contains(row.err.Error(), row.says) {
			t.Errorf("%s: %v", name, row.err)
		}
	}
	if _, err := client.GetContainer(ctx, &v1.GetContainerRequest{Id: "000"}); status.Code(err) != codes.NotFound {
		t.Errorf("a container by a part of its id: %v", err)
	}
	for name, request := range map[string]*v1.WatchRequest{
		"no token":   {After: "x"},
		"a topic":    {Topics: []v1.WatchTopic{7}},
		"no topic":   {Topics: []v1.WatchTopic{0}},
		"its view":   {View: -1},
		"a filter":   {ContainerFilter: "("},
		"the other":  {FindingFilter: "("},
		"page token": {After: page.NextPageToken},
	} {
		stream, err := client.Watch(ctx, request)
		if err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("a watch with a wrong %s: %v", name, err)
		}
	}
}

func TestAWrongFilterIsShownItsPlace(t *testing.T) {
	f, options := served()
	client := v1.NewAgentServiceClient(onSocket(t, f, options))
	_, err := client.ListFindings(soon(t), &v1.ListFindingsRequest{Filter: `finding.kind == "x" && finding.sevrity == "high"`})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "sevrity") {
		t.Fatal(err)
	}
	column, field := "", ""
	for _, detail := range status.Convert(err).Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.Reason == "FILTER_INVALID" {
				column = detail.Metadata["column"]
			}
		case *errdetails.BadRequest:
			field = detail.FieldViolations[0].Field
		}
	}
	if column != fmt.Sprint(strings.Index(`finding.kind == "x" && finding.sevrity`, "sevrity")+1) || field != "filter" {
		t.Errorf("column %q of field %q", column, field)
	}
}

// TestUnknownIsToldAndMarked: what a filter cannot judge is not left out.
func TestUnknownIsToldAndMarked(t *testing.T) {
	f, options := served()
	report := steady().report(2, 0)
	report.Containers[0].Pod, report.Containers[1].Pod = nil, &drift.Pod{Namespace: "web", Name: "a", UID: "u"}
	f.publish(report)
	page, err := v1.NewAgentServiceClient(onSocket(t, f, options)).ListContainers(soon(t), &v1.ListContainersRequest{Filter: `pod.namespace == "db"`})
	if err != nil || len(page.Containers) != 1 || page.Containers[0].Id != "0000" || page.Containers[0].Undecided == "" {
		t.Errorf("%v, %v", page, err)
	}
}

func TestBeforeTheFirstLook(t *testing.T) {
	f, options := served()
	f.view = nil
	conn := onSocket(t, f, options)
	client, ctx := v1.NewAgentServiceClient(conn), soon(t)
	if node, err := client.GetNode(ctx, &v1.GetNodeRequest{}); err != nil || node.Look != nil || node.Position != nil || node.Agent.NodeName != "node" {
		t.Errorf("%v, %v", node, err)
	}
	if _, err := client.ListContainers(ctx, &v1.ListContainersRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("containers: %v", err)
	}
	stream, err := client.Watch(ctx, &v1.WatchRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Unavailable {
		t.Errorf("watch: %v", err)
	}
	response, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: rpc.HealthReadiness})
	if err != nil || response.Status != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("readiness: %v, %v", response, err)
	}
}

// TestPagesFollowTheirIDs: what was there all the time comes once, whatever else
// comes and goes between two pages.
func TestPagesFollowTheirIDs(t *testing.T) {
	f, options := served()
	client, ctx := v1.NewAgentServiceClient(onSocket(t, f, options)), soon(t)
	g := steady()
	report := func(ids ...string) drift.Report {
		r := g.report(0, 0)
		for _, id := range ids {
			r.Containers = append(r.Containers, g.container(id, 0))
		}
		return r
	}
	f.publish(report("d", "b", "f", "h"))
	first, err := client.ListContainers(ctx, &v1.ListContainersRequest{PageSize: 2})
	if err != nil {
		t.Fatal(err)
	}
	f.publish(report("h", "a", "e", "f"), agent.Change{Kind: agent.StatusChanged})
	second, err := client.ListContainers(ctx, &v1.ListContainersRequest{PageSize: 5, PageToken: first.NextPageToken})
	if err != nil {
		t.Fatal(err)
	}
	var ids string
	for _, c := range append(first.Containers, second.Containers...) {
		ids += c.Id
	}
	if ids != "bdefh" || second.NextPageToken != "" || first.Position.Sequence == second.Position.Sequence {
		t.Errorf("%s, then %q", ids, second.NextPageToken)
	}
}

func TestOneLookAtATime(t *testing.T) {
	f, options := served()
	options.Limits.Scans = 2
	began, finish := make(chan struct{}), make(chan struct{})
	options.Scanner = scanner(func(ctx context.Context) (agent.View, error) {
		began <- struct{}{}
		select {
		case <-finish:
			return agent.View{}, errors.New("the runtime does not answer")
		case <-ctx.Done():
			return agent.View{}, ctx.Err()
		}
	})
	client, ctx := v1.NewAgentServiceClient(onSocket(t, f, options)), soon(t)
	results := make(chan error, 3)
	for range 3 {
		go func() {
			stream, err := client.Scan(ctx, &v1.ScanRequest{})
			if err == nil {
				_, err = stream.Recv()
			}
			results <- err
		}()
	}
	<-began
	if err := <-results; status.Code(err) != codes.ResourceExhausted {
		t.Errorf("the third: %v", err)
	}
	select {
	case <-began:
		t.Error("two look at once")
	default:
	}
	finish <- struct{}{}
	if err := <-results; status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("the first: %v", err)
	}
	<-began
	finish <- struct{}{}
	if err := <-results; status.Code(err) != codes.Unavailable {
		t.Errorf("the second: %v", err)
	}
}

func TestAPanicIsAnAnswer(t *testing.T) {
	f, options := served()
	options.Scanner = scanner(func(context.Context) (agent.View, error) { panic("a mistake") })
	client, ctx := v1.NewAgentServiceClient(onSocket(t, f, options)), soon(t)
	stream, err := client.Scan(ctx, &v1.ScanRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Internal {
		t.Errorf("%v", err)
	}
	if _, err := client.GetNode(ctx, &v1.GetNodeRequest{}); err != nil {
		t.Errorf("after it: %v", err)
	}
}

func FuzzPageToken(f *testing.F) {
	fed, options := served()
	service := rpc.NewService(fed, options)
	page, err := service.ListContainers(context.Background(), &v1.ListContainersRequest{PageSize: 1, View: v1.ContainerView_CONTAINER_VIEW_FULL})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(page.NextPageToken)
	f.Add("")
	f.Fuzz(func(t *testing.T, token string) {
		page, err := service.ListContainers(context.Background(), &v1.ListContainersRequest{PageToken: token, View: v1.ContainerView_CONTAINER_VIEW_FULL})
		if (page == nil) != (status.Code(err) == codes.InvalidArgument) {
			t.Errorf("%v, %v", page, err)
		}
	})
}
