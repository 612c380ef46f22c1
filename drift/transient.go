package drift

import (
	"fmt"

	"github.com/capdrift/capdrift/capdecode"
)

// Label names the container of a finding for people, as [Container.Label] does.
func (f Finding) Label() string {
	c := Container{ID: f.ContainerID, Name: f.Container, Pod: f.Pod}
	return c.Label()
}

// Transient returns the finding that a container shows, again and again and each time in
// one look only, what is a suspicion like the example. seen are the capabilities that the
// suspicions were about. It depends on no process and no count, so that it stays the same
// for as long as that goes on.
func Transient(example Finding, seen capdecode.Set) Finding {
	held := "what is not declared for it"
	if !seen.Empty() {
		held = list(seen) + " beyond what is declared for it"
	}
	return Finding{
		ID: findingID(example.ContainerID, string(TransientDrift)), Kind: TransientDrift, Severity: High, From: LayerOCI, Layer: LayerKernel,
		ContainerID: example.ContainerID, Container: example.Container, Pod: example.Pod, Capabilities: seen,
		Message: fmt.Sprintf("processes or threads of %s showed %s in more than one look, and each time had ended or given that up before a second look", example.Label(), held),
		Remedy: keepEvidence + "Then find what starts them: a process from the host (runc or crun exec --cap, nsenter), or a program that gains and gives up what it should not have. " +
			"Use the agent and not single scans: it looks several times a second.",
	}
}
