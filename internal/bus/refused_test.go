package bus_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/condition"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// limit sets the size of a stream; 0 sets it back.
func limit(t *testing.T, js jetstream.JetStream, stream string, replicas int, bytes int64) {
	t.Helper()
	for _, c := range bus.Streams(bus.Settings{Replicas: replicas}) {
		if c.Name != stream {
			continue
		}
		if bytes > 0 {
			c.MaxBytes = bytes
		}
		if _, err := js.UpdateStream(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
}

// fill begins rotations until one is refused.
func fill(log string, begin func(credential string) error) error {
	for i := range 1000 {
		if err := begin(fmt.Sprintf("%s-%d", log, i)); err != nil {
			return err
		}
	}
	return errors.New("1,000 were stored")
}

// TestFullLogIsTakenForAConflict: the server refuses both with one code, and a
// conflict is tried again at once, forever.
func TestFullLogIsTakenForAConflict(t *testing.T) {
	for _, servers := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d servers", servers), func(t *testing.T) {
			s := bustest.Start(t)
			if servers == 3 {
				s = bustest.StartThree(t)[0]
			}
			js, conditions := s.Connect(t, bus.Provisioner).JetStream, &condition.Set{}
			b := s.ConnectWith(t, saga.Scheduler, conditions)
			for name, begin := range map[string]func(string) error{
				"alone": func(c string) error {
					_, err := b.Append(t.Context(), c, "r1", saga.Requested, begin(1), nil, 0)
					return err
				},
				"group": func(c string) error {
					return b.AppendAll(t.Context(), "r1", saga.Requested, parts(nil, c+"-a", c+"-b", c+"-c"))
				},
			} {
				limit(t, js, bus.StreamLog, servers, 16<<10)
				err := fill(name, begin)
				full := new(bus.FullError)
				if !errors.As(err, &full) || full.Stream != bus.StreamLog || errors.Is(err, bus.ErrConflict) || !strings.Contains(err.Error(), "stream PAWL_ROTATION is full") {
					t.Fatalf("%s: %v", name, err)
				}
				if list := conditions.List(); len(list) != 1 || list[0].Name != bus.ConditionStream || list[0].Object != bus.StreamLog || conditions.Err() == nil {
					t.Errorf("%s: conditions %v", name, list)
				}
				limit(t, js, bus.StreamLog, servers, 0)
				if err := begin(name + "-later"); err != nil {
					t.Fatalf("%s: once there is room: %v", name, err)
				}
				if list := conditions.List(); len(list) != 0 {
					t.Errorf("%s: conditions %v once there is room", name, list)
				}
				// What is a conflict stays one.
				if err := begin(name + "-later"); !errors.Is(err, bus.ErrConflict) {
					t.Errorf("%s: a second time: %v", name, err)
				}
			}
		})
	}
}

// TestFullStreamDropsWhatItHad: of a stream that keeps what it has, nothing is
// dropped for a newer message.
func TestFullStreamDropsWhatItHad(t *testing.T) {
	s := bustest.Start(t)
	js, operator := s.Connect(t, bus.Provisioner).JetStream, s.Connect(t, bus.Operator)
	for stream, subject := range map[string]string{bus.StreamRequest: bus.RequestSubject("app"), bus.StreamEmergency: bus.EmergencySubject("app"), bus.StreamNote: bus.NoteSubject(bus.Operator)} {
		limit(t, js, stream, 1, 8<<10)
		stored := uint64(0)
		var err error
		for err == nil && stored < 1000 {
			if err = operator.Publish(t.Context(), subject, &pawlv1.Note{Kind: "test", Text: "x"}, nil); err == nil {
				stored++
			}
		}
		full := new(bus.FullError)
		if !errors.As(err, &full) || full.Stream != stream {
			t.Errorf("%s: %v", stream, err)
		}
		in, err := js.Stream(t.Context(), stream)
		if err != nil {
			t.Fatal(err)
		}
		if state := in.CachedInfo().State; state.Msgs != stored || state.FirstSeq != 1 {
			t.Errorf("%s: %d stored, and it holds %d from %d on", stream, stored, state.Msgs, state.FirstSeq)
		}
	}
}

func TestOlderInstallationKeepsStreamsWithoutLimit(t *testing.T) {
	s := bustest.Start(t)
	js := s.Connect(t, bus.Provisioner).JetStream
	for _, c := range bus.Streams(bus.Settings{}) {
		c.MaxBytes = 0
		if !c.DiscardNewPerSubject {
			c.Discard = jetstream.DiscardOld
		}
		if _, err := js.UpdateStream(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	if err := bus.Provision(t.Context(), js, bus.Settings{AckWait: time.Second}); err != nil {
		t.Fatal(err)
	}
	for _, want := range bus.Streams(bus.Settings{}) {
		have, err := js.Stream(t.Context(), want.Name)
		if err != nil {
			t.Fatal(err)
		}
		if c := have.CachedInfo().Config; max(0, c.MaxBytes) != want.MaxBytes || c.MaxBytes <= 0 && want.Name != bus.StreamTimer && want.Name != bus.StreamLive || c.Discard != want.Discard {
			t.Errorf("%s: %d bytes, discard %s; want %d, %s", want.Name, c.MaxBytes, c.Discard, want.MaxBytes, want.Discard)
		}
	}
}

// TestServerOfLittleSpaceGetsNoStreams: a server counts each limit as space taken.
func TestServerOfLittleSpaceGetsNoStreams(t *testing.T) {
	nc, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir(), JetStreamMaxStore: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	nc.Start()
	t.Cleanup(func() { nc.Shutdown(); nc.WaitForShutdown() })
	if !nc.ReadyForConnections(15 * time.Second) {
		t.Fatal("the server does not start")
	}
	conn, err := nats.Connect(nc.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time they are there
		if err := bus.Provision(t.Context(), js, bus.Settings{AckWait: time.Second}); err != nil {
			t.Fatal(err)
		}
	}
	for stream, limited := range map[string]bool{bus.StreamRequest: true, bus.StreamEmergency: true, bus.StreamAudit: false} {
		have, err := js.Stream(t.Context(), stream)
		if err != nil {
			t.Fatal(err)
		}
		if got := have.CachedInfo().Config.MaxBytes > 0; got != limited {
			t.Errorf("%s: a limit: %v, want %v", stream, got, limited)
		}
	}
}
