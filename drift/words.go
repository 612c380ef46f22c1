package drift

import "strings"

// What remedies call by the runtime's own words, where the runtime is known.
const (
	toFreeze  = "ctr -n k8s.io tasks pause ID"
	whatEdits = "BinaryName and hooks in the runtime's configuration"
	whatIsSet = "the runtime's configuration"
)

// words are what each runtime calls these: containerd's config.toml (docs/cri/config.md), CRI-O's
// crio.conf(5), Docker's daemon.json.
var words = map[string]*strings.Replacer{
	Containerd: strings.NewReplacer(
		whatEdits, "BinaryName of its handler in containerd's config.toml, and hooks of its base_runtime_spec and of NRI plugins",
		whatIsSet, "containerd's config.toml (base_runtime_spec)",
	),
	CRIO: strings.NewReplacer(
		toFreeze, "runc or crun pause ID",
		whatEdits, "runtime_path of its handler in crio.conf, and hooks in hooks_dir",
		whatIsSet, "crio.conf (default_capabilities, add_inheritable_capabilities)",
	),
	Docker: strings.NewReplacer(
		toFreeze, "docker pause ID",
		whatEdits, "its runtime in Docker's daemon.json",
		whatIsSet, "Docker's daemon.json",
	),
}

// inWordsOf writes a remedy in the words of a runtime.
func inWordsOf(runtime, remedy string) string {
	if replacer := words[runtime]; replacer != nil {
		return replacer.Replace(remedy)
	}
	return remedy
}
