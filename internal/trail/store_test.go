package trail

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// archive is a trail on a real server; the auditor is played.
type archive struct {
	t                                         *testing.T
	scheduler, auditor, operator, provisioner *bus.Bus
	keysDir                                   string
	signer                                    note.Signer
	keys                                      note.Verifiers
}

func newArchive(t *testing.T) *archive {
	t.Helper()
	server := bustest.Start(t)
	a := &archive{t: t, keysDir: t.TempDir()}
	a.scheduler, a.auditor, a.operator, a.provisioner = server.Connect(t, saga.Scheduler), server.Connect(t, saga.Auditor), server.Connect(t, bus.Operator), server.Connect(t, bus.Provisioner)
	must(CreateKeys(a.keysDir))
	a.signer, a.keys = must(LoadSigner(a.keysDir)), must(LoadKeys(PublicFile(a.keysDir)))
	return a
}

// filled is a trail of 3, 4 and 5 records with a checkpoint after each, and one
// record more.
func filled(t *testing.T) *archive {
	a := newArchive(t)
	for i, n := range []int{3, 4, 5, 1} {
		for j := range n {
			a.note(fmt.Sprintf("note %d of part %d", j, i))
		}
		a.record(n)
		if i < 3 {
			a.sign()
		}
	}
	return a
}

func (a *archive) note(text string) {
	a.t.Helper()
	if err := a.scheduler.Publish(a.t.Context(), bus.NoteSubject(saga.Scheduler), &pawlv1.Note{Kind: "test", Credential: "app", Text: text, Actor: "=anna"}, nil); err != nil {
		a.t.Fatal(err)
	}
}

// record writes the records of the next so many notes, as the auditor does.
func (a *archive) record(n int) {
	a.t.Helper()
	consumer := must(a.auditor.JetStream.Consumer(a.t.Context(), bus.StreamNote, saga.Auditor))
	for range n {
		m := must(consumer.Next())
		a.publish(recordOf(m))
		if err := m.DoubleAck(a.t.Context()); err != nil {
			a.t.Fatal(err)
		}
	}
}

func recordOf(m jetstream.Msg) *pawlv1.AuditRecord {
	meta := must(m.Metadata())
	sum, n := sha256.Sum256(m.Data()), &pawlv1.Note{}
	if err := proto.Unmarshal(m.Data(), n); err != nil {
		panic(err)
	}
	return &pawlv1.AuditRecord{Stream: meta.Stream, Sequence: meta.Sequence.Stream, Subject: m.Subject(), At: timestamppb.New(meta.Timestamp),
		Event: n.GetKind(), Credential: n.GetCredential(), Actor: n.GetActor(), Summary: n.GetText(), BodySha256: hex.EncodeToString(sum[:])}
}

func (a *archive) publish(r *pawlv1.AuditRecord) {
	a.t.Helper()
	if err := a.auditor.Publish(a.t.Context(), Subject(r), r, nil); err != nil {
		a.t.Fatal(err)
	}
}

// sign stores a checkpoint of all records.
func (a *archive) sign() *Checkpoint {
	a.t.Helper()
	chain := NewChain(a.keys)
	for e, err := range Live(a.t.Context(), a.auditor, a.keys) {
		if err == nil {
			err = chain.Add(e)
		}
		if err != nil {
			a.t.Fatal(err)
		}
	}
	next, newest := must(chain.Draft()), uint64(0)
	if c := chain.Newest(); c != nil {
		newest = c.Sequence
	}
	if err := next.Sign(a.signer); err != nil {
		a.t.Fatal(err)
	}
	must(a.auditor.PublishAfter(a.t.Context(), next.Subject(), next.Encode(), CheckpointSubject("*"), newest))
	return next
}

// message is what is stored at one sequence.
type message struct {
	subject string
	data    []byte
}

func (a *archive) messages(stream string) (all []message) {
	a.t.Helper()
	for m, err := range stored(a.t.Context(), a.operator, stream) {
		if err != nil {
			a.t.Fatal(err)
		}
		all = append(all, message{m.Subject, m.Data})
	}
	return all
}

