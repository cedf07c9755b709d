package command

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/cmd/pawl/internal/render"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

func TestAlertsTellsWhatWasDecidedNewestFirst(t *testing.T) {
	s := newServer(t)
	if stdout, stderr := s.want(exitDone, "alerts", "--json"); stdout != "[]\n" || !strings.Contains(stderr, "no alert was decided upon within 7d; pawl.yaml has 0 rules") {
		t.Errorf("stdout %q, stderr %q", stdout, stderr)
	}
	began := timestamppb.Now()
	for i, a := range []*pawlv1.Alarm{
		{Credential: "app", Rotation: "r-1", Reason: ""},
		{Guard: "unmapped", Reason: "no rule"},
		{Credential: "app", Guard: "cooldown", Reason: "was contained\nby r-1"},
		{Credential: "gone", Guard: "age", Reason: "it began long ago"},
	} {
		b := s.users[saga.Scheduler]
		newest, err := b.NewestAlarm(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		a.Source, a.Fingerprint, a.At, a.StartsAt, a.Alert = "am", fmt.Sprint(i), timestamppb.Now(), began, "Leaked{} from am"
		if err := b.AppendAlarm(t.Context(), bus.Episode(s.inv, a.GetSource(), &pawlv1.Alert{Fingerprint: a.GetFingerprint(), StartsAt: a.GetStartsAt()}), a, nil, newest.Seq); err != nil {
			t.Fatal(err)
		}
	}
	for _, resolved := range []bool{false, false, true} {
		if err := s.users[saga.Scheduler].Publish(t.Context(), bus.AlertSubject("am"), &pawlv1.Alert{Fingerprint: "0", StartsAt: began, Resolved: resolved, Labels: map[string]string{"alertname": "Leaked", "cluster": "main", "pg_role": "app"}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "3 2 1 0"}, {[]string{"app"}, "2 0"}, {[]string{"_"}, "1"}, {[]string{"gone"}, "3"}, {[]string{"--since", "1ns"}, ""},
	} {
		var got []string
		for _, a := range decode[[]render.Alarm](t, first(s.want(exitDone, append([]string{"alerts", "--json"}, c.args...)...))) {
			got = append(got, a.Fingerprint)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("alerts %v: %v, want %s", c.args, got, c.want)
		}
	}
	table, _ := s.want(exitDone, "alerts")
	lines := strings.Split(table, "\n")
	if len(lines) != 6 || !strings.Contains(lines[2], "cooldown") || !strings.Contains(lines[2], "was contained by r-1") || !strings.Contains(lines[4], "none: fired") || !strings.Contains(lines[4], "r-1") ||
		strings.Count(table, "told 2 times until") != 1 || !strings.Contains(lines[4], "told 2 times until") {
		t.Errorf("alerts:\n%s", table)
	}
	s.want(exitUsage, "alerts", "ap")
	s.want(exitUsage, "alerts", "A*")
}
