//go:build linux

package chart

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/capdrift/capdrift/e2e/provision"
)

// makeTarget starts make in the repository, as whose whole process group it can be interrupted.
func makeTarget(t *testing.T, target string) (command *exec.Cmd, out string) {
	t.Helper()
	needs(t)
	repo, err := provision.Repo()
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(filepath.Join(t.TempDir(), target))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	command = exec.CommandContext(t.Context(), "make", "--no-print-directory", "-C", repo, target)
	command.Env = append(os.Environ(), "MAKEFLAGS=")
	command.Stdout, command.Stderr = file, file
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	command.Cancel = func() error { return syscall.Kill(-command.Process.Pid, syscall.SIGINT) }
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	return command, file.Name()
}

// TestDemo: make demo prints what README.md shows of it.
func TestDemo(t *testing.T) {
	command, out := makeTarget(t, "demo")
	err := command.Wait()
	printed := read(t, out)
	if err != nil {
		t.Fatalf("%v\n%s", err, printed)
	}
	page := read(t, filepath.Join("..", "..", readme))
	if shown, rows := findings(page), findings(printed); len(shown) == 0 || !slices.Equal(shown, rows) {
		t.Errorf("the page shows the findings\n%s\nand the demo has\n%s", strings.Join(shown, "\n"), strings.Join(rows, "\n"))
	}
	_, explained, _ := strings.Cut(page, "`capdrift explain gateway NET_RAW CHOWN`:\n\n```\n")
	explained, _, found := strings.Cut(explained, "```\n")
	if !found || !strings.Contains(printed, explained) {
		t.Errorf("the page explains\n%s\nand the demo does not:\n%s", explained, printed)
	}
}

// findings are the rows of the first table of findings, but for ids and numbers, which differ from one run and
// machine to the next, and in one order.
func findings(text string) []string {
	_, table, _ := strings.Cut(text, "\nSEVERITY ")
	table, _, _ = strings.Cut(table, "\n\n")
	rows := map[string]bool{}
	for _, row := range strings.Split(table, "\n")[1:] {
		row = regexp.MustCompile(`\b[0-9a-f]{12}\b|\b\d+\b`).ReplaceAllString(row, "#")
		rows[strings.Join(strings.Fields(row), " ")] = true
	}
	return slices.Sorted(maps.Keys(rows))
}

// TestDemoCluster: make demo-cluster comes to where it says what to try, and goes when it is interrupted.
func TestDemoCluster(t *testing.T) {
	command, out := makeTarget(t, "demo-cluster")
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	await(t, "the cluster is there", func() (bool, string) {
		printed := read(t, out)
		select {
		case err := <-ended:
			t.Fatalf("make demo-cluster: %v\n%s", err, printed)
		default:
		}
		return strings.Contains(printed, "The cluster runs until Ctrl-C"), printed
	})
	if err := command.Cancel(); err != nil {
		t.Fatal(err)
	}
	t.Log("make, interrupted, ends with:", <-ended)
	printed := read(t, out)
	if !strings.Contains(printed, "taking the cluster down") || strings.Contains(printed, "demo-cluster: ") {
		t.Errorf("interrupted, it says\n%s", printed)
	}
	root := regexp.MustCompile(`export KUBECONFIG=(\S+)/`).FindStringSubmatch(printed)
	if root == nil {
		t.Fatalf("it names no kubeconfig:\n%s", printed)
	}
	// The go command and make are gone before the program that they run.
	await(t, "nothing is left", func() (bool, string) {
		_, err := os.Stat(root[1])
		return os.IsNotExist(err), root[1]
	})
}
