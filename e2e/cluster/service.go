//go:build linux

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// A service is one of the cluster's own processes.
type service struct {
	name   string
	log    string
	cmd    *exec.Cmd
	exited chan struct{}
}

// start runs a program for as long as the cluster lasts.
func (c *Cluster) start(name string, args ...string) (*service, error) {
	s := &service{name: name, log: c.path(name + ".log"), exited: make(chan struct{})}
	log, err := os.Create(s.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	s.cmd = exec.Command(filepath.Join(c.cfg.Programs, name), args...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	// Its own session: Ctrl-C reaches the owner alone, which then closes in order.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	c.services = append(c.services, s)
	go func() {
		_ = s.cmd.Wait() // how it ended is in its log, and the node may have reaped it
		close(s.exited)
	}()
	// By which the node's teardown finds it if nobody closes the cluster. Removing cgroups,
	// that goes backwards by name, so "services" comes before "kubepods" and what could
	// make them anew.
	return s, enterCgroup(c.cgroup()+"/services", s.cmd.Process.Pid)
}

// ended is an error once the service has ended: then it is hopeless to wait for it.
func (s *service) ended() error {
	select {
	case <-s.exited:
		return errors.New(s.name + " ended")
	default:
		return nil
	}
}

// stop kills: nothing that a service could still bring into order is kept.
func (s *service) stop(ctx context.Context) error {
	_ = s.cmd.Process.Kill()
	select {
	case <-s.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting until %s has ended: %w", s.name, ctx.Err())
	}
}

// withLogs adds the ends of the logs to an error that they may explain.
func (c *Cluster) withLogs(err error) error {
	for _, s := range c.services {
		log, _ := os.ReadFile(s.log)
		if len(log) > 4000 {
			log = log[len(log)-4000:]
		}
		err = fmt.Errorf("%w\n%s's log ends with:\n%s", err, s.name, log)
	}
	return err
}
