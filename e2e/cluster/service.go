//go:build linux

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"github.com/capdrift/capdrift/e2e/node"
)

// A service is one of the cluster's own processes, on a machine.
type service struct {
	name   string
	log    string
	cmd    *exec.Cmd
	pid    int // as it is outside of the machine
	exited chan struct{}
}

// run starts a program for as long as the machine is on.
func (m *machine) run(ctx context.Context, name string, args ...string) (*service, error) {
	log, err := m.openLog(name)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	s := &service{name: m.name + "'s " + name, log: log.Name(), exited: make(chan struct{})}
	s.cmd = m.command(context.Background(), name, args...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	// Its own session: Ctrl-C reaches the owner alone, which then closes in order.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", s.name, err)
	}
	m.services = append(m.services, s)
	go func() {
		_ = s.cmd.Wait() // how it ended is in its log
		close(s.exited)
	}()
	// The process itself is the only child of the one that entered the machine for it.
	entered := strconv.Itoa(s.cmd.Process.Pid)
	err = node.Until(ctx, s.name+" has started", func() (bool, error) {
		b, err := os.ReadFile("/proc/" + entered + "/task/" + entered + "/children")
		if err != nil {
			return false, errors.Join(err, s.ended())
		}
		s.pid, err = strconv.Atoi(strings.TrimSpace(string(b)))
		return err == nil, s.ended()
	})
	return s, err
}

// ended is an error once the service has ended: then it is hopeless to wait for it.
func (s *service) ended() error {
	select {
	case <-s.exited:
		log, _ := os.ReadFile(s.log)
		return fmt.Errorf("%s ended; its log ends with:\n%s", s.name, end(log, 4000))
	default:
		return nil
	}
}

// kill ends it at once, and waits until it has ended.
func (s *service) kill(ctx context.Context) error {
	if err := syscall.Kill(s.pid, syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill %s: %w", s.name, err)
	}
	select {
	case <-s.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting until %s has ended: %w", s.name, ctx.Err())
	}
}

// withLogs adds the ends of the logs to an error that they may explain.
func (c *Cluster) withLogs(err error) error {
	for _, m := range c.machines() {
		for _, s := range m.services {
			log, _ := os.ReadFile(s.log)
			err = fmt.Errorf("%w\n%s's log ends with:\n%s", err, s.name, end(log, 2000))
		}
	}
	return err
}

func end(log []byte, size int) []byte { return log[max(0, len(log)-size):] }
