package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/kube"
	"github.com/capdrift/capdrift/proc"
)

// podOptions say where a look gets the pod specs from; without any the pod
// spec's layer stays unknown.
type podOptions struct {
	kubeconfig string
	context    string
	kubelet    string
	token      string
	authority  string
	insecure   bool
	files      []string
}

func (o *podOptions) addFlags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "get pod specs from the API server that this kubeconfig names; in-cluster for the service account of the pod this runs in")
	flags.StringVar(&o.context, "context", "", "the kubeconfig's context (default: its current one)")
	flags.StringVar(&o.kubelet, "kubelet", "", "get pod specs from this kubelet, https://NODE:10250 or http://127.0.0.1:10255")
	flags.StringVar(&o.token, "kubelet-token-file", "", "a file with the bearer token for the kubelet")
	flags.StringVar(&o.authority, "kubelet-ca-file", "", "a file with the certificates that the kubelet's must be signed by (default: the system's)")
	flags.BoolVar(&o.insecure, "kubelet-insecure", false, "take any certificate of the kubelet; the token then goes to whoever answers")
	flags.StringArrayVar(&o.files, "pods", nil, "get pod specs from this file or directory of manifests (kubectl get pods -A -o yaml, static pods); may be repeated")
	for _, flag := range []string{"kubeconfig", "kubelet-token-file", "kubelet-ca-file", "pods"} {
		if err := cmd.MarkFlagFilename(flag); err != nil {
			panic(err) // a flag of this name was just defined
		}
	}
}

func (o *podOptions) validate() error {
	given := 0
	for _, one := range []bool{o.kubeconfig != "", o.kubelet != "", len(o.files) > 0} {
		if one {
			given++
		}
	}
	switch {
	case given > 1:
		return errors.New("want one of --kubeconfig, --kubelet and --pods: pod specs come from one place")
	case o.context != "" && o.kubeconfig == "":
		return errors.New("--context is of a --kubeconfig")
	case (o.token != "" || o.authority != "" || o.insecure) && o.kubelet == "":
		return errors.New("--kubelet-token-file, --kubelet-ca-file and --kubelet-insecure are of a --kubelet")
	}
	return nil
}

// version is how to ask for the cluster's version; nil where no API server is asked.
func (o *podOptions) version() func(context.Context) (int, error) {
	if o.kubeconfig == "" {
		return nil
	}
	return func(ctx context.Context) (int, error) {
		return kube.ServerVersion(ctx, kube.APIServerOptions{Kubeconfig: o.kubeconfig, Context: o.context})
	}
}

// open returns the source that was asked for and how to end it; nil for none.
func (o *podOptions) open(nodeName string, host *proc.FS) (source agent.Pods, closing func() error, err error) {
	none := func() error { return nil }
	if o.kubeconfig == "" && o.kubelet == "" && len(o.files) == 0 {
		return nil, none, nil
	}
	if nodeName == "" {
		node, _, err := host.Node()
		if err != nil {
			return nil, nil, fmt.Errorf("reading the node's name: %w", err)
		}
		nodeName = node.Name
	}
	switch {
	case o.kubelet != "":
		return kube.Kubelet{URL: o.kubelet, TokenFile: o.token, CAFile: o.authority, Insecure: o.insecure}, none, nil
	case o.kubeconfig != "":
		server, err := kube.NewAPIServer(kube.APIServerOptions{Kubeconfig: o.kubeconfig, Context: o.context, NodeName: nodeName})
		if err != nil {
			return nil, nil, fmt.Errorf("--kubeconfig: %w", err)
		}
		return server, server.Close, nil
	}
	return kube.Files{Paths: o.files, NodeName: nodeName}, none, nil
}
