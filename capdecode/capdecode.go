// Package capdecode knows what a capability bitmap means.
//
// A [Set] is one 64-bit capability set as the kernel keeps it; [Sets] are the
// five sets of one task. Bits have names and names have bits; neither direction
// ever loses anything: a bit without a name keeps its number ("CAP_41"), a name
// without a bit is handed back as text.
//
// What "all capabilities" means depends on the kernel: its last capability is a
// value ([Cap]) that callers read from /proc/sys/kernel/cap_last_cap and pass in.
//
// Sources: capabilities(7), proc_pid_status(5), include/uapi/linux/capability.h.
package capdecode

import (
	"encoding/json"
	"fmt"
	"iter"
	"math/bits"
	"strconv"
	"strings"

	"github.com/moby/sys/capability"
)

// Cap is the number of one capability, 0 to 63: its bit in a [Set].
type Cap uint8

// MaxCap is the highest number a 64-bit set can hold; the kernels of today end
// at 40 (CAP_CHECKPOINT_RESTORE).
const MaxCap Cap = 63

// names holds the lower-case kernel name ("cap_chown") of every known bit and
// "" elsewhere; numbers is its inverse.
var names, numbers = knownNames()

func knownNames() (byNumber [64]string, byName map[string]Cap) {
	byName = make(map[string]Cap)
	for _, known := range capability.ListKnown() {
		name := "cap_" + known.String()
		byNumber[known] = name
		byName[name] = Cap(known)
	}
	return byNumber, byName
}

// Known tells whether the bit has a name.
func (c Cap) Known() bool { return c <= MaxCap && names[c] != "" }

// String returns the name as Kubernetes and the OCI write it, "CAP_NET_ADMIN";
// an unknown bit is "CAP_41".
func (c Cap) String() string {
	if c.Known() {
		return strings.ToUpper(names[c])
	}
	return "CAP_" + strconv.Itoa(int(c))
}

// ParseName reads the name of one capability in any spelling that people use:
// "CAP_NET_ADMIN", "net_admin", "Net_Admin". Numbers are no names to Kubernetes
// and its runtimes, and neither are they here.
func ParseName(name string) (Cap, bool) {
	lower := asciiLower(name)
	if c, ok := numbers[lower]; ok {
		return c, true
	}
	c, ok := numbers["cap_"+lower]
	return c, ok
}

// asciiLower leaves other letters as they are: to the kernel's names, and to the
// runtimes, a Kelvin sign is no K.
func asciiLower(text string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, text)
}

// ParseCap is [ParseName] that also takes a bit by its number, "CAP_41" or "41".
// It reports false for everything else, "ALL" too: that is a set ([ParseSet]).
func ParseCap(name string) (Cap, bool) {
	if c, ok := ParseName(name); ok {
		return c, true
	}
	lower := asciiLower(name)
	digits := strings.TrimPrefix(lower, "cap_")
	if len(digits) == 0 || len(digits) > 2 || digits[0] < '0' || digits[0] > '9' {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 8)
	if err != nil || Cap(n) > MaxCap || (len(digits) == 2 && digits[0] == '0') {
		return 0, false
	}
	return Cap(n), true
}

// Set is one capability set: bit n is capability n.
type Set uint64

// Of returns the set of the given capabilities.
func Of(caps ...Cap) Set {
	var s Set
	for _, c := range caps {
		s |= 1 << c
	}
	return s
}

// Full returns every capability of a kernel whose last one is given.
func Full(last Cap) Set {
	if last >= MaxCap {
		return ^Set(0)
	}
	return 1<<(last+1) - 1
}

// Has tells whether the capability is in the set.
func (s Set) Has(c Cap) bool { return s>>c&1 == 1 }

// Minus returns what is in the set and not in the other.
func (s Set) Minus(other Set) Set { return s &^ other }

// Within tells whether everything in the set is in the other too.
func (s Set) Within(other Set) bool { return s&^other == 0 }

// Empty tells whether nothing is in the set.
func (s Set) Empty() bool { return s == 0 }

// Len returns how many capabilities are in the set.
func (s Set) Len() int { return bits.OnesCount64(uint64(s)) }

// All yields the capabilities of the set in bit order.
func (s Set) All() iter.Seq[Cap] {
	return func(yield func(Cap) bool) {
		for rest := uint64(s); rest != 0; rest &= rest - 1 {
			if !yield(Cap(bits.TrailingZeros64(rest))) {
				return
			}
		}
	}
}

// Names returns the names in bit order, "CAP_CHOWN" …; never nil.
func (s Set) Names() []string {
	list := make([]string, 0, s.Len())
	for c := range s.All() {
		list = append(list, c.String())
	}
	return list
}

// Hex returns the 16 digits that the kernel prints in /proc/PID/status.
func (s Set) Hex() string { return fmt.Sprintf("%016x", uint64(s)) }

// String returns the text that `capsh --decode` prints: lower-case names in bit
// order joined by commas, an unknown bit as its bare number.
func (s Set) String() string {
	var text strings.Builder
	for c := range s.All() {
		if text.Len() > 0 {
			text.WriteByte(',')
		}
		if c.Known() {
			text.WriteString(names[c])
		} else {
			text.WriteString(strconv.Itoa(int(c)))
		}
	}
	return text.String()
}

// jsonSet is the published form of a set: {"hex":"…","names":[…]}.
type jsonSet struct {
	Hex   string   `json:"hex"`
	Names []string `json:"names"`
}

// MarshalJSON writes {"hex":"0000000000000400","names":["CAP_NET_BIND_SERVICE"]}.
func (s Set) MarshalJSON() ([]byte, error) {
	return json.Marshal(jsonSet{s.Hex(), s.Names()})
}

// UnmarshalJSON reads what MarshalJSON wrote; "hex" decides.
func (s *Set) UnmarshalJSON(text []byte) error {
	var form jsonSet
	if err := json.Unmarshal(text, &form); err != nil {
		return err
	}
	parsed, err := ParseHex(form.Hex)
	if err != nil {
		return err
	}
	*s = parsed
	return nil
}

// Sets are the five capability sets of one task, capabilities(7) "Thread
// capability sets".
type Sets struct {
	Inheritable Set `json:"inheritable"`
	Permitted   Set `json:"permitted"`
	Effective   Set `json:"effective"`
	Bounding    Set `json:"bounding"`
	Ambient     Set `json:"ambient"`
}
