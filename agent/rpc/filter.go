package rpc

import (
	"errors"
	"fmt"
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
type chooser struct {
	filter *policy.Filter
	field  string // of the request
	steps  int    // that it may still take
	limit  int    // the steps to begin with
	// left is what it may still take for the changes of each container that has changed.
	left map[string]int
}

// choose compiles the filter in a field of the request. foreign are variables that
// mean nothing to what it is to choose from.
func (s *Service) choose(field, expression string, foreign ...string) (chooser, error) {
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
	return chooser{filter: filter, field: field, steps: s.options.Limits.Filter, limit: s.options.Limits.Filter}, nil
}

func (s *Service) chooseContainers(field, expression string) (chooser, error) {
	return s.choose(field, expression, "finding", "process")
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
// and undecided says why: nothing that is on the node can end a call by what it is.
// An error is that all of them together take too long.
func (c *chooser) takes(subject policy.Subject) (taken bool, undecided string, err error) {
	if c.filter == nil {
		return true, "", nil
	}
	taken, why := c.filter.MatchWithin(subject, &c.steps)
	switch {
	case c.steps < 0:
		return false, "", c.tooCostly()
	case why != nil:
		return true, text(why.Error()), nil
	}
	return taken, "", nil
}

// takesChange judges a subject that has changed, as takes does. What it takes is charged
// to the container that the change is about: one that changes often, or has very many
// processes, leaves no less to the others, and ends no watch.
func (c *chooser) takesChange(containerID string, subject policy.Subject) (taken bool, undecided string) {
	if c.filter == nil {
		return true, ""
	}
	steps, known := c.left[containerID]
	if !known {
		steps = c.limit
	}
	taken, why := c.filter.MatchWithin(subject, &steps)
	if c.left == nil {
		c.left = make(map[string]int)
	}
	c.left[containerID] = max(steps, 0)
	if why != nil {
		return true, text(why.Error())
	}
	return taken, ""
}

// renew gives every container's changes anew what they may take.
func (c *chooser) renew() { c.left = nil }

func (c *chooser) tooCostly() error {
	return detailed(codes.ResourceExhausted,
		c.field+": the expression takes too long on everything that this node has; let it loop over less, or begin it with what is quickly told: in a && b, b is not looked at where a is false",
		&errdetails.ErrorInfo{Reason: "FILTER_TOO_COSTLY", Domain: domain, Metadata: map[string]string{"field": c.field}})
}

// takesContainer judges a container of the report's node.
func (c *chooser) takesContainer(report *drift.Report, container *drift.Container) (taken bool, undecided string, err error) {
	return c.takes(policy.Subject{Node: &report.Node, Runtime: report.Runtime, Container: container})
}

// takesFinding judges a finding with its container and process, if they are there.
func (c *chooser) takesFinding(report *drift.Report, container *drift.Container, process *drift.Process, finding *drift.Finding) (taken bool, undecided string, err error) {
	return c.takes(policy.Subject{Node: &report.Node, Runtime: report.Runtime, Container: container, Process: process, Finding: finding})
}

// judgeContainers judges containers of a report.
func (c *chooser) judgeContainers(report *drift.Report) func(*drift.Container) (bool, string, error) {
	return func(container *drift.Container) (bool, string, error) {
		return c.takesContainer(report, container)
	}
}

// judgeFindings judges findings of a report.
func (c *chooser) judgeFindings(report *drift.Report) func(*drift.Finding) (bool, string, error) {
	type member struct {
		container string
		pid       int
	}
	containers, processes := make(map[string]*drift.Container), make(map[member]*drift.Process)
	for i := range report.Containers {
		if c.filter == nil {
			break
		}
		container := &report.Containers[i]
		containers[container.ID] = container
		for p := range container.Processes {
			if c.filter.Reads("process") {
				processes[member{container.ID, container.Processes[p].PID}] = &container.Processes[p]
			}
		}
	}
	return func(f *drift.Finding) (bool, string, error) {
		return c.takesFinding(report, containers[f.ContainerID], processes[member{f.ContainerID, f.PID}], f)
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
