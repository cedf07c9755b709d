package command

import (
	"strings"
	"testing"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

func TestEditOfAConfigurationThatNobodyHasLoadedIsTold(t *testing.T) {
	s := newServer(t)
	start := func(name, digest string) {
		t.Helper()
		if err := s.users[name].Publish(t.Context(), bus.StartedSubject(name), &pawlv1.Note{Kind: "started", Configuration: digest}, nil); err != nil {
			t.Fatal(err)
		}
	}
	want := func(note string) {
		t.Helper()
		for _, command := range []string{"status", "schedule"} {
			_, stderr := s.want(exitDone, command)
			if note == "" && strings.Contains(stderr, "note:") || !strings.Contains(stderr, note) {
				t.Errorf("pawl %s says %q, want %q", command, stderr, note)
			}
		}
	}
	want("") // nobody has started yet
	for _, name := range saga.Services {
		start(name, "another")
	}
	want("note: Pawl started with another pawl.yaml than " + s.config)
	for _, name := range saga.Services[1:] {
		start(name, s.inv.Digest())
	}
	want("note: " + saga.Services[0] + " started with another pawl.yaml")
	start(saga.Services[0], s.inv.Digest())
	want("")
}
