// Package attacks holds capdrift against programs that are written to deceive it. Each test starts
// one on a real node, where the agent runs as its chart runs it (uid 0, no capability, a pid
// namespace of its own), and says what the agent and a scan must find or say, and that nobody else
// is accused.
//
// Each test also looks by itself, as root on the host, whether the attack happens: an attack that
// does not would prove nothing.
//
// # Which attack is where
//
// docs/security.md says for each what must hold; the numbers are those of the tests.
//
//	1   a stage of a throttled exec lives for long       TestRow01SlowStages
//	2   successors of 100 ms                             TestRow02Relay
//	3   an excess for a moment                           TestRow03Thread, TestRow03GivenUp, TestRow03Once
//	4   children of the runtime's shim, named as stages  TestRow04NamedAsStage, TestRow04PlainExec
//	5   a user namespace with identity maps              TestRow05IdentityMaps
//	6   a status that is too large to be sent            TestRow06Arguments
//	7   processes that are dear to read                  TestRow07DearStatus
//	8   user namespaces by the hundred                   TestRow08Nests
//	9   uid 0 where nobody looks                         TestRow09Thread, TestRow09SavedUID
//	10  moved into another's cgroup, or out (v1)         TestRow10Moved, TestRow10MovedOut
//	11  a pod's id in another containerd namespace       TestRow11SameID
//	12  capabilities that one side has no name for       takes another kernel: fixtures
//	13  a first process below its home                   TestRow13BelowHome
//	14  initial credentials after unshare                takes a kernel's bug: unit tests alone
//	15  a named v1 hierarchy called pids                 a mount of the host: fixtures
//	16  joined from elsewhere                            TestRow16Joined
//	17  lists of long names                              TestRow17LongNames
//	18  ended while no agent runs                        TestRow18Away
//	19  a container's lowest pid changes                 TestRow19LowestPid
//	20  a monitor in the container's cgroup (CRI-O)      fixtures of CRI-O
//	21  outlives the container                           TestRow21Survivor
//	22  a cgroup with a monitor's name                   TestRow22NamedAsMonitor
//	23  a runtime that starts slowly                     TestRow23SlowHook
//	24  a worker holds what the leader gave up           TestRow24Worker
//
// More are in evasions_test.go (who would not be found) and in frames_test.go (who
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
// It needs root, and reads the variables of package suite. CAPDRIFT_BINARY names another capdrift
// (static, for it runs in a container) than the one of these sources, such as that of the commit
// before: then the tests show what it misses. CAPDRIFT_ATTACKS=full makes the attacks last as long as
// they may, half an hour for the longest.
package attacks
