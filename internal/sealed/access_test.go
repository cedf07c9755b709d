package sealed

import (
	"context"
	"testing"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/secret"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

func TestMain(m *testing.M) { bustest.Main(m) }

// stores are those of the db-rotator, which seals, and of a process of the verifier.
func stores(t *testing.T, server *bustest.Server) (rotator, verifier *Store) {
	t.Helper()
	dir := t.TempDir()
	if _, err := CreateKeys(dir); err != nil {
		t.Fatal(err)
	}
	of := func(name string) *Store {
		keys, err := LoadKeys(dir, name)
		if err != nil {
			t.Fatal(err)
		}
		return NewStore(server.Connect(t, name), name, keys)
	}
	return of(saga.DBRotator), of(saga.Verifier)
}

func seal(t *testing.T, from *Store, rotation string) {
	t.Helper()
	if _, err := from.Seal(t.Context(), saga.Verifier, &Credential{Credential: "app", Rotation: rotation, User: "app", Password: secret.New("irrelevant")}); err != nil {
		t.Fatal(err)
	}
}

// opened lists the rotations that the verifier's notes say it opened.
func opened(t *testing.T, operator *bus.Bus) (all []string) {
	t.Helper()
	stream, err := operator.Stream(t.Context(), bus.StreamNote)
	if err != nil {
		t.Fatal(err)
	}
	info, err := stream.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for seq := uint64(1); seq <= info.State.LastSeq; seq++ {
		m, err := stream.GetMsg(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		n := &pawlv1.Note{}
		if err := bus.Decode(m.Header, m.Data, n); err != nil {
			t.Fatal(err)
		}
		if n.GetKind() != "opened" || n.GetCredential() != "app" || m.Subject != bus.NoteSubject(saga.Verifier) {
			t.Errorf("noted %v on %s", n, m.Subject)
		}
		all = append(all, n.GetRotation())
	}
	return all
}

func TestEachEnvelopeThatAProcessOpensIsNotedOnce(t *testing.T) {
	server := bustest.Start(t)
	rotator, verifier := stores(t, server)
	operator := server.Connect(t, bus.Operator)
	seal(t, rotator, "r-1")
	seal(t, rotator, "r-2")
	for _, rotation := range []string{"r-1", "r-2", "r-1", "r-2"} {
		if _, err := verifier.Open(t.Context(), "app", rotation); err != nil {
			t.Fatal(err)
		}
		if err := verifier.Noted(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := verifier.Open(t.Context(), "app", "r-3"); err == nil {
		t.Fatal("opened what is not there")
	}
	if err := verifier.Noted(t.Context()); err != nil {
		t.Fatal(err)
	}
	if all := opened(t, operator); len(all) != 2 || all[0] != "r-1" || all[1] != "r-2" {
		t.Errorf("noted %q", all)
	}
}

// TestNothingIsSaidToBeNotedWhileItIsNot opens an envelope where notes cannot be
// stored; the step that opened it must wait.
func TestNothingIsSaidToBeNotedWhileItIsNot(t *testing.T) {
	server := bustest.Start(t)
	rotator, verifier := stores(t, server)
	provisioner := server.Connect(t, bus.Provisioner)
	seal(t, rotator, "r-1")
	if err := provisioner.JetStream.DeleteStream(t.Context(), bus.StreamNote); err != nil {
		t.Fatal(err)
	}
	if _, err := verifier.Open(t.Context(), "app", "r-1"); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if err := verifier.Noted(short); err == nil {
		t.Error("said to be noted")
	}
	if err := bus.Provision(t.Context(), provisioner.JetStream, bus.Settings{Replicas: 1, AckWait: time.Second}); err != nil {
		t.Fatal(err)
	}
	if err := verifier.Noted(t.Context()); err != nil {
		t.Fatal(err)
	}
	if all := opened(t, server.Connect(t, bus.Operator)); len(all) != 1 {
		t.Errorf("noted %q", all)
	}
}
