// Package app wires the auditor.
package app

import (
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	"pawl.dev/services/auditor/internal/trail"
)

// New makes the service.
func New(d service.Dependencies) (*service.Service, error) {
	return &service.Service{Name: saga.Auditor, Run: trail.New(d).Run}, nil
}
