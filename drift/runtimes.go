package drift

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/capdrift/capdrift/capdecode"
)

// Settings are what a node's configuration decides about the hop CRI → OCI.
type Settings struct {
	// Default is what a container gets whose CRI config names no capability:
	// the stock list, or containerd's base_runtime_spec, or CRI-O's
	// default_capabilities.
	Default capdecode.Sets
	// Held is what the runtime's own process holds: ALL and privileged on
	// containerd and Docker.
	Held capdecode.Set
	// LastCap is the kernel's last capability: ALL and privileged on CRI-O.
	LastCap capdecode.Cap
	// Inheritable is CRI-O's add_inheritable_capabilities, off since 1.24
	// (CVE-2022-27652).
	Inheritable bool
}

// ErrRefused is in the error of a prediction when the runtime does not create
// such a container.
var ErrRefused = errors.New("the runtime refuses to create it")

// runtimeRules is what is known of one runtime.
type runtimeRules struct {
	names   []string      // by which it calls itself in CRI's Version
	stock   capdecode.Set // its default capabilities without configuration
	predict func(CRI, Settings) (OCI, error)
	// tellsCRI is false where the runtime hides the CRI config, so that the pod
	// spec is held against the OCI spec.
	tellsCRI bool
	// perHandler is true where a runtime handler can have defaults of its own
	// (containerd's base_runtime_spec); else they are the runtime's, for all handlers.
	perHandler bool
	// former are the default capabilities of older releases.
	former []capdecode.Set
}

// The runtimes, by the name under which they are asked for.
const (
	Containerd = "containerd"
	CRIO       = "cri-o"
	Docker     = "docker"
)

// runtimes is the table of all hops CRI → OCI that are known; a new runtime is
// one function and one line. Default lists: containerd pkg/oci/spec.go
// defaultUnixCaps, moby oci/caps/defaults.go, CRI-O
// internal/config/capabilities/capabilities_linux.go.
var runtimes = map[string]runtimeRules{
	Containerd: {names: []string{"containerd"}, stock: 0xa80425fb, predict: containerdOCI, tellsCRI: true, perHandler: true},
	// With NET_RAW and SYS_CHROOT before 1.18 (cri-o#3119).
	CRIO:   {names: []string{"cri-o"}, stock: 0x5fb, predict: crioOCI, former: []capdecode.Set{0x425fb}},
	Docker: {names: []string{"docker"}, stock: 0xa80425fb, predict: dockerOCI},
}

// Runtimes lists the names that [Stock] and [PredictOCI] know.
func Runtimes() []string { return slices.Sorted(maps.Keys(runtimes)) }

// runtimeNamed finds the runtime by the name it gives itself.
func runtimeNamed(name string) (string, bool) {
	for key, rules := range runtimes {
		if slices.Contains(rules.names, strings.ToLower(name)) {
			return key, true
		}
	}
	return "", false
}

// Stock returns the settings of a runtime that nobody configured, run by a root
// that holds everything the kernel knows. The runtime must be one of [Runtimes].
func Stock(runtime string, last capdecode.Cap) Settings {
	return Settings{Default: level(runtimes[runtime].stock), Held: capdecode.Full(last), LastCap: last}
}

// PredictOCI is the hop CRI → OCI: what the runtime, one of [Runtimes], makes of
// a CRI config. The uid is 0 where the config names none: the image decides. An
// error wraps [ErrRefused].
func PredictOCI(runtime string, c CRI, s Settings) (OCI, error) {
	rules, ok := runtimes[runtime]
	if !ok {
		return OCI{}, fmt.Errorf("runtime %.30q is not one of %s", runtime, strings.Join(Runtimes(), ", "))
	}
	oci, err := rules.predict(c, s)
	if err != nil {
		return OCI{}, err
	}
	oci.NoNewPrivileges, oci.UserNamespace = c.NoNewPrivileges, c.UserNamespace
	if c.RunAsUser != nil {
		oci.UID = uint32(*c.RunAsUser) //nolint:gosec // the API bounds it to 31 bits
	}
	if oci.UnknownNames == nil {
		oci.UnknownNames = []string{}
	}
	return oci, nil
}

// level is the same set as bounding, permitted and effective, which is what every
// runtime writes.
func level(set capdecode.Set) capdecode.Sets {
	return capdecode.Sets{Bounding: set, Permitted: set, Effective: set}
}

