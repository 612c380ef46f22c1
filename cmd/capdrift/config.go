package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
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
	Version int           `json:"version"`
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
	Endpoint  string   `json:"endpoint"`
	Endpoints []string `json:"endpoints"`
	Timeout   duration `json:"timeout"`
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

// UnmarshalJSON reads "15s". Its error is one to which the decoder adds the key.
func (d *duration) UnmarshalJSON(text []byte) error {
	parsed, err := time.ParseDuration(strings.Trim(string(text), `"`))
	if err != nil || len(text) < 2 || text[0] != '"' {
		return &json.UnmarshalTypeError{Value: fmt.Sprintf("%.40s (want one such as 250ms, 15s or 1m)", text), Type: reflect.TypeFor[duration]()}
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
		Version: configVersion,
		Node:    nodeConfig{HostRoot: "/"},
		Runtime: runtimeConfig{Endpoints: []string{}, Timeout: duration(10 * time.Second)},
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

// configVersion numbers the form of the configuration. It rises when a key is added or means
// something else, so that an older agent says what the file needs. A file without a version is of
// the first.
const configVersion = 1

// checkVersion refuses a file of a later form before its keys are read: an unknown key would
// only look misspelt.
func checkVersion(text []byte) error {
	var file struct {
		Version json.RawMessage `json:"version"`
	}
	if yaml.Unmarshal(text, &file) != nil || file.Version == nil {
		return nil // what is wrong with it, the strict reading says
	}
	version, err := strconv.Atoi(string(file.Version))
	switch {
	case err != nil || version < 1:
		return fmt.Errorf("version: %.40s is no version of the configuration; want a number from 1 to %d, or leave the key out", file.Version, configVersion)
	case version > configVersion:
		return fmt.Errorf("version: %d is of a later capdrift, and this one (%s) reads up to version %d: run the release that the file was written for, or write the file by this one's docs/agent.md",
			version, versionText(), configVersion)
	}
	return nil
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
		if err := checkVersion(text); err != nil {
			return config{}, fmt.Errorf("%s: %w", name, err)
		}
		if err := yaml.UnmarshalStrict(text, &c); err != nil {
			if strings.Contains(err.Error(), "unknown field") {
				err = fmt.Errorf("%w (capdrift %s reads version %d of the configuration, whose keys are in docs/agent.md; a key of a later one needs a later capdrift)",
					err, versionText(), configVersion)
			}
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

// validate names the key that is wrong, its value, why, and what to write instead. It reads no
// file: [config.missing] does.
func (c config) validate() error {
	for _, check := range []func() error{c.validateTimes, c.Runtime.validate, c.validateAssumed, c.Policy.validate, c.validatePaths, c.validateAPI, c.validateAddresses, c.Log.validate} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// validateTimes refuses times in which nothing could be done, and those after which nobody
// could act on what the agent tells.
func (c config) validateTimes() error {
	const least, day, short = 10 * time.Millisecond, 24 * time.Hour, 10 * time.Minute
	usual := defaultConfig()
	for _, one := range []struct {
		key          string
		value, usual duration
		most         time.Duration
	}{
		{"runtime.timeout", c.Runtime.Timeout, usual.Runtime.Timeout, short},
		{"cadence.membership", c.Cadence.Membership, usual.Cadence.Membership, day},
		{"cadence.sweep", c.Cadence.Sweep, usual.Cadence.Sweep, day},
		{"cadence.threads", c.Cadence.Threads, usual.Cadence.Threads, day},
		{"cadence.list", c.Cadence.List, usual.Cadence.List, day},
		{"cadence.confirm", c.Cadence.Confirm, usual.Cadence.Confirm, short},
	} {
		if value := time.Duration(one.value); value < least {
			return fmt.Errorf("%s: %s is less than %s; the default is %s", one.key, value, least, time.Duration(one.usual))
		} else if value > one.most {
			return fmt.Errorf("%s: %s is more than %s, so what the agent tells would be long past; the default is %s", one.key, value, one.most, time.Duration(one.usual))
		}
	}
	return nil
}

func (c config) validateAssumed() error {
	_, err := c.given()
	return err
}

// maxSocketPath is the longest path of a unix socket: unix(7), sun_path with its final zero.
const maxSocketPath = 107

func (c runtimeConfig) validate() error {
	if c.Endpoint != "" && len(c.Endpoints) > 0 {
		return fmt.Errorf("runtime.endpoints: there is runtime.endpoint (%.100q) too, and only one of them can hold: take out the other", c.Endpoint)
	}
	for i, endpoint := range c.Endpoints {
		if endpoint == "" || slices.Contains(c.Endpoints[:i], endpoint) {
			return fmt.Errorf("runtime.endpoints: %.100q is empty or there twice: take it out", endpoint)
		}
		if err := validateSocket("runtime.endpoints", endpoint); err != nil {
			return err
		}
	}
	if c.Endpoint == "" {
		return nil
	}
	return validateSocket("runtime.endpoint", c.Endpoint)
}

// validateSocket accepts what [cri.Connect] does.
func validateSocket(key, endpoint string) error {
	path, _ := strings.CutPrefix(endpoint, "unix://")
	switch {
	case !filepath.IsAbs(path):
		return fmt.Errorf("%s: %.100q is no unix socket, and a runtime is asked by nothing else; want unix:///run/containerd/containerd.sock or an absolute path, or leave the key out and it is found", key, endpoint)
	case len(path) > maxSocketPath:
		return fmt.Errorf("%s: %.100q… has %d bytes, and the path of a unix socket has at most %d: use a shorter one", key, endpoint, len(path), maxSocketPath)
	}
	return nil
}

// places are the paths of the sockets of which one is to be found.
func (c runtimeConfig) places() (paths []string) {
	for _, endpoint := range c.Endpoints {
		paths = append(paths, strings.TrimPrefix(endpoint, "unix://"))
	}
	return paths
}

func (c policyConfig) validate() error {
	for _, list := range []struct {
		key   string
		names []string
	}{{"policy.packs", c.Packs}, {"policy.exceptions", c.Exceptions}} {
		for i, name := range list.names {
			if slices.Contains(list.names[:i], name) {
				return fmt.Errorf("%s: %q is there twice", list.key, name)
			}
		}
	}
	if version := c.PSSVersion; version != "" {
		if _, err := policy.ParseVersion(version); err != nil {
			return fmt.Errorf("policy.pssVersion: %w", err)
		}
	}
	for _, name := range c.Packs {
		if _, err := policy.Choose(nil, name); err != nil && !filepath.IsAbs(name) {
			return fmt.Errorf("policy.packs: %w, and it is no absolute path; capdrift policy list shows the packs", err)
		}
	}
	for _, name := range c.Exceptions {
		if !filepath.IsAbs(name) {
			return fmt.Errorf("policy.exceptions: %q is no absolute path", name)
		}
	}
	return nil
}

func (c config) validatePaths() error {
	if !filepath.IsAbs(c.Node.HostRoot) {
		return fmt.Errorf("node.hostRoot: %q is no absolute path; want /, or where the host's root is mounted", c.Node.HostRoot)
	}
	if c.Journal.Dir != "" && !filepath.IsAbs(c.Journal.Dir) {
		return fmt.Errorf("journal.dir: %q is no absolute path; want such as /var/lib/capdrift, or \"\" for no journal", c.Journal.Dir)
	}
	if c.Journal.MaxBytes < journal.MinBytes {
		return fmt.Errorf("journal.maxBytes: %d is less than %d; to have no journal write journal.dir: \"\"", c.Journal.MaxBytes, journal.MinBytes)
	}
	return nil
}

func (c config) validateAPI() error {
	switch socket := c.API.Socket; {
	case socket == "":
	case !filepath.IsAbs(socket):
		return fmt.Errorf("api.socket: %q is no absolute path; want such as /run/capdrift/agent.sock, or \"\" for none", socket)
	case len(socket) > maxSocketPath:
		return fmt.Errorf("api.socket: %.100q… has %d bytes, and the path of a unix socket has at most %d: use a shorter one", socket, len(socket), maxSocketPath)
	}
	tcp := c.API.TCP
	switch files := []string{tcp.CertFile, tcp.KeyFile, tcp.CAFile}; {
	case tcp.Address == "" && slices.ContainsFunc(files, func(file string) bool { return file != "" }):
		return errors.New("api.tcp: certificates without an address: write api.tcp.address, such as :7444, or take them out")
	case tcp.Address != "" && slices.Contains(files, ""):
		return errors.New("api.tcp: want certFile, keyFile and clientCAFile: whoever asks over TCP needs a certificate")
	}
	return nil
}

// address is where the configuration has the agent listen, by its key.
type address struct{ key, value, host, port string }

func (c config) validateAddresses() error {
	var taken []address
	for _, a := range []address{
		{key: "health.address", value: c.Health.Address}, {key: "metrics.address", value: c.Metrics.Address},
		{key: "api.plaintextLoopback", value: c.API.Plaintext}, {key: "api.tcp.address", value: c.API.TCP.Address},
	} {
		if a.value == "" {
			continue
		}
		var err error
		if a.host, a.port, err = net.SplitHostPort(a.value); err != nil {
			return fmt.Errorf("%s: %w; want HOST:PORT, such as :7701 or 127.0.0.1:7701", a.key, err)
		}
		if port, err := strconv.ParseUint(a.port, 10, 16); err != nil || a.port != strconv.FormatUint(port, 10) {
			return fmt.Errorf("%s: %.100q has no port: want a number from 1 to 65535 after the colon", a.key, a.value)
		}
		if a.key == "api.plaintextLoopback" && !net.ParseIP(a.host).IsLoopback() {
			return fmt.Errorf("%s: %s is not a loopback address; everywhere else clients need certificates (api.tcp)", a.key, a.host)
		}
		for _, other := range taken {
			if a.meets(other) {
				return fmt.Errorf("%s: %q has the port of %s (%q), where only one can listen: give one of them another", a.key, a.value, other.key, other.value)
			}
		}
		taken = append(taken, a)
	}
	return nil
}

// meets reports whether only one of two addresses can be listened at: one port, and one host or
// all of them. The kernel chooses a port for 0, another each time.
func (a address) meets(other address) bool {
	return a.port == other.port && a.port != "0" && (a.host == other.host || a.everywhere() || other.everywhere())
}

// everywhere reports whether an address is of all of the machine's, as [net.Listen] takes it.
func (a address) everywhere() bool {
	return a.host == "" || net.ParseIP(a.host).IsUnspecified()
}

func (c logConfig) validate() error {
	if !slices.Contains([]string{"text", "json"}, c.Format) {
		return fmt.Errorf("log.format: %q is neither text nor json", c.Format)
	}
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.Level) {
		return fmt.Errorf("log.level: %q is none of debug, info, warn, error", c.Level)
	}
	return nil
}

// missing is an error for a file or folder that the configuration names and this machine does
// not have. A runtime's socket may be made later, and the agent waits for it.
func (c config) missing() error {
	type needed struct{ key, path, remedy string }
	const mount = "mount it there, or name the place where it is"
	all := []needed{
		{"node.hostRoot", filepath.Join(c.Node.HostRoot, "proc"), "mount the host's /proc there, or name its root"},
		{"node.hostRoot", filepath.Join(c.Node.HostRoot, "sys/fs/cgroup"), "mount the host's /sys/fs/cgroup there, or name its root"},
	}
	if c.Journal.Dir != "" {
		all = append(all, needed{"journal.dir", filepath.Dir(c.Journal.Dir), "the journal is made in a folder that is there: make it, or write \"\" for no journal"})
	}
	for _, name := range slices.DeleteFunc(slices.Clone(c.Policy.Packs), isBuiltIn) {
		all = append(all, needed{"policy.packs", name, mount})
	}
	for _, name := range c.Policy.Exceptions {
		all = append(all, needed{"policy.exceptions", name, mount})
	}
	if tcp := c.API.TCP; tcp.Address != "" {
		all = append(all, needed{"api.tcp.certFile", tcp.CertFile, mount}, needed{"api.tcp.keyFile", tcp.KeyFile, mount}, needed{"api.tcp.clientCAFile", tcp.CAFile, mount})
	}
	for _, one := range all {
		if _, err := os.Stat(one.path); err != nil {
			var path *fs.PathError
			if errors.As(err, &path) {
				err = path.Err
			}
			return fmt.Errorf("%s: %s: %w; %s", one.key, one.path, err, one.remedy)
		}
	}
	return nil
}

// works is an error where an agent of this configuration could not do what it says on this
// machine: --check-config.
func (c config) works() error {
	if err := c.missing(); err != nil {
		return err
	}
	if _, err := c.API.TCP.certificates(slog.New(slog.DiscardHandler)); err != nil {
		return err
	}
	_, err := c.Policy.read()
	return err
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
