package cri

import "strings"

// image is what a runtime tells of a container's image, in the list or in a status.
type image struct {
	asked string // as the pod's author wrote it; the kubelet tells it since Kubernetes 1.29
	name  string // one of its tags, or a bare id: CRI-O lists that alone
	ref   string // where it was pulled from, with its digest; containerd has a bare id where it was imported
}

// imageOf returns an image's name in full and, where it is known, its digest:
// "docker.io/library/nginx:1.29@sha256:…". It is a bare id where no name is known.
func imageOf(status, listed image) string {
	name, digest, id := "", "", ""
	for _, candidate := range []string{status.asked, listed.asked, status.name, listed.name} {
		if bare := bareID(candidate); bare && id == "" {
			id = candidate
		} else if !bare && name == "" {
			name = candidate
		}
	}
	for _, ref := range []string{status.ref, listed.ref} {
		from, sum, ok := strings.Cut(strings.TrimPrefix(ref, "docker-pullable://"), "@")
		switch {
		case bareID(ref) && id == "":
			id = ref
		case ok && bareID(sum) && digest == "":
			digest = sum
			if name == "" {
				name = from
			}
		case !ok && !bareID(ref) && name == "":
			name = ref
		}
	}
	if name == "" {
		return clip(id)
	}
	if name = clip(inFull(name)); digest != "" && !strings.Contains(name, "@") {
		name += "@" + digest
	}
	return name
}

// bareID reports whether a text is no name of an image: nothing, or a digest with or without
// its algorithm.
func bareID(text string) bool {
	sum := strings.TrimPrefix(text, "sha256:")
	return text == "" || len(sum) == 64 && strings.Trim(sum, "0123456789abcdef") == ""
}

// inFull returns a name with the registry that is left out in it, as Docker and the kubelet
// read it: the first part is one where it has a dot or a port, or is localhost
// (github.com/distribution/reference, splitDockerDomain).
func inFull(name string) string {
	registry, rest, ok := strings.Cut(name, "/")
	switch {
	case !ok:
		return "docker.io/library/" + name
	case strings.ContainsAny(registry, ".:") || registry == "localhost" || rest == "":
		return name
	}
	return "docker.io/" + name
}
