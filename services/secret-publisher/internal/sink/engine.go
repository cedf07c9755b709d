package sink

import (
	"context"
	"errors"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/client"

	"pawl.dev/internal/docker"
	"pawl.dev/internal/effect"
)

// callLimit is how long Docker may take to answer one request.
const callLimit = 20 * time.Second

// request is one call of the Docker API: an effect of its own, so that it can be
// seen, and the service be killed before and after it. The target says what is
// meant, the same at each rotation.
func request[T any](ctx context.Context, e *docker.Engine, name, target string, send func(context.Context, *client.Client) (T, error)) (answer T, err error) {
	err = effect.Do(ctx, name, target, func(ctx context.Context) error {
		api, err := e.Client()
		if err != nil {
			return Refusal{err}
		}
		ctx, cancel := context.WithTimeout(ctx, callLimit)
		defer cancel()
		answer, err = send(ctx, api)
		return settleDocker(err)
	})
	return answer, err
}

// settleDocker makes a refusal of what trying again cannot mend: of these, a node
// that is no manager, and what a proxy does not let pass.
func settleDocker(err error) error {
	if cerrdefs.IsNotFound(err) || cerrdefs.IsPermissionDenied(err) || cerrdefs.IsUnauthorized(err) || cerrdefs.IsInvalidArgument(err) ||
		err != nil && strings.Contains(err.Error(), "not a swarm manager") {
		return Refusal{err}
	}
	if err != nil {
		err = passing{err}
	}
	return err
}

// passing is a fault that says nothing of what the sink holds.
type passing struct{ error }

func (p passing) Unwrap() error { return p.error }

// IsPassing reports whether the sink could only not be asked.
func IsPassing(err error) bool { return errors.As(err, new(passing)) }

// outOfSequence reports whether somebody else was first with an update.
func outOfSequence(err error) bool {
	return err != nil && strings.Contains(err.Error(), "update out of sequence")
}
