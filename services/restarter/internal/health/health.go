// Package health is the gate that a consumer must pass after its restart,
// before the next one's turn.
package health

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"pawl.dev/internal/inventory"
	"pawl.dev/services/restarter/internal/call"
	"pawl.dev/services/restarter/internal/command"
	"pawl.dev/services/restarter/internal/scrub"
)

const (
	interval  = 100 * time.Millisecond
	lookLimit = 5 * time.Second // a probe that hangs is not a healthy one
)

// Gate is a consumer's health check.
type Gate struct {
	health  inventory.Health
	program command.Command
}

// New returns the gate that the configuration describes. A command runs in dir
// with env as its whole environment.
func New(h inventory.Health, dir string, env []string) Gate {
	return Gate{h, command.Command{Argv: h.Command, Dir: dir, Env: env}}
}

// IsZero reports whether there is no gate to pass.
func (g Gate) IsZero() bool { return g.health.HTTP == "" && len(g.health.Command) == 0 }

// Look returns nil where the consumer is healthy now: HTTP 2xx without
// redirect, and exit status 0, as far as configured. It takes 5 s at most.
func (g Gate) Look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	if g.health.HTTP != "" {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.health.HTTP, nil)
		if err != nil {
			return scrub.Error(err)
		}
		if err := call.Send(req); err != nil {
			return err
		}
	}
	if len(g.health.Command) > 0 {
		return g.program.Run(ctx)
	}
	return nil
}

// Await returns nil once the consumer is healthy, and an error that holds the
// last answer when it has not become so within the gate's timeout.
func (g Gate) Await(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, g.health.Timeout, fmt.Errorf("not healthy within %s", g.health.Timeout))
	defer cancel()
	return Await(ctx, interval, g.Look)
}
