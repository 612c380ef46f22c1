// Package kube knows where pod specs come from: manifests, the kubelet, the API
// server. It keeps of each pod what decides its containers' capabilities.
//
// Read it in this order: pod.go says what is kept of a pod; [ReadManifests]
// reads a stream as kubectl does; [Files], [Kubelet] and [APIServer] are the
// sources that a scan can be given, each with a method Pods.
//
// # Promises
//
// Everything read is bounded. The environment, arguments and commands of a pod's
// containers are kept by no source, and no error quotes a value: only kinds, names
// and the paths of fields. The one thing that is returned as it is, and may hold
// secrets, is [Manifest].Raw. Nothing is ever written, to a file or to
// Kubernetes. A source that cannot be asked now says so instead of repeating
// what it knew.
package kube

import "strings"

const (
	maxStream     = 32 << 20 // of manifests, or one document's file
	maxAnswer     = 64 << 20 // of a kubelet, or of an API server's list
	maxContainers = 1024     // of one pod; the API server takes as many as fit in 1.5 MiB
	maxNames      = 1024     // in one add or drop list, as cri keeps
)

// clip bounds a text that somebody else chose, as cri clips what it is compared with.
func clip(text string) string {
	const most = 256
	if len(text) > most {
		return strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}
