//go:build linux

// Command actor is the workload of the end-to-end tests: a static program that
// brings itself into one state the kernel allows and stays there.
//
// Its arguments are steps, carried out in order:
//
//	actor name=worker caps=0000000000000400 ready sleep
//
// # Steps that change this process
//
//	name=TEXT       rename itself; Go escapes such as \n and \xff are decoded
//	caps=HEX        permitted and effective set of every thread
//	inh=HEX         inheritable set of every thread
//	bound=HEX       drop every other capability from the bounding set
//	uid=N           real, effective and saved uid of every thread
//	nnp             set no_new_privs
//	worker=HEX[:FOR] one thread keeps HEX, for a duration if named; all others become uid 1000
//	                and lose everything
//	exec=PATH       execve PATH with the remaining steps
//	beat=EVERY      wake up once per EVERY (a duration) from now on, as idle services do
//
// # Steps that hand the remaining steps to a child and wait for it
//
//	userns=KIND     a child in a new user namespace: root (mapped to 0), unmapped, identity
//	ns=PID[:LIST]   a child in the namespaces of PID (default ipc,uts,net,pid,mnt);
//	                prints "pid N", the child's pid as the caller's namespace sees it
//
// # Steps that make processes
//
//	spawn=N         N children that sleep, of several threads each
//	crowd=N[:EVERY] N children that sleep, of one thread each, and wake up once per EVERY
//	churn=N[:EVERY] N loops that start and reap short-lived children, one per EVERY
//	                (a duration; without it as fast as possible), while the steps go on
//	serve           obey standard input: "spawn" prints the new child's pid, "kill"
//	                ends it and prints "gone"
//
// # Steps that attack who watches (attacks.go)
//
//	relay=EVERY[:parent] fork a successor and end, once per EVERY; with parent by CLONE_PARENT
//	orphan          hand the remaining steps to a child, and end
//	nests=N:LIFE    N children in user namespaces of their own, each of which lives for LIFE
//	move=CGROUP     hand the remaining steps to a child in another cgroup (v1), and wait for it
//	groups=N        N supplementary groups
//	projects        map project ids as the initial user namespace does
//	uids=R:E:S      real, effective and saved uid of every thread
//	leader=R:E:S    the same of the leader alone
//	below           go on in a new user namespace that maps nobody, as the same process
//	burn=N          N children that compute for ever
//	drop            let the kernel collect ended children
//	pause=FOR       go on after a duration
//	await           print "ready" and go on after SIGUSR1
//
// # Steps that evade, or accuse another (evade.go)
//
//	end-leader=HEX  the leader gives up all but HEX, and its thread ends; the others go on
//	stop            print "ready", and stop by SIGSTOP
//	trace           stop a child that carries out the remaining steps by ptrace, and print "ready"
//	vfork           print "ready", and wait in vfork(2) for a child that sleeps
//	memory=NAME     execute the actor from a file in memory with the remaining steps
//	cover=PATH      mount an empty file system over a directory
//	apart=LIST      hand the remaining steps to a child in new namespaces (mnt,pid), and wait for it
//	own-mounts      the leader goes on in a mount namespace of its own
//	mounts-of=PID   the leader goes on in that of another process
//	threads=N       N more threads that sleep
//	stop-stages     stop each process here that is named as a stage of runc
//	again=PATH:FOR  run a program for a duration, wait for as long, and again
//	bomb            fork processes that fork processes
//	clone           fork a child of the parent that sleeps
//	ring=HEX        keep the credentials in io_uring(7), and nothing above HEX elsewhere
//
// # Steps that need a network
//
//	listen=PORT     tell every caller "hello from HOSTNAME"
//	call=HOST:PORT  print what is told there
//
// # Steps that end the chain
//
//	ready           print the line "ready"
//	sleep           wait for SIGTERM
//	exit            leave at once
//
// Under other names it is a wrapper of the OCI runtime, or a hook of it (wrapper.go).
package main

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// The main goroutine stays on the thread group leader, whose credentials are
// what /proc/PID/status shows.
func init() { runtime.LockOSThread() }

func main() {
	if role, ok := roles[filepath.Base(os.Args[0])]; ok {
		if err := role(); err != nil {
			fmt.Fprintln(os.Stderr, "actor:", err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) == 2 && os.Args[1] == "exit" {
		return // the churn's children: no signal handling, no threads beyond need
	}
	// As pid 1 of a pid namespace only handled signals are delivered.
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-term
		terminate()
	}()
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "actor:", err)
		os.Exit(1)
	}
}

// roles are what the actor is under other names.
var roles = map[string]func() error{
	wrapperName: wrap,
	slowName:    wrapSlowly,
	hookName:    slowHook,
}

// A step gets the text after "=" and the steps that follow it.
type step func(value string, rest []string) error

var steps = map[string]step{
	"name":        setName,
	"caps":        setCaps,
	"inh":         setInheritable,
	"bound":       limitBounding,
	"uid":         setUID,
	"nnp":         setNoNewPrivs,
	"worker":      keepInWorker,
	"exec":        execSelf,
	"userns":      inUserNamespace,
	"ns":          inNamespacesOf,
	"spawn":       spawn,
	"crowd":       crowd,
	"churn":       churn,
	"serve":       serve,
	"beat":        beat,
	"relay":       relay,
	"orphan":      orphan,
	"nests":       nests,
	"move":        move,
	"groups":      setGroups,
	"projects":    mapProjects,
	"uids":        setUIDs,
	"leader":      setLeaderUIDs,
	"below":       below,
	"burn":        burn,
	"drop":        dropChildren,
	"pause":       pause,
	"await":       await,
	"end-leader":  endLeader,
	"stop":        stopSelf,
	"trace":       trace,
	"vfork":       vfork,
	"memory":      fromMemory,
	"cover":       cover,
	"apart":       apart,
	"own-mounts":  newMounts,
	"mounts-of":   enterMounts,
	"threads":     crowdOfThreads,
	"stop-stages": stopStages,
	"again":       again,
	"bomb":        bomb,
	"clone":       leaveClone,
	"ring":        ring,
	"listen":      listen,
	"call":        call,
	"ready":       func(string, []string) error { _, err := fmt.Println("ready"); return err },
	"sleep":       func(string, []string) error { select {} },
	"exit":        func(string, []string) error { os.Exit(0); return nil },
}

func run(args []string) error {
	for i, arg := range args {
		name, value, _ := strings.Cut(arg, "=")
		do, ok := steps[name]
		if !ok {
			return fmt.Errorf("unknown step %q", arg)
		}
		if err := do(value, args[i+1:]); err != nil {
			return fmt.Errorf("%s: %w", arg, err)
		}
	}
	return nil
}
