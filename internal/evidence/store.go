package evidence

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/sealed"
)

// Keeper keeps snapshots, each beside those that are there.
type Keeper interface {
	// Keep stores a snapshot durably.
	Keep(ctx context.Context, s Snapshot) error
	// Catalogued returns the nodes of which a catalogue is kept.
	Catalogued(ctx context.Context, credential, rotation string) ([]string, error)
}

// Store is the Keeper on the bus.
type Store struct {
	bus  *bus.Bus
	keys string // directory
}

// NewStore returns a store that seals to the incident key of the directory.
func NewStore(b *bus.Bus, keysDir string) *Store { return &Store{b, keysDir} }

// Keep seals and stores a snapshot under an id of its own.
func (s *Store) Keep(ctx context.Context, snapshot Snapshot) error {
	key, err := sealed.LoadIncidentKey(s.keys)
	if err != nil {
		return err
	}
	box, err := Seal(key, snapshot)
	if err != nil {
		return err
	}
	return Put(ctx, s.bus, snapshot.Credential, snapshot.Rotation, snapshot.Node, NewID(snapshot.Kind), box)
}

// NewID returns an id that no other snapshot has.
func NewID(kind string) string { return kind + "-" + strings.ToLower(rand.Text()) }

// Put stores a box under its id, once: idempotent.
func Put(ctx context.Context, b *bus.Bus, credential, rotation, node, id string, box []byte) error {
	ctx, cancel := bus.Bound(ctx)
	defer cancel()
	_, err := b.PublishMsg(ctx, &nats.Msg{Subject: bus.EvidenceSubject(credential, rotation, node, id), Data: box})
	if bus.IsTaken(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("keep evidence: %w", err)
	}
	return nil
}

// Catalogued returns the nodes of which a catalogue is kept.
func (s *Store) Catalogued(ctx context.Context, credential, rotation string) (nodes []string, err error) {
	all, err := subjects(ctx, s.bus, credential, rotation)
	for _, subject := range all {
		if parts := strings.Split(subject, "."); strings.HasPrefix(parts[5], Catalogue+"-") {
			nodes = append(nodes, parts[4])
		}
	}
	return nodes, err
}

func subjects(ctx context.Context, b *bus.Bus, credential, rotation string) (all []string, err error) {
	ctx, cancel := bus.Bound(ctx)
	defer cancel()
	stream, err := b.Stream(ctx, bus.StreamEvidence)
	if err != nil {
		return nil, fmt.Errorf("evidence: %w", err)
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(bus.EvidenceSubject(credential, rotation, "*", "*")))
	if err != nil {
		return nil, fmt.Errorf("evidence: %w", err)
	}
	for subject := range info.State.Subjects {
		all = append(all, subject)
	}
	slices.Sort(all)
	return all, nil
}

// Read returns every snapshot of a rotation, oldest first, how many there are,
// and why some could not be opened: sealed.ErrNoIncidentKey where the private
// half of the key is elsewhere.
func Read(ctx context.Context, b *bus.Bus, key *sealed.IncidentKey, credential, rotation string) (all []Snapshot, stored int, err error) {
	found, err := subjects(ctx, b, credential, rotation)
	if err != nil {
		return nil, 0, err
	}
	var closed error
	for _, subject := range found {
		m, err := b.Last(ctx, bus.StreamEvidence, subject, nil)
		if err == nil && m == nil {
			err = jetstream.ErrMsgNotFound
		}
		if err != nil {
			return nil, 0, fmt.Errorf("evidence: %w", err)
		}
		s, err := Open(key, m.Data)
		if err == nil && s.Credential != credential {
			err = fmt.Errorf("evidence of %s lies under %s", s.Credential, credential)
		}
		if err != nil {
			closed = err
			continue
		}
		s.Rotation = rotation
		all = append(all, s)
	}
	slices.SortStableFunc(all, func(a, b Snapshot) int { return a.At.Compare(b.At) })
	return all, len(found), closed
}
