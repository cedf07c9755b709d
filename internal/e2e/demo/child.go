package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	patience = 30 * time.Second // with whatever should take moments
	pollEach = 10 * time.Millisecond
)

// child is a process that ends with us.
type child struct {
	name    string
	log     string // file of its output
	cmd     *exec.Cmd
	ended   chan struct{}
	err     error // of Wait; read it after ended
	stopped bool  // by us
}

// start runs one of the binaries. A group of its own keeps a terminal's Ctrl-C
// from it: we end it in good order.
func (s *stage) start(name, binary string, args ...string) (*child, error) {
	c := &child{name: name, ended: make(chan struct{})}
	log, err := os.CreateTemp(s.dir, binary+"-*.log")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	c.log = log.Name()
	c.cmd = exec.Command(filepath.Join(s.binaries, binary), args...)
	c.cmd.Dir, c.cmd.Stdout, c.cmd.Stderr = s.dir, log, log
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	s.children = append(s.children, c)
	go func() {
		c.err = c.cmd.Wait()
		close(c.ended)
	}()
	return c, nil
}

// await returns once the child has said the text.
func (c *child) await(ctx context.Context, text string) error {
	return c.until(ctx, fmt.Sprintf("%q", text), func() bool {
		said, err := os.ReadFile(c.log)
		return err == nil && bytes.Contains(said, []byte(text))
	})
}

// until polls while the child lives.
func (c *child) until(ctx context.Context, what string, done func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(pollEach)
	defer tick.Stop()
	for !done() {
		select {
		case <-c.ended:
			return fmt.Errorf("%s ended early (%v)", c.name, c.err)
		case <-ctx.Done():
			return fmt.Errorf("%s: waiting for %s: %w", c.name, what, ctx.Err())
		case <-tick.C:
		}
	}
	return nil
}

// stop ends the child and waits for it.
func (c *child) stop() error {
	c.stopped = true
	_ = c.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-c.ended:
		return nil
	case <-time.After(patience):
		_ = c.cmd.Process.Kill()
		<-c.ended
		return fmt.Errorf("%s did not end when told to", c.name)
	}
}

// command runs pawl to its end and returns its result.
func (s *stage) command(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(s.binaries, "pawl"), append(args, "-c", s.file())...)
	cmd.Dir = s.dir
	out, err := cmd.Output()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		err = fmt.Errorf("pawl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(exit.Stderr)))
	}
	return out, err
}
