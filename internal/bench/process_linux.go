package bench

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ticks is USER_HZ, which Linux fixes for every program (proc(5), times(7)).
const ticks = 100

// CPU is what a process has taken of the processors so far, its ended children not
// counted, in steps of 10 ms.
func CPU(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read the CPU time of process %d: %w", pid, err)
	}
	return parseStat(text)
}

// parseStat reads utime and stime of a /proc/PID/stat. The second field is the
// program's name in parentheses, and may hold anything.
func parseStat(text []byte) (time.Duration, error) {
	at := bytes.LastIndexByte(text, ')')
	fields := strings.Fields(string(text[at+1:]))
	const utime, stime = 14 - 3, 15 - 3 // the fields count from 1, and two are cut off
	if at < 0 || len(fields) <= stime {
		return 0, errors.New("read a CPU time: not a /proc/PID/stat")
	}
	u, uerr := strconv.ParseInt(fields[utime], 10, 64)
	s, serr := strconv.ParseInt(fields[stime], 10, 64)
	return time.Duration(u+s) * time.Second / ticks, errors.Join(uerr, serr)
}

// PeakMemory is the most that a process had resident since it began, or since
// ForgetPeak, in bytes.
func PeakMemory(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("read the memory of process %d: %w", pid, err)
	}
	return parsePeak(text)
}

func parsePeak(text []byte) (int64, error) {
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("read a process's memory: no VmHWM in its status")
}

// ForgetPeak makes a process's peak its memory of now.
func ForgetPeak(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
}

// Busy is how long the processors of the machine have been busy, with whatever.
func Busy() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	return parseBusy(text)
}

func parseBusy(text []byte) (time.Duration, error) {
	line, _, _ := strings.Cut(string(text), "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, errors.New("read /proc/stat: no line cpu")
	}
	var sum int64
	// user, nice, system, irq and softirq; not idle, iowait and what others stole.
	for _, i := range []int{1, 2, 3, 6, 7} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read /proc/stat: %w", err)
		}
		sum += n
	}
	return time.Duration(sum) * time.Second / ticks, nil
}

// Listener is the process of this machine that listens on an address of it.
func Listener(addr string) (pid int, err error) {
	tcp, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return 0, fmt.Errorf("find who listens on %s: %w", addr, err)
	}
	inodes := map[string]bool{}
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		text, err := os.ReadFile(table)
		if err != nil {
			continue // no such protocol here
		}
		for _, inode := range listening(text, tcp.Port) {
			inodes["socket:["+inode+"]"] = true
		}
	}
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return 0, err
	}
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && inodes[to] {
			return strconv.Atoi(strings.Split(link, "/")[2])
		}
	}
	return 0, fmt.Errorf("find who listens on %s: no process of this machine that can be looked at", addr)
}

// listening are the inodes of sockets in state LISTEN (0A) on a port.
func listening(table []byte, port int) (inodes []string) {
	var hex [2]byte
	binary.BigEndian.PutUint16(hex[:], uint16(port))
	want := fmt.Sprintf(":%02X%02X", hex[0], hex[1])
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		if len(f) > 9 && strings.HasSuffix(f[1], want) && f[3] == "0A" {
			inodes = append(inodes, f[9])
		}
	}
	return inodes
}

// ownCPU is what this process has taken, to the microsecond.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0 // not possible for the process itself
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// sleepUntil is exact to about 60 µs; the runtime's timers may be a millisecond
// late where the process is idle otherwise.
func sleepUntil(at time.Time) {
	if d := time.Until(at); d > 0 {
		ts := unix.NsecToTimespec(d.Nanoseconds())
		_ = unix.Nanosleep(&ts, nil) // woken early: the request is sent early by less than that
	}
}

// fdatasync puts a file's bytes on the disk.
func fdatasync(f *os.File) error { return unix.Fdatasync(int(f.Fd())) }