// rewrite makes the stream anew with other messages, as somebody may who holds
// the server.
func (a *archive) rewrite(stream string, all []message) {
	a.t.Helper()
	ctx, js := a.t.Context(), a.provisioner.JetStream
	if err := js.DeleteStream(ctx, stream); err != nil {
		a.t.Fatal(err)
	}
	if err := bus.Provision(ctx, js, bus.Settings{Replicas: 1, AckWait: time.Second}); err != nil {
		a.t.Fatal(err)
	}
	writer := a.auditor
	if stream != bus.StreamAudit {
		writer = a.scheduler
	}
	for _, m := range all {
		must(writer.JetStream.Publish(ctx, m.subject, m.data))
	}
}

func (a *archive) verify(kept ...*Checkpoint) (Result, error) {
	return VerifyLive(a.t.Context(), a.operator, a.keys, kept...)
}

// tampering is one way to forge a trail, and where it must be seen.
type tampering struct {
	name  string
	forge func(a *archive, all []message) []message
	index int64  // of the fault
	says  string // part of it
}

// In the stored order of filled: records 0 to 2, a checkpoint, 3 to 6, a
// checkpoint, 7 to 11, a checkpoint, 12.
func at(index int64) int {
	switch {
	case index < 3:
		return int(index)
	case index < 7:
		return int(index) + 1
	case index < 12:
		return int(index) + 2
	}
	return int(index) + 3
}

const firstSigned, secondSigned, thirdSigned = 3, 8, 14

// changed has another actor.
func changed(m message) message {
	r := &pawlv1.AuditRecord{}
	if err := proto.Unmarshal(m.data, r); err != nil {
		panic(err)
	}
	r.Actor = "nobody"
	return message{m.subject, must(proto.Marshal(r))}
}

func checkpointOf(m message) *pawlv1.AuditCheckpoint {
	c := &pawlv1.AuditCheckpoint{}
	if err := proto.Unmarshal(m.data, c); err != nil {
		panic(err)
	}
	return c
}

// checkpointWith changes a checkpoint's message.
func checkpointWith(m message, change func(*pawlv1.AuditCheckpoint)) message {
	c := checkpointOf(m)
	change(c)
	return message{m.subject, must(proto.Marshal(c))}
}

func hashOf(m message) []byte {
	h := (&Record{Body: m.data}).Hash()
	return h[:]
}

