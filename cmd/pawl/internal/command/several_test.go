package command

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// twoMore adds two credentials to the site, on a cluster of their own.
func (s *site) twoMore() {
	s.t.Helper()
	text := read(s.t, s.config)
	text = strings.Replace(text, "credentials:\n", `  second:
    admin: {user: pawl_admin, password_file: admin}
    nodes: {other: {host: 127.0.0.1, port: 1}}
credentials:
  jobs: {cluster: second, role: jobs, strategy: in-place, publish: [dotenv: {path: .env, password: JOBS_PASSWORD}]}
  web: {cluster: second, role: web, strategy: in-place, publish: [dotenv: {path: .env, password: WEB_PASSWORD}]}
`, 1)
	write(s.t, s.config, text)
}

// several plays an emergency of several, of which some have begun and some are
// contained, and answers the next request with it.
func (s *site) several(id string, begun []string, contained ...string) <-chan *pawlv1.Request {
	s.t.Helper()
	return s.severalOf(id, []string{"app", "jobs", "web"}, nil, begun, contained...)
}

// severalOf also says which are recorded, and which servers are pending.
func (s *site) severalOf(id string, recorded []string, pending map[string]string, begun []string, contained ...string) <-chan *pawlv1.Request {
	s.t.Helper()
	record := &pawlv1.Note{Kind: "emergency of several", Rotation: id, Credentials: recorded, At: timestamppb.New(time.Now()), Actor: "anna"}
	_, err := s.users[saga.Scheduler].PublishAfter(context.Background(), bus.SeveralSubject(id), record, bus.SeveralSubject(id), 0)
	for _, name := range begun {
		begin := &pawlv1.Requested{Action: pawlv1.Action_ACTION_CONTAIN, Flow: saga.Emergency, Generation: 1, Role: name, Reason: "leak"}
		err = errors.Join(err, s.eventOf(name, id, saga.Requested, &pawlv1.Event{Detail: &pawlv1.Event_Requested{Requested: begin}}))
	}
	for _, name := range contained {
		err = errors.Join(err, s.eventOf(name, id, saga.Contained, &pawlv1.Event{Detail: &pawlv1.Event_Contained{Contained: &pawlv1.Contained{Sessions: 2, Returns: name, Pending: pending}}}))
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return s.answer(&pawlv1.Answer{Outcome: pawlv1.Outcome_OUTCOME_ACCEPTED, Rotation: id, Reason: "2 of 3 credentials"}, nil)
}

func TestEmergencyOfSeveralIsConfirmedOnceAndFollowedUntilAllAreContained(t *testing.T) {
	s := newServer(t)
	s.twoMore()
	_, stderr := s.want(exitUsage, "emergency", "--all", "--reason", "leak")
	for _, want := range []string{"Emergency of 3 credentials on 2 clusters (main, second)", "fail until", "--yes", "Nothing was done"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("no %q in %s", want, stderr)
		}
	}
	requests := s.several("r-9", []string{"app", "web"}, "web", "app")
	stdout, stderr := s.want(exitRejected, "emergency", "--all", "--reason", "leak", "--yes")
	if stdout != "r-9 failed\n" || !strings.Contains(stderr, "3 credentials: 2 contained, 0 published, 0 verified, 1 failed") || !strings.Contains(stderr, "jobs (rejected: not begun)") {
		t.Errorf("stdout %q, stderr %s", stdout, stderr)
	}
	if asked := <-requests; !asked.GetSelection().GetAll() || asked.GetReason() != "leak" {
		t.Errorf("asked %v", asked)
	}
	stdout, _ = s.want(exitDone, "incident", "r-9", "--json")
	var report struct {
		Asked, Begun, Contained int
		Sessions                int      `json:"sessions_ended"`
		NotBegun                []string `json:"not_begun"`
	}
	if err := json.Unmarshal([]byte(stdout), &report); err != nil || report.Asked != 3 || report.Begun != 2 || report.Contained != 2 || report.Sessions != 4 || strings.Join(report.NotBegun, " ") != "jobs" {
		t.Errorf("report %+v, %v", report, err)
	}
	stdout, _ = s.want(exitDone, "incident", "r-9")
	if !strings.Contains(stdout, "All 2 are contained; 2 are not back on a verified new password yet. 1 of 3 credentials did not begin (jobs)") || !strings.Contains(stdout, "| web | second |") {
		t.Error(stdout)
	}
	if stdout, _ = s.want(exitDone, "incident", "r-9", "app"); !strings.Contains(stdout, "# Emergency r-9: app") {
		t.Error(stdout)
	}
}

