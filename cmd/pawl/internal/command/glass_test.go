package command

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"pawl.dev/cmd/pawl/internal/glass"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/evidence"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// emergencies plays the scheduler for emergencies: each request begins r-1, r-2…
// in the log, and is answered.
func (s *site) emergencies(answer func(n int) *pawlv1.Answer) (asked *atomic.Int32) {
	s.t.Helper()
	b := s.users[saga.Scheduler]
	asked = &atomic.Int32{}
	sub, err := b.NATS.Subscribe("pawl.emergency.*", func(m *nats.Msg) {
		a := answer(int(asked.Add(1)))
		a.Request, a.Credential = m.Header.Get(nats.MsgIdHdr), "app"
		if err := b.Publish(context.Background(), bus.AnswerSubject(a.Request), a, nil); err != nil {
			s.t.Error(err)
		}
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = sub.Unsubscribe() }) // the server is about to end
	if err := b.NATS.Flush(); err != nil {
		s.t.Fatal(err)
	}
	return asked
}

// broken is the file of a record, with a piece of evidence.
func (s *site) broken() (path string) {
	s.t.Helper()
	r, err := glass.Begin(s.inv, "app", "anna@laptop", "found on a laptop")
	if err != nil {
		s.t.Fatal(err)
	}
	r.Contained(&pawlv1.Contained{Logins: []string{"app"}, Pending: map[string]string{"coordinator": "no answer"}})
	if err := r.Keep(s.t.Context(), evidence.Snapshot{Credential: "app", Node: "coordinator", Kind: evidence.Sessions, At: time.Now(), Tables: []postgres.Table{{Name: "sessions", Columns: []string{"who"}, Rows: [][]string{{"the thief"}}}}}); err != nil {
		s.t.Fatal(err)
	}
	return filepath.Join(s.inv.DataDir, "glass", r.ID+".json")
}

// learned is what the bus knows of broken glass.
func (s *site) learned(rotation string) (notes, pieces int) {
	s.t.Helper()
	conn, err := join(s.inv)
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.NATS.Close()
	all, err := conn.Notes(s.t.Context(), time.Now().Add(-time.Hour))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, n := range all {
		if n.Note.GetKind() == glass.NoteKind && n.Rotation == rotation && n.Service == bus.Operator {
			notes++
		}
	}
	key, err := sealed.LoadIncidentKey(s.inv.KeysDir)
	if err != nil {
		s.t.Fatal(err)
	}
	found, _, err := evidence.Read(s.t.Context(), conn.Bus, key, "app", rotation)
	if err != nil {
		s.t.Fatal(err)
	}
	return notes, len(found)
}

func TestBrokenGlassIsWrittenDownBeforeAndAfter(t *testing.T) {
	s := newSite(t)
	s.want(exitFailed, "emergency", "app", "--break-glass", "--reason", "found on a laptop")
	all, err := glass.Untold(s.inv, "app")
	if err != nil || len(all) != 1 {
		t.Fatalf("records %v, %v", all, err)
	}
	path := filepath.Join(s.inv.DataDir, "glass", all[0].ID+".json")
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("record: %v, %v", info.Mode(), err)
	}
	var r glass.Record
	if err := json.Unmarshal([]byte(read(t, path)), &r); err != nil {
		t.Fatal(err)
	}
	if r.Credential != "app" || r.By == "" || r.Reason != "found on a laptop" || r.Ended == nil || r.Pending["coordinator"] == "" || len(r.Evidence) != 0 {
		t.Errorf("record %s", read(t, path))
	}
	// A folder that cannot be written must not keep anybody from containing.
	if err := os.RemoveAll(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Dir(path), "in the way")
	if _, stderr := s.want(exitFailed, "emergency", "app", "--break-glass"); !strings.Contains(stderr, "contained all the same") || !strings.Contains(stderr, "not contained everywhere: coordinator") || !strings.Contains(stderr, "keep it") {
		t.Error(stderr)
	}
}

