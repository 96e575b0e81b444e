package embedded

import "syscall"

// The kernel kills children with their parent, so nobody has to watch.
const watchParent = false

// childAttr puts a child into its own process group, out of reach of the Ctrl-C
// that its parent handles first, and ties its life to the thread that starts it.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
