package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/capdrift/capdrift/policy"
)

// packOptions is the flag --pack: which rules are asked for.
type packOptions struct{ packs []string }

func (o *packOptions) addFlags(cmd *cobra.Command, what string) {
	cmd.Flags().StringArrayVar(&o.packs, "pack", nil, what+"; may be repeated")
	if err := cmd.RegisterFlagCompletionFunc("pack", completePacks); err != nil {
		panic(err) // a flag of this name was just defined
	}
}

// completePacks offers the packs that are built in, and files where none begins so.
func completePacks(_ *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) {
	var names []string
	for _, pack := range policy.Embedded() {
		if strings.HasPrefix(pack.Name, begun) {
			names = append(names, cobra.CompletionWithDesc(pack.Name, pack.Title))
		}
	}
	if len(names) == 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// choose returns the packs asked for, or every one that is built in. One in a file
// stands in for the one built in under its name.
func (o *packOptions) choose() ([]policy.Pack, error) {
	var given []policy.Pack
	var names []string
	for _, name := range o.packs {
		if isBuiltIn(name) {
			names = append(names, name)
			continue
		}
		pack, err := readPack(name)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(given, func(other policy.Pack) bool { return other.Name == pack.Name }) {
			return nil, fmt.Errorf("two packs are named %s; the second is %s", pack.Name, printable(name))
		}
		given, names = append(given, pack), append(names, pack.Name)
	}
	var once []string
	for _, name := range names {
		if !slices.Contains(once, name) {
			once = append(once, name)
		}
	}
	return policy.Choose(given, once...)
}

func isBuiltIn(name string) bool {
	return slices.ContainsFunc(policy.Embedded(), func(pack policy.Pack) bool { return pack.Name == name })
}

// readPack reads a pack from a file. A name that is neither a pack's nor a file's is
// taken for a pack's that was misspelt, unless it looks like a path.
func readPack(name string) (policy.Pack, error) {
	text, err := readPolicyFile(name)
	if errors.Is(err, os.ErrNotExist) && !strings.ContainsAny(name, "/.") {
		_, err = policy.Choose(nil, name)
		return policy.Pack{}, usageError{fmt.Errorf("%w, and no file of this name; capdrift policy list shows the packs", err)}
	}
	if err != nil {
		return policy.Pack{}, err
	}
	return policy.LoadPack(name, text)
}

// maxPolicyFile is more than the policy takes, which then says so itself.
const maxPolicyFile = 2 << 20

func readPolicyFile(name string) ([]byte, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, maxPolicyFile))
}

// readExceptions reads those of a file; none where it has no name.
func readExceptions(name string) ([]policy.Exception, error) {
	if name == "" {
		return nil, nil
	}
	text, err := readPolicyFile(name)
	if err != nil {
		return nil, err
	}
	return policy.LoadExceptions(name, text)
}
