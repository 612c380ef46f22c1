package kube

import "strconv"

// nameAsKnative gives containers without a name the one that Knative gives them:
// its default, with a number where there are several.
// Source: knative/serving, pkg/apis/serving/v1/revision_defaults.go.
func (p *podSpec) nameAsKnative() {
	taken := make(map[string]bool)
	for _, part := range p.parts() {
		for _, c := range part.containers {
			taken[c.Name] = true
		}
	}
	name := func(list []container, first string) {
		next := 0
		for i := range list {
			if list[i].Name != "" {
				continue
			}
			list[i].Name = first
			if len(list) > 1 {
				list[i].Name = first + "-" + strconv.Itoa(next)
				next++
			}
			for taken[list[i].Name] {
				list[i].Name = first + "-" + strconv.Itoa(next)
				next++
			}
			taken[list[i].Name] = true
		}
	}
	name(p.InitContainers, "init-container")
	name(p.Containers, "user-container")
}
