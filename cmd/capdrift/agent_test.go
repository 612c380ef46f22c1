package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/capdrift/capdrift/cri"
	"github.com/capdrift/capdrift/cri/fake"
)

// TestConfig: each mistake is named by its key, and nothing is taken silently.
func TestConfig(t *testing.T) {
	for what, row := range map[string]struct{ text, want string }{
		"nothing":                       {"", ""},
		"what one writes":               {"cadence: {membership: 500ms}\nassume: {defaultCaps: NET_ADMIN}\nlog: {level: debug}\n", ""},
		"mutual TLS":                    {"api: {tcp: {address: ':7443', certFile: /c, keyFile: /k, clientCAFile: /a}}", ""},
		"plaintext on loopback":         {"api: {plaintextLoopback: '127.0.0.1:7070'}", ""},
		"an unknown key":                {"cadense: {}", `unknown field "cadense"`},
		"an unknown key below":          {"journal: {path: /x}", `unknown field "path"`},
		"the same key twice":            {"log: {}\nlog: {}", "already set"},
		"a duration without a unit":     {"cadence: {sweep: 15}", "want one such as 250ms, 15s or 1m"},
		"a cadence of nothing":          {"cadence: {list: 1ms}", "cadence.list: 1ms is less than 10ms"},
		"no capability":                 {"assume: {heldCaps: BOGUS}", "assume.heldCaps"},
		"a socket of no path":           {"api: {socket: agent.sock}", "api.socket"},
		"TCP without certificates":      {"api: {tcp: {address: ':7443'}}", "whoever asks over TCP needs a certificate"},
		"plaintext for the whole world": {"api: {plaintextLoopback: '0.0.0.0:7443'}", "0.0.0.0 is not a loopback address"},
		"plaintext nowhere":             {"api: {plaintextLoopback: here}", "api.plaintextLoopback"},
		"certificates for nobody":       {"api: {tcp: {certFile: /c}}", "without an address"},
		"a tiny journal":                {"journal: {maxBytes: 5}", "journal.maxBytes"},
		"metrics nowhere":               {"metrics: {address: here}", "metrics.address"},
		"health nowhere":                {"health: {address: here}", "health.address"},
		"a log of no format":            {"log: {format: xml}", "log.format"},
		"no YAML":                       {"a: [", "yaml"},

		"the version of today":          {"version: 1\n", ""},
		"a later version":               {"version: 2\n", "version: 2 is of a later capdrift, and this one ("},
		"a later version, unknown keys": {"version: 2\nsampling: {}\n", "reads up to version 1: run the release that the file was written for"},
		"no version":                    {"version: new\n", `version: "new" is no version of the configuration; want a number from 1 to 1, or leave the key out`},
		"version zero":                  {"version: 0\n", "version: 0 is no version"},
		"a key of a later version":      {"version: 1\nsampling: {}\n", "reads version 1 of the configuration, whose keys are in docs/agent.md"},

		"a runtime by its path":           {"runtime: {endpoint: /run/containerd/containerd.sock}", ""},
		"a runtime over the network":      {"runtime: {endpoint: 'tcp://10.0.0.1:2376'}", `runtime.endpoint: "tcp://10.0.0.1:2376" is no unix socket, and a runtime is asked by nothing else; want unix:///`},
		"a runtime by a relative path":    {"runtime: {endpoint: 'unix://run/containerd.sock'}", `runtime.endpoint: "unix://run/containerd.sock" is no unix socket`},
		"a socket with a long path":       {"runtime: {endpoint: /" + strings.Repeat("a", 107) + "}", "has 108 bytes, and the path of a unix socket has at most 107"},
		"several runtimes":                {"runtime: {endpoints: ['unix:///run/containerd/containerd.sock', /run/crio/crio.sock]}", ""},
		"one runtime and several":         {"runtime: {endpoint: /a.sock, endpoints: [/b.sock]}", `runtime.endpoints: there is runtime.endpoint ("/a.sock") too`},
		"one of several over the network": {"runtime: {endpoints: [/a.sock, 'npipe:////./pipe/containerd']}", `runtime.endpoints: "npipe:////./pipe/containerd" is no unix socket`},
		"several that are one":            {"runtime: {endpoints: [/a.sock, /a.sock]}", `runtime.endpoints: "/a.sock" is empty or there twice: take it out`},

		"a sweep each day":               {"cadence: {sweep: 24h}", ""},
		"a sweep of ten years":           {"cadence: {sweep: 87600h}", "cadence.sweep: 87600h0m0s is more than 24h0m0s, so what the agent tells would be long past; the default is 15s"},
		"the key of such a duration":     {"cadence: {sweep: 15}", "cadence.sweep of type"},
		"a duration that is none":        {"cadence: {sweep: 9999999999h}", "want one such as"},
		"less than no time":              {"cadence: {membership: -5s}", "cadence.membership: -5s is less than 10ms; the default is 250ms"},
		"a confirmation after an hour":   {"cadence: {confirm: 1h}", "cadence.confirm: 1h0m0s is more than 10m0s"},
		"a call that may take a day":     {"runtime: {timeout: 24h}", "runtime.timeout: 24h0m0s is more than 10m0s"},
		"a socket of a very long path":   {"api: {socket: /" + strings.Repeat("a", 107) + "}", "api.socket"},
		"a port that is none":            {"health: {address: ':77010'}", `health.address: ":77010" has no port: want a number from 1 to 65535`},
		"a port by a name":               {"metrics: {address: ':http'}", `metrics.address: ":http" has no port`},
		"one port on two loopbacks":      {"metrics: {address: '127.0.0.1:7701'}\nhealth: {address: '127.0.0.2:7701'}", ""},
		"ports that the kernel chooses":  {"metrics: {address: ':0'}\nhealth: {address: ':0'}", ""},
		"one port twice":                 {"metrics: {address: ':7701'}\nhealth: {address: ':7701'}", `metrics.address: ":7701" has the port of health.address (":7701"), where only one can listen: give one of them another`},
		"one port on one and all":        {"api: {plaintextLoopback: '127.0.0.1:7701'}\nhealth: {address: ':7701'}", "api.plaintextLoopback: \"127.0.0.1:7701\" has the port of health.address"},
		"one port on all and one":        {"metrics: {address: '127.0.0.1:7444'}\napi: {tcp: {address: '0.0.0.0:7444', certFile: /c, keyFile: /k, clientCAFile: /a}}", "api.tcp.address"},
		"a port of no host, on IPv6 too": {"metrics: {address: '[::]:7444'}\nhealth: {address: '10.0.0.1:7444'}", "metrics.address"},
	} {
		t.Run(what, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "agent.yaml")
			if err := os.WriteFile(file, []byte(row.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := readConfig(file)
			if (err == nil) != (row.want == "") || err != nil && (!strings.Contains(err.Error(), row.want) || !strings.Contains(err.Error(), "agent.yaml")) {
				t.Errorf("%v, want %q", err, row.want)
			}
		})
	}
}

