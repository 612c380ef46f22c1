package kube

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/capdrift/capdrift/drift"
)

const (
	maxFiles   = 1_000  // of manifests, below all paths together
	maxEntries = 50_000 // of directories
)

// Files are manifests on disk: static pods' as the kubelet reads them, and what
// kubectl get pods -A -o yaml printed. They are read anew each time.
type Files struct {
	Paths []string // files, and directories of *.yaml, *.yml and *.json
	// NodeName is the node's name in Kubernetes: the kubelet appends it to the name
	// of a static pod.
	NodeName string
}

// Pods reads the files. One that cannot be read, or has errors, is a limit and
// hides no other.
func (f Files) Pods(ctx context.Context) (drift.Pods, error) {
	all, err := readFiles(ctx, f.Paths)
	if err != nil && (len(all.Objects) == 0 || ctx.Err() != nil) {
		return drift.Pods{}, err
	}
	pods := drift.Pods{Source: clip(strings.Join(f.Paths, ", "))}
	templates := 0
	for _, m := range all.Objects {
		switch {
		case m.Raw != nil:
		case m.Template:
			templates++
		case m.Kind == "Pod":
			pods.Specs = append(pods.Specs, f.known(m.Pod)...)
		}
	}
	if templates > 0 {
		pods.Limits = append(pods.Limits, drift.Limit{
			What: fmt.Sprintf("%d templates of workloads in %s", templates, pods.Source),
			Why:  "templates have no pods of their own; give what kubectl get pods -A -o yaml prints",
		})
	}
	for i, err := range each(err) {
		if i == maxErrors {
			pods.Limits = append(pods.Limits, drift.Limit{What: "more manifests in " + pods.Source, Why: "they have errors too", Blind: true, Code: drift.GapPodSpecs})
			break
		}
		pods.Limits = append(pods.Limits, drift.Limit{What: "a pod spec in " + pods.Source, Why: err.Error(), Blind: true, Code: drift.GapPodSpecs})
	}
	return pods, nil
}

// known gives a pod under the names by which it may be known to the runtime. The
// manifest of a static pod has no uid, may have no namespace, and its pod is
// called after the node too (pkg/kubelet/config/common.go, applyDefaults).
func (f Files) known(pod drift.PodSpec) []drift.PodSpec {
	if pod.UID != "" {
		return []drift.PodSpec{pod}
	}
	if pod.Namespace == "" {
		pod.Namespace = "default"
	}
	if f.NodeName == "" {
		return []drift.PodSpec{pod}
	}
	static := pod
	static.Name += "-" + strings.ToLower(f.NodeName)
	return []drift.PodSpec{pod, static}
}

// each takes joined errors apart.
func each(err error) []error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var list []error
	for _, err := range joined.Unwrap() {
		list = append(list, each(err)...)
	}
	return list
}

// readFiles is [ReadManifests] of files, and of directories with all that is
// below them in lexical order: *.yaml, *.yml and *.json. What is hidden, and
// directories behind symbolic links, are passed over, as the kubelet does.
func readFiles(ctx context.Context, paths []string) (Manifests, error) {
	var all Manifests
	var errs []error
	w := walker{left: maxEntries}
	for _, path := range paths {
		if err := w.find(ctx, path); err != nil {
			errs = append(errs, err)
		}
	}
	skipped := make(map[Skipped]int)
	for _, f := range w.files {
		if err := ctx.Err(); err != nil {
			return all, errors.Join(append(errs, err)...)
		}
		found, err := readFile(f)
		if err != nil {
			errs = append(errs, err)
		}
		all.Objects = append(all.Objects, found.Objects...)
		for _, kind := range found.Skipped {
			count := kind.Count
			kind.Count = 0
			skipped[kind] += count
		}
	}
	all.Skipped = counted(skipped)
	return all, errors.Join(errs...)
}

// file is one file to read. One that a person named may be a pipe; one that was
// found must be a regular file, for others may never end.
type file struct {
	path  string
	named bool
}

func readFile(f file) (Manifests, error) {
	flags := os.O_RDONLY
	if !f.named {
		flags |= syscall.O_NONBLOCK // opening a pipe waits for its writer
	}
	opened, err := os.OpenFile(f.path, flags, 0)
	if err != nil {
		return Manifests{}, unreadable(err)
	}
	defer opened.Close()
	if info, err := opened.Stat(); err != nil || !f.named && !info.Mode().IsRegular() {
		return Manifests{}, err // a directory behind a link, a pipe: no manifest
	}
	return readStream(opened, f.path, false)
}

func unreadable(err error) error {
	var at *fs.PathError
	if !errors.As(err, &at) {
		return err
	}
	advice := ""
	if errors.Is(err, fs.ErrPermission) {
		advice = "; run as a user who may read it"
	}
	return fmt.Errorf("cannot read %s: %w%s", shown(at.Path), at.Err, advice)
}

// walker collects the files of manifests below paths.
type walker struct {
	files []file
	left  int // entries that may still be seen
}

func (w *walker) find(ctx context.Context, root string) error {
	info, err := os.Stat(root)
	if err != nil {
		return unreadable(err)
	}
	if !info.IsDir() {
		return w.take(file{path: root, named: true})
	}
	// A directory that a person named may be a link; a trailing slash follows it.
	var errs []error
	before := len(w.files)
	err = filepath.WalkDir(root+string(filepath.Separator), func(path string, entry fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if w.left--; w.left < 0 {
			return fmt.Errorf("%s is %w: more than %d files and directories", shown(root), ErrTooLarge, maxEntries)
		}
		switch {
		case err != nil:
			errs = append(errs, unreadable(err))
			return nil
		case strings.HasPrefix(entry.Name(), ".") && len(path) > len(root)+1:
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		case entry.IsDir():
			return nil
		}
		switch filepath.Ext(path) {
		case ".yaml", ".yml", ".json":
			return w.take(file{path: path})
		}
		return nil
	})
	if err == nil && len(w.files) == before && len(errs) == 0 {
		err = fmt.Errorf("%s has no manifests: no *.yaml, *.yml or *.json below it", shown(root))
	}
	return errors.Join(append(errs, err)...)
}

func (w *walker) take(f file) error {
	if len(w.files) == maxFiles {
		return fmt.Errorf("%s and what comes after it was not read: %w, more than %d files; give fewer, or one kubectl get pods -A -o yaml",
			shown(f.path), ErrTooLarge, maxFiles)
	}
	w.files = append(w.files, f)
	return nil
}
