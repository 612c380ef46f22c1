package capdecode

import (
	"fmt"
	"strconv"
	"strings"
)

// ParseHex reads the 16 hexadecimal digits that the kernel prints for a set.
// Anything else, a seventeenth digit or a sign too, is an error.
func ParseHex(text string) (Set, error) {
	s, ok := HexBytes([]byte(text))
	if !ok {
		return 0, fmt.Errorf("capability set %q: want 16 hexadecimal digits", clip(text))
	}
	return s, nil
}

// HexBytes is [ParseHex] for the hot path: no allocation, false for an error.
func HexBytes(text []byte) (Set, bool) {
	if len(text) != 16 {
		return 0, false
	}
	var s Set
	for _, digit := range text {
		switch {
		case '0' <= digit && digit <= '9':
			digit -= '0'
		case 'a' <= digit && digit <= 'f':
			digit -= 'a' - 10
		case 'A' <= digit && digit <= 'F':
			digit -= 'A' - 10
		default:
			return 0, false
		}
		s = s<<4 | Set(digit)
	}
	return s, true
}

// ParseOCINames is the reading of an OCI runtime: only a full "CAP_…" name means
// a capability, and everything else comes back as unknown because runc and crun
// ignore it. Case is forgiven: crun's cap_from_name(3) does so too.
// Sources: runc libcontainer/capabilities/capabilities.go, crun libcrun/linux.c.
func ParseOCINames(list []string) (s Set, unknown []string) {
	for _, name := range list {
		if c, ok := numbers[asciiLower(name)]; ok {
			s |= Of(c)
		} else {
			unknown = append(unknown, name)
		}
	}
	return s, unknown
}

// ParseSet reads a set as people write one: hexadecimal with or without 0x
// ("a80425fb", "0x400"), or names and numbers in any spelling parted by commas
// or spaces, "ALL" among them for everything up to last.
// Unlike a bare number in a list ("21", a bit), a whole text of 8 to 16
// hexadecimal digits or one that starts with 0x is a bitmap.
func ParseSet(text string, last Cap) (Set, error) {
	text = strings.TrimSpace(text)
	if s, ok := looseHex(text); ok {
		return s, nil
	}
	var s Set
	for _, name := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' || r == '\n' }) {
		if isAll(name) {
			s |= Full(last)
			continue
		}
		c, ok := ParseCap(name)
		if !ok {
			return 0, fmt.Errorf("%q is no capability: want a name such as CAP_NET_ADMIN or net_admin, ALL, a bit number 0-63, or hexadecimal such as 0xa80425fb", clip(name))
		}
		s |= Of(c)
	}
	return s, nil
}

func isAll(name string) bool {
	return strings.EqualFold(name, "all") || strings.EqualFold(name, "cap_all")
}

func looseHex(text string) (Set, bool) {
	digits, prefixed := strings.CutPrefix(strings.ToLower(text), "0x")
	if len(digits) > 16 || len(digits) == 0 || (!prefixed && len(digits) < 8) {
		return 0, false
	}
	return HexBytes([]byte(strings.Repeat("0", 16-len(digits)) + digits))
}

// ParseText reads libcap's text form, cap_from_text(3), as `getpcaps`, `getcap`
// and the "Current:" line of `capsh --print` write it: clauses such as "=ep",
// "cap_net_raw,cap_chown+eip" or "cap_sys_resource-ep", applied from left to right.
// Only the inheritable, permitted and effective sets have such a form.
//
// It takes what libcap takes and nothing else: full names in any case, "all", and
// numbers as in C (0x10, 010, 16), which are capabilities and no bitmaps.
// Source: libcap/cap_text.c.
func ParseText(text string, last Cap) (Sets, error) {
	var sets Sets
	for _, clause := range strings.Fields(text) {
		at := strings.IndexAny(clause, "=+-")
		if at < 0 {
			return Sets{}, fmt.Errorf("clause %q: want names followed by =, + or - and the letters e, i, p", clip(clause))
		}
		var list Set
		if at == 0 {
			if clause[0] != '=' {
				return Sets{}, fmt.Errorf("clause %q: only = stands without names", clip(clause))
			}
			list = Full(last)
		} else {
			for name := range strings.SplitSeq(clause[:at], ",") {
				if strings.EqualFold(name, "all") {
					list |= Full(last)
					continue
				}
				c, ok := textCap(name)
				if !ok {
					return Sets{}, fmt.Errorf("clause %q: %q is no capability to libcap: want a full name such as cap_net_admin, all, or a number 0-63", clip(clause), clip(name))
				}
				list |= Of(c)
			}
		}
		if err := sets.apply(list, clause[at:], at == 0); err != nil {
			return Sets{}, fmt.Errorf("clause %q: %w", clip(clause), err)
		}
	}
	return sets, nil
}

// textCap is one capability as libcap's text form names it.
func textCap(name string) (Cap, bool) {
	if c, ok := numbers[asciiLower(name)]; ok {
		return c, true
	}
	if name == "" || name[0] < '0' || name[0] > '9' || len(name) > 1 && strings.ContainsRune("bBoO", rune(name[1])) || strings.Contains(name, "_") {
		return 0, false // Go's own forms of numbers, 0b1 and 1_0
	}
	n, err := strconv.ParseUint(name, 0, 8) // as strtoul(3) with base 0
	if err != nil || n > uint64(MaxCap) {
		return 0, false
	}
	return Cap(n), true
}

// apply carries out the actions of one clause, "=ep" or "+i-p", on the listed
// capabilities. An = comes first and alone needs no letters; all is a clause that
// has no names, which takes = and nothing behind it.
func (s *Sets) apply(list Set, actions string, all bool) error {
	var action rune
	letters := 0 // of the action
	for i, letter := range actions {
		if strings.ContainsRune("=+-", letter) {
			switch {
			case i > 0 && (letter == '=' || all):
				return fmt.Errorf("%q may not stand there", letter)
			case i > 0 && letters == 0 && action != '=':
				return fmt.Errorf("%q without any of e, i, p", action)
			}
			action, letters = letter, 0
			if action == '=' {
				s.Effective, s.Inheritable, s.Permitted = s.Effective&^list, s.Inheritable&^list, s.Permitted&^list
			}
			continue
		}
		letters++
		var set *Set
		switch letter {
		case 'e':
			set = &s.Effective
		case 'i':
			set = &s.Inheritable
		case 'p':
			set = &s.Permitted
		default:
			return fmt.Errorf("flag %q is none of e, i, p", letter)
		}
		if action == '-' {
			*set &^= list
		} else {
			*set |= list
		}
	}
	if letters == 0 && action != '=' {
		return fmt.Errorf("%q without any of e, i, p", action)
	}
	return nil
}

// clip bounds what an error repeats of a hostile input.
func clip(text string) string {
	const most = 64
	if len(text) > most {
		return text[:most] + "…"
	}
	return text
}
