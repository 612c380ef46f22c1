package main

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/capdrift/capdrift/policy"
)

// TestVersionOfPacks: the flag decides, else the cluster, else the latest that is known,
// which is said where the cluster was asked and did not tell.
func TestVersionOfPacks(t *testing.T) {
	cluster := func(minor int, err error) func(context.Context) (int, error) {
		return func(context.Context) (int, error) { return minor, err }
	}
	for _, test := range []struct {
		what, flag, pack string
		ask              func(context.Context) (int, error)
		want             policy.Version
		warned           string
	}{
		{"no cluster", "", "pss-baseline", nil, policy.LatestVersion, ""},
		{"a cluster", "", "pss-baseline", cluster(30, nil), 30, ""},
		{"a cluster of a later version", "", "pss-baseline", cluster(99, nil), 99, ""},
		{"a cluster that does not tell", "", "pss-baseline", cluster(0, errors.New("no\x1b")), policy.LatestVersion, `no\x1b; judged by the Pod Security Standards of v1.37`},
		{"the flag, whatever the cluster", "v1.29.3", "pss-restricted", cluster(30, nil), 29, ""},
		{"the latest, whatever the cluster", "latest", "pss-restricted", cluster(30, nil), policy.LatestVersion, ""},
		{"a pack that is the same in all versions", "", "cis", cluster(0, errors.New("no")), policy.LatestVersion, ""},
	} {
		var warn strings.Builder
		o := packOptions{packs: []string{test.pack}, version: test.flag}
		rules, err := o.compile(context.Background(), &warn, nil, test.ask)
		if err != nil || rules.Version() != test.want || !strings.Contains(warn.String(), test.warned) || (warn.Len() > 0) != (test.warned != "") {
			t.Errorf("%s: %v, %q, %v, want %s, %q", test.what, rules.Version(), warn.String(), err, test.want, test.warned)
		}
	}
}

// TestAgentsVersion: an agent judges by the version that its configuration names.
func TestAgentsVersion(t *testing.T) {
	for version, want := range map[string]policy.Version{"": policy.LatestVersion, "1.31": 31} {
		p, err := policyConfig{Packs: []string{"pss-baseline"}, PSSVersion: version}.read()
		if err != nil || p.(ruling).Version() != want {
			t.Errorf("%q: %v, want %s", version, err, want)
		}
	}
	c := defaultConfig()
	c.Policy.PSSVersion = "34"
	if err := c.validate(); err == nil || !strings.Contains(err.Error(), "policy.pssVersion") {
		t.Errorf("34 is taken: %v", err)
	}
}
