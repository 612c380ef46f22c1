// Package wire is what the host and the guest's init agree on: the plan that
// the host puts into the initramfs and the events that come back.
package wire

// PlanPath is where the guest finds its plan.
const PlanPath = "/etc/microvm.json"

// Names of the virtio-serial ports. The kernel lets a port be opened once
// (port_fops_open, drivers/char/virtio_console.c): while init holds StatusPort
// no other process can write an event, so no command can fake its own success.
const (
	StatusPort = "microvm.status"
	OutputPort = "microvm.output"
)

// Plan tells init what to do.
type Plan struct {
	Modules  []string  `json:"modules"` // guest paths, in load order
	Systemd  bool      `json:"systemd"` // become systemd; a unit runs the commands
	Commands []Command `json:"commands"`
}

// Command is one program to run in the guest.
type Command struct {
	Args []string `json:"args"`          // Args[0] is a path, or a name to look up on PATH
	Env  []string `json:"env,omitempty"` // beside PATH, HOME and TMPDIR
	Dir  string   `json:"dir,omitempty"` // "/" when empty
}

// Event is one line of JSON on StatusPort, written when a command has ended.
type Event struct {
	Command int `json:"command"` // index in Plan.Commands
	// Status is its exit status, 128+n when signal n killed it, 127 when it
	// could not be started (as a shell has it).
	Status int `json:"status"`
}
