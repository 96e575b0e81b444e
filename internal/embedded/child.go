package embedded

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"time"
)

// How long a server may take to answer, and to end when asked, unless the caller's
// context is shorter. Both took under 4 s on two busy cores.
const (
	startLimit = 90 * time.Second
	stopLimit  = 15 * time.Second
)

// Child is a server in a child process, which can be ended, paused and started
// again on the same addresses and data. Its methods are safe for concurrent use,
// but for Restart, which must not run beside itself.
type Child struct {
	launch func(context.Context) (*process, error) // starts and waits until it answers

	mu sync.Mutex
	p  *process // the newest one
}

func (c *Child) current() *process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.p
}

// up starts the child; the first time too.
func (c *Child) up(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	p, err := c.launch(ctx)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.p = p
	return nil
}

// PID is the process id.
func (c *Child) PID() int { return c.current().proc.Pid }

// Log is the path of the file that the process writes its output to.
func (c *Child) Log() string { return c.current().log }

// Done is closed when the process is gone, whoever ended it. Restart makes a new
// one.
func (c *Child) Done() <-chan struct{} { return c.current().done }

// Err says how the process ended, with the last lines of its log. It is nil while
// it runs, and after Stop and Kill.
func (c *Child) Err() error {
	p := c.current()
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

// Stop asks the process to end, kills it after 15 s or at the end of ctx, and
// returns when it is gone. Stopping what has ended is no error.
func (c *Child) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopLimit)
	defer cancel()
	return c.current().stop(ctx)
}

// Kill ends the process with SIGKILL and returns when it is gone: for fault runs.
func (c *Child) Kill() error { return c.current().kill() }

// Pause stops the process in its tracks (SIGSTOP): connections stay open and
// nothing answers. For fault runs.
func (c *Child) Pause() error { return c.current().signal(syscall.SIGSTOP) }

// Resume lets a paused process go on (SIGCONT).
func (c *Child) Resume() error { return c.current().signal(syscall.SIGCONT) }

// Restart stops the process if it runs and starts it again on the same addresses
// and data. It returns when it answers.
func (c *Child) Restart(ctx context.Context) error {
	if err := c.Stop(ctx); err != nil {
		return err
	}
	return c.up(ctx)
}

// started waits until a just started process answers, and ends it when it does not.
func started(ctx context.Context, p *process, probe func(context.Context) error) (*process, error) {
	if err := p.ready(ctx, probe); err != nil {
		return nil, errors.Join(err, p.kill())
	}
	return p, nil
}
