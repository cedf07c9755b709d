package client

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Position is the next message of each stream that tells of rotations.
type Position struct{ log, note uint64 }

// Rotations returns every rotation of a credential, oldest first.
func (c *Client) Rotations(ctx context.Context, credential string) ([]bus.Log, error) {
	entries, err := c.stored(ctx, bus.StreamLog, bus.LogSubject(credential, "*", "*"), time.Time{})
	if err != nil {
		return nil, err
	}
	var logs []bus.Log
	for _, e := range entries {
		logs = bus.ByRotation(logs, e)
	}
	return logs, nil
}

// Notes returns the notes stored since then, oldest first.
func (c *Client) Notes(ctx context.Context, since time.Time) ([]bus.Entry, error) {
	return c.stored(ctx, bus.StreamNote, "pawl.note.*", since)
}

// Since returns what was stored between then and a position, oldest first.
func (c *Client) Since(ctx context.Context, since time.Time, until Position) ([]bus.Entry, error) {
	events, err := c.stored(ctx, bus.StreamLog, bus.LogSubject("*", "*", "*"), since)
	if err != nil {
		return nil, err
	}
	notes, err := c.Notes(ctx, since)
	all := slices.DeleteFunc(slices.Concat(events, notes), func(e bus.Entry) bool {
		return e.Event != nil && e.Seq >= until.log || e.Note != nil && e.Seq >= until.note
	})
	slices.SortStableFunc(all, func(x, y bus.Entry) int { return x.At.Compare(y.At) })
	return all, err
}

// stored reads the events or notes that a stream holds now.
func (c *Client) stored(ctx context.Context, stream, filter string, since time.Time) (entries []bus.Entry, err error) {
	err = c.each(ctx, stream, filter, since, func(m *jetstream.RawStreamMsg) {
		if e, err := decode(m); err == nil { // what cannot be decoded is another version's
			entries = append(entries, e)
		}
	})
	return entries, err
}

// Alert is one stored alert.
type Alert struct {
	At       time.Time // when it was stored
	Source   string
	Sequence uint64 // in the stream; with Source, what an alarm names it by
	Alert    *pawlv1.Alert
}

// Alerts returns the alerts stored since then, oldest first.
func (c *Client) Alerts(ctx context.Context, since time.Time) (alerts []Alert, err error) {
	err = c.each(ctx, bus.StreamAlert, ">", since, func(m *jetstream.RawStreamMsg) {
		a := Alert{At: m.Time, Sequence: m.Sequence, Alert: &pawlv1.Alert{}}
		a.Source, _ = bus.ParseAlert(m.Subject)
		if bus.Decode(m.Header, m.Data, a.Alert) == nil {
			alerts = append(alerts, a)
		}
	})
	return alerts, err
}

// Alarms returns what was decided about alerts since then, oldest first: those
// of a credential, of bus.Unmapped, or with "*" of all.
func (c *Client) Alarms(ctx context.Context, credential string, since time.Time) (all []*pawlv1.Alarm, err error) {
	err = c.each(ctx, bus.StreamAlarm, bus.AlarmSubject(credential, "*"), since, func(m *jetstream.RawStreamMsg) {
		a := &pawlv1.Alarm{}
		if bus.Decode(m.Header, m.Data, a) == nil { // what cannot be decoded is another version's
			all = append(all, a)
		}
	})
	return all, err
}

// each calls do with every message that a stream holds now, oldest first.
func (c *Client) each(ctx context.Context, stream, filter string, since time.Time, do func(*jetstream.RawStreamMsg)) error {
	_, err := c.Scan(ctx, stream, filter, bus.Start{Time: since}, func(m *jetstream.RawStreamMsg) bool { do(m); return true })
	return err
}

// Now returns the position after everything that is stored.
func (c *Client) Now(ctx context.Context) (p Position, err error) {
	for name, next := range map[string]*uint64{bus.StreamLog: &p.log, bus.StreamNote: &p.note} {
		if err := elected(ctx, func() error {
			stream, err := c.Stream(ctx, name)
			if err != nil {
				return err
			}
			ctx, cancel := bus.Bound(ctx)
			defer cancel()
			info, err := stream.Info(ctx)
			if err != nil {
				return fmt.Errorf("stream %s: %w", name, err)
			}
			*next = info.State.LastSeq + 1
			return nil
		}); err != nil {
			return p, err
		}
	}
	return p, nil
}

// WholeLog moves the position in the log to its beginning.
func (p Position) WholeLog() Position { return Position{1, p.note} }

// Follow sends what is stored from a position on, until ctx ends: the events
// of the credential and the rotation ("*": of any) and every note. It survives
// the server's restart.
func (c *Client) Follow(ctx context.Context, credential, rotation string, from Position) <-chan bus.Entry {
	out := make(chan bus.Entry, 64)
	for _, of := range []struct {
		stream, filter string
		from           uint64
	}{{bus.StreamLog, bus.LogSubject(credential, rotation, "*"), from.log}, {bus.StreamNote, "pawl.note.*", from.note}} {
		go func() {
			for m := range c.Tail(ctx, of.stream, of.filter, bus.Start{Seq: of.from}) {
				e, err := decode(m)
				if err != nil {
					continue // another version's
				}
				select {
				case out <- e:
				case <-ctx.Done():
				}
			}
		}()
	}
	return out
}

func decode(m *jetstream.RawStreamMsg) (bus.Entry, error) {
	return bus.ReadEntry(m.Subject, m.Header, m.Data, m.Sequence, m.Time)
}
