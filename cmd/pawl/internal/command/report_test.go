package command

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/compliance"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// reported is a site with a signed history of three rotations.
func reported(t *testing.T) *site {
	t.Helper()
	s := newServer(t)
	s.connect(bus.Operator)
	s.audited()
	s.mustTell("r-1", adoption)
	s.mustTell("r-2", rotation)
	s.mustTell("r-3", failing)
	log, err := s.users[saga.Scheduler].ReadNewest(t.Context(), "app")
	if err != nil {
		t.Fatal(err)
	}
	s.signedOf(bus.StreamLog, log.LastSeq())
	return s
}

// verifies plays the verifier's preflight.
func (s *site) verifies(checks ...*pawlv1.Check) {
	s.t.Helper()
	body, err := bus.Encode(&pawlv1.Findings{Checks: checks})
	if err != nil {
		s.t.Fatal(err)
	}
	b := s.users[saga.Verifier]
	sub, err := b.NATS.Subscribe(bus.CheckSubject(saga.Verifier, "*"), func(m *nats.Msg) {
		if err := m.Respond(body); err != nil {
			s.t.Error(err)
		}
	})
	if err == nil {
		err = b.NATS.Flush()
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = sub.Unsubscribe() }) // the server is about to end
}

// stored counts the messages of the log whose subject ends so.
func (s *site) stored(event saga.Event) int {
	s.t.Helper()
	stream, err := s.users[saga.Scheduler].Stream(s.t.Context(), bus.StreamLog)
	if err != nil {
		s.t.Fatal(err)
	}
	n := 0
	for seq := uint64(1); ; seq++ {
		m, err := stream.GetMsg(s.t.Context(), seq)
		if err != nil {
			return n // past the last
		}
		if strings.HasSuffix(m.Subject, "."+string(event)) {
			n++
		}
	}
}

func TestReportIsOfTheTrailThatWasProved(t *testing.T) {
	s := reported(t)
	s.verifies(&pawlv1.Check{Target: "coordinator", Finding: "log_connections on, ssl off", Topic: service.TopicSettings},
		&pawlv1.Check{Target: "coordinator", Finding: `"app": members none`, Topic: service.TopicMembers}, &pawlv1.Check{Target: "coordinator", Finding: "of preflight alone"})
	r := decode[compliance.Report](t, first(s.want(exitDone, "audit", "report", "--framework", "soc2", "--json")))
	ended := map[string]int{}
	for _, e := range r.Totals.Ended {
		ended[e.Outcome] += e.Count
	}
	if r.Totals.Requested != s.stored(saga.Requested) || ended["completed"] != s.stored(saga.Completed) || ended["rolled-back"] != s.stored(saga.RolledBack) || r.Totals.Requested != 3 {
		t.Errorf("%+v", r.Totals)
	}
	if r.Trail.Fault != "" || r.Trail.Size == 0 || r.Trail.Root == "" || !strings.HasPrefix(r.Trail.Key, r.Trail.Origin+"+") {
		t.Errorf("%+v", r.Trail)
	}
	if c := r.Coverage[0]; c.Credential != "app" || c.By != "r-2" || c.Kind != compliance.KindRotation {
		t.Errorf("%+v", c)
	}
	if r.Now == nil || len(r.Now.Settings) != 1 || len(r.Now.Members) != 1 || len(r.Now.Silent) != 0 {
		t.Errorf("%+v", r.Now)
	}
	for _, e := range r.Rotations[2].Evidence {
		stdout, _ := s.want(exitDone, "audit", "verify", "--record", fmt.Sprintf("%s:%d", e.Stream, e.Sequence))
		wantIn(t, stdout, fmt.Sprintf("record %d (pawl.audit.rotation.%d)", e.Index, e.Sequence))
	}
	for format, begins := range map[string]string{"md": "# Credential rotation: HIPAA", "html": "<!doctype html>", "csv": "report,line,"} {
		file := filepath.Join(t.TempDir(), "report")
		stdout, _ := s.want(exitDone, "audit", "report", "--framework", "hipaa", "--format", format, "--out", file)
		if text := read(t, file); stdout != "" || !strings.HasPrefix(text, begins) {
			t.Errorf("stdout %q, and the file begins %.60q", stdout, text)
		}
	}
}

func TestReportWithoutAVerifierSaysSo(t *testing.T) {
	s := reported(t)
	stdout, _ := s.want(exitDone, "audit", "report", "--framework", "soc2")
	wantIn(t, stdout, "not asked: the verifier is not running")
}

func TestReportOfflineIsTheSameTwiceAndOfAForgedTrailSaysSo(t *testing.T) {
	s := reported(t)
	dir := filepath.Join(t.TempDir(), "export")
	s.want(exitDone, "audit", "export", "--out", dir)
	s.server.Stop() // nobody is asked
	args := []string{"audit", "report", "--framework", "iso27001", "--offline", dir, "--to", "2999-01-01", "--from", "2026-01-01", "--json"}
	one := decode[compliance.Report](t, first(s.want(exitDone, args...)))
	if one.Now != nil || one.Totals.Requested != 3 {
		t.Errorf("%+v", one)
	}
	args[len(args)-1], args[7] = "--format=md", one.Period.To.Format("2006-01-02T15:04:05Z07:00")
	if a, b := first(s.want(exitDone, args...)), first(s.want(exitDone, args...)); a != b {
		t.Error("two reports of one export differ")
	}
	records := filepath.Join(dir, "records.jsonl")
	whole := read(t, records)
	lines := strings.SplitAfter(whole, "\n")
	write(t, records, strings.Join(append(lines[:2], lines[3:]...), ""))
	stdout, stderr := s.want(exitFailed, args...)
	wantIn(t, stdout, "> **The audit trail does not verify: record 2")
	wantIn(t, stderr, "the audit trail does not verify: record 2")
	s.want(exitUsage, "audit", "report", "--framework", "soc2", "--offline", filepath.Join(dir, "elsewhere"))
}

func TestReportRefusesWhatItCannotReadBeforeItBegins(t *testing.T) {
	s := newSite(t)
	file := filepath.Join(t.TempDir(), "report.md")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--framework", "sox"}, `--framework: unknown framework "sox": name one of soc2, iso27001, pci-dss, hipaa`},
		{nil, "framework"},
		{[]string{"--framework", "soc2", "--from", "last year"}, `--from "last year" is no date: write a day, such as 2026-03-31`},
		{[]string{"--framework", "soc2", "--to", "31.3.2026"}, `--to "31.3.2026" is no date`},
		{[]string{"--framework", "soc2", "--from", "2026-02-01", "--to", "2026-01-01"}, "the period is empty"},
		{[]string{"--framework", "soc2", "--format", "pdf"}, `--format: unknown format "pdf": name one of csv, html, md`},
		{[]string{"--framework", "soc2", "--zone", "Berlin"}, `--zone: unknown time zone "Berlin"`},
		{[]string{"--framework", "soc2", "--zone", "Local"}, `--zone: unknown time zone "Local"`},
	} {
		_, stderr := s.want(exitUsage, append([]string{"audit", "report", "--out", file}, c.args...)...)
		wantIn(t, stderr, c.want)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("something was written")
	}
}
