//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// wrapperName and slowName are the names under which the actor is a wrapper of the OCI runtime, as
// nvidia-container-runtime is one: it edits the bundle's config.json and becomes runc, which lies
// beside it. The slow one adds a hook, which is the actor under the name hookName in the wrapper's
// folder.
const (
	wrapperName = "runc-wrapper"
	slowName    = "runc-slow"
	hookName    = "slow-hook"
)

// hookTakes is how long the hook takes.
const hookTakes = 6 * time.Second

// wrapperCapability is what the wrapper adds (package node knows it as WrapperCapability).
const wrapperCapability = "CAP_SYS_CHROOT"

func wrap() error { return wrapWith(addCapability) }

func wrapSlowly() error { return wrapWith(addHook) }

// wrapWith becomes runc when change has edited the spec of a container that is to be created.
func wrapWith(change func(spec map[string]any) error) error {
	args := os.Args[1:]
	if at := slices.Index(args, "--bundle"); at >= 0 && at+1 < len(args) && slices.Contains(args, "create") {
		if err := edit(filepath.Join(args[at+1], "config.json"), change); err != nil {
			return err
		}
	}
	self, err := os.Executable() // the link's target
	if err != nil {
		return err
	}
	runc := filepath.Join(filepath.Dir(self), "runc")
	return syscall.Exec(runc, append([]string{runc}, args...), os.Environ())
}

// slowHook takes its time.
func slowHook() error {
	<-time.After(hookTakes)
	return nil
}

func edit(path string, change func(spec map[string]any) error) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var spec map[string]any
	if err := json.Unmarshal(text, &spec); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := change(spec); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if text, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}

func addCapability(spec map[string]any) error {
	process, ok := spec["process"].(map[string]any)
	if !ok {
		return errors.New("it has no process")
	}
	capabilities, ok := process["capabilities"].(map[string]any)
	if !ok {
		capabilities = map[string]any{}
	}
	for _, set := range []string{"bounding", "effective", "permitted"} {
		names, _ := capabilities[set].([]any)
		capabilities[set] = append(names, wrapperCapability)
	}
	process["capabilities"] = capabilities
	return nil
}

func addHook(spec map[string]any) error {
	hook := filepath.Join(filepath.Dir(os.Args[0]), hookName)
	spec["hooks"] = map[string]any{"createRuntime": []any{map[string]any{"path": hook, "args": []string{hook}}}}
	return nil
}
