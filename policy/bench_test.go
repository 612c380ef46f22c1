package policy

import (
	"fmt"
	"testing"
	"time"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

// largeNode has 200 containers with 5,000 processes, no two containers declared the
// same; every tenth is privileged, and every process of another one has credentials
// of its own.
func largeNode() drift.Report {
	report := drift.Report{Node: *node}
	for i := range 200 {
		c := drift.Container{
			ID: fmt.Sprintf("%064x", i), Name: fmt.Sprintf("app-%d", i), Image: "registry.example/app:1", Managed: new(true), Observation: drift.Observed,
			Pod: &drift.Pod{Namespace: "shop", Name: fmt.Sprintf("web-%d", i), UID: fmt.Sprint(i)},
			Declared: drift.Declared{
				Pod: &drift.PodSecurity{Role: drift.RoleContainer, Add: []string{"NET_ADMIN", fmt.Sprintf("X%d", i)}, Drop: []string{"ALL"}, RunAsUser: new(int64(i)), Privileged: i%10 == 0, PodFields: &drift.PodFields{
					VolumeTypes: []string{"configMap", "hostPath"}, Sysctls: []string{"net.ipv4.tcp_rmem"}, HostPorts: []int64{80}, HostNetwork: i%10 == 0,
				}},
				CRI: &drift.CRI{Add: []string{"NET_ADMIN"}, Drop: []string{"ALL"}, RunAsUser: new(int64(i))},
				OCI: &drift.OCI{Sets: all(defaults), UID: uint32(i)},
			},
		}
		for p := range 25 {
			held := defaults
			if i%10 == 0 {
				held = capdecode.Full(40)
			}
			one := drift.Process{
				PID: 1000*i + p, Name: "worker", UID: uint32(p % 2), ContainerUID: new(uint32(p % 2)), NoNewPrivileges: new(p%3 == 0), Seccomp: new(2),
				Caps: all(held), Observation: drift.Observed, UserNamespace: drift.UserNamespace{Relation: drift.RelationSame}, ThreadCount: 1,
			}
			if i%10 == 1 {
				one.UID = uint32(p)
			}
			c.Processes = append(c.Processes, one)
		}
		report.Containers = append(report.Containers, c)
		report.Findings = append(report.Findings, drift.Finding{ID: fmt.Sprint(i), Kind: drift.BoundingExcess, Severity: drift.Critical, ContainerID: c.ID, Capabilities: set("NET_ADMIN")})
	}
	return report
}

// BenchmarkJudge is all packs, and exceptions, over a large node.
func BenchmarkJudge(b *testing.B) {
	report := largeNode()
	var exceptions []Exception
	for i := range 20 {
		text := fmt.Sprintf("exceptions:\n- {id: e-%d, containers: 'name.startsWith(\"app-%d\")', rules: [pss-baseline-privileged], capabilities: [ALL], owner: a, reason: b, expires: 2100-01-01}", i, i)
		list, err := LoadExceptions("exceptions.yaml", []byte(text))
		if err != nil {
			b.Fatal(err)
		}
		exceptions = append(exceptions, list...)
	}
	p, err := Compile(Embedded(), exceptions)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if j := p.Judge(report, time.Time{}); len(j.Results) != 200*len(p.Rules()) {
			b.Fatal(len(j.Results))
		}
	}
}

// BenchmarkLoadPacks is what it takes to have all packs ready, the language made
// before.
func BenchmarkLoadPacks(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		packs := loadEmbedded()
		if _, err := Compile(packs, nil); err != nil {
			b.Fatal(err)
		}
	}
}
