package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/journal"
	"github.com/capdrift/capdrift/policy"
)

// config is the agent's configuration file. Every key is described once, in
// docs/agent.md, and a test holds the two against each other.
type config struct {
	Node    nodeConfig    `json:"node"`
	Runtime runtimeConfig `json:"runtime"`
	Cadence cadenceConfig `json:"cadence"`
	Assume  assumeConfig  `json:"assume"`
	Policy  policyConfig  `json:"policy"`
	API     apiConfig     `json:"api"`
	Health  healthConfig  `json:"health"`
	Journal journalConfig `json:"journal"`
	Metrics metricsConfig `json:"metrics"`
	Log     logConfig     `json:"log"`
}

type nodeConfig struct {
	Name     string `json:"name"`
	HostRoot string `json:"hostRoot"`
}

type runtimeConfig struct {
	Endpoint string   `json:"endpoint"`
	Timeout  duration `json:"timeout"`
}

type cadenceConfig struct {
	Membership duration `json:"membership"`
	Sweep      duration `json:"sweep"`
	Threads    duration `json:"threads"`
	List       duration `json:"list"`
	Confirm    duration `json:"confirm"`
}

type assumeConfig struct {
	DefaultCaps string `json:"defaultCaps"`
	HeldCaps    string `json:"heldCaps"`
	Inheritable *bool  `json:"inheritable"`
}

type policyConfig struct {
	Packs      []string `json:"packs"`
	Exceptions []string `json:"exceptions"`
	PSSVersion string   `json:"pssVersion"` // "" for the latest that is known
}

type apiConfig struct {
	Socket    string    `json:"socket"`
	Plaintext string    `json:"plaintextLoopback"`
	TCP       tcpConfig `json:"tcp"`
}

type tcpConfig struct {
	Address  string `json:"address"`
	CertFile string `json:"certFile"`
	KeyFile  string `json:"keyFile"`
	CAFile   string `json:"clientCAFile"`
}

type healthConfig struct {
	Address string `json:"address"`
}

type journalConfig struct {
	Dir      string `json:"dir"`
	MaxBytes int64  `json:"maxBytes"`
}

type metricsConfig struct {
	Address string `json:"address"`
}

type logConfig struct {
	Format string `json:"format"`
	Level  string `json:"level"`
}

// duration is written as Go writes one, "250ms".
type duration time.Duration

// UnmarshalJSON reads "15s".
func (d *duration) UnmarshalJSON(text []byte) error {
	parsed, err := time.ParseDuration(strings.Trim(string(text), `"`))
	if err != nil || len(text) < 2 || text[0] != '"' {
		return fmt.Errorf("%.40s is no duration: want one such as 250ms, 15s or 1m", text)
	}
	*d = duration(parsed)
	return nil
}

