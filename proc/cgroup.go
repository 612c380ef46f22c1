package proc

import (
	"bytes"
	"path"
	"strings"
)

// Cgroup paths here begin with "/" and are those of one hierarchy, as
// /proc/PID/cgroup tells them.

// idLength is the length of a container id: a SHA-256 sum or as many random
// bytes, in hexadecimal.
const idLength = 64

// scopePrefixes begin the systemd scopes of container runtimes.
var scopePrefixes = []string{"cri-containerd-", "crio-", "docker-", "libpod-"}

// containerName tells whether a directory is named as runtimes name the cgroup
// of a container: by its id alone (cgroupfs driver), "<prefix>-<id>"
// (CRI-O with cgroupfs), "<prefix>-<id>.scope" (systemd driver), or
// "<slice>:<prefix>:<id>", which is systemd's triple where the OCI runtime was not told to
// use systemd and takes it for a path (runc docs/systemd.md; containerd without
// SystemdCgroup below a kubelet with the systemd driver). The id is ""
// when a known runtime's scope is not named by one. A monitor's cgroup carries its
// container's id and is not the container; see [monitorName].
func containerName(base string) (id string, ok bool) {
	name, scope := strings.CutSuffix(base, ".scope")
	if monitorName(base) {
		return "", false
	}
	if at := len(name) - idLength; at == 0 || at > 0 && (name[at-1] == '-' || name[at-1] == ':') {
		if hexadecimal(name[at:]) {
			return name[at:], true
		}
	}
	if scope {
		for _, prefix := range scopePrefixes {
			if strings.HasPrefix(name, prefix) {
				return "", true
			}
		}
	}
	return "", false
}

// monitorName reports whether a directory is named exactly as CRI-O and Podman name
// the cgroup of conmon, which monitors one container: "crio-conmon-<id>" or
// "libpod-conmon-<id>", with ".scope" where systemd makes it (cri-o
// internal/config/cgmgr, podman libpod/oci_conmon_linux.go). Every other name that
// has "conmon" in it is an ordinary directory, because a container may choose it.
func monitorName(base string) bool {
	name := strings.TrimSuffix(base, ".scope")
	for _, prefix := range []string{"crio-conmon-", "libpod-conmon-"} {
		if id, ok := strings.CutPrefix(name, prefix); ok {
			return len(id) == idLength && hexadecimal(id)
		}
	}
	return false
}

