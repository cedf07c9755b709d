package restart

import (
	"strings"

	cerrdefs "github.com/containerd/errdefs"

	"pawl.dev/internal/docker"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/services/restarter/internal/scrub"
)

// OnDocker returns the configured kind where it is one of Docker's, or nil.
func OnDocker(r inventory.Restart, e *docker.Engine) Kind {
	switch {
	case r.Swarm != nil:
		return tasks{*r.Swarm, e}
	case r.Container != nil:
		return containers{*r.Container, e}
	case r.Compose != nil:
		return composed{*r.Compose, e}
	}
	return nil
}

// settle makes permanent what looking again cannot mend.
func settle(err error) error {
	if cerrdefs.IsNotFound(err) || cerrdefs.IsPermissionDenied(err) || cerrdefs.IsUnauthorized(err) || cerrdefs.IsInvalidArgument(err) {
		return saga.Permanent(err)
	}
	return err
}

// told is what Docker said of a fault, fit to be repeated.
func told(text string) string { return scrub.Text(strings.TrimSpace(text)) }
