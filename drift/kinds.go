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
	TransientDrift      Kind = "transient_drift"       // again and again above what is declared, for one look only
	CostlyToRead        Kind = "costly_to_read"        // its processes cannot all be read in time, for long
	Moved               Kind = "moved"                 // a process of the container is in no cgroup of it
	UnknownOrigin       Kind = "unknown_origin"        // above the ceiling, and nobody's by ancestors or mounts
	Undeclared          Kind = "undeclared"            // what was declared could not be read from any place
)

// The kinds of the hops before it.
const (
	CRIMismatch    Kind = "cri_mismatch"    // the CRI config is not what the kubelet makes of the pod spec
	OCIMismatch    Kind = "oci_mismatch"    // the OCI spec is not what the runtime makes of the CRI config
	DropIgnored    Kind = "drop_ignored"    // a drop that dropped nothing
	AddIgnored     Kind = "add_ignored"     // an add that added nothing
	UnknownName    Kind = "unknown_name"    // a name that no kernel knows
	IneffectiveAdd Kind = "ineffective_add" // allowed by an add, and held by nobody: the user is not root
	Redundant      Kind = "redundant"       // a list entry that changes nothing; of predictions only
)

// PolicyViolation is the kind of what a rule of a policy says of a container, which
// may be just what was declared.
const PolicyViolation Kind = "policy_violation"

// Kinds lists all of them.
func Kinds() []Kind {
	return []Kind{
		BoundingExcess, PermittedExcess, InheritableExcess, ThreadExcess, UsernsEscape, NNPMissing, BecameRoot, NestedUserns,
		GainedWithinCeiling, Dropped, UnmanagedContainer, Unsupported, NotReadable, CostlyToRead,
		Moved, UnknownOrigin, Undeclared, TransientDrift,
		CRIMismatch, OCIMismatch, DropIgnored, AddIgnored, UnknownName, IneffectiveAdd, Redundant, PolicyViolation,
	}
}

// Cause says why a hop changed a declaration, where that is known.
type Cause string

// The causes.
const (
	CausePrefix        Cause = "cap_prefix"            // containerd puts CAP_ before a name that has it
	CauseSpelling      Cause = "spelling"              // a name that means nothing
	CauseBaseSpec      Cause = "base_runtime_spec"     // containerd's, of one runtime handler
	CauseDefaults      Cause = "runtime_defaults"      // the runtime's configured default capabilities
	CauseEarlierConfig Cause = "earlier_config"        // made under another configuration of the runtime
	CauseWrapper       Cause = "wrapper_or_hook"       // config.json is not what the runtime wrote
	CauseDirectClient  Cause = "direct_cri_client"     // not made by the kubelet
	CauseImageUser     Cause = "image_user"            // the image's USER is not root
	CauseNonRoot       Cause = "non_root"              // runAsUser is not root, and Kubernetes has no ambient set
	CauseBoth          Cause = "same_in_both_lists"    // added and dropped at once
	CauseGenerous      Cause = "oci_runtime_gives_all" // the handler's OCI runtime, as sysbox-runc
	CausePrivileged    Cause = "privileged"            // privileged overrides both lists
	CauseKernel        Cause = "unknown_to_kernel"     // newer than this kernel
	CauseFile          Cause = "file_is_not_live"      // a manifest that is not what the cluster has
)
