package kube_test

import (
	"context"
	"strings"
	"testing"

	"github.com/capdrift/capdrift/kube"
	"github.com/capdrift/capdrift/kube/fake"
)

// TestServerVersion: an API server says its version, as its makers or a provider write it.
func TestServerVersion(t *testing.T) {
	for minor, want := range map[string]int{"34": 34, "31+": 31, "0": 0} {
		known := &fake.Cluster{Minor: minor}
		if got, err := kube.ServerVersion(context.Background(), kube.APIServerOptions{Kubeconfig: fake.Serve(t, known)}); err != nil || got != want {
			t.Errorf("%q is %d, %v, want %d", minor, got, err, want)
		}
	}
	for minor, want := range map[string]string{"": "asking the API server for its version", "x": "no number", "-1": "no number", "300": "no number"} {
		known := &fake.Cluster{Minor: minor}
		if got, err := kube.ServerVersion(context.Background(), kube.APIServerOptions{Kubeconfig: fake.Serve(t, known)}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is %d, %v, want an error: %s", minor, got, err, want)
		}
	}
}
