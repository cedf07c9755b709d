package bus

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
)

// Altered names what a stream does that Pawl never has a stream do: it copies its
// messages out, takes in what nobody published on its subjects, changes them, or ends
// them before their time. Only who provisions, or has the server itself, can set
// these. Empty: nothing. Limits and subjects are not among them: they differ between
// versions of Pawl.
func Altered(c jetstream.StreamConfig) string {
	var found []string
	for _, one := range []struct {
		set  bool
		name string
	}{
		{c.RePublish != nil, "republish"},
		{c.SubjectTransform != nil, "subject_transform"},
		{len(c.Sources) > 0, "sources"},
		{c.Mirror != nil, "mirror"},
		{c.Sealed, "sealed"},
		{c.NoAck, "no_ack"},
		{c.PersistMode != jetstream.DefaultPersistMode, "persist_mode"},
		{c.MaxAge > 0 && !ages[c.Name], "max_age"},
		{c.AllowMsgCounter, "allow_msg_counter"},
		// A stream of schedules has these two from the server.
		{c.AllowRollup && !c.AllowMsgSchedules, "allow_rollup_hdrs"},
		{c.AllowMsgTTL && !c.AllowMsgSchedules, "allow_msg_ttl"},
		{c.AllowMsgSchedules && c.Name != StreamTimer, "allow_msg_schedules"},
	} {
		if one.set {
			found = append(found, one.name)
		}
	}
	return strings.Join(found, ", ")
}

// ages are the streams whose messages end by their age.
var ages = func() map[string]bool {
	all := map[string]bool{}
	for _, c := range Streams(Settings{}) {
		all[c.Name] = c.MaxAge > 0
	}
	return all
}()

// Alterations tells of each of Pawl's streams that is Altered.
func Alterations(ctx context.Context, js jetstream.JetStream) (told []string, err error) {
	for _, want := range Streams(Settings{}) {
		stream, err := js.Stream(ctx, want.Name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("stream %s: %w", want.Name, err)
		}
		if what := Altered(stream.CachedInfo().Config); what != "" {
			told = append(told, fmt.Sprintf("stream %s was altered: Pawl has not set %s", want.Name, what))
		}
	}
	return told, nil
}
