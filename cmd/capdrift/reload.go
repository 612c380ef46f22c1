package main

import (
	"context"
	"log/slog"
	"os"
	"reflect"
	"time"

	"github.com/capdrift/capdrift/agent"
)

// lookForConfig is how often the configuration file is looked at. A Kubernetes
// ConfigMap changes by a swap of symbolic links, which only the target's identity
// tells.
const lookForConfig = 5 * time.Second

// reloading keeps what can change while the agent runs as the configuration says:
// the cadences, what is assumed of the runtime, and the log's level.
type reloading struct {
	options *agentOptions
	current config
	loop    *agent.Loop
	level   *slog.LevelVar
	log     *slog.Logger
}

// run reads the configuration again when it changed or a signal asks for it, until
// the context ends. A configuration that is wrong is told, and the one before stays
// in force.
func (r *reloading) run(ctx context.Context, signals <-chan os.Signal, ticks <-chan time.Time) error {
	last := stamp(r.options.config)
	for {
		asked := false
		select {
		case <-ctx.Done():
			return nil
		case <-signals:
			asked = true
		case <-ticks:
		}
		now := stamp(r.options.config)
		if !asked && now == last {
			continue
		}
		last = now
		r.reload(ctx)
	}
}

func (r *reloading) reload(ctx context.Context) {
	next, err := r.options.read()
	if err != nil {
		r.log.Error("the configuration was not taken; the one before stays in force", "error", err)
		return
	}
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
	fixed.Cadence, fixed.Assume, fixed.Log.Level = was.Cadence, was.Assume, was.Log.Level
	if reflect.DeepEqual(fixed, was) {
		r.log.Info("the configuration is in force")
	} else {
		r.log.Warn("the configuration is in force but for node, runtime, api, health, journal, metrics and log.format, which a restart takes")
	}
	r.current.Cadence, r.current.Assume, r.current.Log.Level = next.Cadence, next.Assume, next.Log.Level
}

// stamp tells one version of a file from another; the zero value where there is none.
func stamp(name string) (identity struct {
	modified time.Time
	size     int64
	inode    uint64
},
) {
	if name == "" {
		return identity
	}
	info, err := os.Stat(name)
	if err != nil {
		return identity
	}
	identity.modified, identity.size, identity.inode = info.ModTime(), info.Size(), inodeOf(info)
	return identity
}
