//go:build linux

package live

import (
	"encoding/json"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/capdrift/capdrift/e2e/node"
)

// BenchmarkColdScan scans a node with a hundred containers, a new process and so nothing
// known each time, beside a scan of the same node that asks no runtime. The difference is
// what the runtime's answers cost.
func BenchmarkColdScan(b *testing.B) {
	if theNode == nil {
		b.Skip("needs root, for a container runtime of its own; run: sudo make bench")
	}
	const containers = 100
	var started [containers]*node.Container
	var group errgroup.Group
	group.SetLimit(4)
	for i := range started {
		group.Go(func() (err error) {
			started[i], err = theNode.Run(b.Context(), pod(restricted()))
			return err
		})
	}
	if err := group.Wait(); err != nil {
		b.Fatal(err)
	}
	defer func() {
		for _, c := range started {
			if err := theNode.Remove(b.Context(), c); err != nil {
				b.Error(err)
			}
		}
	}()
	milliseconds := func(endpoint string, want int) float64 {
		stdout, stderr, _, err := capdrift("scan", "-o", "json", "--cri-endpoint", endpoint)
		if err != nil {
			b.Fatal(err)
		}
		var r struct {
			DurationMs float64
			Runtime    *struct{}
			Coverage   struct{ Containers struct{ Observed int } }
		}
		if err := json.Unmarshal([]byte(stdout), &r); err != nil {
			b.Fatalf("%v: %s", err, stderr)
		}
		if got := r.Coverage.Containers.Observed; got < want {
			b.Fatalf("%d containers observed, want %d", got, want)
		}
		return r.DurationMs
	}
	var whole, kernel float64
	for b.Loop() {
		whole += milliseconds(theNode.Endpoint(), containers)
		kernel += milliseconds("unix:///nonexistent", containers)
	}
	b.ReportMetric(whole/float64(b.N), "ms/scan")
	b.ReportMetric(kernel/float64(b.N), "ms/scan-without-runtime")
	b.ReportMetric(0, "ns/op") // two scans and two processes: no number to compare
}
