package drift

import (
	"encoding/json"
	"testing"
	"time"
)

// Evidence has to stay readable for who finds it in a journal, so its JSON is compared.
func TestEvidence(t *testing.T) {
	booted := Node{BootTime: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	web := Container{ID: "web"}
	for _, test := range []struct {
		name string
		node Node
		p    Process
		want string
	}{
		{
			"without lineage and boot time only its pids are known", Node{}, Process{PID: 70, StartTime: 100, NamespacePIDs: []int{70, 9}},
			`{"pid":70,"containerPid":9}`,
		},
		{
			"start times are hundredths of a second after the boot", booted, Process{PID: 70, StartTime: 250},
			`{"startedAt":"2026-01-02T03:04:07.5Z","pid":70}`,
		},
		{
			"a start time that is not known is not the boot", booted, Process{PID: 70},
			`{"pid":70}`,
		},
		{
			"a start time that no clock can reach is not told", booted, Process{PID: 70, StartTime: 1 << 63},
			`{"pid":70}`,
		},
		{
			"a parent in the same container, and a program that was deleted", booted,
			Process{PID: 70, StartTime: 100, Lineage: &Lineage{
				Cgroup: "/kubepods/x", Executable: "/tmp/x (deleted)", ExecutableSHA256: "00ff",
				Ancestors: []Ancestor{{PID: 60, Name: "sh", Container: true, StartTime: 50}, {PID: 1, Name: "init", Outside: true}},
			}},
			`{"startedAt":"2026-01-02T03:04:06Z","pid":70,"cgroup":"/kubepods/x","parent":{"pid":60,"name":"sh","startedAt":"2026-01-02T03:04:05.5Z","containerId":"web"},"executable":"/tmp/x (deleted)","executableSha256":"00ff"}`,
		},
		{
			"a parent outside, a program that may not be read, arguments that were asked for", Node{},
			Process{PID: 70, Lineage: &Lineage{
				ExecutableUnreadable: "may not be read", Arguments: []string{"sh", "-c", ""}, Ancestors: []Ancestor{{PID: 1, Name: "sshd", Outside: true}},
			}},
			`{"pid":70,"parent":{"pid":1,"name":"sshd","outside":true},"executableUnreadable":"may not be read","arguments":["sh","-c",""]}`,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := json.Marshal(evidenceOf(test.node, web, test.p))
			if err != nil || string(got) != test.want {
				t.Errorf("%v\ngot  %s\nwant %s", err, got, test.want)
			}
		})
	}
}
