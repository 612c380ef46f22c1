//go:build linux

package cluster

import (
	"fmt"
	"slices"
)

// pod is core/v1's Pod, as far as its progress shows.
type pod struct {
	Metadata struct{ Namespace, Name string }

	Spec struct {
		NodeName                                        string
		InitContainers, Containers, EphemeralContainers []container
	}
	Status struct {
		Phase, Reason, Message string

		InitContainerStatuses, ContainerStatuses, EphemeralContainerStatuses []containerStatus
	}
}

type container struct{ Name, RestartPolicy string }

type containerStatus struct {
	Name  string
	State struct {
		Waiting    *struct{ Reason, Message string }
		Running    *struct{}
		Terminated *struct {
			ExitCode        int
			Reason, Message string
		}
	}
}

// What a container is expected to do.
type goal int

const (
	toRun goal = iota
	toEnd
	toRunOrEnd
)

// running tells whether every container does what it is expected to; the error says
// which will not.
func (p pod) running() (bool, error) {
	if p.Status.Phase == "Failed" {
		return false, fmt.Errorf("the pod failed: %s: %s", p.Status.Reason, p.Status.Message)
	}
	all := true
	check := func(c container, g goal, statuses []containerStatus) error {
		i := slices.IndexFunc(statuses, func(s containerStatus) bool { return s.Name == c.Name })
		if i < 0 {
			all = false
			return nil
		}
		ok, err := statuses[i].reached(g)
		all = all && ok
		return err
	}
	for _, c := range p.Spec.InitContainers {
		g := toEnd
		if c.RestartPolicy == "Always" { // a sidecar
			g = toRun
		}
		if err := check(c, g, p.Status.InitContainerStatuses); err != nil {
			return false, err
		}
	}
	for _, c := range p.Spec.Containers {
		if err := check(c, toRun, p.Status.ContainerStatuses); err != nil {
			return false, err
		}
	}
	for _, c := range p.Spec.EphemeralContainers {
		if err := check(c, toRunOrEnd, p.Status.EphemeralContainerStatuses); err != nil {
			return false, err
		}
	}
	return all, nil
}

func (s containerStatus) reached(g goal) (bool, error) {
	switch state := s.State; {
	case state.Running != nil:
		return g != toEnd, nil
	case state.Terminated != nil:
		if g == toRun || state.Terminated.ExitCode != 0 {
			return false, fmt.Errorf("container %s ended with status %d: %s: %s",
				s.Name, state.Terminated.ExitCode, state.Terminated.Reason, state.Terminated.Message)
		}
		return true, nil
	case state.Waiting != nil:
		switch state.Waiting.Reason {
		case "", "ContainerCreating", "PodInitializing":
		default: // all the others are errors, which the kubelet would retry for ever
			return false, fmt.Errorf("container %s does not start: %s: %s", s.Name, state.Waiting.Reason, state.Waiting.Message)
		}
	}
	return false, nil
}