// FuzzConfigVersion: what passes for a version of today is in force as one.
func FuzzConfigVersion(f *testing.F) {
	for _, text := range []string{"version: 1", "version: 2", "version: null", "version: '1'", "Version: 3", "version: 1.0", "version: [1]", "log: {level: info}", "version: 1\nversion: 2", "- version"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c := defaultConfig()
		if checkVersion(text) == nil && yaml.UnmarshalStrict(text, &c) == nil && c.Version != configVersion {
			t.Errorf("version %d of %q is in force", c.Version, text)
		}
	})
}

// TestAgentFindsOneOfSeveralRuntimes: where none is there yet, an agent says so and finds the one that comes.
func TestAgentFindsOneOfSeveralRuntimes(t *testing.T) {
	dir, err := os.MkdirTemp("", "capdrift-") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c := defaultConfig()
	c.Runtime.Endpoints = []string{"unix://" + filepath.Join(dir, "containerd/containerd.sock"), filepath.Join(dir, "crio/crio.sock")}
	if err := c.validate(); err != nil {
		t.Fatal(err)
	}
	runtime := &dialing{options: c.runtime()}
	t.Cleanup(func() { _ = runtime.Close() })
	if _, err := runtime.Inventory(t.Context()); !errors.Is(err, cri.ErrNoRuntime) {
		t.Fatalf("without any: %v", err)
	}
	server, err := fake.Start(load(t, "cri-o-1.37.0"), filepath.Join(dir, "crio/crio.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	if told, err := runtime.Inventory(t.Context()); err != nil || told.Runtime.Name != "cri-o" {
		t.Errorf("%+v, %v", told.Runtime, err)
	}
}

// TestConfigMissing: --check-config refuses what an agent would look for in vain, by key and path.
func TestConfigMissing(t *testing.T) {
	root := t.TempDir()
	for _, folder := range []string{"proc", "sys/fs/cgroup", "half/proc"} {
		if err := os.MkdirAll(filepath.Join(root, folder), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for what, row := range map[string]struct {
		change func(c *config)
		want   string
	}{
		"nothing is missing":           {func(*config) {}, ""},
		"a runtime that is not up yet": {func(c *config) { c.Runtime.Endpoint = "/nowhere/runtime.sock" }, ""},
		"a journal that is yet to be":  {func(c *config) { c.Journal.Dir = filepath.Join(root, "journal") }, ""},
		"the host's root":              {func(c *config) { c.Node.HostRoot = "/nowhere" }, "node.hostRoot: /nowhere/proc: no such file or directory; mount the host's /proc there"},
		"the host's cgroups":           {func(c *config) { c.Node.HostRoot = filepath.Join(root, "half") }, "node.hostRoot: " + filepath.Join(root, "half/sys/fs/cgroup") + ": no such file or directory; mount the host's /sys/fs/cgroup there"},
		"the journal's place":          {func(c *config) { c.Journal.Dir = "/nowhere/journal" }, `journal.dir: /nowhere: no such file or directory; the journal is made in a folder that is there`},
		"a pack":                       {func(c *config) { c.Policy.Packs = []string{"cis", "/nowhere/pack.yaml"} }, "policy.packs: /nowhere/pack.yaml: no such file or directory; mount it there, or name the place where it is"},
		"exceptions":                   {func(c *config) { c.Policy.Exceptions = []string{"/nowhere/exceptions.yaml"} }, "policy.exceptions: /nowhere/exceptions.yaml: no such file"},
		"a certificate": {func(c *config) {
			c.API.TCP = tcpConfig{":7444", "/nowhere/tls.crt", "/nowhere/tls.key", "/nowhere/ca.crt"}
		}, "api.tcp.certFile: /nowhere/tls.crt: no such file"},
		"a CA": {func(c *config) {
			c.API.TCP = tcpConfig{":7444", root, root, "/nowhere/ca.crt"}
		}, "api.tcp.clientCAFile: /nowhere/ca.crt: no such file"},
		"a certificate that is none": {func(c *config) { c.API.TCP = tcpConfig{":7444", root, root, root} }, "api.tcp: "},
	} {
		t.Run(what, func(t *testing.T) {
			c := defaultConfig()
			c.Node.HostRoot, c.Journal.Dir = root, ""
			row.change(&c)
			if err := c.works(); (err == nil) != (row.want == "") || err != nil && !strings.HasPrefix(err.Error(), row.want) {
				t.Errorf("%v, want %q", err, row.want)
			}
		})
	}
}

// TestConfigOfBefore: configurations of before are taken, every key of them, without a version too.
func TestConfigOfBefore(t *testing.T) {
	for file, keys := range map[string]int{"testdata/agent-form1.yaml": 26, "testdata/agent-unversioned.yaml": 27} {
		t.Run(file, func(t *testing.T) { takesWhole(t, file, keys) })
	}
}

func takesWhole(t *testing.T, file string, keys int) {
	t.Helper()
	c, err := readConfig(file)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	wanted, taken := make(map[string]string), make(map[string]string)
	for to, text := range map[*map[string]string]func() ([]byte, error){
		&wanted: func() ([]byte, error) { return yaml.YAMLToJSON(text) }, &taken: func() ([]byte, error) { return json.Marshal(c) },
	} {
		encoded, err := text()
		if err != nil {
			t.Fatal(err)
		}
		var tree map[string]any
		if err := json.Unmarshal(encoded, &tree); err != nil {
			t.Fatal(err)
		}
		flatten("", tree, *to)
	}
	if len(wanted) != keys {
		t.Errorf("%s has %d keys", file, len(wanted))
	}
	for key, value := range wanted {
		if taken[key] != value {
			t.Errorf("%s: %q was written, %q is in force", key, value, taken[key])
		}
	}
}

// TestConfigIsDocumented: docs/agent.md has each key once, with its default, and no other.
func TestConfigIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/agent.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := make(map[string]string)
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-zA-Z.]+)`(?: ↻)? \\| ([^|]*) \\|").FindAllStringSubmatch(string(page), -1) {
		if _, twice := documented[row[1]]; twice {
			t.Errorf("%s is there twice", row[1])
		}
		documented[row[1]] = strings.Trim(row[2], "` ")
	}
	text, err := json.Marshal(defaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	var defaults map[string]any
	if err := json.Unmarshal(text, &defaults); err != nil {
		t.Fatal(err)
	}
	keys := make(map[string]string)
	flatten("", defaults, keys)
	for key, value := range keys {
		told, ok := documented[key]
		if !ok {
			t.Errorf("docs/agent.md does not have %s", key)
		}
		if value != "" && told != value {
			t.Errorf("docs/agent.md says that %s is %q by default; it is %q", key, told, value)
		}
	}
	for key := range documented {
		if _, ok := keys[key]; !ok {
			t.Errorf("docs/agent.md has %s, which is no key", key)
		}
	}
}

func flatten(prefix string, values map[string]any, into map[string]string) {
	for key, value := range values {
		switch value := value.(type) {
		case map[string]any:
			flatten(prefix+key+".", value, into)
		case nil:
			into[prefix+key] = ""
		case float64:
			into[prefix+key] = strconv.FormatInt(int64(value), 10)
		default:
			into[prefix+key] = fmt.Sprint(value)
		}
	}
}