var tamperings = []tampering{
	{"changed", func(_ *archive, all []message) []message {
		all[at(5)] = changed(all[at(5)])
		return all
	}, 5, "pawl.audit.note.6): is not the one that was hashed"},
	{"changed, and the list of hashes with it", func(_ *archive, all []message) []message {
		all[at(5)] = changed(all[at(5)])
		all[secondSigned] = checkpointWith(all[secondSigned], func(c *pawlv1.AuditCheckpoint) { copy(c.Leaves[2*32:], hashOf(all[at(5)])) })
		return all
	}, 3, "pawl.audit.note.4): this one or a later one, up to 6"},
	{"removed", func(_ *archive, all []message) []message { return slices.Delete(all, at(4), at(4)+1) }, 4, "pawl.audit.note.6): is not the one that was hashed"},
	{"removed before the last checkpoint", func(_ *archive, all []message) []message { return slices.Delete(all, at(11), at(11)+1) }, 11, "is gone"},
	{"moved", func(_ *archive, all []message) []message {
		all[at(8)], all[at(9)] = all[at(9)], all[at(8)]
		return all
	}, 8, "pawl.audit.note.10): is not the one that was hashed"},
	{"put in", func(_ *archive, all []message) []message {
		r := &pawlv1.AuditRecord{Stream: bus.StreamNote, Sequence: 99, Event: "test", Summary: "put in"}
		return slices.Insert(all, at(4), message{Subject(r), must(proto.Marshal(r))})
	}, 4, "pawl.audit.note.99): is of message 99 of PAWL_NOTE, which is not there"},
	{"put in twice", func(_ *archive, all []message) []message {
		return slices.Insert(all, at(4), message{"pawl.audit.note.13", all[at(12)].data})[:at(12)+1]
	}, 4, "pawl.audit.note.13): is not the one that was hashed"},
	{"cut off", func(_ *archive, all []message) []message { return slices.Delete(all, at(9), at(11)+1) }, 9, "is gone: the checkpoint covers 12 records, and only 9 are there"},
	{"in the place of another", func(_ *archive, all []message) []message {
		all[at(4)].subject, all[at(5)].subject = all[at(5)].subject, all[at(4)].subject
		return all
	}, 4, "holds the record that belongs to pawl.audit.note.5"},
	{"not a record", func(_ *archive, all []message) []message {
		all[at(0)].data = []byte("\xff")
		return all
	}, 0, "is not a record"},
	{"size of a checkpoint", func(_ *archive, all []message) []message {
		all[thirdSigned] = checkpointWith(all[thirdSigned], func(c *pawlv1.AuditCheckpoint) { c.Note = strings.Replace(c.Note, "\n12\n", "\n11\n", 1) })
		return all
	}, 12, "does not bear the signature of its text"},
	{"checkpoint by another key", func(a *archive, all []message) []message {
		private, _ := must2(note.GenerateKey(rand.Reader, a.signer.Name()))
		all[thirdSigned] = checkpointWith(all[thirdSigned], func(c *pawlv1.AuditCheckpoint) { c.Note = a.resigned(c.Note, must(note.NewSigner(private)), nil) })
		return all
	}, 12, "which is no key that is trusted here"},
	{"root of a checkpoint, by somebody who holds the key", func(a *archive, all []message) []message {
		all[thirdSigned] = checkpointWith(all[thirdSigned], func(c *pawlv1.AuditCheckpoint) {
			c.Note = a.resigned(c.Note, a.signer, func(forged *Checkpoint) { forged.Root[0]++ })
		})
		return all
	}, 7, "is not the one that was hashed; the list of hashes was altered as well"},
	{"another note by the same key", func(a *archive, all []message) []message {
		signed := must(note.Sign(&note.Note{Text: "12\nis a number\n"}, a.signer))
		all[thirdSigned] = checkpointWith(all[thirdSigned], func(c *pawlv1.AuditCheckpoint) { c.Note = string(signed) })
		return all
	}, 12, "is not a checkpoint of an audit trail"},
	{"checkpoint in the place of another", func(_ *archive, all []message) []message {
		all[secondSigned].data, all[thirdSigned].data = all[thirdSigned].data, all[secondSigned].data
		return all
	}, 7, "holds the checkpoint that belongs to pawl.audit.checkpoint.12"},
	{"older checkpoint after a newer one", func(_ *archive, all []message) []message {
		older := all[secondSigned]
		all = append(slices.Delete(all, secondSigned, secondSigned+1), older)
		before := checkpointOf(older)
		all[thirdSigned-1] = checkpointWith(all[thirdSigned-1], func(c *pawlv1.AuditCheckpoint) {
			c.Leaves = append(slices.Clone(before.Leaves), c.Leaves...)
		})
		return all
	}, 12, "its last record is at sequence 13"},
	{"checkpoint removed", func(_ *archive, all []message) []message { return slices.Delete(all, secondSigned, secondSigned+1) }, 12, "not the hashes of the records beside it"},
	{"checkpoint removed, and the next one's list mended", func(_ *archive, all []message) []message {
		before := checkpointOf(all[secondSigned])
		all[thirdSigned] = checkpointWith(all[thirdSigned], func(c *pawlv1.AuditCheckpoint) { c.Leaves = append(slices.Clone(before.Leaves), c.Leaves...) })
		return slices.Delete(all, secondSigned, secondSigned+1)
	}, 12, "its last record is at sequence 13, and was at 14"},
	{"edge of a checkpoint", func(_ *archive, all []message) []message {
		all[firstSigned] = checkpointWith(all[firstSigned], func(c *pawlv1.AuditCheckpoint) { c.Edge[0]++ })
		return all
	}, 3, "not the edge beside it"},
	{"of a message that is not there", func(a *archive, all []message) []message {
		r := &pawlv1.AuditRecord{Stream: bus.StreamNote, Sequence: 99, Event: "test", Summary: "never happened"}
		return append(all, message{Subject(r), must(proto.Marshal(r))})
	}, 13, "pawl.audit.note.99): is of message 99 of PAWL_NOTE, which is not there"},
	{"of a stream that is not recorded", func(a *archive, all []message) []message {
		r := &pawlv1.AuditRecord{Stream: bus.StreamSealed, Sequence: 1}
		return append(all, message{Subject(r), must(proto.Marshal(r))})
	}, 13, "which is not recorded"},
	{"of another time, and not yet signed", func(_ *archive, all []message) []message {
		r := &pawlv1.AuditRecord{}
		if err := proto.Unmarshal(all[at(12)].data, r); err != nil {
			panic(err)
		}
		r.At = timestamppb.New(r.GetAt().AsTime().Add(time.Hour))
		all[at(12)].data = must(proto.Marshal(r))
		return all
	}, 12, "says subject"},
}

