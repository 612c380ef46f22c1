package provision

import (
	"context"
	"io"
	"path/filepath"
)

// What installs a chart, what checks its manifests against the API's schemas, and what gives a node
// the image.
var chartTools = []module{
	{
		name: "helm", version: HelmVersion, takes: "two minutes",
		packages: []string{"helm.sh/helm/v4/cmd/helm"},
		env:      []string{"CGO_ENABLED=0"},
		flags:    []string{"-ldflags=-s -w"},
	},
	{
		name: "kubeconform", version: KubeconformVersion, takes: "about 20 seconds",
		packages: []string{"github.com/yannh/kubeconform/cmd/kubeconform"},
		env:      []string{"CGO_ENABLED=0"},
		flags:    []string{"-ldflags=-s -w"},
	},
	{
		name: "ctr", version: ContainerdVersion, takes: "about 20 seconds",
		packages: []string{"github.com/containerd/containerd/v2/cmd/ctr"},
		env:      []string{"CGO_ENABLED=0"},
		flags:    []string{"-ldflags=-s -w"},
	},
}

// ChartTools returns a folder that holds helm, kubeconform and ctr.
func ChartTools(ctx context.Context, c Config) (string, error) {
	return c.fill("chart-tools", func(programs string) error {
		for _, m := range chartTools {
			if err := c.install(ctx, m, programs); err != nil {
				return err
			}
		}
		return nil
	})
}

// ChartToolsFromEnv returns the folder that CAPDRIFT_E2E_CHART_TOOLS names, else it builds it
// as FromEnv does.
func ChartToolsFromEnv(ctx context.Context, progress io.Writer) (string, error) {
	return fromEnv(ctx, "CAPDRIFT_E2E_CHART_TOOLS", progress, ChartTools)
}

// OperatorResources returns a folder with the definitions of the Prometheus operator's custom
// resources, "monitoring.coreos.com_podmonitors.yaml" and so on.
func OperatorResources(ctx context.Context) (string, error) {
	var module struct{ Dir string }
	name := "github.com/prometheus-operator/prometheus-operator@v" + PrometheusOperatorVersion
	if err := goJSON(ctx, "", &module, "mod", "download", "-json", name); err != nil {
		return "", err
	}
	return filepath.Join(module.Dir, "example", "prometheus-operator-crd"), nil
}
