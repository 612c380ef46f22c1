package rpc

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/policy"
)

// domain is whose reasons the details of errors name.
const domain = "capdrift"

// chooser is one filter of a call; without one it takes everything.
type chooser struct{ filter *policy.Filter }

// choose compiles the filter in a field of the request. foreign are variables that
// mean nothing to what it is to choose from.
func choose(field, expression string, foreign ...string) (chooser, error) {
	if expression == "" {
		return chooser{}, nil
	}
	filter, err := policy.CompileFilter(expression)
	if err != nil {
		return chooser{}, wrongFilter(field, err)
	}
	for _, variable := range foreign {
		if filter.Reads(variable) {
			return chooser{}, wrongFilter(field, fmt.Errorf("it chooses containers, which know no %s; ask for findings, or use processes.exists(…)", variable))
		}
	}
	return chooser{filter}, nil
}

func chooseContainers(field, expression string) (chooser, error) {
	return choose(field, expression, "finding", "process")
}

// wrongFilter names the field and the place in it.
func wrongFilter(field string, err error) error {
	metadata := map[string]string{"field": field}
	var wrong *policy.FilterError
	if errors.As(err, &wrong) {
		metadata["line"], metadata["column"] = strconv.Itoa(wrong.Line), strconv.Itoa(wrong.Column)
	}
	why := text(err.Error())
	return detailed(codes.InvalidArgument, field+": "+why,
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: field, Description: why, Reason: "FILTER_INVALID"}}},
		&errdetails.ErrorInfo{Reason: "FILTER_INVALID", Domain: domain, Metadata: metadata})
}

// takes judges one subject. What it cannot judge, for whatever reason, is taken,
// and undecided says why: nothing on the node can end a call by what it is.
func (c chooser) takes(subject policy.Subject) (taken bool, undecided string) {
	if c.filter == nil {
		return true, ""
	}
	taken, err := c.filter.Match(subject)
	if err != nil {
		return true, text(err.Error())
	}
	return taken, ""
}

// takesContainer judges a container of the node.
func (c chooser) takesContainer(node *drift.Node, container *drift.Container) (taken bool, undecided string) {
	return c.takes(policy.Subject{Node: node, Container: container})
}

// takesFinding judges a finding with its container, if that is there.
func (c chooser) takesFinding(node *drift.Node, container *drift.Container, finding *drift.Finding) (taken bool, undecided string) {
	subject := policy.Subject{Node: node, Container: container, Finding: finding}
	if container != nil && finding.PID != 0 {
		at := slices.IndexFunc(container.Processes, func(p drift.Process) bool { return p.PID == finding.PID })
		if at >= 0 {
			subject.Process = &container.Processes[at]
		}
	}
	return c.takes(subject)
}

// judgeContainers judges containers of a report.
func (c chooser) judgeContainers(report *drift.Report) func(*drift.Container) (bool, string) {
	return func(container *drift.Container) (bool, string) { return c.takesContainer(&report.Node, container) }
}

// judgeFindings judges findings of a report.
func (c chooser) judgeFindings(report *drift.Report) func(*drift.Finding) (bool, string) {
	containers := make(map[string]*drift.Container)
	if c.filter != nil {
		for i := range report.Containers {
			containers[report.Containers[i].ID] = &report.Containers[i]
		}
	}
	return func(f *drift.Finding) (bool, string) {
		return c.takesFinding(&report.Node, containers[f.ContainerID], f)
	}
}

// detailed is a status with details.
func detailed(code codes.Code, message string, details ...protoadapt.MessageV1) error {
	s := status.New(code, message)
	if with, err := s.WithDetails(details...); err == nil {
		s = with
	}
	return s.Err()
}
