//go:build linux

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/e2e/node"
)

// removePods removes from the runtime the pods that the kubelet made.
func (c *Cluster) removePods(ctx context.Context) error {
	conn, err := grpc.NewClient(c.node.Endpoint(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	runtime := cri.NewRuntimeServiceClient(conn)
	pods, err := runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("list the kubelet's pods: %w", err)
	}
	var g errgroup.Group
	for _, p := range pods.Items {
		// By which the kubelet remembers where it has the pod from.
		if _, ok := p.Annotations["kubernetes.io/config.source"]; !ok {
			continue
		}
		g.Go(func() error {
			if _, err := runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.Id}); err != nil {
				return fmt.Errorf("stop pod %s/%s: %w", p.Metadata.Namespace, p.Metadata.Name, err)
			}
			_, err := runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.Id})
			if err != nil {
				return fmt.Errorf("remove pod %s/%s: %w", p.Metadata.Namespace, p.Metadata.Name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// Folders of a kubelet that have a fixed place.
const (
	// Links to the logs of pods (pkg/kubelet/kuberuntime/legacy.go).
	logLinks = "/var/log/containers"
	// Where device plugins register (pkg/kubelet/cm/devicemanager), which a kubelet
	// empties when it starts.
	devicePlugins = "/var/lib/kubelet/device-plugins"
)

const devicePluginSocket = devicePlugins + "/kubelet.sock"

// The kernel settings that a kubelet changes (setupKernelTunables in
// pkg/kubelet/cm/container_manager_linux.go); with protectKernelDefaults it would demand them.
var kubeletSettings = []string{
	"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
	"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
}

// traces is what a kubelet leaves outside of the folders that it is given.
type traces struct {
	notes *os.File // locked: these places are the machine's, so only one cluster may use them
	state
}

// state is how things were before the kubelet.
type state struct {
	Roots    []string          // nodes' folders, which links lead into: the last one's, and those of killed owners
	Absent   []string          // folders, children first
	Settings map[string]string // below /proc/sys
}

// Where the state is noted until it is restored. What a killed owner left there is
// restored by the next cluster; a reboot restores it too, and forgets the notes.
const notesFile = "/run/capdrift-e2e-kubelet.json"

// findTraces notes how things are before the kubelet starts, when no other cluster runs.
func findTraces(ctx context.Context, root string) (*traces, error) {
	t := &traces{}
	err := node.Until(ctx, "no other cluster runs on this machine", func() (ok bool, err error) {
		t.notes, ok, err = lockNotes()
		return ok, err
	})
	if err != nil {
		return nil, err
	}
	if err := t.note(root); err != nil {
		t.notes.Close()
		return nil, err
	}
	return t, nil
}

// lockNotes is false when somebody else holds the lock.
func lockNotes() (*os.File, bool, error) {
	f, err := os.OpenFile(notesFile, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, false, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, false, nil
		}
		return nil, false, fmt.Errorf("lock %s: %w", notesFile, err)
	}
	// The last owner may have removed it since it was opened.
	mine, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, false, err
	}
	current, err := os.Stat(notesFile)
	if err != nil || !os.SameFile(mine, current) {
		f.Close()
		return nil, false, nil
	}
	return f, true, nil
}

func (t *traces) note(root string) error {
	if conn, err := net.Dial("unix", devicePluginSocket); err == nil {
		conn.Close()
		return fmt.Errorf("a kubelet runs on this machine (%s answers), whose device plugins another one would break", devicePluginSocket)
	}
	noted, err := io.ReadAll(t.notes)
	if err != nil {
		return err
	}
	// Half written by an owner killed before it started anything: as good as nothing.
	if json.Unmarshal(noted, &t.state) != nil {
		if t.state, err = look(); err != nil {
			return err
		}
	}
	t.Roots = append(t.Roots, root)
	if noted, err = json.Marshal(t.state); err != nil {
		return err
	}
	if _, err := t.notes.WriteAt(noted, 0); err != nil {
		return err
	}
	return t.notes.Truncate(int64(len(noted)))
}

func look() (state, error) {
	s := state{Settings: map[string]string{}}
	for _, fixed := range []string{logLinks, devicePlugins} {
		for dir := fixed; dir != "/"; dir = filepath.Dir(dir) {
			if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
				s.Absent = append(s.Absent, dir)
			}
		}
	}
	for _, name := range kubeletSettings {
		b, err := os.ReadFile(filepath.Join("/proc/sys", name))
		if err != nil {
			return state{}, fmt.Errorf("kernel setting: %w", err)
		}
		s.Settings[name] = string(b)
	}
	return s, nil
}

// remove restores everything, and keeps the notes if it cannot.
func (t *traces) remove() error {
	defer t.notes.Close()
	var errs []error
	links, err := filepath.Glob(logLinks + "/*")
	if err != nil {
		return err
	}
	for _, link := range links {
		to, err := os.Readlink(link)
		ours := func(root string) bool { return strings.HasPrefix(to, root+"/") }
		if err == nil && slices.ContainsFunc(t.Roots, ours) {
			errs = append(errs, os.Remove(link))
		}
	}
	if err := os.Remove(devicePluginSocket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	for _, dir := range t.Absent {
		err := syscall.Rmdir(dir)
		// Somebody else may use it by now.
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) {
			errs = append(errs, fmt.Errorf("remove %s: %w", dir, err))
		}
	}
	for s, before := range t.Settings {
		path := filepath.Join("/proc/sys", s)
		now, err := os.ReadFile(path)
		if err == nil && string(now) != before {
			err = os.WriteFile(path, []byte(before), 0)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("restore kernel setting: %w", err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return os.Remove(notesFile)
}
