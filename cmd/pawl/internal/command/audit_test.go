package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	"pawl.dev/internal/telemetry"
	"pawl.dev/internal/trail"
	pawlv1 "pawl.dev/proto/pawl/v1"
	auditor "pawl.dev/services/auditor/app"
)

// audited has the auditor work until the test ends.
func (s *site) audited() {
	s.t.Helper()
	metrics, err := telemetry.NewMetrics()
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(s.t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- service.Run(ctx, service.Options{Name: saga.Auditor, New: auditor.New, Inventory: s.inv, Log: slog.New(slog.DiscardHandler), Metrics: metrics})
	}()
	s.t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			s.t.Error(err)
		}
	})
}

// notes stores a note, and, where the auditor works, waits until it is signed.
func (s *site) notes(text string, signed bool) {
	s.t.Helper()
	ack, err := s.users[saga.Scheduler].JetStream.Publish(s.t.Context(), bus.NoteSubject(saga.Scheduler), []byte(`{"kind": "stalled", "credential": "app", "text": "`+text+`"}`))
	if err != nil {
		s.t.Fatal(err)
	}
	if signed {
		s.signed(ack.Sequence)
	}
}

// signed waits until a checkpoint covers the record of a note.
func (s *site) signed(sequence uint64) {
	s.t.Helper()
	s.signedOf(bus.StreamNote, sequence)
}

// signedOf waits until a checkpoint covers the record of a message.
func (s *site) signedOf(stream string, sequence uint64) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
	defer cancel()
	subject := trail.Subject(&pawlv1.AuditRecord{Stream: stream, Sequence: sequence})
	records, recorded := 0, 0
	for m := range s.users[bus.Operator].Tail(ctx, bus.StreamAudit, trail.Subjects, bus.Start{}) {
		var size int
		if _, err := fmt.Sscanf(m.Subject, trail.CheckpointSubject("%d"), &size); err != nil {
			if records++; m.Subject == subject {
				recorded = records
			}
		} else if recorded > 0 && size >= recorded {
			return
		}
	}
	s.t.Fatalf("%s is not signed", subject)
}

func wantIn(t *testing.T, text string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %q", want, text)
		}
	}
}

