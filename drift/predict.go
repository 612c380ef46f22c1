package drift

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/capdrift/capdrift/capdecode"
)

// anyNonRoot stands for a user of whom only that is known: it is not root. As a
// uid it is -1, which no process can have (setuid(2)).
const anyNonRoot = 1<<32 - 1

// Prediction is what one runtime makes of a container's declaration, and what
// its first program then holds.
type Prediction struct {
	Runtime string `json:"runtime"`
	// Refused says who does not create such a container, and why; nothing else is
	// then predicted.
	Refused string `json:"refused,omitempty"`
	OCI     *Spec  `json:"oci"`
	// AtStart has one entry, or two where only the image's user decides whether
	// the program runs as root.
	AtStart  []Start   `json:"atStart"`
	Findings []Finding `json:"findings"`
}

// Spec is the predicted part of an OCI spec: an [OCI] without its user, which an
// image may decide.
type Spec struct {
	capdecode.Sets
	NoNewPrivileges bool     `json:"noNewPrivileges"`
	UnknownNames    []string `json:"unknownNames"`
	UserNamespace   bool     `json:"userNamespace"`
}

// Start is what an ordinary program, neither setuid nor with file capabilities,
// holds at its start.
type Start struct {
	User string         `json:"user"` // "root", "non-root" or a uid
	Caps capdecode.Sets `json:"caps"`
}

// Predict tells what the runtime, one of [Runtimes], makes of a container, before
// there is one. place is where it is declared, and makes the ids of its findings its own. Give its pod spec's layer, or a CRI config alone. imageUser is the
// uid that the image names, nil when that is not known.
func Predict(runtime, place, name string, pod *PodSecurity, c CRI, imageUser *uint32, s Settings) Prediction {
	p := Prediction{Runtime: runtime, AtStart: []Start{}, Findings: []Finding{}}
	from := LayerCRI
	if pod != nil {
		from, c = LayerPod, Kubelet(*pod)
		if p.Refused = refusal(*pod, imageUser); p.Refused != "" {
			return p
		}
	}
	oci, err := PredictOCI(runtime, c, s)
	if err != nil {
		p.Refused = err.Error()
		return p
	}
	var users []uint32
	switch {
	case c.RunAsUser != nil:
		users = []uint32{oci.UID}
	case imageUser != nil:
		users = []uint32{*imageUser}
	case pod != nil && pod.RunAsNonRoot:
		users = []uint32{anyNonRoot}
	default:
		users = []uint32{0, anyNonRoot}
	}
	oci.UID = users[0]
	for _, user := range users {
		as := oci.upTo(s.LastCap)
		as.UID = user
		p.AtStart = append(p.AtStart, Start{userName(user), as.AtStart()})
	}
	b := book{
		node:      Node{CapLastCap: s.LastCap},
		container: Container{ID: place, Name: name, Declared: Declared{Pod: pod, CRI: &c, OCI: &oci}},
	}
	o := order{CRI: c, from: from, got: oci.upTo(s.LastCap)}
	b.judge(runtime, handler{Settings: s}, o)
	b.redundant(runtime, s, o)
	p.OCI = &Spec{oci.Sets, oci.NoNewPrivileges, oci.UnknownNames, oci.UserNamespace}
	for _, f := range b.findings {
		f.ContainerID = "" // there is none yet
		p.Findings = append(p.Findings, f)
	}
	Sort(p.Findings)
	return p
}

func userName(uid uint32) string {
	switch uid {
	case 0:
		return "root"
	case anyNonRoot:
		return "non-root"
	}
	return strconv.FormatUint(uint64(uid), 10)
}

// refusal tells why such a pod never runs: ValidateSecurityContext of the API
// server (pkg/apis/core/validation/validation.go) and verifyRunAsNonRoot of the
// kubelet (pkg/kubelet/kuberuntime/security_context.go).
func refusal(pod PodSecurity, imageUser *uint32) string {
	noEscalation := pod.AllowPrivilegeEscalation != nil && !*pod.AllowPrivilegeEscalation
	switch {
	case noEscalation && pod.Privileged:
		return "the API server refuses it: privileged: true with allowPrivilegeEscalation: false"
	case noEscalation && slices.Contains(pod.Add, "CAP_SYS_ADMIN"):
		return "the API server refuses it: an add of CAP_SYS_ADMIN with allowPrivilegeEscalation: false"
	case pod.RunAsNonRoot && pod.RunAsUser != nil && *pod.RunAsUser == 0:
		return "the kubelet refuses it: runAsNonRoot: true with runAsUser: 0"
	case pod.RunAsNonRoot && pod.RunAsUser == nil && imageUser != nil && *imageUser == 0:
		return "the kubelet refuses it: runAsNonRoot: true with an image that runs as root"
	}
	return ""
}

// redundant tells of list entries that change nothing, which a person who wrote
// them believes to do something.
func (b *book) redundant(runtime string, s Settings, o order) {
	if o.Privileged {
		if len(o.Add) > 0 {
			b.add(Finding{
				Kind: Redundant, Severity: Info, From: o.from, Layer: LayerOCI, Cause: CausePrivileged,
				Message: b.container.Label() + " is privileged, so its add list changes nothing",
				Remedy:  "Remove privileged: true, or the list.",
			})
		}
		return
	}
	if len(o.AddAmbient) > 0 {
		b.idle(o, "ambient", 0, "asks for ambient capabilities, which no runtime reads (KEP-2763)")
	}
	in := intentOf(o.Add, o.Drop, s.LastCap)
	defaults := s.Default.Bounding
	if idle := in.drop &^ defaults &^ in.both; !in.allDrop && !in.allAdded && !idle.Empty() {
		b.idle(o, "drop", idle, fmt.Sprintf("drops %s, which %s does not give by default", list(idle), runtime))
	}
	if idle := in.named & defaults &^ in.both; !in.allDrop && !in.allAdded && !idle.Empty() {
		b.idle(o, "add", idle, fmt.Sprintf("adds %s, which %s gives by default", list(idle), runtime))
	}
}

func (b *book) idle(o order, which string, set capdecode.Set, what string) {
	f := Finding{
		Kind: Redundant, Severity: Info, From: o.from, Layer: LayerOCI, Capabilities: set,
		Message: b.container.Label() + " " + what,
		Remedy:  "Harmless. Other runtimes have other defaults, so it may still say what is meant; drop: [ALL] with an add list says it everywhere.",
	}
	f.ID = findingID(b.container.ID, string(Redundant), which)
	b.add(f)
}
