//go:build linux

package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/capdrift/capdrift/e2e/cgroup"
)

// A machine is what has namespaces of its own. Switched off it is a folder, which keeps its files.
type machine struct {
	name     string
	address  netip.Addr
	root     string // the folder that is its root file system
	cgroup   string // what is the root of its cgroup trees
	logs     string // folder outside
	programs string

	first    *exec.Cmd // its pid 1; nil while it is off
	power    io.Closer // pid 1 goes when this is closed, also by our own end
	gone     chan struct{}
	services []*service
}

func (c *Cluster) newMachine(name string, address int) *machine {
	return &machine{
		name: name, address: host(c.subnet, address), root: c.path(name), cgroup: c.folder.Cgroup + "/" + name,
		logs: c.path("logs"), programs: c.cfg.Programs,
	}
}

// path is a file of the machine as it is seen from outside.
func (m *machine) path(elements ...string) string {
	return filepath.Join(append([]string{m.root}, elements...)...)
}

// write writes files, by their paths on the machine.
func (m *machine) write(files map[string]string) error {
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(m.path(name)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(m.path(name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// The kernel's settings that a kubelet demands (setupKernelTunables in
// pkg/kubelet/cm/container_manager_linux.go), which are the same for all machines of one kernel.
var kubeletSettings = map[string]string{
	"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
	"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
}

// on boots the machine. What was in /run and /tmp is gone, as after any boot.
func (m *machine) on() error {
	for _, dir := range []string{"run", "tmp", "over"} {
		if err := os.RemoveAll(m.path(dir)); err != nil {
			return err
		}
		if err := os.MkdirAll(m.path(dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(m.path("tmp"), 0o777|os.ModeSticky); err != nil {
		return err
	}
	for _, dir := range []string{m.path("root"), m.path("var/log"), m.logs} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	files := map[string]string{
		"etc/hostname": m.name + "\n",
		"etc/hosts":    "127.0.0.1 localhost\n" + m.address.String() + " " + m.name + "\n",
		// No name server, and nothing beyond the cluster to ask for.
		"etc/resolv.conf":                     "",
		"etc/passwd":                          "root:x:0:0::/root:/bin/sh\n",
		"etc/group":                           "root:x:0:\n",
		"over/proc/sys/kernel/random/boot_id": newUUID() + "\n",
	}
	for name, value := range kubeletSettings {
		files["over/proc/sys/"+name] = value + "\n"
	}
	if err := m.write(files); err != nil {
		return err
	}
	if err := cgroup.Make(m.cgroup); err != nil {
		return err
	}
	return m.start()
}

func (m *machine) start() error {
	log, err := m.openLog("machine")
	if err != nil {
		return err
	}
	defer log.Close()
	first := exec.Command(filepath.Join(m.programs, "machine"), "boot", m.root, m.cgroup, m.name, m.programs)
	first.Env, first.Stderr = []string{}, log
	first.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Setsid:     true, // Ctrl-C reaches the owner alone, which then closes in order
	}
	power, err := first.StdinPipe()
	if err != nil {
		return err
	}
	out, err := first.StdoutPipe()
	if err != nil {
		return err
	}
	if err := first.Start(); err != nil {
		return fmt.Errorf("boot %s: %w", m.name, err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "ready\n" {
		_ = first.Process.Kill()
		_ = first.Wait()
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("boot %s: it says %q: %s", m.name, line, text)
	}
	m.first, m.power, m.gone = first, power, make(chan struct{})
	go func(gone chan struct{}) {
		_ = first.Wait()
		close(gone)
	}(m.gone)
	return nil
}

// off is a power failure: no process is asked.
func (m *machine) off(ctx context.Context) error {
	if m.first == nil {
		return nil
	}
	_ = m.power.Close()
	for _, gone := range append(m.ends(), m.gone) {
		select {
		case <-gone:
		case <-ctx.Done():
			return fmt.Errorf("waiting until %s is off: %w", m.name, ctx.Err())
		}
	}
	m.first, m.services = nil, nil
	return nil
}

func (m *machine) ends() (all []chan struct{}) {
	for _, s := range m.services {
		all = append(all, s.exited)
	}
	return all
}

// What a machine's programs find in their environment.
var environment = []string{"PATH=/opt/programs:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}

// command is one on the machine. It has nothing of the caller's but the streams that the caller
// gives it, and ends with ctx.
func (m *machine) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	pid := "0"
	if m.first != nil {
		pid = strconv.Itoa(m.first.Process.Pid)
	}
	command := exec.CommandContext(ctx, filepath.Join(m.programs, "machine"), append([]string{"enter", pid, name}, args...)...)
	command.Env = environment
	if m.first == nil {
		command.Err = errors.New(m.name + " is off")
	}
	return command
}

func (m *machine) openLog(name string) (*os.File, error) {
	return os.OpenFile(filepath.Join(m.logs, m.name+"-"+name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
}
