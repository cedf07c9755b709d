package restart

import (
	"context"
	"fmt"

	"pawl.dev/internal/inventory"
	"pawl.dev/services/restarter/internal/command"
)

// program runs a command. Whether it was run before the world cannot tell, so
// after a crash it runs twice; PAWL_ROTATION and PAWL_STEP let it notice.
type program struct{ inventory.Command }

func (p program) command(cause Cause) command.Command {
	return command.Command{Argv: p.Argv, Dir: p.Dir, Env: cause.Environ()}
}

func (p program) Restart(ctx context.Context, cause Cause) error {
	ctx, cancel := context.WithTimeoutCause(ctx, p.Timeout, fmt.Errorf("still running after %s", p.Timeout))
	defer cancel()
	return p.command(cause).Run(ctx)
}

func (p program) Check(context.Context) (string, error) {
	c := p.command(Cause{})
	if err := c.Find(); err != nil {
		return "", err
	}
	return c.String() + " can be run", nil
}
