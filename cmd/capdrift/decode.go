package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/moby/sys/capability"
	"github.com/spf13/cobra"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/proc"
)

// decoded is one answer of `capdrift decode`: a single set, or the named ones of
// a process, of a line that names them, or of libcap's text form, which has no
// bounding and no ambient set.
type decoded struct {
	Input      string               `json:"input"`
	Set        *capdecode.Set       `json:"set,omitempty"`
	Sets       []capdecode.NamedSet `json:"sets,omitempty"`
	CapLastCap capdecode.Cap        `json:"capLastCap"`
	// Unknown holds the bits of Set above the kernel's last capability.
	Unknown *capdecode.Set `json:"unknownToKernel,omitempty"`
}

func decodeCommand() *cobra.Command {
	var pid int
	var root, format string
	var last int
	cmd := &cobra.Command{
		Use:   "decode [SET…]",
		Short: "Say what a capability bitmap means, or which bitmap a list of names is",
		Long: `Say what a capability bitmap means, or which bitmap a list of names is.

SET is hexadecimal as in /proc/PID/status (00000000a80425fb, 0x400), a list of names in any
spelling (NET_ADMIN,cap_net_raw, ALL), or libcap's text form (cap_net_raw=ep), which is read
as libcap reads it. Lines are taken as they were copied: of /proc/PID/status, of capsh,
getpcaps and getcap, of audit records, and lists in JSON; and - reads standard input.
With --pid it shows the five sets of a running process.`,
		Example: `  capdrift decode 00000000a80425fb
  capdrift decode NET_ADMIN,SYS_TIME
  capdrift decode '=ep cap_sys_resource-ep'
  capdrift decode 'Current: = cap_chown,cap_kill,37+eip'
  capsh --print | capdrift decode -
  capdrift decode --pid 1`,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case (pid != 0) == (len(args) > 0):
				return usageError{errors.New("name one or more sets, or a process with --pid; see 'capdrift decode --help'")}
			case pid < 0:
				return usageError{fmt.Errorf("--pid=%d: want a process id", pid)}
			case !slices.Contains([]string{"text", "json"}, format):
				return usageError{fmt.Errorf("--output=%s: want text or json", format)}
			case last > int(capdecode.MaxCap):
				return usageError{fmt.Errorf("--last-cap=%d: want 0 to %d", last, capdecode.MaxCap)}
			}
			lastCap := lastCapability(root, last)
			var answers []decoded
			if pid != 0 {
				process, err := proc.New(root, proc.Options{}).Process(pid)
				if err != nil {
					return begunError{fmt.Errorf("reading process %d: %w", pid, err)}
				}
				answers = []decoded{{Input: fmt.Sprintf("process %d %s", pid, process.Name), CapLastCap: lastCap, Sets: []capdecode.NamedSet{
					{Name: "effective", Set: process.Caps.Effective}, {Name: "permitted", Set: process.Caps.Permitted}, {Name: "inheritable", Set: process.Caps.Inheritable},
					{Name: "bounding", Set: process.Caps.Bounding}, {Name: "ambient", Set: process.Caps.Ambient},
				}}}
			}
			for _, arg := range args {
				if arg == stdin {
					text, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), maxDecoded+1))
					if err != nil {
						return begunError{fmt.Errorf("reading standard input: %w", err)}
					}
					arg = string(text)
				}
				some, err := decode(arg, lastCap)
				if err != nil {
					return usageError{printableError(err)}
				}
				answers = append(answers, some...)
			}
			return does(func(cmd *cobra.Command, _ []string) error { return writeDecoded(cmd.OutOrStdout(), answers, format) })(cmd, args)
		},
	}
	cmd.Flags().IntVar(&pid, "pid", 0, "decode the five sets of this process")
	cmd.Flags().StringVar(&root, "host-root", "/", "where the host's root is mounted, for --pid and the last capability")
	cmd.Flags().IntVar(&last, "last-cap", -1, "the last capability of the kernel in question (default: this kernel's)")
	cmd.Flags().StringVarP(&format, "output", "o", "text", "output format: text, json")
	complete(cmd, "output", "text", "json")
	return cmd
}

// lastCapability is the asked-for one, else this kernel's, else the last that
// has a name: decoding on a machine without /proc is still decoding.
func lastCapability(root string, asked int) capdecode.Cap {
	if asked >= 0 {
		return capdecode.Cap(asked)
	}
	if node, _, err := proc.New(root, proc.Options{}).Node(); err == nil {
		return node.CapLastCap
	}
	return capdecode.Cap(len(capability.ListKnown()) - 1)
}

// maxDecoded bounds what is read from standard input; capdecode refuses more.
const maxDecoded = 1 << 20

func decode(text string, last capdecode.Cap) (answers []decoded, err error) {
	list, err := capdecode.ParsePasted(text, last)
	if err != nil {
		return nil, fmt.Errorf("%w; what can be pasted: hexadecimal, names, libcap's text, and lines of /proc/PID/status, capsh, getpcaps and getcap", err)
	}
	for _, one := range list {
		answer := decoded{Input: one.Line, Set: one.Set, Sets: one.Named, CapLastCap: last}
		if one.Set != nil {
			if above := one.Set.Minus(capdecode.Full(last)); !above.Empty() {
				answer.Unknown = &above
			}
		}
		answers = append(answers, answer)
	}
	return answers, nil
}

func writeDecoded(w io.Writer, answers []decoded, format string) error {
	if format == "json" {
		encoder := json.NewEncoder(escapingWriter{w})
		encoder.SetIndent("", "  ")
		return encoder.Encode(answers)
	}
	for _, answer := range answers {
		if answer.Set != nil {
			fmt.Fprintf(w, "%s  %s\n", answer.Set.Hex(), namesOrNone(*answer.Set))
			if answer.Unknown != nil {
				fmt.Fprintf(w, "                  this kernel ends at %s and does not know %s\n", answer.CapLastCap, strings.Join(answer.Unknown.Names(), " "))
			}
			continue
		}
		fmt.Fprintf(w, "%s\n", printable(answer.Input))
		for _, row := range answer.Sets {
			fmt.Fprintf(w, "  %-11s  %s  %s\n", row.Name, row.Set.Hex(), namesOrNone(row.Set))
		}
	}
	return nil
}

func namesOrNone(set capdecode.Set) string {
	if set.Empty() {
		return "none"
	}
	return strings.Join(set.Names(), " ")
}
