package service

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

const (
	checkTimeout = 15 * time.Second
	askAgain     = 1500 * time.Millisecond // long for a check, short for a person
	comesBack    = 6 * time.Second         // a service whose server of the bus died is joined to another by then
)

// Ask puts a preflight or doctor's question to a service and returns its
// findings, each naming the service. No service listening is
// nats.ErrNoResponders. Where rotations are named, the service also tries
// whether it can open what is sealed under them.
//
// The question goes to one replica, and after a while to one again: a replica
// that hangs answers nothing, but is asked as often as the others.
func Ask(ctx context.Context, b *bus.Bus, subject string, rotations ...string) ([]*pawlv1.Check, error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	inbox := b.NATS.NewInbox()
	answers, err := b.NATS.SubscribeSync(inbox)
	if err != nil {
		return nil, err
	}
	defer func() { _ = answers.Unsubscribe() }() // late answers have no reader
	var answer *nats.Msg
	err = b.Permitted(ctx, func(ctx context.Context) error {
		for answer == nil {
			if err := b.NATS.PublishRequest(subject, inbox, []byte(strings.Join(rotations, " "))); err != nil {
				return err
			}
			wait, cancel := context.WithTimeout(ctx, askAgain)
			answer, err = answers.NextMsgWithContext(wait)
			cancel()
			if err != nil && (ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded)) {
				return err
			}
		}
		return nil
	}, subject)
	if err != nil {
		return nil, err
	}
	findings := &pawlv1.Findings{}
	if err := bus.Decode(answer.Header, answer.Data, findings); err != nil {
		return nil, err
	}
	return findings.GetChecks(), nil
}

// Checked are the services that preflight asks before a rotation.
var Checked = []string{saga.DBRotator, saga.SecretPublisher, saga.Restarter, saga.Verifier}

// Preflight asks the services that will take part, and whether they can open
// what is sealed under the rotations: the one that the next one starts from,
// the one that is to be restored; none for an adoption. unanswered names the
// services that did not answer; where none listens, for as long as one may need to
// come back.
func Preflight(ctx context.Context, b *bus.Bus, credential string, services []string, rotations ...string) (found []*pawlv1.Check, unanswered error) {
	type result struct {
		checks []*pawlv1.Check
		err    error
	}
	results := make([]result, len(services))
	var wait sync.WaitGroup
	for i, service := range services {
		wait.Go(func() {
			checks, err := askPatiently(ctx, b, bus.CheckSubject(service, credential), rotations)
			if err != nil {
				err = fmt.Errorf("%s does not answer: %w", service, err)
			}
			results[i] = result{checks, err}
		})
	}
	wait.Wait()
	for _, r := range results {
		found = append(found, r.checks...)
		unanswered = errors.Join(unanswered, r.err)
	}
	return found, unanswered
}

// askPatiently is Ask of a service that may be on its way back.
func askPatiently(ctx context.Context, b *bus.Bus, subject string, rotations []string) ([]*pawlv1.Check, error) {
	gone := time.After(comesBack)
	for {
		checks, err := Ask(ctx, b, subject, rotations...)
		if !errors.Is(err, nats.ErrNoResponders) {
			return checks, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-gone:
			return nil, err
		case <-time.After(250 * time.Millisecond):
		}
	}
}
