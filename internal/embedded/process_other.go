//go:build !linux

package embedded

import "syscall"

// There is no parent death signal here: a shell watches.
const watchParent = true

// childAttr puts a child into its own process group, out of reach of the Ctrl-C
// that its parent handles first.
func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
