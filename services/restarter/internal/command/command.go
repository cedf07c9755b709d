// Package command runs programs given as argv: no shell, bounded time, none of
// Pawl's own environment, and output that is safe to repeat.
package command

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

	"pawl.dev/services/restarter/internal/scrub"
)

// grace is how long output is still read once the program has exited, or was
// killed: a daemon that it left behind may hold the pipe for ever.
const grace = time.Second

// Command is a program to run.
type Command struct {
	Argv []string
	Dir  string   // working directory; empty: Pawl's
	Env  []string // the whole environment: see Environment
}

// Environment returns what a program is given: PATH, HOME and LANG of Pawl's
// own environment, and more. Everything else stays behind, since Pawl's
// environment may hold an admin's password.
func Environment(more ...string) []string {
	var env []string
	for _, name := range []string{"PATH", "HOME", "LANG"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return append(env, more...)
}

// Run returns nil where the program exits 0 before ctx ends. When ctx ends, its
// whole process group is killed. The error holds the scrubbed tail of its
// output, of at most scrub.TailSize bytes.
func (c Command) Run(ctx context.Context) error {
	var output scrub.Tail
	cmd := exec.CommandContext(ctx, c.Argv[0], c.Argv[1:]...)
	cmd.Dir, cmd.Env = c.Dir, c.Env
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = grace

	err := cmd.Run()
	if err == nil || errors.Is(err, exec.ErrWaitDelay) {
		return nil
	}
	what := scrub.Text(err.Error())
	if ctx.Err() != nil {
		what = "killed with its process group: " + context.Cause(ctx).Error()
	}
	if said := output.String(); said != "" {
		what += "; its output ended: " + said
	}
	return fmt.Errorf("%s: %s", c, what)
}

// Find reports, without running it, why the program could not be run.
func (c Command) Find() error {
	if len(c.Argv) == 0 || c.Argv[0] == "" {
		return errors.New("no program given")
	}
	name := c.Argv[0]
	if c.Dir != "" && strings.Contains(name, "/") && !filepath.IsAbs(name) {
		name = filepath.Join(c.Dir, name)
	}
	if _, err := exec.LookPath(name); err != nil {
		return scrub.Error(err)
	}
	return nil
}

// String names the program, not its arguments, which may be long or private.
func (c Command) String() string { return "command " + filepath.Base(c.Argv[0]) }