// resigned is a checkpoint's note with something changed, signed anew.
func (a *archive) resigned(text string, signer note.Signer, change func(*Checkpoint)) string {
	c := must(OpenCheckpoint(text, a.keys))
	if change != nil {
		change(c)
	}
	if err := c.Sign(signer); err != nil {
		a.t.Fatal(err)
	}
	return c.Note
}

func TestEveryTamperingWithTheStoreIsNamed(t *testing.T) {
	a := filled(t)
	result, err := a.verify()
	if err != nil || result.Records != 12 || result.Checkpoints != 3 || result.Unsigned != 1 || result.Unrecorded != 0 {
		t.Fatalf("as it was: %+v, %v", result, err)
	}
	whole := a.messages(bus.StreamAudit)
	for _, c := range tamperings {
		a := *a
		t.Run(c.name, func(t *testing.T) {
			a.t = t
			a.rewrite(bus.StreamAudit, c.forge(&a, slices.Clone(whole)))
			_, err := a.verify()
			wants(t, err, c.index, c.says)
		})
	}
	a.rewrite(bus.StreamAudit, whole)
	if _, err := a.verify(); err != nil {
		t.Errorf("put back as it was: %v", err)
	}
}

// TestGapInTheStoreIsNamed deletes one message, as a stream may whose settings
// somebody has changed.
func TestGapInTheStoreIsNamed(t *testing.T) {
	a := filled(t)
	config := must(a.provisioner.JetStream.Stream(t.Context(), bus.StreamAudit)).CachedInfo().Config
	all := a.messages(bus.StreamAudit)
	config.DenyDelete = false
	if err := a.provisioner.JetStream.DeleteStream(t.Context(), bus.StreamAudit); err != nil {
		t.Fatal(err)
	}
	stream := must(a.provisioner.JetStream.CreateStream(t.Context(), config))
	for _, m := range all {
		must(a.auditor.JetStream.Publish(t.Context(), m.subject, m.data))
	}
	if err := stream.DeleteMsg(t.Context(), uint64(len(all))); err != nil { // not yet signed: no checkpoint tells
		t.Fatal(err)
	}
	a.note("one more")
	must(a.auditor.JetStream.Publish(t.Context(), "pawl.audit.note.14", must(proto.Marshal(&pawlv1.AuditRecord{Stream: bus.StreamNote, Sequence: 14}))))
	_, err := a.verify()
	wants(t, err, 12, "or a checkpoint is gone: PAWL_AUDIT ends its gap at sequence 17, not at 16")
}

func wants(t *testing.T, err error, index int64, says string) {
	t.Helper()
	var fault *Fault
	if !errors.As(err, &fault) || fault.Index != index || !strings.Contains(err.Error(), says) {
		t.Errorf("got %v, want record %d: …%s…", err, index, says)
	}
}

func must2[T, U any](v T, w U, err error) (T, U) {
	if err != nil {
		panic(err)
	}
	return v, w
}
