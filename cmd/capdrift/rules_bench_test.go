package main

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/policy"
)

// crowd is a node of 200 containers and 5,000 processes that is looked at for nothing: what
// is left is what the loop makes of it.
type crowd struct {
	containers []drift.Container
	moved      bool // one process of one container is another at each look
	looks      int
}

func newCrowd() *crowd {
	crowd := &crowd{}
	for i := range 200 {
		c := drift.Container{
			ID: fmt.Sprintf("%064x", i), Name: fmt.Sprintf("app-%d", i), Image: "registry.example/app:1", Managed: new(true), Observation: drift.Observed,
			Pod: &drift.Pod{Namespace: "shop", Name: fmt.Sprintf("web-%d", i)}, InitPID: 1000 * (i + 1),
			Declared: drift.Declared{
				CRI: &drift.CRI{Drop: []string{"ALL"}, NoNewPrivileges: true, RunAsUser: new(int64(1000))},
				OCI: &drift.OCI{UID: 1000, NoNewPrivileges: true, Sets: capdecode.Sets{Bounding: bind}},
			},
		}
		for p := range 25 {
			c.Processes = append(c.Processes, drift.Process{
				PID: 1000*(i+1) + p, StartTime: 7, ParentPID: 1, Name: "worker", UID: 1000, ContainerUID: new(uint32(1000)), NoNewPrivileges: new(true), Seccomp: new(2),
				Caps: capdecode.Sets{Bounding: bind}, Observation: drift.Observed, ThreadCount: 1, Age: time.Hour,
				UserNamespace: drift.UserNamespace{UIDMap: []drift.IDRange{{Length: 1<<32 - 1}}},
			})
		}
		crowd.containers = append(crowd.containers, c)
	}
	return crowd
}

func (c *crowd) Node() (drift.Node, []drift.Limit, error) {
	return drift.Node{BootID: "boot", CapLastCap: 40, UserNamespace: drift.UserNamespace{UIDMap: []drift.IDRange{{Length: 1<<32 - 1}}}}, nil, nil
}

func (c *crowd) Process(int) (drift.Process, error) { return drift.Process{}, fmt.Errorf("not read") }

func (c *crowd) Sweep(_ context.Context, given []drift.Container) (drift.Sweep, error) {
	c.looks++
	for i := range given {
		given[i].Processes = append([]drift.Process(nil), c.containers[i].Processes...)
		for p := range given[i].Processes {
			given[i].Processes[p].Age += time.Duration(c.looks) * time.Second
		}
	}
	if c.moved {
		last := &given[0].Processes[24]
		last.PID, last.StartTime = last.PID+c.looks%100, uint64(c.looks)
	}
	return drift.Sweep{Containers: given}, nil
}

func (c *crowd) Inventory(context.Context) (drift.Inventory, error) {
	return drift.Inventory{Runtime: drift.Runtime{Name: "containerd"}, Containers: c.containers}, nil
}

func (c *crowd) Follow([]drift.Container) []drift.Limit                       { return nil }
func (c *crowd) Attend(string)                                                {}
func (c *crowd) Changes(context.Context) ([]drift.MembershipChange, error)    { return nil, nil }
func (c *crowd) Read(context.Context, string, []int) ([]drift.Process, error) { return nil, nil }

// BenchmarkRules is what the loop makes of a sweep of 200 containers and 5,000 processes:
// without a policy, and with all packs when nothing changed, when one container did, and when
// all are judged anew.
func BenchmarkRules(b *testing.B) {
	compiled, err := policy.Compile(policy.Embedded(), nil)
	if err != nil {
		b.Fatal(err)
	}
	for _, row := range []struct {
		name   string
		policy agent.Policy
		moved  bool
		anew   bool
	}{{"none", nil, false, false}, {"quiet", ruling{compiled}, false, false}, {"one-changed", ruling{compiled}, true, false}, {"all-changed", ruling{compiled}, false, true}} {
		b.Run(row.name, func(b *testing.B) {
			node := newCrowd()
			node.moved = row.moved
			cadence := agent.DefaultCadence()
			cadence.Membership, cadence.Sweep, cadence.List, cadence.Confirm = time.Hour, time.Hour, time.Hour, time.Millisecond
			loop := agent.NewLoop(agent.Loop{
				Host: node, Members: node, Runtime: node, Policy: agent.PolicyUpdate{Policy: row.policy}, Cadence: cadence, Epoch: "e", BootID: "boot", Now: time.Now, After: time.After,
			})
			ctx, cancel := context.WithCancel(b.Context())
			ended := make(chan error, 1)
			go func() { ended <- loop.Run(ctx) }()
			for range 3 { // two to agree, and then there is nothing new
				if _, err := loop.Scan(ctx); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				if row.anew {
					if err := loop.Enforce(ctx, agent.PolicyUpdate{Policy: row.policy}); err != nil {
						b.Fatal(err)
					}
				}
				view, err := loop.Scan(ctx)
				if err != nil || len(view.Report.Containers) != 200 || row.policy != nil && view.Policy.Pending > 0 {
					b.Fatal(err, view.Policy)
				}
			}
			b.StopTimer()
			cancel()
			if err := <-ended; err != nil {
				b.Fatal(err)
			}
		})
	}
}
