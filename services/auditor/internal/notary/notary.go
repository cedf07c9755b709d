// Package notary signs the audit trail: it reads the records in stored order,
// grows a Merkle tree over them, and stores checkpoints of it among them. Several
// auditors do so at once, without a leader: all read the same order, and a
// checkpoint is stored only if the newest one is still the one that it follows.
// What it needs to go on after a restart stands in the newest checkpoint.
package notary

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/metric"
	"golang.org/x/mod/sumdb/note"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/fault"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	"pawl.dev/internal/trail"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// A checkpoint is due when no record has come for a while, and while they keep
// coming at least so often, or when it can hold no more of them.
const (
	quiet    = time.Second
	longest  = 10 * time.Second
	idle     = time.Minute
	pause    = time.Second // before beginning again after an error
	jitterOf = 4           // of the quiet time: so that another auditor's checkpoint is there before ours is due
)

// signPoint is where the crash tests kill the auditor as it stores a checkpoint.
const signPoint = "checkpoint"

// Notary signs.
type Notary struct {
	d      service.Dependencies
	signer note.Signer
	keys   note.Verifiers
	quiet  time.Duration

	records, signed, broken metric.Int64Gauge
}

// New returns a notary with the key in keys_dir.
func New(d service.Dependencies) (*Notary, error) {
	n := &Notary{d: d, quiet: quiet}
	var errs [5]error
	n.signer, errs[0] = trail.LoadSigner(d.Inventory.KeysDir)
	n.keys, errs[1] = trail.LoadKeys(trail.PublicFile(d.Inventory.KeysDir))
	meter := d.Metrics.Meter()
	n.records, errs[2] = meter.Int64Gauge("pawl_audit_records", metric.WithDescription("Records in the audit trail"))
	n.signed, errs[3] = meter.Int64Gauge("pawl_audit_signed_records", metric.WithDescription("Records that the newest checkpoint covers"))
	n.broken, errs[4] = meter.Int64Gauge("pawl_audit_broken", metric.WithDescription("1 where the audit trail is not the one that was signed: nothing more is signed"))
	for _, err := range errs {
		if err != nil {
			return nil, err // the first: a key that is missing fails both
		}
	}
	n.broken.Record(context.Background(), 0)
	return n, nil
}

// Run signs until ctx ends. A trail that is not the one that was signed is not
// signed any further, and said to be so; rotations and records go on.
func (n *Notary) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		err := n.follow(ctx)
		var wrong *trail.Fault
		switch {
		case errors.Is(err, bus.ErrConflict): // another auditor was first: go on from what it signed
			wait(ctx, n.quiet/jitterOf)
		case errors.As(err, &wrong):
			n.broken.Record(ctx, 1)
			n.d.Log.Error("the audit trail is not the one that was signed; nothing more is signed", "fault", wrong.Error())
			n.d.Note(ctx, &pawlv1.Note{Kind: "trail broken", Text: wrong.Error() + ": keep the store as it is, and run `pawl audit verify`"})
			<-ctx.Done()
		case ctx.Err() != nil:
		default:
			n.d.Log.Warn("checkpoints interrupted; they go on", "error", err)
			wait(ctx, pause)
		}
	}
	return nil
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// follow reads on from the newest checkpoint, and signs what comes.
func (n *Notary) follow(ctx context.Context) error {
	chain, from := trail.NewChain(n.keys), (*trail.Checkpoint)(nil)
	from, err := trail.NewestCheckpoint(ctx, n.d.Bus, n.keys)
	if err == nil && from != nil {
		chain, err = trail.Resume(n.keys, from)
	}
	if err != nil {
		return err
	}
	decoder := trail.NewDecoder(n.keys, from)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	return n.sign(ctx, chain, decoder, n.d.Bus.Tail(ctx, bus.StreamAudit, trail.Subjects, bus.Start{Seq: decoder.Next()}))
}

func (n *Notary) sign(ctx context.Context, chain *trail.Chain, decoder *trail.Decoder, messages <-chan *jetstream.RawStreamMsg) error {
	var first, due time.Time // when the oldest waiting record was read; when the next checkpoint is due
	calm := n.quiet + rand.N(n.quiet/jitterOf+1)
	for {
		patience := idle
		if len(chain.Waiting()) > 0 {
			if patience = time.Until(due); patience <= 0 || len(chain.Waiting()) >= trail.MaxLeaves {
				if err := n.store(ctx, chain); err != nil {
					return err
				}
				first = time.Now() // of those that are left, if any
				due = first.Add(calm)
				continue
			}
		}
		var m *jetstream.RawStreamMsg
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(patience):
			continue
		case m = <-messages:
		}
		if m == nil {
			return ctx.Err()
		}
		entry, err := decoder.Decode(m)
		if err == nil {
			err = chain.Add(entry)
		}
		if err != nil {
			return err
		}
		if now := time.Now(); entry.Record != nil {
			if len(chain.Waiting()) == 1 {
				first = now
			}
			due = earlier(now.Add(calm), first.Add(longest))
		}
		n.tell(ctx, chain)
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// store signs the next checkpoint and stores it. Where that has happened before,
// and only the answer was lost, it is a conflict like any other.
func (n *Notary) store(ctx context.Context, chain *trail.Chain) error {
	next, err := chain.Draft()
	if err != nil {
		return err
	}
	if err := next.Sign(n.signer); err != nil {
		return err
	}
	newest := uint64(0)
	if c := chain.Newest(); c != nil {
		newest = c.Sequence
	}
	fault.Point(saga.Auditor, signPoint+".before")
	next.Sequence, err = n.d.Bus.PublishAfter(ctx, next.Subject(), next.Encode(), trail.CheckpointSubject("*"), newest)
	if err != nil {
		return err
	}
	fault.Point(saga.Auditor, signPoint+".after")
	if err := chain.Add(trail.Entry{Checkpoint: next}); err != nil {
		return err
	}
	n.d.Log.Info("checkpoint", "records", next.Size, "root", next.Root.String())
	n.tell(ctx, chain)
	return nil
}

func (n *Notary) tell(ctx context.Context, chain *trail.Chain) {
	signed := int64(0)
	if c := chain.Newest(); c != nil {
		signed = c.Size
	}
	n.signed.Record(ctx, signed)
	n.records.Record(ctx, signed+int64(len(chain.Waiting())))
}