// TestCredentialThatTheSchedulerDoesNotKnowIsNotCalledContained: the scheduler started
// with a pawl.yaml that lacks two credentials, and has one that is no longer here.
func TestCredentialThatTheSchedulerDoesNotKnowIsNotCalledContained(t *testing.T) {
	s := newServer(t)
	s.twoMore()
	if err := s.users[saga.Scheduler].Publish(t.Context(), bus.StartedSubject(saga.Scheduler), &pawlv1.Note{Kind: "started", Configuration: "older"}, nil); err != nil {
		t.Fatal(err)
	}
	s.severalOf("r-9", []string{"app", "gone"}, nil, []string{"app", "gone"}, "app", "gone")
	stdout, stderr := s.want(exitRejected, "emergency", "--all", "--reason", "leak", "--yes")
	const unknown = "(rejected: the scheduler does not know it: restart it with this pawl.yaml)"
	for _, want := range []string{"jobs " + unknown, "web " + unknown, "2 credentials did not end well", "note: scheduler started with another pawl.yaml", "not in this one: gone"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("no %q in %s", want, stderr)
		}
	}
	if stdout != "r-9 failed\n" {
		t.Error(stdout)
	}
}

func TestEmergencyWithAServerThatIsNotReachedIsNotCalledContained(t *testing.T) {
	s := newServer(t)
	s.twoMore()
	all := []string{"app", "jobs", "web"}
	s.severalOf("r-9", all, map[string]string{"worker-1": "connection refused"}, all, all...)
	stdout, stderr := s.want(exitFailed, "emergency", "--all", "--reason", "leak", "--yes", "--json")
	// app is on another cluster than the other two: two servers of that name.
	for _, want := range []string{"3 contained (2 nodes not yet)", "not contained everywhere: app (not yet: worker-1), jobs (not yet: worker-1), web (not yet: worker-1)"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("no %q in %s", want, stderr)
		}
	}
	var r severalResult
	if err := json.Unmarshal([]byte(stdout), &r); err != nil || r.Outcome != "pending" || r.Counts.Pending != 2 || len(r.Credentials) != 3 || strings.Join(r.Credentials[0].Pending, " ") != "worker-1" {
		t.Errorf("%s, %v", stdout, err)
	}
}

func TestLeakedPasswordOfAnAccountThatIsNoCredentialIsNotPassedOver(t *testing.T) {
	s := newServer(t)
	s.twoMore()
	all := []string{"app", "jobs", "web"}
	s.severalOf("r-9", all, nil, all, all...)
	stdout, stderr := s.want(exitDone, "emergency", "--all", "--reason", "leak", "--yes")
	for _, cluster := range []string{"main", "second"} {
		if want := "not changed: role pawl_admin of cluster " + cluster + " (file "; strings.Count(stderr, want) != 1 {
			t.Errorf("no %q in %s", want, stderr)
		}
	}
	if stdout != "r-9 contained\n" {
		t.Error(stdout)
	}
}

func TestBadSelectionIsOneClearErrorBeforeAnythingIsAsked(t *testing.T) {
	s := newSite(t) // nothing answers
	s.twoMore()
	for _, c := range []struct {
		want string
		args []string
	}{
		{`unknown cluster "scond": did you mean second?`, []string{"emergency", "--cluster", "scond", "--reason", "x", "--yes"}},
		{`unknown credential "wep": did you mean web?`, []string{"emergency", "app", "wep", "--reason", "x", "--yes"}},
		{`unknown environment "prod"`, []string{"rotate", "--environment", "prod"}},
		{"say why: --reason", []string{"emergency", "--all", "--yes"}},
		{"name a credential, or select several", []string{"emergency", "--reason", "x"}},
		{"--break-glass is of one credential", []string{"emergency", "--all", "--reason", "x", "--break-glass"}},
		{"--at-once and --run are for", []string{"rotate", "app", "--at-once", "2"}},
		{"--at-once 0: must be at least 1", []string{"rotate", "--all", "--at-once", "0"}},
	} {
		if _, stderr := s.want(exitUsage, c.args...); !strings.Contains(stderr, c.want) {
			t.Errorf("%v: %s", c.args, stderr)
		}
	}
}
