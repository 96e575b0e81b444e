package embedded

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/ebitengine/purego"
)

// childVariable marks a process that this package started to run the engine in.
const childVariable = "SLUICE_ENGINE_CHILD"

// Listens first, then keeps the command line busy for some hundred years: the
// library serves connections while a query of its own runs, and no longer.
const serve = "SYSTEM START LISTEN TCP; SYSTEM START LISTEN HTTP; " +
	"SELECT sum(sleepEachRow(3)) FROM numbers(1000000000) SETTINGS function_sleep_max_microseconds_per_block = 0, max_block_size = 1"

// engineArgs are the arguments of an engine child after the program's name.
func engineArgs(library, data string, cfg ClickHouseConfig) []string {
	return []string{
		library, cfg.Native.Addr, cfg.HTTP.Addr,
		"--path=" + data,
		"--listen_host=" + hostOf(cfg.Native),
		"--log-level=fatal", "--logger.console=1", // why it died, should it die
		"--query", serve,
	}
}

// EngineMain is where a child process that ClickHouse started runs the engine's
// library. Every program that starts a ClickHouse calls it first thing in main
// (TestMain in tests), and exits with its code if child is true:
//
//	if code, child := embedded.EngineMain(); child {
//		os.Exit(code)
//	}
//
// In any other process it does nothing. In a child it does not return while the
// engine serves; what goes wrong is written to standard error.
func EngineMain() (code int, child bool) {
	if os.Getenv(childVariable) == "" {
		return 0, false
	}
	return engine(os.Args[1:], os.Stderr), true
}

func engine(args []string, stderr io.Writer) int {
	if len(args) < 4 {
		fmt.Fprintf(stderr, "%s is set, but this process was not started as an engine: unset it\n", childVariable)
		return 2
	}
	// A client that hangs up must cost the engine a failed write, not its life.
	signal.Ignore(syscall.SIGPIPE)
	runtime.LockOSThread()
	library, err := purego.Dlopen(args[0], purego.RTLD_NOW|purego.RTLD_GLOBAL)
	if err != nil {
		fmt.Fprintf(stderr, "load the ClickHouse library: %v\n", err)
		return 1
	}
	native, http, err := newDoormen(args[1], args[2])
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	go native.serve()
	go http.serve()
	args = append([]string{"clickhouse", "--tcp_port=" + native.port(), "--http_port=" + http.port()}, args[3:]...)
	// main of ClickHouse's command line: argc, argv with a closing NULL.
	const symbol = "chdb_query_cmdline"
	if _, err := purego.Dlsym(library, symbol); err != nil {
		fmt.Fprintf(stderr, "%s is no engine this program can run: %v\n", args[0], err)
		return 1
	}
	var main func(argc int32, argv **byte) uintptr
	purego.RegisterLibFunc(&main, library, symbol)
	argv := make([]*byte, 0, len(args)+1)
	for _, arg := range args {
		argv = append(argv, &append([]byte(arg), 0)[0])
	}
	argc := int32(len(argv))
	main(argc, &append(argv, nil)[0])
	fmt.Fprintln(stderr, "the engine stopped serving")
	return 1
}
