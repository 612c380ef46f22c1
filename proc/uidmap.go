package proc

import (
	"bytes"
	"strconv"

	"github.com/capdrift/capdrift/drift"
)

// maxRanges is how many lines the kernel takes in a map, UID_GID_MAP_MAX_EXTENTS
// in include/linux/user_namespace.h.
const maxRanges = 340

// parseIDMap reads /proc/PID/uid_map, gid_map or projid_map, user_namespaces(7).
// The map of a namespace that nobody mapped yet is empty and not nil.
func parseIDMap(file string, text []byte) ([]drift.IDRange, error) {
	ranges := []drift.IDRange{}
	for rest := text; len(rest) > 0; {
		line, after, ended := bytes.Cut(rest, []byte{'\n'})
		if !ended {
			return nil, &MalformedError{File: file, What: "cut in the middle of a line"}
		}
		var r drift.IDRange
		columns, ok := line, true
		for _, to := range []*uint32{&r.Inside, &r.Outside, &r.Length} {
			if *to, columns, ok = column(columns); !ok {
				break
			}
		}
		if !ok || len(columns) > 0 || r.Length == 0 {
			return nil, &MalformedError{File: file, What: "a line is not three numbers: " + strconv.QuoteToASCII(clip(line))}
		}
		if len(ranges) == maxRanges {
			return nil, &MalformedError{File: file, What: "more than 340 lines"}
		}
		ranges = append(ranges, r)
		rest = after
	}
	return ranges, nil
}
