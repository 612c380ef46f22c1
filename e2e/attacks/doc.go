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
//	row 1   a stage of a throttled exec lives for long       TestRow01SlowStages
//	row 2   successors of 100 ms                             TestRow02Relay
//	row 3   an excess for a moment                           TestRow03Thread, TestRow03GivenUp, TestRow03Once
//	row 4   children of the runtime's shim, named as stages  TestRow04NamedAsStage, TestRow04PlainExec
//	row 5   a user namespace with identity maps              TestRow05IdentityMaps
//	row 6   a status that is too large to be sent            TestRow06Arguments
//	row 7   processes that are dear to read                  TestRow07DearStatus
//	row 8   user namespaces by the hundred                   TestRow08Nests
//	row 9   uid 0 where nobody looks                         TestRow09Thread, TestRow09SavedUID
//	row 10  moved into another's cgroup, or out (v1)         TestRow10Moved, TestRow10MovedOut
//	row 13  a first process below its home               TestRow13BelowHome
//	row 14  initial credentials after unshare                takes a kernel's bug: unit tests alone
//	row 16  joined from elsewhere                            TestRow16Joined
//	row 18  ended while no agent runs                        TestRow18Away
//	row 19  a container's lowest pid changes                 TestRow19LowestPid
//	row 21  outlives the container                           TestRow21Survivor
//	row 22  a cgroup with a monitor's name                   TestRow22NamedAsMonitor
//	row 23  a runtime that starts slowly                     TestRow23SlowHook
//	row 24  a worker holds what the leader gave up           TestRow24Worker
//
// Those that no row asked for are in evasions_test.go (who would not be found) and in frames_test.go (who
// would have another accused).
//
// # Adding one
//
// The function begin starts an agent and a watch. innocent starts a pod of which nothing above info may
// be said, attacked one in which something is done; what is done is steps of the actor
// (e2e/actor/attacks.go), or a process of the host. Then finds, keeps, scanFinds, limits and mentions
// say what must be told. That nobody else was accused, at any time, is asserted at the end of each test,
// when its pods are removed. A test that runs beside others (t.Parallel) starts nothing that is not
// registered in owners.
//
// # Settings
//
// It needs root, and knows the variables of package live. CAPDRIFT_BINARY names another capdrift
// (static, for it runs in a container) than the one of these sources, such as that of the commit
// before: then the tests show what it misses. CAPDRIFT_ATTACKS=full makes the attacks last as long as
// the issue says, half an hour for the longest.
package attacks
