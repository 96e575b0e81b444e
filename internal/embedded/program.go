package embedded

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// ProgramConfig is a program to run beside the servers, such as the collector.
type ProgramConfig struct {
	Name string   // for messages
	Path string   // the binary
	Args []string // after the program's name
	Env  []string // added to this process's
	Log  string   // file that its output is appended to; its folder is made
	// Ready is asked until it returns nil.
	Ready func(ctx context.Context) error
}

// Program is a program in a child process, which ends with this one.
type Program struct{ Child }

// StartProgram starts a program and returns when it is ready. One that ends
// before is an error, with the last lines of its log.
func StartProgram(ctx context.Context, cfg ProgramConfig) (*Program, error) {
	if err := os.MkdirAll(filepath.Dir(cfg.Log), 0o755); err != nil {
		return nil, fmt.Errorf("start %s: %w", cfg.Name, err)
	}
	p := &Program{}
	p.launch = func(ctx context.Context) (*process, error) {
		child, err := start(command{name: cfg.Name, path: cfg.Path, args: cfg.Args, env: cfg.Env, log: cfg.Log})
		if err != nil {
			return nil, err
		}
		return started(ctx, child, cfg.Ready)
	}
	if err := p.up(ctx); err != nil {
		return nil, err
	}
	return p, nil
}

// FreeAddr is a loopback address that nobody listens on, with a port that the
// system does not hand out by itself: it is still free when a program that was
// killed starts again.
func FreeAddr() (string, error) {
	l, err := listenFree("127.0.0.1")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
