package main

import (
	"fmt"
	"slices"

	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/policy"
)

// namesOf are the names of the containers that are asked for, each once: what a name that
// matches nothing may have meant.
func namesOf(containers []drift.Container, name func(drift.Container) string) []string {
	var names []string
	for _, c := range containers {
		if one := name(c); one != "" {
			names = append(names, one)
		}
	}
	return once(names)
}

func once(names []string) []string {
	slices.Sort(names)
	return slices.Compact(names)
}

func namespaceOf(c drift.Container) string {
	if c.Pod == nil {
		return ""
	}
	return c.Pod.Namespace
}

// noNamespace is the error for a namespace that no container is in, nil where one is. known are
// those of the containers that were seen.
func noNamespace(namespace string, known []string, where string) error {
	if namespace == "" || slices.Contains(known, namespace) {
		return nil
	}
	return fmt.Errorf("no container %s is in a namespace %s%s", where, printable(namespace), nearest(namespace, known))
}

// nearest names what may have been meant, as the end of a sentence.
func nearest(written string, known []string) string {
	return printable(policy.DidYouMean(written, once(slices.Clone(known))))
}
