package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/drift"
)

// agentOptions are the flags of `capdrift agent`; what they give wins over the
// configuration file.
type agentOptions struct {
	config   string
	check    bool
	socket   string
	dataDir  string
	endpoint string
	hostRoot string
	nodeName string
}

func agentCommand() *cobra.Command {
	var o agentOptions
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Keep this node's truth current, and serve it over gRPC",
		Long: `Keep the truth of this node current: which containers run, what their processes hold beside
what was declared, and every finding from its first sight to its end. It is served over gRPC on a
unix socket, written to a journal, and shown as metrics.

It needs uid 0 for the runtime's socket, and no capability; docs/agent.md says more.`,
		Example: `  capdrift agent
  capdrift agent --config /etc/capdrift/agent.yaml
  capdrift agent --config agent.yaml --check-config`,
		Args: cobra.NoArgs,
		RunE: does(func(cmd *cobra.Command, _ []string) error { return o.run(cmd) }),
	}
	flags := cmd.Flags()
	flags.StringVar(&o.config, "config", "", "the configuration file (YAML)")
	flags.BoolVar(&o.check, "check-config", false, "read the configuration and the files that it names, print what is in force, and end")
	flags.StringVar(&o.socket, "socket", "", "where to serve, instead of api.socket")
	flags.StringVar(&o.dataDir, "data-dir", "", "where the journal is, instead of journal.dir")
	flags.StringVar(&o.endpoint, "cri-endpoint", "", "the runtime's CRI socket, instead of runtime.endpoint")
	flags.StringVar(&o.hostRoot, "host-root", "", "where the host's root is mounted, instead of node.hostRoot")
	flags.StringVar(&o.nodeName, "node-name", "", "what this node is called, instead of node.name")
	return cmd
}

// read returns the configuration that is in force.
func (o *agentOptions) read() (config, error) {
	c, err := readConfig(o.config)
	if err != nil {
		return config{}, err
	}
	if o.endpoint != "" {
		c.Runtime.Endpoints = []string{}
	}
	for _, one := range []struct {
		flag string
		key  *string
	}{
		{o.socket, &c.API.Socket}, {o.dataDir, &c.Journal.Dir}, {o.endpoint, &c.Runtime.Endpoint},
		{o.hostRoot, &c.Node.HostRoot}, {o.nodeName, &c.Node.Name},
	} {
		if one.flag != "" {
			*one.key = one.flag
		}
	}
	return c, c.validate()
}

func (o *agentOptions) run(cmd *cobra.Command) error {
	c, err := o.read()
	if err != nil {
		return err
	}
	if o.check {
		if err := c.works(); err != nil {
			return printableError(err)
		}
		text, err := yaml.Marshal(c)
		if err != nil {
			return err
		}
		_, err = cmd.OutOrStdout().Write(text)
		return err
	}
	level := new(slog.LevelVar)
	log := newLogger(c.Log, level, cmd.ErrOrStderr())
	if os.Getenv("GOGC") == "" {
		// The heap is one picture of the node, and for the time of a sweep a second one.
		// Memory counts on every node; the collector's work does not, at a few sweeps a minute.
		debug.SetGCPercent(50)
	}
	if os.Getenv("GOMAXPROCS") == "" {
		// One processor at a time is enough, on a node of a hundred too: waking others costs
		// more than what they would take off it.
		runtime.GOMAXPROCS(1)
	}
	parts, err := assemble(c, log)
	if err != nil {
		return err
	}
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	looks := time.NewTicker(lookForConfig)
	defer looks.Stop()
	reload := &reloading{options: o, current: c, loop: parts.loop, certificates: parts.certificates, level: level, log: log, refused: parts.refused}
	log.Info("capdrift agent", "version", versionText(), "socket", c.API.Socket)
	return parts.run(cmd.Context(), c,
		func(ctx context.Context) error { return reload.run(ctx, hangups, looks.C) },
		func(ctx context.Context) error { return tellLog(ctx, parts.loop, log) },
		func(ctx context.Context) error { return handBackStart(ctx, parts.loop, log) },
	)
}

func newLogger(c logConfig, level *slog.LevelVar, to io.Writer) *slog.Logger {
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		panic(err) // validate has accepted it
	}
	options := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(to, options))
	}
	return slog.New(slog.NewTextHandler(to, options))
}

// tellLog writes what happens to findings and to the agent's parts into the log,
// until the context ends.
func tellLog(ctx context.Context, feed agent.Feed, log *slog.Logger) error {
	for ctx.Err() == nil {
		after := agent.Position{}
		if view, ok := feed.View(); ok {
			after = view.Position
		}
		watch := feed.Watch(after)
		stop := context.AfterFunc(ctx, watch.Close)
		for change := range watch.Changes() {
			logChange(log, change)
		}
		stop()
		watch.Close()
	}
	return nil
}

func logChange(log *slog.Logger, change agent.Change) {
	switch {
	case change.Component != nil && !change.Component.OK:
		log.Warn("a part of the agent fails", "part", change.Component.Name, "why", change.Component.Why)
	case change.Component != nil:
		log.Info("a part of the agent works again", "part", change.Component.Name)
	case change.Finding == nil:
	default:
		f := change.Finding
		level := slog.LevelInfo
		if change.Kind == agent.FindingOpened && f.Severity >= drift.High && f.Exception == "" {
			level = slog.LevelWarn
		}
		log.Log(context.Background(), level, string(change.Kind), "kind", f.Kind, "severity", f.Severity.String(), "pod", podOf(f.Pod),
			"container", printable(f.Container), "containerId", f.ContainerID, "pid", f.PID, "capabilities", f.Capabilities.Names(), "why", change.Resolved, "id", f.ID, "rule", f.Rule, "exception", f.Exception)
	}
}
