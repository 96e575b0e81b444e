//go:build !linux

package bench

import (
	"errors"
	"os"
	"time"
)

// errLinux is what every measurement of a process returns elsewhere.
var errLinux = errors.New("CPU and memory of processes are read from Linux's /proc: run the benchmark on Linux")

// CPU is not known here.
func CPU(int) (time.Duration, error) { return 0, errLinux }

// PeakMemory is not known here.
func PeakMemory(int) (int64, error) { return 0, errLinux }

// ForgetPeak cannot be done here.
func ForgetPeak(int) error { return errLinux }

// Busy is not known here.
func Busy() (time.Duration, error) { return 0, errLinux }

// Listener is not known here.
func Listener(string) (int, error) { return 0, errLinux }

func ownCPU() time.Duration { return 0 }

func sleepUntil(at time.Time) { time.Sleep(time.Until(at)) }

func fdatasync(f *os.File) error { return f.Sync() }
