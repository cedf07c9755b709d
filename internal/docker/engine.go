// Package docker opens the Docker API that pawl.yaml names. Only the services that
// must speak to Docker import it, so that no other binary holds its client.
package docker

import (
	"sync"

	"github.com/docker/docker/client"

	"pawl.dev/internal/inventory"
)

// Engine is a Docker API. It is safe for concurrent use.
type Engine struct {
	inventory.Docker

	mu     sync.Mutex
	client *client.Client
}

// NewEngine dials nothing yet.
func NewEngine(config inventory.Docker) *Engine { return &Engine{Docker: config} }

// Client returns the one client of the engine; the first call makes it, and its
// requests agree upon a version of the API. The error is that of a host or
// of files of TLS that cannot be used.
func (e *Engine) Client() (*client.Client, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.client != nil {
		return e.client, nil
	}
	from := client.FromEnv
	if e.Host != "" {
		from = client.WithHost(e.Host)
	}
	options := []client.Opt{from, client.WithAPIVersionNegotiation()}
	if e.CertFile != "" {
		options = append(options, client.WithTLSClientConfig(e.CAFile, e.CertFile, e.KeyFile))
	}
	var err error
	e.client, err = client.NewClientWithOpts(options...)
	return e.client, err
}
