package command

import (
	"strings"
	"testing"

	"pawl.dev/cmd/pawl/internal/render"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// TestStatusAndDoctorShowWhatKeepsPawlFromWorking, and doctor fails by it. Each
// question was answered as if nothing were wrong before.
func TestStatusAndDoctorShowWhatKeepsPawlFromWorking(t *testing.T) {
	s := newServer(t)
	s.mustTell("r-1", adoption)
	for _, name := range []string{saga.SecretPublisher, saga.DBRotator, saga.Verifier} {
		s.play(name)
	}
	if _, stderr := s.want(exitDone, "status"); strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "no service of Pawl answers on nats://127.0.0.1:") {
		t.Errorf("without services, status says %s", stderr)
	}
	if _, stderr := s.want(exitFailed, "doctor"); !strings.Contains(stderr, "failing: auditor, db-rotator, restarter") {
		t.Errorf("without services, doctor says %s", stderr)
	}
	for _, name := range []string{saga.Scheduler, saga.SecretPublisher, saga.DBRotator, saga.Verifier} {
		s.healthy(name)
	}
	missing := s.healthy(saga.Restarter)
	s.healthy(saga.Auditor, &pawlv1.Check{Service: saga.Auditor, Target: "lagging PAWL_NOTE/auditor", Finding: "9 messages wait"},
		&pawlv1.Check{Service: saga.Auditor, Target: "service restarter", Finding: "asked by the command itself", Refused: true})
	if _, stderr := s.want(exitDone, "doctor"); stderr != "! auditor: warning: lagging PAWL_NOTE/auditor: 9 messages wait\n" {
		t.Errorf("with a warning, doctor says %s", stderr)
	}
	missing()
	s.mustTell("r-2", rotation[:3])
	for command, code := range map[string]int{"status": exitDone, "doctor": exitFailed} {
		_, stderr := s.want(code, command)
		for _, want := range []string{"✗ restarter: does not answer: it was never started\n", "✗ restarter: 1 message waits for it in PAWL_ROTATION (consumer restarter), the oldest for"} {
			if !strings.Contains(stderr, want) {
				t.Errorf("%s lacks %q: %s", command, want, stderr)
			}
		}
	}
	stdout, _ := s.want(exitDone, "status", "--services")
	for _, want := range []string{"restarter         does not answer  -", "auditor           warning          v1", "scheduler         works            v1"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
	for _, of := range decode[[]render.Service](t, first(s.want(exitDone, "status", "--services", "--json"))) {
		if of.Running != (of.Service != saga.Restarter) || !of.Running && (len(of.Waiting) == 0 || of.Waiting[0].Messages != 1 || of.Waiting[0].Oldest == nil) {
			t.Errorf("%+v", of)
		}
	}
}

// TestProcessConditionIsToldByStatus: what is wrong with the process of `pawl up`
// is told by one of its services.
func TestProcessConditionIsToldByStatus(t *testing.T) {
	s := newServer(t)
	for _, name := range saga.Services[1:] {
		s.healthy(name)
	}
	s.healthy(saga.Services[0], &pawlv1.Check{Service: "pawl", Target: "disk", Finding: "3 days left"})
	if _, stderr := s.want(exitDone, "status"); stderr != "! pawl: warning: disk: 3 days left\n" {
		t.Errorf("status says %s", stderr)
	}
}
