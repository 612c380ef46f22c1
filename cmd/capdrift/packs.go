package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/capdrift/capdrift/policy"
)

// packOptions are the flags --pack and --pss-version: which rules are asked for, and by
// which version of Kubernetes they judge.
type packOptions struct {
	packs   []string
	version string // "" for the cluster's where it is known, else the latest
}

func (o *packOptions) addFlags(cmd *cobra.Command, what string) {
	cmd.Flags().StringArrayVar(&o.packs, "pack", nil, what+"; may be repeated")
	cmd.Flags().StringVar(&o.version, "pss-version", "", "judge by the Pod Security Standards of this version of Kubernetes: 1.34, or latest (default: the cluster's where an API server is asked, else latest)")
	if err := cmd.RegisterFlagCompletionFunc("pack", completePacks); err != nil {
		panic(err) // a flag of this name was just defined
	}
}

// validate is about --pss-version; packs are read later.
func (o *packOptions) validate() error {
	if o.version == "" {
		return nil
	}
	if _, err := policy.ParseVersion(o.version); err != nil {
		return fmt.Errorf("--pss-version: %w", err)
	}
	return nil
}

// asked is the policy of what --pack names; nil where nothing is.
func (o *packOptions) asked(cmd *cobra.Command, ask func(context.Context) (int, error)) (*policy.Policy, error) {
	if len(o.packs) == 0 {
		return nil, nil
	}
	return o.compile(cmd.Context(), cmd.ErrOrStderr(), nil, ask)
}

// compile makes a policy of what --pack names, and exceptions.
func (o *packOptions) compile(ctx context.Context, warn io.Writer, exceptions []policy.Exception, ask func(context.Context) (int, error)) (*policy.Policy, error) {
	packs, err := o.choose()
	if err != nil {
		return nil, err
	}
	rules, err := policy.Compile(packs, exceptions)
	if err != nil {
		return nil, err
	}
	return o.at(ctx, warn, rules, ask)
}

// at makes the policy judge by the version that was asked for, else by the cluster's,
// which ask tells; nil for no cluster.
func (o *packOptions) at(ctx context.Context, warn io.Writer, rules *policy.Policy, ask func(context.Context) (int, error)) (*policy.Policy, error) {
	switch {
	case o.version != "":
		version, err := policy.ParseVersion(o.version)
		return rules.At(version), err
	case ask == nil || !rules.ByVersion():
		return rules, nil
	}
	minor, err := ask(ctx)
	if err != nil {
		fmt.Fprintf(warn, "capdrift: warning: %s; judged by the Pod Security Standards of %s, the latest that are known (--pss-version says another)\n", printable(err.Error()), rules.Version())
		return rules, nil
	}
	return rules.At(policy.Version(minor)), nil
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

// readExceptions reads those of a file.
func readExceptions(name string) ([]policy.Exception, error) {
	text, err := readPolicyFile(name)
	if err != nil {
		return nil, err
	}
	return policy.LoadExceptions(name, text)
}