// MarshalJSON writes "15s".
func (d duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// defaultConfig is what holds where the file says nothing.
func defaultConfig() config {
	cadence := agent.DefaultCadence()
	return config{
		Node:    nodeConfig{HostRoot: "/"},
		Runtime: runtimeConfig{Timeout: duration(10 * time.Second)},
		Cadence: cadenceConfig{
			Membership: duration(cadence.Membership), Sweep: duration(cadence.Sweep), Threads: duration(cadence.Threads),
			List: duration(cadence.List), Confirm: duration(cadence.Confirm),
		},
		Policy:  policyConfig{Packs: []string{}, Exceptions: []string{}},
		API:     apiConfig{Socket: "/run/capdrift/agent.sock"},
		Journal: journalConfig{Dir: "/var/lib/capdrift", MaxBytes: 64 << 20},
		Log:     logConfig{Format: "text", Level: "info"},
	}
}

// maxConfig bounds the file.
const maxConfig = 1 << 20

// readConfig reads the file over the defaults; an empty name gives the defaults.
func readConfig(name string) (config, error) {
	c := defaultConfig()
	if name != "" {
		info, err := os.Stat(name)
		if err != nil {
			return config{}, fmt.Errorf("the configuration cannot be read: %w", err)
		}
		if info.Size() > maxConfig {
			return config{}, fmt.Errorf("%s: %d bytes are more than a configuration has", name, info.Size())
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return config{}, fmt.Errorf("the configuration cannot be read: %w", err)
		}
		if err := yaml.UnmarshalStrict(text, &c); err != nil {
			return config{}, fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := c.validate(); err != nil {
		if name == "" {
			name = "the flags"
		}
		return config{}, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}

// validate names the key that is wrong, and what it wants.
func (c config) validate() error {
	for key, value := range map[string]duration{
		"runtime.timeout": c.Runtime.Timeout, "cadence.membership": c.Cadence.Membership, "cadence.sweep": c.Cadence.Sweep,
		"cadence.threads": c.Cadence.Threads, "cadence.list": c.Cadence.List, "cadence.confirm": c.Cadence.Confirm,
	} {
		if least := 10 * time.Millisecond; time.Duration(value) < least {
			return fmt.Errorf("%s: %s is less than %s", key, time.Duration(value), least)
		}
	}
	if _, err := c.given(); err != nil {
		return err
	}
	for key, names := range map[string][]string{"policy.packs": c.Policy.Packs, "policy.exceptions": c.Policy.Exceptions} {
		for i, name := range names {
			if slices.Contains(names[:i], name) {
				return fmt.Errorf("%s: %q is there twice", key, name)
			}
		}
	}
	if version := c.Policy.PSSVersion; version != "" {
		if _, err := policy.ParseVersion(version); err != nil {
			return fmt.Errorf("policy.pssVersion: %w", err)
		}
	}
	for _, name := range c.Policy.Packs {
		if _, err := policy.Choose(nil, name); err != nil && !filepath.IsAbs(name) {
			return fmt.Errorf("policy.packs: %w, and it is no absolute path; capdrift policy list shows the packs", err)
		}
	}
	for _, name := range c.Policy.Exceptions {
		if !filepath.IsAbs(name) {
			return fmt.Errorf("policy.exceptions: %q is no absolute path", name)
		}
	}
	if !filepath.IsAbs(c.Node.HostRoot) {
		return fmt.Errorf("node.hostRoot: %q is no absolute path", c.Node.HostRoot)
	}
	if c.API.Socket != "" && !filepath.IsAbs(c.API.Socket) {
		return fmt.Errorf("api.socket: %q is no absolute path", c.API.Socket)
	}
	if address := c.API.Plaintext; address != "" {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return fmt.Errorf("api.plaintextLoopback: %w", err)
		}
		if !net.ParseIP(host).IsLoopback() {
			return fmt.Errorf("api.plaintextLoopback: %s is not a loopback address; everywhere else clients need certificates (api.tcp)", host)
		}
	}
	if err := c.API.TCP.validate(); err != nil {
		return fmt.Errorf("api.tcp: %w", err)
	}
	if c.Journal.Dir != "" && !filepath.IsAbs(c.Journal.Dir) {
		return fmt.Errorf("journal.dir: %q is no absolute path", c.Journal.Dir)
	}
	if c.Journal.MaxBytes < journal.MinBytes {
		return fmt.Errorf("journal.maxBytes: %d is less than %d", c.Journal.MaxBytes, journal.MinBytes)
	}
	for key, address := range map[string]string{"health.address": c.Health.Address, "metrics.address": c.Metrics.Address} {
		if address == "" {
			continue
		}
		if _, _, err := net.SplitHostPort(address); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	if !slices.Contains([]string{"text", "json"}, c.Log.Format) {
		return fmt.Errorf("log.format: %q is neither text nor json", c.Log.Format)
	}
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.Log.Level) {
		return fmt.Errorf("log.level: %q is none of debug, info, warn, error", c.Log.Level)
	}
	return nil
}

func (c tcpConfig) validate() error {
	files := c.CertFile != "" || c.KeyFile != "" || c.CAFile != ""
	if c.Address == "" {
		if files {
			return errors.New("certificates without an address")
		}
		return nil
	}
	if _, _, err := net.SplitHostPort(c.Address); err != nil {
		return fmt.Errorf("address: %w", err)
	}
	if c.CertFile == "" || c.KeyFile == "" || c.CAFile == "" {
		return errors.New("want certFile, keyFile and clientCAFile: whoever asks over TCP needs a certificate")
	}
	return nil
}

// given are the settings of the runtime that are stated.
func (c config) given() (given drift.Given, err error) {
	for _, one := range []struct {
		key, value string
		to         **capdecode.Set
	}{{"assume.defaultCaps", c.Assume.DefaultCaps, &given.Default}, {"assume.heldCaps", c.Assume.HeldCaps, &given.Held}} {
		if one.value == "" {
			continue
		}
		set, err := capdecode.ParseSet(one.value, newestCap)
		if err != nil {
			return given, fmt.Errorf("%s: %w", one.key, err)
		}
		*one.to = &set
	}
	given.Inheritable = c.Assume.Inheritable
	return given, nil
}

func (c config) cadence() agent.Cadence {
	return agent.Cadence{
		Membership: time.Duration(c.Cadence.Membership), Sweep: time.Duration(c.Cadence.Sweep), Threads: time.Duration(c.Cadence.Threads),
		List: time.Duration(c.Cadence.List), Confirm: time.Duration(c.Cadence.Confirm),
	}
}
