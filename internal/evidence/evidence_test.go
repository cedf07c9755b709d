package evidence

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
)

func newKeys(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if _, err := sealed.CreateKeys(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func load(t *testing.T, dir string) *sealed.IncidentKey {
	t.Helper()
	key, err := sealed.LoadIncidentKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func snapshot(node, kind string, rows ...string) Snapshot {
	s := Snapshot{Credential: "shop", Rotation: "r-1", Node: node, Kind: kind, At: time.Now().UTC(), Tables: []postgres.Table{{Name: "sessions", Columns: []string{"who"}}}}
	for _, row := range rows {
		s.Tables[0].Rows = append(s.Tables[0].Rows, []string{row})
	}
	return s
}

// What is kept stays: neither the db-rotator nor the operator replaces or
// erases it, and only the operator reads it.
func TestKeptEvidenceIsNeitherReplacedNorErased(t *testing.T) {
	server := bustest.Start(t)
	keys := newKeys(t)
	rotator, operator := server.Connect(t, saga.DBRotator), server.Connect(t, bus.Operator)
	store := NewStore(rotator, keys)
	for _, s := range []Snapshot{snapshot("coordinator", Sessions, "the thief"), snapshot("coordinator", Sessions), snapshot("replica-1", Catalogue)} {
		if err := store.Keep(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	if nodes, err := store.Catalogued(t.Context(), "shop", "r-1"); err != nil || fmt.Sprint(nodes) != "[replica-1]" {
		t.Errorf("catalogued %v, %v", nodes, err)
	}
	all, stored, err := Read(t.Context(), operator, load(t, keys), "shop", "r-1")
	if err != nil || stored != 3 || len(all) != 3 || all[0].Tables[0].Rows[0][0] != "the thief" {
		t.Fatalf("read %v of %d, %v", all, stored, err)
	}
	found, err := subjects(t.Context(), operator, "shop", "r-1")
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(found[0], ".")
	if err := Put(t.Context(), operator, parts[2], parts[3], parts[4], parts[5], []byte("forged")); err != nil {
		t.Errorf("put again: %v; want it ignored", err)
	}
	for _, b := range []*bus.Bus{rotator, operator} {
		denied := make(chan error, 8)
		b.NATS.SetErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { denied <- err })
		for _, api := range []string{"STREAM.PURGE.", "STREAM.MSG.DELETE.", "STREAM.DELETE."} {
			if err := b.NATS.Publish("$JS.API."+api+bus.StreamEvidence, []byte(`{"seq": 1}`)); err != nil {
				t.Fatal(err)
			}
			if err := b.NATS.Flush(); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-denied:
				if !errors.Is(err, nats.ErrPermissionViolation) {
					t.Errorf("%s: %v", api, err)
				}
			case <-time.After(5 * time.Second):
				t.Errorf("%s is allowed", api)
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, stored, err := Read(ctx, rotator, load(t, keys), "shop", "r-1"); err == nil {
		t.Errorf("the db-rotator may read evidence: %d", stored)
	}
	if err := Put(ctx, server.Connect(t, saga.Verifier), "shop", "r-1", "n", NewID(Sessions), nil); err == nil {
		t.Error("the verifier may write evidence")
	}
	if again, _, err := Read(t.Context(), operator, load(t, keys), "shop", "r-1"); err != nil || fmt.Sprint(again) != fmt.Sprint(all) {
		t.Errorf("afterwards %v, %v", again, err)
	}
}

func TestEvidenceStaysSealedWithoutTheIncidentKey(t *testing.T) {
	keys := newKeys(t)
	box, err := Seal(load(t, keys), snapshot("coordinator", Sessions, "the thief's own words"))
	if err != nil || bytes.Contains(box, []byte("thief")) {
		t.Fatalf("%v; or it is not sealed", err)
	}
	if _, err := Open(load(t, newKeys(t)), box); !errors.Is(err, sealed.ErrWrongKey) {
		t.Errorf("with another key: %v", err)
	}
	private := filepath.Join(keys, "sealing", "incident.agekey")
	if err := os.Remove(filepath.Join(keys, "sealing", "incident.agepub")); err != nil { // as a crash of `pawl init` leaves it
		t.Fatal(err)
	}
	if _, err := sealed.CreateKeys(keys); err != nil {
		t.Fatal(err)
	}
	if s, err := Open(load(t, keys), box); err != nil || s.Node != "coordinator" {
		t.Errorf("with the public half made anew: %v, %v", s, err)
	}
	if err := os.Rename(private, private+".elsewhere"); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(load(t, keys), box); !errors.Is(err, sealed.ErrNoIncidentKey) {
		t.Errorf("without the private half: %v", err)
	}
	if created, err := sealed.CreateKeys(keys); err != nil || len(created) != 0 {
		t.Errorf("a second key was made, %v, %v: the first one's evidence could not be read", created, err)
	}
	if err := os.Remove(filepath.Join(keys, "sealing", "incident.agepub")); err != nil {
		t.Fatal(err)
	}
	if _, err := sealed.LoadIncidentKey(keys); err == nil || !strings.Contains(err.Error(), "pawl init") {
		t.Errorf("without the public half: %v", err)
	}
}

// Whatever there is, one message holds it, and what it does not hold is counted.
func TestEvidenceThatIsTooLargeSaysWhatWasCut(t *testing.T) {
	key := load(t, newKeys(t))
	noise := rand.NewChaCha8([32]byte{})
	s := snapshot("coordinator", Catalogue)
	for range 2000 {
		row := make([]byte, 200)
		_, _ = noise.Read(row)
		s.Tables[0].Rows = append(s.Tables[0].Rows, []string{fmt.Sprintf("%x", row)})
	}
	s.Tables = append(s.Tables, postgres.Table{Name: "roles", Rows: [][]string{{"small"}}})
	box, err := Seal(key, s)
	if err != nil || len(box) > bus.MaxEvent-1024 {
		t.Fatalf("%d bytes, %v", len(box), err)
	}
	got, err := Open(key, box)
	if err != nil || len(got.Tables[0].Rows) == 0 || len(got.Tables[0].Rows)+got.Tables[0].Left != 2000 || len(got.Tables[1].Rows) != 1 {
		t.Errorf("kept %d rows, left out %d; and %v; %v", len(got.Tables[0].Rows), got.Tables[0].Left, got.Tables[1], err)
	}
	if len(s.Tables[0].Rows) != 2000 {
		t.Error("the caller's snapshot was cut")
	}
}
