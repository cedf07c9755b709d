// Package app is the db-rotator: the only service that changes logins in
// PostgreSQL, and the only one that writes and deletes sealed credentials.
package app

import (
	"errors"

	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	"pawl.dev/services/db-rotator/internal/rotator"
)

// New returns the service. It connects to no database yet.
func New(d service.Dependencies) (*service.Service, error) {
	if d.Sealed == nil {
		return nil, errors.New("the db-rotator needs its sealing key: `pawl init` makes it")
	}
	r := rotator.New(d.Sealed)
	reconciler := rotator.NewReconciler(r, d, d.Inventory.ReconcileEvery)
	return &service.Service{
		Name: saga.DBRotator,
		Steps: map[string]service.Handler{
			"adopt": r.Adopt, "forget": r.Forget,
			"stage": r.Stage, "retire": r.Retire, "unstage": r.Unstage,
			"reinstate": r.Reinstate, "erase": r.Erase,
		},
		Check:       r.Check,
		CheckSealed: r.CheckSealed,
		Examine:     reconciler.Examine,
		Run:         reconciler.Run,
		Close:       r.Close,
	}, nil
}
