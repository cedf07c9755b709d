package bus_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

func say(t *testing.T, b *bus.Bus, text string) {
	t.Helper()
	if err := b.Publish(t.Context(), bus.NoteSubject(saga.DBRotator), &pawlv1.Note{Kind: "waiting", Text: text}, nil); err != nil {
		t.Fatal(err)
	}
}

func noteOf(t *testing.T, m *jetstream.RawStreamMsg) string {
	t.Helper()
	e, err := bus.ReadEntry(m.Subject, m.Header, m.Data, m.Sequence, m.Time)
	if err != nil {
		t.Fatal(err)
	}
	return e.Note.GetText()
}

func TestScanReadsEachMessageOnceInOrder(t *testing.T) {
	server := bustest.Start(t)
	rotator, auditor := server.Connect(t, saga.DBRotator), server.Connect(t, saga.Auditor)
	nothing, err := auditor.Scan(t.Context(), bus.StreamNote, "pawl.note.*", bus.Start{}, func(*jetstream.RawStreamMsg) bool { return true })
	if err != nil || nothing.Seq != 0 {
		t.Fatalf("an empty stream: %+v, %v", nothing, err)
	}
	const all = 600 // more than two batches
	var half time.Time
	for i := range all {
		if i == all/2 {
			half = time.Now()
		}
		say(t, rotator, fmt.Sprint(i))
	}
	count := 0
	next, err := auditor.Scan(t.Context(), bus.StreamNote, "pawl.note.*", bus.Start{}, func(m *jetstream.RawStreamMsg) bool {
		if got := noteOf(t, m); got != fmt.Sprint(count) {
			t.Fatalf("message %d says %s", count, got)
		}
		count++
		return true
	})
	if err != nil || count != all || next.Seq != all+1 {
		t.Errorf("%d of %d, next %d: %v", count, all, next.Seq, err)
	}
	first := ""
	if _, err := auditor.Scan(t.Context(), bus.StreamNote, "pawl.note.*", bus.Start{Time: half}, func(m *jetstream.RawStreamMsg) bool { first = noteOf(t, m); return false }); err != nil || first != fmt.Sprint(all/2) {
		t.Errorf("from the half on: %q, %v", first, err)
	}
}

func TestFollowGoesOnWhereTheServerWasKilled(t *testing.T) {
	dir := t.TempDir()
	server := bustest.StartProcess(t, dir)
	rotator, auditor := server.Connect(t, saga.DBRotator), server.Connect(t, saga.Auditor)
	say(t, rotator, "0")
	heard, idle, failures := make(chan string, 16), make(chan struct{}, 1), make(chan error, 1000)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		ended <- auditor.Follow(ctx, bus.StreamNote, "pawl.note.*", bus.Start{}, func(m *jetstream.RawStreamMsg) { heard <- noteOf(t, m) }, func() {
			select {
			case idle <- struct{}{}:
			default:
			}
		}, func(err error) { failures <- err })
	}()
	want := func(text string) {
		t.Helper()
		select {
		case got := <-heard:
			if got != text {
				t.Fatalf("heard %q, not %q", got, text)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%q was not heard", text)
		}
	}
	want("0")
	<-idle
	say(t, rotator, "1") // live
	want("1")
	server.Kill()
	<-failures // while there is no server
	again := bustest.StartProcess(t, dir)
	say(t, again.Connect(t, saga.DBRotator), "2")
	want("2")
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestMessageThatDescribesItselfIsReadAsWhatItIs: the server describes a stored message
// in headers that it adds to the publisher's own, of which the library for batches
// takes the first.
func TestMessageThatDescribesItselfIsReadAsWhatItIs(t *testing.T) {
	server := bustest.Start(t)
	requester, operator := server.Connect(t, bus.Requester), server.Connect(t, bus.Operator)
	forged := nats.Header{jetstream.SequenceHeader: {"700"}, jetstream.SubjectHeader: {"pawl.alert.another"}, jetstream.TimeStampHeaer: {"2000-01-01T00:00:00Z"},
		"Nats-Num-Pending": {"0"}, jetstream.LastSequenceHeader: {"0"}, "Status": {"404"}, "Description": {"EOB"}}
	for i, header := range []nats.Header{nil, forged, {jetstream.SequenceHeader: {"none"}}, {"Status": {"503"}}, nil} {
		if _, err := requester.JetStream.PublishMsg(t.Context(), &nats.Msg{Subject: bus.AlertSubject(fmt.Sprint("source", i)), Header: header}); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	if _, err := operator.Scan(t.Context(), bus.StreamAlert, ">", bus.Start{}, func(m *jetstream.RawStreamMsg) bool {
		if time.Since(m.Time) > time.Hour {
			t.Errorf("%d is of %s", m.Sequence, m.Time)
		}
		got = append(got, fmt.Sprint(m.Sequence, " ", m.Subject))
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"1 pawl.alerted.requester.source0", "2 pawl.alerted.requester.source1", "3 pawl.alerted.requester.source2", "4 pawl.alerted.requester.source3", "5 pawl.alerted.requester.source4"}; !slices.Equal(got, want) {
		t.Errorf("read %v", got)
	}
}

// TestWideReadTakesNothingElse: where everything is asked for instead of a pattern.
func TestWideReadTakesNothingElse(t *testing.T) {
	server := bustest.Start(t)
	rotator, operator := server.Connect(t, saga.DBRotator), server.Connect(t, bus.Operator)
	for range 300 { // more than a batch
		for _, subject := range []string{bus.StartedSubject(saga.DBRotator), bus.NoteSubject(saga.DBRotator)} {
			if _, err := rotator.NATS.RequestWithContext(t.Context(), subject, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	for pattern, want := range map[string]int{"pawl.note.*": 300, "pawl.note.>": 600, "pawl.note.*.started": 300, bus.NoteSubject(saga.DBRotator): 300, "pawl.*.*": 300, ">": 600} {
		got := 0
		if _, err := operator.Scan(t.Context(), bus.StreamNote, pattern, bus.Start{}, func(*jetstream.RawStreamMsg) bool { got++; return true }); err != nil || got != want {
			t.Errorf("%s: read %d of %d, %v", pattern, got, want, err)
		}
	}
}
