package kube

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	kjson "sigs.k8s.io/json"
)

// Version asks which version of Kubernetes the API server is, and returns its minor
// number: 34 of v1.34.2. Every user who is known to the cluster may ask that.
func (c *Cluster) Version(ctx context.Context) (int, error) {
	return versionOf(ctx, c.client, c.timeout)
}

// ServerVersion does the same of the API server that the options name. They need not name
// a node.
func ServerVersion(ctx context.Context, o APIServerOptions) (int, error) {
	quiet()
	config, err := configuration(o)
	if err != nil {
		return 0, err
	}
	client, own, err := connect(config)
	if err != nil {
		return 0, err
	}
	defer utilnet.CloseIdleConnectionsFor(own.Transport)
	if o.Timeout <= 0 {
		o.Timeout = 10 * time.Second
	}
	return versionOf(ctx, client, o.Timeout)
}

func versionOf(ctx context.Context, client *rest.RESTClient, timeout time.Duration) (int, error) {
	timed, cancel := context.WithTimeout(klog.NewContext(ctx, klog.Logger{}), timeout)
	defer cancel()
	text, err := client.Get().AbsPath("/version").Do(timed).Raw()
	if err != nil {
		return 0, fmt.Errorf("asking the API server for its version: %w", err)
	}
	var answer struct {
		Major string `json:"major"`
		Minor string `json:"minor"` // "34", and "34+" of a provider's own build
	}
	if kjson.UnmarshalCaseSensitivePreserveInts(text, &answer) != nil || answer.Major != "1" {
		return 0, errors.New("what the API server answers about its version is not what Kubernetes answers")
	}
	minor, err := strconv.ParseUint(strings.TrimRight(answer.Minor, "+"), 10, 8)
	if err != nil {
		return 0, errors.New("the API server's version is no number")
	}
	return int(minor), nil
}
