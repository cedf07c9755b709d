// Package app is the db-rotator: the only service that changes logins in
// PostgreSQL, and the only one that writes and deletes sealed credentials.
package app

import (
	"context"
	"errors"

	"pawl.dev/internal/evidence"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
	"pawl.dev/services/db-rotator/internal/rotator"
)

// BreakGlass refuses every login of the credential straight from the
// configuration, without a bus; it returns what was done where, and leaves the
// sessions that it ended with the keeper. It says by waits that a server lets nobody in
// for now, and tries there until ctx ends.
func BreakGlass(ctx context.Context, c *inventory.Credential, keeper evidence.Keeper, waits func(text string)) (*pawlv1.Contained, error) {
	r := rotator.New(nil, nil)
	defer r.Close()
	return r.BreakGlass(ctx, c, keeper, waits)
}

// Gather leaves with the keeper what the logins have, and may have left, on the
// servers that were contained. It takes some 2 s where servers are slow.
func Gather(ctx context.Context, c *inventory.Credential, contained *pawlv1.Contained, keeper evidence.Keeper) error {
	r := rotator.New(nil, nil)
	defer r.Close()
	return r.Gather(ctx, keeper, c, contained)
}

// New returns the service. It connects to no database yet.
func New(d service.Dependencies) (*service.Service, error) {
	if d.Sealed == nil {
		return nil, errors.New("the db-rotator needs its sealing key: `pawl init` makes it")
	}
	r := rotator.New(d.Sealed, d.Bus.ReadNewest)
	r.KeepTime(d.Clock)
	r.KeepEvidence(evidence.NewStore(d.Bus, d.Inventory.KeysDir), d.Note)
	reconciler := rotator.NewReconciler(r, d, d.Inventory.ReconcileEvery)
	return &service.Service{
		Name: saga.DBRotator,
		Steps: map[string]service.Handler{
			"adopt": r.Adopt, "forget": r.Forget,
			"stage": r.Stage, "retire": r.Retire, "unstage": r.Unstage,
			"reinstate": r.Reinstate, "erase": r.Erase,
			"contain": r.Contain, "issue": r.Issue, "release": r.Release,
		},
		Check:       r.Check,
		CheckSealed: r.CheckSealed,
		Examine:     reconciler.Examine,
		Run:         reconciler.Run,
		Close:       r.Close,
	}, nil
}