func TestAuditIsExportedAndVerifiedByItsKeyAlone(t *testing.T) {
	s := newServer(t)
	s.connect(bus.Operator)
	s.notes("waits for api", false)
	_, stderr := s.want(exitFailed, "audit", "export", "--out", filepath.Join(t.TempDir(), "early"))
	wantIn(t, stderr, "signed nothing yet: is it running?")
	s.audited()
	s.signed(1)
	key, _ := s.want(exitDone, "audit", "key")

	dir, older := filepath.Join(t.TempDir(), "export"), filepath.Join(t.TempDir(), "older")
	s.want(exitDone, "audit", "export", "--out", older)
	s.notes("waits for web", true)
	stdout, _ := s.want(exitDone, "audit", "export", "--out", dir)
	wantIn(t, stdout, "records verify, in ")
	stdout, _ = s.want(exitDone, "audit", "verify", "--since", filepath.Join(older, "checkpoint"), "--record", bus.StreamNote+":1")
	wantIn(t, stdout, "records verify", "(pawl.audit.note.1) is one of them", "waits for api")
	_, stderr = s.want(exitFailed, "audit", "verify", "--record", bus.StreamNote+":999")
	wantIn(t, stderr, "message 999 of PAWL_NOTE has no record")
	_, stderr = s.want(exitUsage, "audit", "verify", "--record", "17")
	wantIn(t, stderr, "STREAM:SEQUENCE")

	// Offline, from a folder that holds nothing else.
	s.config = filepath.Join(t.TempDir(), "none.yaml")
	_, stderr = s.want(exitDone, "audit", "verify", dir)
	wantIn(t, stderr, "the key that lies in the export")
	stdout, stderr = s.want(exitDone, "audit", "verify", dir, "--key", strings.TrimSpace(key), "--since", filepath.Join(older, "checkpoint"), "--json")
	if stderr != "" {
		t.Errorf("said %q", stderr)
	}
	var proved struct{ Records int64 }
	if err := json.Unmarshal([]byte(stdout), &proved); err != nil || proved.Records < 2 {
		t.Errorf("%v, %s", err, stdout)
	}
	_, stderr = s.want(exitFailed, "audit", "verify", older, "--key", strings.TrimSpace(key), "--since", filepath.Join(dir, "checkpoint"))
	wantIn(t, stderr, "is gone", "was kept")
	other := newSite(t)
	_, stderr = s.want(exitFailed, "audit", "verify", dir, "--key", trail.PublicFile(other.inv.KeysDir))
	wantIn(t, stderr, "no key that is trusted here")
	_, stderr = s.want(exitUsage, "audit", "verify", dir, "--key", "nonsense")
	wantIn(t, stderr, "neither a file nor a key")

	text := read(t, filepath.Join(dir, "records.jsonl"))
	if err := os.WriteFile(filepath.Join(dir, "records.jsonl"), []byte(strings.Replace(text, "waits for api", "waits for nil", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, stderr = s.want(exitFailed, "audit", "verify", dir, "--key", strings.TrimSpace(key))
	wantIn(t, stderr, "record ", "pawl.audit.note.", "readable part is not what was hashed")
}

func TestStartStopAndChangedConfigurationAreNoted(t *testing.T) {
	s := newServer(t)
	s.connect(bus.Operator)
	var digests []string
	for range 3 { // the second start is by the same file
		if len(digests) == 2 {
			write(t, s.config, read(t, s.config)+"# changed\n")
		}
		inv, err := inventory.Load(s.config)
		if err != nil {
			t.Fatal(err)
		}
		s.inv, digests = inv, append(digests, inv.Digest())
		t.Run("", func(t *testing.T) {
			in := s.in(t)
			in.audited()
			in.started(bus.StartedSubject(saga.Auditor), len(digests))
		})
	}
	stdout := s.noted()
	wantIn(t, stdout, "configuration changed: ", ", changed: from "+digests[1]+" to "+digests[2])
	for kind, n := range map[string]int{"configuration: ": 2, "configuration changed: ": 1, "started: ": 3, "stopped: ": 3} {
		if got := strings.Count("\n"+stdout, "\n"+kind); got != n {
			t.Errorf("%d times %q in:\n%s", got, kind, stdout)
		}
	}
}

// started waits for so many messages on a subject.
func (s *site) started(subject string, n int) {
	s.t.Helper()
	until := time.Now().Add(30 * time.Second)
	for got := 0; got < n; {
		got = 0
		if _, err := s.users[bus.Operator].Scan(s.t.Context(), bus.StreamNote, subject, bus.Start{}, func(*jetstream.RawStreamMsg) bool { got++; return true }); err != nil {
			s.t.Fatal(err)
		}
		if time.Now().After(until) {
			s.t.Fatalf("%d messages on %s, not %d", got, subject, n)
		}
		time.Sleep(10 * time.Millisecond) // the operator may not listen there
	}
}

// noted lists all notes, one a line.
func (s *site) noted() string {
	s.t.Helper()
	stream, err := s.users[bus.Operator].Stream(s.t.Context(), bus.StreamNote)
	if err != nil {
		s.t.Fatal(err)
	}
	info, err := stream.Info(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	var text strings.Builder
	for seq := uint64(1); seq <= info.State.LastSeq; seq++ {
		m, err := stream.GetMsg(s.t.Context(), seq)
		if err != nil {
			s.t.Fatal(err)
		}
		n := &pawlv1.Note{}
		if err := bus.Decode(m.Header, m.Data, n); err != nil {
			s.t.Fatal(err)
		}
		fmt.Fprintf(&text, "%s: %s\n", n.GetKind(), n.GetText())
	}
	return text.String()
}
