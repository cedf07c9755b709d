package command

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/cmd/pawl/internal/incident"
	"pawl.dev/internal/evidence"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

var theft = []told{{saga.Requested, requested(pawlv1.Action_ACTION_CONTAIN, saga.Emergency, 2, "r-1")},
	{saga.Contained, &pawlv1.Event{Summary: "app refused on coordinator", Detail: &pawlv1.Event_Contained{Contained: &pawlv1.Contained{Logins: []string{"app"}, Returns: "app", Sessions: 1,
		At: map[string]*timestamppb.Timestamp{"coordinator": timestamppb.Now()}}}}}}

func TestIncidentIsReportedWhileItRunsAndWithoutItsKey(t *testing.T) {
	s := newServer(t)
	s.mustTell("r-1", adoption)
	s.mustTell("r-2", theft)
	ctx := t.Context()
	store := evidence.NewStore(s.users[saga.DBRotator], s.inv.KeysDir)
	if err := store.Keep(ctx, evidence.Snapshot{Credential: "app", Rotation: "r-2", Node: "coordinator", Kind: evidence.Sessions, At: time.Now(),
		Tables: []postgres.Table{{Name: "sessions", Columns: []string{"who"}, Rows: [][]string{{"the-thief"}}}}}); err != nil {
		t.Fatal(err)
	}
	for source, labels := range map[string]map[string]string{
		"alertmanager": {"alertname": "Leaked", "cluster": "main", "pg_role": "app"},
		"logins":       {"alertname": "FailedLogins", "cluster": "main", "pg_role": "app", "address": "203.0.113.7"},
	} {
		alert := &pawlv1.Alert{Fingerprint: source, StartsAt: timestamppb.Now(), Labels: labels}
		if err := s.users[saga.Scheduler].Publish(ctx, "pawl.alert."+source, alert, nil); err != nil {
			t.Fatal(err)
		}
	}
	stdout, _ := s.want(exitDone, "incident", "r-2")
	for _, want := range []string{"# Emergency r-2: app", "it is at \"issue\"", "the-thief", "Leaked", "203.0.113.7", "To check by a person", "16686/trace/4bf92f3577b34da6a3ce929d0e0e4736"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
	stdout, _ = s.want(exitDone, "incident", "r-2", "--json")
	var r incident.Report
	if err := json.Unmarshal([]byte(stdout), &r); err != nil || r.ID != "r-2" || r.Over || len(r.Evidence) != 1 || len(r.Alerts) != 1 || len(r.FailedLogins) != 1 {
		t.Errorf("%v: %s", err, stdout)
	}

	dir := filepath.Join(t.TempDir(), "reports")
	for range 2 { // the second instead of the first
		stdout, _ = s.want(exitDone, "incident", "r-2", "--out", dir)
	}
	paths := strings.Fields(stdout)
	if len(paths) != 2 {
		t.Fatalf("wrote %q", stdout)
	}
	for _, path := range paths {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 || !strings.Contains(read(t, path), "the-thief") {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	if stdout, _ = s.want(exitDone, "incident", "r-2", "--format", "html"); !strings.HasPrefix(stdout, "<!doctype html>") {
		t.Errorf("as HTML: %.60s", stdout)
	}

	if err := os.Rename(sealed.IncidentKeyFile(s.inv.KeysDir), filepath.Join(t.TempDir(), "elsewhere")); err != nil {
		t.Fatal(err)
	}
	if stdout, _ = s.want(exitDone, "incident", "r-2"); strings.Contains(stdout, "the-thief") || !strings.Contains(stdout, "stays sealed (1 pieces)") || !strings.Contains(stdout, "it is at") {
		t.Errorf("without the key:\n%s", stdout)
	}
}

func TestIncidentOfWhatIsNoneSaysSo(t *testing.T) {
	s := newServer(t)
	s.mustTell("r-1", adoption)
	for _, c := range []struct {
		code int
		says string
		args []string
	}{
		{exitUsage, "is no emergency (its flow is adopt): `pawl trace r-1` shows it", []string{"r-1"}},
		{exitFailed, "there is no rotation r-9", []string{"r-9"}},
		{exitUsage, "is no rotation", []string{"R/9"}},
		{exitUsage, "write md or html", []string{"r-1", "--format", "pdf"}},
	} {
		if _, stderr := s.want(c.code, append([]string{"incident"}, c.args...)...); !strings.Contains(stderr, c.says) {
			t.Errorf("%v: %s", c.args, stderr)
		}
	}
}