func hexadecimal(text string) bool {
	for i := range len(text) {
		if c := text[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// nameCarries tells whether a directory is named after the given container. Not
// every runtime's ids are as long as to be unmistakable ("session-1.scope" is not
// named after a container "1"), so the prefix of others must be a known one.
func nameCarries(base, id string) bool {
	if found, ok := containerName(base); ok && found != "" {
		return found == id
	}
	name := strings.TrimSuffix(base, ".scope")
	if triple := strings.Split(name, ":"); len(triple) == 3 {
		name = triple[2]
	}
	for _, prefix := range scopePrefixes {
		name = strings.TrimPrefix(name, prefix)
	}
	return id != "" && name == id
}

// kubernetes tells whether a directory is the kubelet's root of all pods:
// kubepods, kubepods.slice, or kubelet-kubepods.slice with --cgroup-root.
func kubernetes(base string) bool {
	name := strings.TrimSuffix(base, ".slice")
	return name == "kubepods" || strings.HasSuffix(name, "-kubepods")
}

// outermostContainer returns the part of a cgroup path that ends with its first
// container directory, and whether there is one. A container can make
// directories below its own and name them as it likes, so the first one counts.
func outermostContainer(cgroup string) (dir, id string, ok bool) {
	for end := range split(cgroup) {
		if id, ok = containerName(path.Base(cgroup[:end])); ok {
			return cgroup[:end], id, true
		}
	}
	return "", "", false
}

// split yields the ends of the components of a path: 2, 4 for "/a/b".
func split(cgroup string) func(yield func(end int) bool) {
	return func(yield func(int) bool) {
		for i := 1; i <= len(cgroup); i++ {
			if (i == len(cgroup) || cgroup[i] == '/') && !yield(i) {
				return
			}
		}
	}
}

// below tells whether a path is dir or lies in it.
func below(cgroup, dir string) bool {
	rest, ok := strings.CutPrefix(cgroup, dir)
	return ok && (rest == "" || rest[0] == '/' || dir == "/")
}

// specPaths returns where the cgroup of a container may be by its OCI
// linux.cgroupsPath: a path with the cgroupfs driver, "slice:prefix:name" with
// systemd's (runc docs/systemd.md).
func specPaths(cgroupsPath string) []string {
	if cgroupsPath == "" {
		return nil
	}
	parts := strings.Split(cgroupsPath, ":")
	if len(parts) == 3 {
		if parts[0] == "" {
			parts[0] = "system.slice"
		}
		if slice, ok := expandSlice(parts[0]); ok && !strings.Contains(parts[1]+parts[2], "/") && parts[2] != "" {
			switch {
			case strings.HasSuffix(parts[2], ".slice"):
				return []string{path.Join(slice, parts[2])}
			case parts[1] == "":
				// runc writes the empty prefix, crun leaves it out with its dash.
				return []string{path.Join(slice, parts[2]+".scope"), path.Join(slice, "-"+parts[2]+".scope")}
			}
			return []string{path.Join(slice, parts[1]+"-"+parts[2]+".scope")}
		}
	}
	// A path that names the root would make every process a member.
	if clean := path.Clean("/" + cgroupsPath); clean != "/" {
		return []string{clean}
	}
	return nil
}

// expandSlice returns the directory of a systemd slice: each dash is a level,
// "a-b.slice" lies in "/a.slice"; systemd.slice(5), and ExpandSlice in
// opencontainers/cgroups systemd/common.go.
func expandSlice(slice string) (dir string, ok bool) {
	name, ok := strings.CutSuffix(slice, ".slice")
	if !ok || name == "" || strings.Contains(name, "/") {
		return "", false
	}
	if name == "-" {
		return "/", true
	}
	var expanded strings.Builder
	for i := 0; i <= len(name); i++ {
		if i < len(name) && name[i] != '-' {
			continue
		}
		if i == 0 || name[i-1] == '-' {
			return "", false // an empty level
		}
		expanded.WriteString("/" + name[:i] + ".slice")
	}
	return expanded.String(), true
}

// parseCgroup returns the path that /proc/PID/cgroup tells for a hierarchy and false
// if there is none; cgroups(7). field is how the file names the hierarchy: a
// controller, "name=systemd" for one that has only a name, "" for the unified one.
//
// The path is all that follows the second colon, colons included. A newline is in no
// path: the kernel refuses it in a cgroup's name (kernel/cgroup/cgroup.c cgroup_mkdir).
func parseCgroup(text []byte, field string) (cgroup string, ok bool) {
	for line := range bytes.SplitSeq(text, []byte{'\n'}) {
		_, rest, _ := bytes.Cut(line, []byte{':'})
		list, where, found := bytes.Cut(rest, []byte{':'})
		if found && len(where) > 0 && where[0] == '/' && lists(string(list), field) {
			return string(where), true
		}
	}
	return "", false
}

// deletedSuffix is what the kernel appends to the unified hierarchy's path of a
// zombie whose cgroup was removed (kernel/cgroup/cgroup.c proc_cgroup_show).
const deletedSuffix = " (deleted)"

// lists reports whether the second field of a line names the hierarchy. The field
// lists controllers, "cpu,cpuacct", and a name comes last, "name=systemd"; it is empty
// for the unified hierarchy. A name is no controller: who may mount a hierarchy can
// call it "pids".
func lists(field, name string) bool {
	if name == "" || field == "" {
		return field == name
	}
	for each := range strings.SplitSeq(field, ",") {
		if each == name {
			return true
		}
	}
	return false
}

// parsePIDs adds the pids of a part of cgroup.procs to list and returns what is
// left of a line that the part does not end. Zeros stand for processes that the
// reader's pid namespace cannot number.
func parsePIDs(list []int, text []byte) (pids []int, zeros int, rest []byte, err error) {
	for {
		end := bytes.IndexByte(text, '\n')
		if end < 0 {
			if len(text) > 10 {
				return nil, 0, nil, &MalformedError{File: "cgroup.procs", What: "a line is no pid: " + clip(text)}
			}
			return list, zeros, text, nil
		}
		var pid int
		switch ok := number(text[:end], &pid); {
		case !ok:
			return nil, 0, nil, &MalformedError{File: "cgroup.procs", What: "a line is no pid: " + clip(text[:end])}
		case pid == 0:
			zeros++
		default:
			list = append(list, pid)
		}
		text = text[end+1:]
	}
}
