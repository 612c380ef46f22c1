// Package attacks holds capdrift against programs that are written to deceive it. Each test starts
// one on a real node, where the agent runs as its chart runs it (uid 0, no capability, a pid
// namespace of its own), and says what the agent and a scan must find or say, and that nobody else
// is accused.
//
// Each test also looks by itself, as root on the host, whether the attack happens: an attack that
// does not would prove nothing.
//
// # Which row is where
//
// The rows are those of the issue that asked for this.
//
//	1  a stage of a throttled exec lives for long      TestRow01SlowStages
//	2  successors of 100 ms                             TestRow02Relay
//	3  an excess for a moment                           TestRow03Thread, TestRow03GivenUp, TestRow03Once
//	4  children of the runtime's shim, named as stages  TestRow04NamedAsStage, TestRow04PlainExec
//	5  a user namespace with identity maps              TestRow05IdentityMaps
//	6  a status that is too large to be sent            TestRow06Arguments
//	7  processes that are dear to read                  TestRow07DearStatus
//	8  user namespaces by the hundred                   TestRow08Nests
//	9  uid 0 where nobody looks                         TestRow09Thread, TestRow09SavedUID
//
// # Settings
//
// It needs root, and knows the variables of package live. CAPDRIFT_BINARY names another capdrift
// (static, for it runs in a container) than the one of these sources, such as that of the commit
// before: then the tests show what it misses. CAPDRIFT_ATTACKS=full makes the attacks last as long as
// the issue says, half an hour for the longest.
package attacks
