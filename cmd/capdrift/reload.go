package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"reflect"
	"strings"
	"time"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/agent/rpc"
)

// lookForConfig is how often the configuration file, and what it names of a policy, is
// looked at. A Kubernetes ConfigMap changes by a swap of symbolic links, which only the
// target's identity tells.
const lookForConfig = 5 * time.Second

// reloading keeps what can change while the agent runs as the configuration says: the
// cadences, what is assumed of the runtime, the policy, and the log's level.
type reloading struct {
	options *agentOptions
	current config
	loop    *agent.Loop
	level   *slog.LevelVar
	log     *slog.Logger
	refused error // why the newest policy is not in force

	certificates *rpc.Certificates // nil for none
	told         string            // how they fare
}

// run reads the configuration again when it or the policy changed or a signal asks for it,
// until the context ends. What is wrong is told, and what was before stays in force.
func (r *reloading) run(ctx context.Context, signals <-chan os.Signal, ticks <-chan time.Time) error {
	last, named, stamps := stamp(r.options.config), r.current.Policy, r.stamps()
	for {
		r.tellOfCertificates(ctx)
		asked := false
		select {
		case <-ctx.Done():
			return nil
		case <-signals:
			asked = true
		case <-ticks:
		}
		// Stamps are taken before the files are read: what changes meanwhile is seen the
		// next time.
		if now := stamp(r.options.config); asked || now != last {
			last = now
			r.reload(ctx)
		}
		// A policy that was refused may be readable now though its files are the same.
		now := r.stamps()
		if asked || r.refused != nil || !maps.Equal(now, stamps) || !reflect.DeepEqual(r.current.Policy, named) {
			stamps, named = now, r.current.Policy
			r.rules(ctx)
		}
	}
}

// reload takes all but the policy.
func (r *reloading) reload(ctx context.Context) {
	next, err := r.options.read()
	if err != nil {
		r.log.Error("the configuration was not taken; the one before stays in force", "error", err)
		_ = r.loop.Report(ctx, "config", briefError(err)) // the context ended: nobody asks any more
		return
	}
	_ = r.loop.Report(ctx, "config", nil)
	given, err := next.given()
	if err == nil {
		err = r.level.UnmarshalText([]byte(next.Log.Level))
	}
	if err == nil {
		err = r.loop.Configure(ctx, next.cadence(), given)
	}
	if err != nil {
		r.log.Error("the configuration was not taken in whole", "error", err)
		return
	}
	fixed, was := next, r.current
	fixed.Cadence, fixed.Assume, fixed.Policy, fixed.Log.Level = was.Cadence, was.Assume, was.Policy, was.Log.Level
	if reflect.DeepEqual(fixed, was) {
		r.log.Info("the configuration is in force")
	} else {
		r.log.Warn("the configuration is in force but for node, runtime, api, health, journal, metrics and log.format, which a restart takes")
	}
	r.current.Cadence, r.current.Assume, r.current.Policy, r.current.Log.Level = next.Cadence, next.Assume, next.Policy, next.Log.Level
}

// rules takes the policy that the configuration in force names.
func (r *reloading) rules(ctx context.Context) {
	next, err := r.current.Policy.read()
	switch {
	case err == nil && next != nil:
		r.log.Info("the policy is in force", "packs", r.current.Policy.Packs, "exceptions", r.current.Policy.Exceptions)
	case err != nil && (r.refused == nil || r.refused.Error() != err.Error()):
		r.log.Error("the policy was not taken; the one before stays in force", "error", err)
	}
	r.refused = err
	_ = r.loop.Enforce(ctx, agent.PolicyUpdate{Policy: next, Err: briefError(err)}) // the context ended: nobody judges any more
}

// tellOfCertificates says whether those that are there are in use: they replace themselves.
func (r *reloading) tellOfCertificates(ctx context.Context) {
	if r.certificates == nil {
		return
	}
	problem := r.certificates.Problem()
	if now := fmt.Sprint(problem); now != r.told {
		r.told = now
		_ = r.loop.Report(ctx, "certificates", briefError(problem)) // the context ended: nobody asks any more
	}
}

// briefError is the first line of an error, which has the place: others show the text there.
func briefError(err error) error {
	if err == nil {
		return nil
	}
	line, _, _ := strings.Cut(err.Error(), "\n")
	return errors.New(line)
}

// stamps tell one version of the policy's files from another.
func (r *reloading) stamps() map[string]identity {
	all := make(map[string]identity)
	for _, name := range r.current.Policy.files() {
		all[name] = stamp(name)
	}
	return all
}

// identity is what tells one version of a file from another.
type identity struct {
	modified time.Time
	size     int64
	inode    uint64
}

// stamp is the file's identity; the zero value where there is none.
func stamp(name string) identity {
	if name == "" {
		return identity{}
	}
	info, err := os.Stat(name)
	if err != nil {
		return identity{}
	}
	return identity{info.ModTime(), info.Size(), inodeOf(info)}
}
