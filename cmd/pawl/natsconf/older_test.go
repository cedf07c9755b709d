package natsconf

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/saga"
)

// TestReloadToAnAccountForEachUserKeepsEveryStream: a server that was configured by a
// version before takes the new accounts over while users are connected. What it
// stores stays, nobody has to connect anew by hand, and what was not permitted is
// not any more.
func TestReloadToAnAccountForEachUserKeepsEveryStream(t *testing.T) {
	i := install(t)
	older, err := bustest.OlderAccounts(i.inv)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(i.opts.Out, i.node.Name, "nats.conf")
	conf, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := regexp.MustCompile(`(?s)\naccounts \{.*`).ReplaceAllLiteralString(string(conf), "\n"+older)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	s := i.serve()
	i.mustProvision()
	i.seed()
	scheduler, requester := i.join(saga.Scheduler), i.join(bus.Requester)
	seq, err := scheduler.Append(t.Context(), "c", "r1", saga.Requested, begin(), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := requester.JetStream.Publish(t.Context(), bus.RequestSubject("c"), nil); err != nil {
		t.Fatal(err)
	}
	before := i.held()

	i.write()
	for range 2 { // docs/nats.md: the first makes the accounts, and only the second lets them import
		i.reload(s, func(conf string) string { return conf })
	}
	i.mustProvision()
	if after := i.held(); !maps.Equal(before, after) {
		t.Errorf("the streams hold %v, and before that %v", after, before)
	}
	await(t, func() bool { // they connect again by themselves
		log, err := scheduler.ReadNewest(t.Context(), "c")
		return err == nil && log.LastSeq() == seq
	})
	await(t, func() bool {
		_, err := requester.JetStream.Publish(t.Context(), bus.RequestSubject("c"), nil)
		return err == nil
	})
	if held := i.held(); held[bus.StreamAsked+" "+bus.AskedSubject(bus.Requester, "c")] != "1" {
		t.Errorf("the request is not the requester's: %v", held)
	}
	restarter, foreign := i.join(saga.Restarter), bus.LogSubject("c", "r1", saga.Verified)
	if !denied(t, restarter, foreign, func() error { return restarter.NATS.Publish(foreign, nil) }) {
		t.Error("another's event is accepted")
	}
}
