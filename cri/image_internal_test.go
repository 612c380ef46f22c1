package cri

import (
	"strings"
	"testing"
)

// TestImagesByNameAndDigest: whatever a runtime tells, the name in full and the digest are taken
// from it.
func TestImagesByNameAndDigest(t *testing.T) {
	sum := "sha256:" + strings.Repeat("0a", 32)
	other := "sha256:" + strings.Repeat("0b", 32)
	for what, row := range map[string]struct {
		status, listed image
		want           string
	}{
		"CRI-O, which lists a bare id":                              {image{name: "quay.test/app:2", ref: "quay.test/app@" + sum}, image{name: other[7:], ref: other[7:]}, "quay.test/app:2@" + sum},
		"CRI-O, of an image without a tag":                          {image{name: other[7:], ref: "quay.test/app@" + sum}, image{name: other[7:]}, "quay.test/app@" + sum},
		"CRI-O, whose status is not known":                          {image{}, image{name: other[7:], ref: other[7:]}, other[7:]},
		"CRI-O, listed alone and with its digest":                   {image{}, image{name: other[7:], ref: "quay.test/app@" + sum}, "quay.test/app@" + sum},
		"containerd, of which the kubelet tells what was asked for": {image{name: "docker.io/library/nginx:latest", ref: "docker.io/library/nginx@" + sum}, image{asked: "nginx:1.29", name: other}, "docker.io/library/nginx:1.29@" + sum},
		"containerd, of an image that was imported":                 {image{name: "registry.test/app:1", ref: other}, image{name: other, ref: other}, "registry.test/app:1"},
		"asked for by its digest":                                   {image{name: "registry.test/app:1", ref: "registry.test/app@" + other}, image{asked: "registry.test/app@" + sum}, "registry.test/app@" + sum},
		"cri-dockerd":                                               {image{name: "nginx:1", ref: "docker-pullable://nginx@" + sum}, image{name: "nginx:1", ref: "docker://" + other}, "docker.io/library/nginx:1@" + sum},
		"a user's on Docker's registry":                             {image{name: "somebody/app"}, image{}, "docker.io/somebody/app"},
		"a registry of one word with a port":                        {image{name: "hub:5000/app"}, image{}, "hub:5000/app"},
		"localhost":                                                 {image{name: "localhost/app"}, image{}, "localhost/app"},
		"nothing told":                                              {image{}, image{}, ""},
		"a digest that is none":                                     {image{name: "a.test/b", ref: "a.test/b@sha256:x"}, image{}, "a.test/b"},
		"a long name keeps its digest":                              {image{name: "a.test/" + strings.Repeat("b", 300), ref: "a.test/x@" + sum}, image{}, "a.test/" + strings.Repeat("b", 249) + "…@" + sum},
	} {
		if got := imageOf(row.status, row.listed); got != row.want {
			t.Errorf("%s: %q, want %q", what, got, row.want)
		}
	}
}
