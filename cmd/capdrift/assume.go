package main

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

// assumptions are what --assume states; nil means not stated.
type assumptions struct {
	Given     drift.Given
	ImageUser *uint32
	LastCap   *capdecode.Cap
}

// newestCap is the last capability of the kernels since Linux 5.9,
// CAP_CHECKPOINT_RESTORE: what is taken where no kernel can be asked.
const newestCap capdecode.Cap = 40

// last is the kernel's last capability, as stated or as kernels have it today.
func (a assumptions) last() capdecode.Cap {
	if a.LastCap != nil {
		return *a.LastCap
	}
	return newestCap
}

// The keys of --assume.
const (
	assumeDefaultCaps = "default-caps"
	assumeHeldCaps    = "held-caps"
	assumeInheritable = "inheritable"
	assumeImageUser   = "image-user"
	assumeLastCap     = "last-cap"
)

// assumable says for each key of --assume what its value is for, and reads it.
var assumable = map[string]struct {
	form, help string
	read       func(a *assumptions, value string) error
}{
	assumeDefaultCaps: {
		"LIST|HEX", "what a container gets whose lists are empty (containerd's base_runtime_spec, CRI-O's default_capabilities)",
		func(a *assumptions, value string) error { return readSet(&a.Given.Default, value, a.last()) },
	},
	assumeHeldCaps: {
		"LIST|HEX", "what the runtime's own process holds, which is what ALL and privileged give on containerd and Docker",
		func(a *assumptions, value string) error { return readSet(&a.Given.Held, value, a.last()) },
	},
	assumeInheritable: {
		"true|false", "CRI-O's add_inheritable_capabilities",
		func(a *assumptions, value string) error {
			if value != "true" && value != "false" {
				return errors.New("want true or false")
			}
			inheritable := value == "true"
			a.Given.Inheritable = &inheritable
			return nil
		},
	},
	assumeImageUser: {
		"UID", "the image's user, which counts where neither pod nor container sets runAsUser",
		func(a *assumptions, value string) error {
			// The highest number is -1, which is nobody (setuid(2)).
			n, err := strconv.ParseUint(value, 10, 32)
			if err != nil || n == math.MaxUint32 {
				return errors.New("want a uid, a number such as 1000 (0 is root)")
			}
			uid := uint32(n)
			a.ImageUser = &uid
			return nil
		},
	},
	assumeLastCap: {
		"N|NAME", "the last capability of the nodes' kernel",
		func(a *assumptions, value string) error {
			last, ok := capdecode.ParseCap(value)
			if !ok {
				return fmt.Errorf("want a number from 0 to %d or a name such as %s", capdecode.MaxCap, newestCap)
			}
			a.LastCap = &last
			return nil
		},
	},
}

func readSet(to **capdecode.Set, value string, last capdecode.Cap) error {
	set, err := capdecode.ParseSet(value, last)
	if err != nil {
		return err
	}
	*to = &set
	return nil
}

// parseAssumptions reads KEY=VALUE pairs, of the allowed keys each once.
func parseAssumptions(values []string, allowed ...string) (assumptions, error) {
	given := make(map[string]string)
	for _, pair := range values {
		key, value, ok := strings.Cut(pair, "=")
		switch _, twice := given[key]; {
		case !ok || !slices.Contains(allowed, key):
			return assumptions{}, fmt.Errorf("--assume=%s: want KEY=VALUE with one of %s", printable(pair), strings.Join(allowed, ", "))
		case twice:
			return assumptions{}, fmt.Errorf("--assume=%s: %s is given twice", printable(pair), key)
		}
		given[key] = strings.TrimSpace(value)
	}
	var a assumptions
	keys := slices.Sorted(maps.Keys(given))
	// The last capability first: it says what ALL is in the others.
	slices.SortStableFunc(keys, func(a, b string) int {
		switch assumeLastCap {
		case a:
			return -1
		case b:
			return 1
		}
		return 0
	})
	for _, key := range keys {
		if err := assumable[key].read(&a, given[key]); err != nil {
			return assumptions{}, fmt.Errorf("--assume=%s=%s: %w", key, printable(given[key]), err)
		}
	}
	return a, nil
}

// assumeHelp describes the keys, a line each.
func assumeHelp(keys ...string) string {
	var help strings.Builder
	for _, key := range keys {
		fmt.Fprintf(&help, "  %-24s %s\n", key+"="+assumable[key].form, assumable[key].help)
	}
	return help.String()
}
