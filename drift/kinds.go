package drift

// Kind names what a finding is about.
type Kind string

// The kinds of the OCI → kernel hop.
const (
	BoundingExcess      Kind = "bounding_excess"       // bounding set above the OCI spec's
	PermittedExcess     Kind = "permitted_excess"      // permitted set above the ceiling
	InheritableExcess   Kind = "inheritable_excess"    // inheritable set above the ceiling
	ThreadExcess        Kind = "thread_excess"         // a thread above the ceiling, its leader not
	UsernsEscape        Kind = "userns_escape"         // outside the container's own user namespace
	NNPMissing          Kind = "nnp_missing"           // no_new_privs declared and not set
	BecameRoot          Kind = "became_root"           // uid 0 in a container declared non-root
	NestedUserns        Kind = "nested_userns"         // a user namespace below the container's
	GainedWithinCeiling Kind = "gained_within_ceiling" // more than at start, no more than allowed
	Dropped             Kind = "dropped"               // the container gave capabilities up
	UnmanagedContainer  Kind = "unmanaged_container"   // no pod of the CRI explains it
	Unsupported         Kind = "unsupported_runtime"   // the host's /proc does not show its processes
	NotReadable         Kind = "unreadable"            // it runs, and could not be read
)
