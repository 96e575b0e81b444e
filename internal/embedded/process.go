package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// command is a child process to start.
type command struct {
	name string // for messages
	path string
	args []string
	env  []string // added to this process's
	dir  string
	log  string   // file that stdout and stderr are appended to
	lock *os.File // inherited by the child, whose lock it then is; may be nil
}

// process is a running or ended child.
type process struct {
	name  string
	log   string
	proc  *os.Process
	asked atomic.Bool   // its end was asked for
	done  chan struct{} // closed when it is gone and the fields below are set
	exit  error         // how it ended; nil: exit status 0
	err   error         // that it ended, if nobody asked for it
}

// start starts c. The child ends when this process does, however that ends.
func start(c command) (*process, error) {
	log, err := os.OpenFile(c.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the log of %s: %w", c.name, err)
	}
	defer log.Close()
	cmd := exec.Command(c.path, c.args...)
	cmd.Dir, cmd.Env = c.dir, append(os.Environ(), c.env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = childAttr()
	if c.lock != nil {
		cmd.ExtraFiles = []*os.File{c.lock}
	}
	p := &process{name: c.name, log: c.log, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// prctl(2): the death signal comes when the *thread* that forked ends. This
		// goroutine keeps its thread until the child is gone, then ends with it.
		runtime.LockOSThread()
		if err := cmd.Start(); err != nil {
			started <- fmt.Errorf("start %s: %w", c.name, err)
			return
		}
		p.proc = cmd.Process
		unwatch := func() {}
		if watchParent {
			var err error
			if unwatch, err = watch(cmd.Process.Pid); err != nil {
				_ = cmd.Process.Kill() // nobody would end it: better none
				_ = cmd.Wait()
				started <- err
				return
			}
		}
		started <- nil
		p.exit = cmd.Wait()
		unwatch()
		if !p.asked.Load() {
			p.err = p.ended()
		}
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// watch starts a shell that kills pid when this process ends: the pipe it reads
// from is closed then. A paused child dies of it too. The function it returns is
// called when the child has ended by itself.
func watch(pid int) (unwatch func(), err error) {
	sh := exec.Command("/bin/sh", "-c", `read -r end || kill -9 "$0"`, strconv.Itoa(pid))
	sh.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	alive, err := sh.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("watch pid %d: %w", pid, err)
	}
	if err := sh.Start(); err != nil {
		return nil, fmt.Errorf("watch pid %d: %w", pid, err)
	}
	return func() {
		// Whether the shell still reads does not matter: its child is gone.
		_, _ = io.WriteString(alive, "end\n")
		_ = sh.Wait()
	}, nil
}

// ended says how the child ended, with what it last wrote.
func (p *process) ended() error {
	how := "exit status 0"
	if p.exit != nil {
		how = p.exit.Error()
	}
	last := tail(p.log)
	if last == "" {
		return fmt.Errorf("%s ended by itself (%s); its log %s is empty", p.name, how, p.log)
	}
	return fmt.Errorf("%s ended by itself (%s); its log %s ends with:\n%s", p.name, how, p.log, last)
}

// tail is the last lines of a file, at most 15 and 4 KiB.
func tail(path string) string {
	const lines, size = 15, 4 << 10
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if end, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, end-size), io.SeekStart) // else the first 4 KiB must do
	}
	b, err := io.ReadAll(io.LimitReader(f, size))
	if err != nil {
		return ""
	}
	all := strings.Split(strings.TrimSpace(string(bytes.ToValidUTF8(b, []byte("?")))), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// ready calls probe until it returns nil. It ends early when the child does.
func (p *process) ready(ctx context.Context, probe func(context.Context) error) error {
	for {
		attempt, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := probe(attempt)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return p.err
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w (%w)", p.name, err, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// signal reports an error only for a child that is there and was not reached.
func (p *process) signal(s syscall.Signal) error {
	if err := p.proc.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %s to %s: %w", s, p.name, err)
	}
	return nil
}

// kill ends the child at once and waits until it is gone.
func (p *process) kill() error {
	p.asked.Store(true)
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return nil
}

// stop asks the child to end and kills it when it has not by the end of ctx.
func (p *process) stop(ctx context.Context) error {
	p.asked.Store(true)
	// A paused child gets the request once it goes on.
	if err := errors.Join(p.signal(syscall.SIGTERM), p.signal(syscall.SIGCONT)); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return p.kill()
	}
}

// run starts c and waits for it to end well; ctx kills it.
func run(ctx context.Context, c command) error {
	p, err := start(c)
	if err != nil {
		return err
	}
	select {
	case <-p.done:
		if p.exit == nil {
			return nil
		}
		return p.err
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("%s: %w", c.name, context.Cause(ctx)), p.kill())
	}
}
