package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
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

// TestConfigOfBefore: a configuration of the release before is taken, every key of it.
func TestConfigOfBefore(t *testing.T) {
	const file = "testdata/agent-form1.yaml"
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
	if len(wanted) != 26 {
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
