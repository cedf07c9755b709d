// Package app is the verifier: it proves that the new credential works, on
// every node and for every consumer, and at the end that the old one does not.
// It changes nothing anywhere.
package app

import (
	"context"
	"time"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// envelopes is what the verifier needs of the sealed store.
type envelopes interface {
	Open(ctx context.Context, credential, rotation string) (*sealed.Credential, error)
}

type app struct {
	sealed    envelopes
	accounts  accounts
	note      func(context.Context, *pawlv1.Note)
	tellEvery time.Duration // how long consumers may keep it waiting before that is noted, and noted anew
}

// New returns the service. It connects to nothing yet.
func New(d service.Dependencies) (*service.Service, error) {
	a := &app{sealed: d.Sealed, accounts: accounts{others: d.Sealed.Logins}, note: d.Note, tellEvery: 3 * time.Second}
	return &service.Service{
		Name:    saga.Verifier,
		Steps:   map[string]service.Handler{"verify": a.verify, "confirm": a.confirm},
		Check:   a.check,
		Examine: a.examine,
		Close:   a.accounts.close,
	}, nil
}

// alternates tells the strategy from the flow where that says it: the
// configuration may have changed since the rotation began.
func alternates(r *service.Rotation) bool {
	switch flow := r.State.Flow; {
	case flow.Logins != saga.Either:
		return flow.Logins == saga.Two
	case flow.Urgent:
		return r.Staged().GetUser() != r.Requested().GetBasisUser()
	}
	return r.Credential.Strategy == inventory.Alternating
}