func TestLogLearnsOfABrokenGlassOnce(t *testing.T) {
	s := newSite(t)
	first, second := s.broken(), s.broken()
	s.start()
	t.Cleanup(func() { s.server.Stop() })
	s.connect(saga.Services...)
	begun := false
	asked := s.emergencies(func(int) *pawlv1.Answer {
		if !begun {
			begun = true
			return accepted("r-1")
		}
		return &pawlv1.Answer{Outcome: pawlv1.Outcome_OUTCOME_REJECTED, Reason: "under way already", Rotation: "r-1"}
	})
	ctx := t.Context()
	if err := tell(ctx, s.inv); err != nil {
		t.Fatal(err)
	}
	if notes, pieces := s.learned("r-1"); notes != 2 || pieces != 2 || asked.Load() != 2 {
		t.Errorf("%d notes, %d pieces of evidence, asked %d times", notes, pieces, asked.Load())
	}
	// Told again: after nothing, and after a crash before the file was marked.
	for _, crash := range []bool{false, true} {
		if crash {
			for _, path := range []string{first, second} {
				var r map[string]any
				if err := json.Unmarshal([]byte(read(t, path)), &r); err != nil {
					t.Fatal(err)
				}
				delete(r, "told")
				text, _ := json.Marshal(r)
				write(t, path, string(text))
			}
		}
		if err := tell(ctx, s.inv); err != nil {
			t.Fatal(err)
		}
		if notes, pieces := s.learned("r-1"); notes != 2 || pieces != 2 || asked.Load() != 2 {
			t.Errorf("told again (after a crash: %v): %d notes, %d pieces of evidence, asked %d times", crash, notes, pieces, asked.Load())
		}
	}
	if text := read(t, first); !strings.Contains(text, `"told"`) || strings.Contains(text, `"box"`) {
		t.Errorf("record %s", text)
	}
}

// The emergency that a person asks for afterwards is the one that follows.
func TestEmergencyAfterABrokenGlassTellsOfIt(t *testing.T) {
	s := newSite(t)
	path := s.broken()
	s.start()
	t.Cleanup(func() { s.server.Stop() })
	s.connect(saga.Services...)
	asked := s.emergencies(func(int) *pawlv1.Answer { return accepted("r-7") })
	if stdout, _ := s.want(exitFailed, "emergency", "app", "--reason", "stolen"); stdout != "r-7\n" { // nobody here contains
		t.Errorf("stdout %q", stdout)
	}
	if notes, pieces := s.learned("r-7"); notes != 1 || pieces != 1 || asked.Load() != 1 || !strings.Contains(read(t, path), `"rotation": "r-7"`) {
		t.Errorf("%d notes, %d pieces of evidence, asked %d times\n%s", notes, pieces, asked.Load(), read(t, path))
	}
}

// A rotation that somebody asked for since has seen to it: starting Pawl must
// not cut the application off again.
func TestOldBrokenGlassBeginsNoEmergency(t *testing.T) {
	s := newSite(t)
	s.broken()
	s.start()
	t.Cleanup(func() { s.server.Stop() })
	s.connect(saga.Services...)
	s.mustTell("r-1", adoption)
	asked := s.emergencies(func(int) *pawlv1.Answer { return accepted("r-2") })
	if err := tell(t.Context(), s.inv); err != nil {
		t.Fatal(err)
	}
	if notes, pieces := s.learned("r-1"); notes != 1 || pieces != 1 || asked.Load() != 0 {
		t.Errorf("%d notes, %d pieces of evidence, asked %d times", notes, pieces, asked.Load())
	}
}

func TestRecordOfBrokenGlassThatCannotBeReadIsNamed(t *testing.T) {
	s := newSite(t)
	path := s.broken()
	bad := filepath.Join(filepath.Dir(path), "glass-bad.json")
	write(t, bad, "{")
	if strings.Contains(read(t, path), "the thief") {
		t.Error("evidence is not sealed in the record")
	}
	all, err := glass.Untold(s.inv, "")
	if len(all) != 1 || err == nil || !strings.Contains(err.Error(), bad) || !strings.Contains(err.Error(), "move it away") {
		t.Errorf("%d records, %v", len(all), err)
	}
}
