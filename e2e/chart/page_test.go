//go:build linux

package chart

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/capdrift/capdrift/e2e/provision"
)

// The pages whose every command is run.
const (
	readme         = "README.md"
	kubernetesPage = "docs/kubernetes.md"
	kubectlPage    = "docs/kubectl.md"
	securityPage   = "docs/security.md"
)

var pages = []string{readme, kubernetesPage, kubectlPage, securityPage}

// elsewhere are the commands that no reader follows here, with the reason.
var elsewhere = map[string]string{
	"make test":         "CI runs it (.ci/run)",
	"make demo":         "TestDemo runs it",
	"make demo-cluster": "TestDemoCluster runs it",

	"kubectl krew install --manifest=capdrift.yaml": "no release is there to install, and Go's module proxy has no krew; TestKrewManifest holds what krew asks of the manifest",
}

// instruction is what a page tells its reader to do. That is to type a line of an indented block,
// which holds nothing but commands; or to write a file, which is a block of YAML that begins with
// "# PATH". A line that ends with a backslash goes on in the next.
type instruction struct {
	page, section string
	line          int
	command       string
	file, text    string
}

func (i instruction) String() string {
	return fmt.Sprintf("%s:%d: %s%s", i.page, i.line, i.command, i.file)
}

// mention is a command in running text. It is one that stands in a block too, or a part of it.
type mention struct {
	page    string
	line    int // of the paragraph
	command string
}

var (
	program = regexp.MustCompile(`^(sudo |bin/)?(helm|kubectl|make|capdrift|ctr|docker|go) \S`)
	span    = regexp.MustCompile("`([^`]+)`")
	file    = regexp.MustCompile(`^# (\S+\.yaml)$`)
	remark  = regexp.MustCompile(`\s+# .*`)
)

// readPage returns what a page says, in its order.
func readPage(repo, name string) (todo []instruction, mentions []mention, err error) {
	text, err := os.ReadFile(filepath.Join(repo, name))
	if err != nil {
		return nil, nil, err
	}
	lines := strings.Split(string(text), "\n")
	at := instruction{page: name}
	paragraph := ""
	end := func() {
		for _, s := range span.FindAllStringSubmatch(paragraph, -1) {
			if program.MatchString(s[1]) {
				mentions = append(mentions, mention{name, at.line, s[1]})
			}
		}
		paragraph = ""
	}
	for n := 0; n < len(lines); n++ {
		line, here := lines[n], at
		here.line = n + 1
		switch fence, fenced := strings.CutPrefix(line, "```"); {
		case fenced:
			end()
			block := lines[n+1:]
			length := slices.Index(block, "```")
			if length < 0 {
				return nil, nil, fmt.Errorf("%s:%d: the block has no end", name, n+1)
			}
			block = block[:length]
			for i, line := range block {
				if program.MatchString(strings.TrimPrefix(line, "$ ")) {
					return nil, nil, fmt.Errorf("%s:%d: a command that nobody would run: indent it by four spaces instead", name, n+2+i)
				}
			}
			if length > 0 && fence == "yaml" {
				if path := file.FindStringSubmatch(block[0]); path != nil {
					here.file, here.text = path[1], strings.Join(block, "\n")+"\n"
					todo = append(todo, here)
				}
			}
			n += length + 1
		case strings.HasPrefix(line, "    "):
			for here.command = strings.TrimSpace(line); strings.HasSuffix(here.command, `\`); {
				n++
				here.command = strings.TrimSuffix(here.command, `\`) + strings.TrimSpace(lines[n])
			}
			here.command = remark.ReplaceAllString(here.command, "")
			todo = append(todo, here)
		case strings.HasPrefix(line, "## "):
			end()
			at.section = strings.TrimPrefix(line, "## ")
		case strings.TrimSpace(line) == "":
			end()
		default:
			if paragraph == "" {
				at.line = n + 1
			}
			paragraph += " " + line
		}
	}
	end()
	return todo, mentions, nil
}

// TestPages: what running text names is run too, what is excepted is there, and make can do what it is
// told to. That each command was run is for TestChart to say, whose reader follows the pages.
func TestPages(t *testing.T) {
	repo, err := provision.Repo()
	if err != nil {
		t.Fatal(err)
	}
	var todo []instruction
	var mentions []mention
	for _, name := range pages {
		more, also, err := readPage(repo, name)
		if err != nil {
			t.Fatal(err)
		}
		todo, mentions = append(todo, more...), append(mentions, also...)
	}
	said := map[string]bool{}
	for _, i := range todo {
		said[i.command] = true
	}
	for _, m := range mentions {
		said[m.command] = true
		if elsewhere[m.command] == "" && names[m.command] == "" && !slices.ContainsFunc(todo, m.partOf) {
			t.Errorf("%s:%d: nobody runs %q: let it stand in an indented block too", m.page, m.line, m.command)
		}
	}
	for _, list := range []map[string]string{elsewhere, names} {
		for command, why := range list {
			if !said[command] {
				t.Errorf("no page has %q any more (%s)", command, why)
			}
		}
	}
	for command := range outcomes {
		if !said[command] {
			t.Errorf("no page has %q any more", command)
		}
	}
	targets, err := os.ReadFile(filepath.Join(repo, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	made := 0
	for command := range said {
		if words := strings.Fields(command); len(words) > 1 && words[0] == "make" {
			made++
			if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(words[1]) + `:`).Match(targets) {
				t.Errorf("the Makefile cannot %s", command)
			}
		}
	}
	if ci, err := os.ReadFile(filepath.Join(repo, ".ci", "run")); err != nil || !strings.Contains(string(ci), "\nmake test\nmake cluster-test\n") {
		t.Errorf("%v: CI does not run make test and make cluster-test: %s", err, ci)
	}
	if made == 0 || len(todo) < 20 || len(mentions) == 0 {
		t.Errorf("%d commands, %d mentions, %d of make: else all this proves nothing", len(todo), len(mentions), made)
	}
}

// names are mentions that are no orders.
var names = map[string]string{
	"kubectl port-forward":                   "what the plugin is compared with",
	"docker load":                            "no container engine is needed, and the file is the one that ctr takes",
	"make cluster-test":                      "CI runs it (.ci/run)",
	"capdrift agent":                         "what the chart's pods run",
	"capdrift explain gateway NET_RAW CHOWN": "make demo runs it",

	"capdrift scan --host-root /host --cri-endpoint unix:///run/containerd/containerd.sock --node-name $(NODE_NAME)": "a container's command; TestFromPod of e2e/live scans from pods",
}

// partOf tells whether a command has the mentioned one's words. What follows an ellipsis is
// anybody's.
func (m mention) partOf(i instruction) bool {
	words, _, _ := strings.Cut(m.command, "…")
	installed := strings.ReplaceAll(i.command, "bin/capdrift", "capdrift")
	return i.command != "" && strings.Contains(" "+installed+" ", " "+strings.TrimSpace(words)+" ")
}
