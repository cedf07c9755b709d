package restart

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"pawl.dev/internal/effect"
	"pawl.dev/internal/inventory"
	"pawl.dev/services/restarter/internal/command"
	"pawl.dev/services/restarter/internal/health"
)

const (
	processInterval = 20 * time.Millisecond
)

// signalled is a process that reloads on a signal. Sending it twice is harmless.
type signalled struct{ inventory.Process }

func (s signalled) number() (syscall.Signal, error) {
	number := unix.SignalNum("SIG" + strings.TrimPrefix(s.Signal, "SIG"))
	if number == 0 {
		return 0, fmt.Errorf("signal: %q is none: use HUP, USR1, USR2, INT or TERM", s.Signal)
	}
	return number, nil
}

func (s signalled) Restart(ctx context.Context, _ Cause) error {
	if err := ctx.Err(); err != nil {
		return err // a replica that woke too late must not signal
	}
	number, err := s.number()
	if err != nil {
		return err
	}
	p, err := fromPIDFile(s.Process)
	if err != nil {
		return fmt.Errorf("signal %s: %w", s.Signal, err)
	}
	defer p.release()
	if err := p.signal(number); err != nil {
		return fmt.Errorf("signal %s to process %d: %w", s.Signal, p.pid, err)
	}
	return nil
}

func (s signalled) Check(context.Context) (string, error) {
	if _, err := s.number(); err != nil {
		return "", err
	}
	p, err := fromPIDFile(s.Process)
	if err != nil {
		return "", err
	}
	defer p.release()
	return fmt.Sprintf("process %d can be signalled", p.pid), nil
}

// replaced is a process that is stopped and started anew.
type replaced struct{ inventory.Process }

// Restart leaves a process alone that started after the sinks were written:
// there the world does tell that an attempt before this one succeeded, and that
// the process has read the new credential. One that a crash left stopped is
// started.
func (r replaced) Restart(ctx context.Context, cause Cause) error {
	unlock, err := r.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	old, err := fromPIDFile(r.Process)
	switch {
	case errors.Is(err, errNotRunning):
		effect.Warn(ctx, "consumer %s: nothing to stop: %v", cause.Consumer, err)
	case err != nil:
		return fmt.Errorf("stop: %w", err)
	default:
		defer old.release()
		if old.started.After(cause.At.Add(clockSlack)) {
			return nil
		}
		if err := r.stop(ctx, old); err != nil {
			return err
		}
	}
	return r.start(ctx, cause)
}

// lock keeps a second restarter from starting a second process beside ours. It
// is on the pid file's folder, ends with the process that holds it, and leaves
// nothing behind.
func (r replaced) lock(ctx context.Context) (unlock func(), err error) {
	dir, err := os.OpenFile(filepath.Dir(r.PIDFile), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("pid file's folder: %w", err)
	}
	ctx, cancel := r.bounded(ctx, "lock "+dir.Name())
	defer cancel()
	err = health.Await(ctx, processInterval, func(context.Context) error {
		err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return errors.New("another restarter is at work there")
		}
		return err
	})
	if err != nil {
		_ = dir.Close()
		return nil, err
	}
	return func() { _ = dir.Close() }, nil
}

func (r replaced) stop(ctx context.Context, p *process) error {
	ctx, cancel := r.bounded(ctx, fmt.Sprintf("stop process %d", p.pid))
	defer cancel()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := p.signal(syscall.SIGTERM); err != nil && !errors.Is(err, errNotRunning) {
		return fmt.Errorf("stop process %d: %w", p.pid, err)
	}
	return health.Await(ctx, processInterval, func(context.Context) error {
		if p.gone() {
			return nil
		}
		return errors.New("still running after TERM")
	})
}

// start runs argv in a session of its own, without Pawl's environment or
// files, and awaits the pid file. What did not come up in time is killed, or
// the next attempt would start a second one beside it.
func (r replaced) start(ctx context.Context, cause Cause) error {
	ctx, cancel := r.bounded(ctx, "start "+r.program().String())
	defer cancel()
	if err := ctx.Err(); err != nil {
		return err
	}
	cmd := exec.Command(r.Start[0], r.Start[1:]...)
	cmd.Dir, cmd.Env = r.Dir, cause.Environ()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()

	var failed error
	err := health.Await(ctx, processInterval, func(context.Context) error {
		p, err := fromPIDFile(r.Process)
		if err == nil {
			p.release()
			return nil
		}
		select {
		case failed = <-exited: // nil: it went into the background, and the pid file will come
			if failed != nil {
				return nil
			}
		default:
		}
		return err
	})
	if failed != nil {
		return fmt.Errorf("start: %s ended before its pid file was there: %w", r.program(), failed)
	}
	if errors.Is(context.Cause(ctx), errTimeout) && err != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	return err
}

func (r replaced) program() command.Command { return command.Command{Argv: r.Start, Dir: r.Dir} }

var errTimeout = errors.New("timed out")

func (r replaced) bounded(ctx context.Context, what string) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, r.Timeout, fmt.Errorf("%s: %w after %s", what, errTimeout, r.Timeout))
}

func (r replaced) Check(context.Context) (string, error) {
	if err := r.program().Find(); err != nil {
		return "", fmt.Errorf("start: %w", err)
	}
	p, err := fromPIDFile(r.Process)
	if errors.Is(err, errNotRunning) {
		return fmt.Sprintf("nothing to stop, will be started (%v)", err), nil
	}
	if err != nil {
		return "", err
	}
	defer p.release()
	return fmt.Sprintf("process %d can be stopped", p.pid), nil
}
