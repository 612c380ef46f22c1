//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// wrapperName is the name under which the actor is a wrapper of the OCI runtime, as
// nvidia-container-runtime is one: it edits the bundle's config.json and becomes runc,
// which lies beside it.
const wrapperName = "runc-wrapper"

// wrapperCapability is what the wrapper adds (package node knows it as WrapperCapability).
const wrapperCapability = "CAP_SYS_CHROOT"

func wrap() error {
	args := os.Args[1:]
	if at := slices.Index(args, "--bundle"); at >= 0 && at+1 < len(args) && slices.Contains(args, "create") {
		if err := edit(filepath.Join(args[at+1], "config.json")); err != nil {
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

func edit(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var spec map[string]any
	if err := json.Unmarshal(text, &spec); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	process, ok := spec["process"].(map[string]any)
	if !ok {
		return fmt.Errorf("%s has no process", path)
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
	if text, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}