// containerdOCI follows WithCapabilities in internal/cri/opts/spec_opts.go and
// buildContainerSpec in internal/cri/server/container_create.go of containerd
// 2.4, which is the same in 1.6 and 1.7. "CAP_" is put before every name, one
// that has it already too, and no name is checked: what comes out is text, and
// the OCI runtime ignores what it does not know.
func containerdOCI(c CRI, s Settings) (OCI, error) {
	sets := s.Default
	var unknown []string
	if hasAll(c.Add) {
		sets.Bounding, sets.Permitted, sets.Effective = s.Held, s.Held, s.Held
		sets.Inheritable &= s.Held
	}
	if hasAll(c.Drop) {
		sets = capdecode.Sets{}
	}
	written := func(names []string) []string {
		var list []string
		for _, name := range names {
			if upper := strings.ToUpper(name); upper != all {
				list = append(list, "CAP_"+upper)
			}
		}
		return list
	}
	dropNames := written(c.Drop)
	add, unknown := capdecode.ParseOCINames(written(c.Add))
	drop, _ := capdecode.ParseOCINames(dropNames)
	unknown = slices.DeleteFunc(unknown, func(name string) bool { return slices.Contains(dropNames, name) })
	sets.Bounding = (sets.Bounding | add) &^ drop
	sets.Permitted = (sets.Permitted | add) &^ drop
	sets.Effective = (sets.Effective | add) &^ drop
	sets.Inheritable &^= drop
	if c.Privileged { // all of the above is discarded
		inheritable := sets.Inheritable & s.Held
		sets, unknown = level(s.Held), nil
		sets.Inheritable = inheritable
	}
	sets.Ambient = 0 // WithoutAmbientCaps
	slices.Sort(unknown)
	return OCI{Sets: sets, UnknownNames: slices.Compact(unknown)}, nil
}

// crioOCI follows SpecSetupCapabilities and SpecSetPrivileges in
// internal/factory/container/container.go of CRI-O 1.37. Names are taken with
// and without "CAP_", and an unknown one is refused. Privileged fills all five
// sets, ambient too.
func crioOCI(c CRI, s Settings) (OCI, error) {
	known := capdecode.Full(s.LastCap)
	if c.Privileged {
		return OCI{Sets: capdecode.Sets{Bounding: known, Permitted: known, Effective: known, Inheritable: known, Ambient: known}}, nil
	}
	set := capdecode.Set(0)
	switch {
	case hasAll(c.Add):
		set = known
	case !hasAll(c.Drop):
		set = s.Default.Bounding
	}
	if hasAll(c.Drop) {
		set = 0
	}
	// A name that has the prefix is taken as it is, another is put in capitals;
	// runtime-tools then looks it up without regard to case.
	add, drop, err := checked(c, known, "CRI-O does not know the capability")
	if err != nil {
		return OCI{}, err
	}
	sets := level((set | add) &^ drop)
	if s.Inheritable {
		sets.Inheritable = sets.Bounding
	}
	return OCI{Sets: sets}, nil
}

// dockerOCI follows core/security_context.go of cri-dockerd 0.4 and
// TweakCapabilities in oci/caps/utils.go of moby 28. Names are taken with and
// without "CAP_"; one that is unknown, or that dockerd does not hold, is refused.
// An add wins over a drop of the same.
func dockerOCI(c CRI, s Settings) (OCI, error) {
	if c.UserNamespace { // cri-dockerd does not read it, and the kubelet asks first
		return OCI{}, fmt.Errorf("%w: cri-dockerd has no user namespaces for pods", ErrRefused)
	}
	add, drop, err := checked(c, s.Held, "Docker does not know, or does not hold, the capability")
	if err != nil {
		return OCI{}, err
	}
	switch {
	case c.Privileged: // names are checked all the same (daemon/container.go)
		return OCI{Sets: level(s.Held)}, nil
	case hasAll(c.Add): // "ALL" among the drops removes nothing
		return OCI{Sets: level(s.Held &^ drop)}, nil
	case hasAll(c.Drop): // named drops are not looked at
		return OCI{Sets: level(add)}, nil
	}
	return OCI{Sets: level(s.Default.Bounding&^drop | add)}, nil
}

// checked reads both lists as runtimes do that take names with and without
// "CAP_" and refuse what is not among those they have.
func checked(c CRI, among capdecode.Set, refusal string) (add, drop capdecode.Set, err error) {
	for _, list := range []struct {
		names []string
		set   *capdecode.Set
	}{{c.Add, &add}, {c.Drop, &drop}} {
		for _, name := range list.names {
			if strings.EqualFold(name, all) {
				continue
			}
			one, ok := capdecode.ParseName(strings.ToUpper(name))
			if !ok || !among.Has(one) {
				return 0, 0, fmt.Errorf("%w: %s %.40q%s", ErrRefused, refusal, name, hint(ok, name))
			}
			*list.set |= capdecode.Of(one)
		}
	}
	return add, drop, nil
}

// hint asks for what an unknown name is likely to mean.
func hint(known bool, name string) string {
	if meant := likely(name).names(); !known && len(meant) > 0 {
		return fmt.Sprintf(" (did you mean %s?)", strings.Join(meant, ", "))
	}
	return ""
}

// all stands for every capability in an add or a drop list.
const all = "ALL"

func hasAll(names []string) bool {
	return slices.ContainsFunc(names, func(name string) bool { return strings.EqualFold(name, all) })
}
