package policy

import (
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/capdrift/capdrift/drift"
)

// FuzzFilter: whatever the expression, it is refused with its place, or true,
// false, unknown, wrong or too costly; soon, without a panic and without blaming
// ourselves.
func FuzzFilter(f *testing.F) {
	page, err := os.ReadFile("../docs/filter.md")
	if err != nil {
		f.Fatal(err)
	}
	for _, block := range regexp.MustCompile("(?s)```cel\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		for example := range strings.Lines(block[1]) {
			f.Add(strings.TrimSpace(example))
		}
	}
	for _, seed := range []string{
		``, `name = "x"`, `caps.efective`, `pod == null`, `[[1]] == [[1]]`, `processes.all(a, processes.all(b, a.pid != b.pid))`, `{"a": 1}`,
		`processes[0] in processes`, `capabilities([name, "ALL"]) == caps.effective`, `1 / 0 > 0 || known(1 / 0)`, `"é" + name == "\u0000"`,
		`size(processes) > 1 ? caps == caps : process == process`, `has(pod)`, "name ==\n\t\"x\" &&", `severity("x") < severity(name)`,
		`caps.effective.contains(declared.pod.add[0])`, `(((((((((((((((((((((((((((((((((`, `finding.capabilities.size() % 0 == -9223372036854775808`,
	} {
		f.Add(seed)
	}
	c, half := web(), partial()
	many := web()
	many.Processes = make([]drift.Process, 300)
	for i := range many.Processes {
		many.Processes[i] = drift.Process{PID: i, Name: "worker", Observation: drift.Observed}
	}
	f.Fuzz(func(t *testing.T, expression string) {
		tooLate := time.AfterFunc(15*time.Second, func() { panic("does not end: " + expression) })
		defer tooLate.Stop()
		filter, err := CompileFilter(expression)
		var wrong *FilterError
		if err != nil {
			if filter != nil || !errors.As(err, &wrong) || wrong.Line < 1 || wrong.Column < 1 {
				t.Fatalf("refused with %#v", err)
			}
		}
		if strings.Contains(errorText(err), "internal error") {
			t.Fatal(err)
		}
		for _, subject := range []Subject{
			{},
			{Container: c, Process: &c.Processes[1], Finding: finding(), Node: node},
			{Container: half, Node: node},
			{Container: bare()},
			{Container: many, Node: node},
		} {
			if filter == nil {
				break
			}
			matches, err := filter.Match(subject)
			var unknown *UnknownError
			switch {
			case err == nil, errors.As(err, &unknown), errors.Is(err, ErrCost):
			case !errors.As(err, &wrong) || strings.Contains(err.Error(), "internal error"):
				t.Fatalf("%v", err)
			}
			if err != nil && matches {
				t.Fatal("true, and an error")
			}
		}
	})
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
