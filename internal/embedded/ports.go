package embedded

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Endpoint is an address to listen on.
type Endpoint struct {
	Addr    string // host:port; host is loopback. Empty, or port 0: a free port
	Setting string // what a person changes when the port is taken, such as SLUICE_LISTEN; empty: not told
}

// ErrPortTaken is returned when another process listens on an address.
var ErrPortTaken = errors.New("address is taken")

// CheckPort reports, before anything else is started, that e's address can be
// listened on. The error names the address, the process that has it where /proc
// tells, and the setting to change; it is ErrPortTaken when that is the reason.
// Another process may still take the port before it is used.
func CheckPort(e Endpoint) error {
	l, err := listen(e)
	if err != nil {
		return err
	}
	return l.Close()
}

func listen(e Endpoint) (net.Listener, error) {
	l, err := net.Listen("tcp", e.Addr)
	if err == nil {
		return l, nil
	}
	instead := "choose another address"
	if e.Setting != "" {
		instead = "set " + e.Setting + " to another address"
	}
	if !errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("listen on %s: %w; %s", e.Addr, err, instead)
	}
	stop := "another process"
	if who := listener(e.Addr); who != "" {
		stop = who
	}
	return nil, fmt.Errorf("%s: %w by %s: end that, or %s", e.Addr, ErrPortTaken, stop, instead)
}

// reserve claims addresses for a server with its data in dir, once a predecessor
// that was killed just now is quite gone.
func reserve(ctx context.Context, dir string, endpoints ...*Endpoint) error {
	lock, err := lockData(ctx, dir)
	if err != nil {
		return err
	}
	return errors.Join(claim(endpoints...), lock.Close())
}

// claim gives every endpoint its final address, host as an IP, and checks that all
// of them can be listened on beside each other. What has no port gets one.
func claim(endpoints ...*Endpoint) error {
	var held []net.Listener
	defer func() {
		for _, l := range held {
			_ = l.Close() // nothing was accepted or written
		}
	}()
	for _, e := range endpoints {
		host, port, err := loopback(*e)
		if err != nil {
			return err
		}
		var l net.Listener
		if port == "0" {
			l, err = listenFree(host)
		} else {
			l, err = listen(Endpoint{Addr: net.JoinHostPort(host, port), Setting: e.Setting})
		}
		if err != nil {
			return err
		}
		held = append(held, l)
		e.Addr = l.Addr().String()
	}
	return nil
}

func loopback(e Endpoint) (host, port string, err error) {
	if e.Addr == "" {
		return "127.0.0.1", "0", nil
	}
	host, port, err = net.SplitHostPort(e.Addr)
	if err != nil {
		return "", "", fmt.Errorf("%s%q: want host:port: %w", prefixed(e.Setting), e.Addr, err)
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return "", "", fmt.Errorf("%s%q: embedded servers have no passwords and listen on loopback only, such as 127.0.0.1", prefixed(e.Setting), e.Addr)
	}
	if port == "" {
		port = "0"
	}
	return host, port, nil
}

// hostOf and portOf take a claimed endpoint apart.
func hostOf(e Endpoint) string {
	host, _, _ := net.SplitHostPort(e.Addr)
	return host
}

func portOf(e Endpoint) string {
	_, port, _ := net.SplitHostPort(e.Addr)
	return port
}

func prefixed(setting string) string {
	if setting == "" {
		return ""
	}
	return setting + " "
}

// Ports that systems hand out to outgoing connections (32768 and up on Linux, 49152
// and up on macOS) are no good: one could be gone while its server is down for a
// moment.
const lowestFree, highestFree = 20000, 32000

func listenFree(host string) (net.Listener, error) {
	var last error
	for range 100 {
		port := strconv.Itoa(lowestFree + rand.IntN(highestFree-lowestFree))
		l, err := net.Listen("tcp", net.JoinHostPort(host, port))
		if err == nil {
			return l, nil
		}
		last = err
	}
	return nil, fmt.Errorf("find a free port of %s between %d and %d: %w", host, lowestFree, highestFree, last)
}

// listener names the process that listens on addr's port, as "java (pid 12)". It is
// empty where there is no /proc, or the process belongs to somebody else.
func listener(addr string) string {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return ""
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return ""
	}
	sockets := map[string]bool{}
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		for _, inode := range listening(table, uint16(n)) {
			sockets["socket:["+inode+"]"] = true
		}
	}
	if len(sockets) == 0 {
		return ""
	}
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return ""
	}
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err != nil || !sockets[target] {
			continue
		}
		process := filepath.Dir(filepath.Dir(fd))
		name, err := os.ReadFile(filepath.Join(process, "comm"))
		if err != nil {
			continue
		}
		return fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(name)), filepath.Base(process))
	}
	return ""
}

// listening are the inodes of the sockets in state LISTEN on a port, from a table
// in the form of proc(5), /proc/net/tcp.
func listening(table string, port uint16) []string {
	f, err := os.Open(table)
	if err != nil {
		return nil
	}
	defer f.Close()
	var inodes []string
	suffix := fmt.Sprintf(":%04X", port)
	const localAddress, state, inode = 1, 3, 9 // columns
	for lines := bufio.NewScanner(f); lines.Scan(); {
		columns := strings.Fields(lines.Text())
		if len(columns) > inode && columns[state] == "0A" && strings.HasSuffix(columns[localAddress], suffix) {
			inodes = append(inodes, columns[inode])
		}
	}
	return inodes
}
