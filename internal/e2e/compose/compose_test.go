package compose

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/telemetry"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// allUp has a result for each of Pawl's containers that Prometheus reads.
const allUp = `up{job="pawl"} == 1`

// What a team starts with one command turns a credential when a stock NATS client
// asks, and when Alertmanager does; nobody is refused meanwhile but the thief, and
// Jaeger shows either as one trace of all six services.
func TestStackTurnsACredentialByRequestAndByAlert(t *testing.T) {
	s := start(t, OneServer)
	s.checkContainers()
	s.ask(allUp, len(saga.Services))
	byRequest := s.unnoticed(s.rotate)

	s.send(http.MethodPost, "http://"+s.address("alertmanager", "9093")+"/api/v2/alerts",
		`[{"labels": {"alertname": "CredentialLeaked", "cluster": "ruvector", "pg_role": "dpg_cluster"}}]`, nil)
	byAlert := s.await()
	if byAlert == byRequest {
		t.Fatalf("the alert began no rotation of its own: %s", byAlert)
	}

	s.checkTraces(byRequest, byAlert)
	s.checkMetrics()
	s.checkMissing()
}

// With three servers and two of each service, a container of each kind may be
// lost in mid-rotation, and a server of the bus with them.
func TestStackOfThreeServersLosesAContainerOfEachKind(t *testing.T) {
	s := start(t, ThreeServers)
	s.ask(allUp, 2*len(saga.Services))
	s.unnoticed(func() string {
		s.request()
		for _, service := range append([]string{"nats-2"}, saga.Services...) {
			s.docker("kill", s.container(service))
		}
		return s.await()
	})
	s.docker("kill", s.container("nats-3")) // two are away, and nothing can be stored
	s.docker("start", s.container("nats-2"))
	s.unnoticed(s.rotate)
}

// unnoticed has the application log in all the while, and sees that it always can.
func (s *stack) unnoticed(turn func() (rotation string)) string {
	s.t.Helper()
	app := "http://" + s.address("app", "8080")
	s.send(http.MethodPost, app+"/load", "", nil)
	rotation := turn()
	var logins struct{ Attempted, Failed, Broken int }
	s.send(http.MethodDelete, app+"/load", "", &logins)
	s.t.Logf("the application's logins while its credential turned: %+v", logins)
	if logins.Attempted == 0 || logins.Failed > 0 { // broken are those that a busy machine did not get to in time
		s.t.Error("logins were refused, or none was tried")
	}
	return rotation
}

// rotate returns the rotation that completes.
func (s *stack) rotate() string {
	s.t.Helper()
	s.request()
	return s.await()
}

// request asks as any NATS client does that wants to know that it was heard: until
// it is, under one id, by which it is stored once; and asks anew where it was refused
// because a service had not come back yet.
func (s *stack) request() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Minute)
	defer cancel()
	for {
		id := strings.ToLower(rand.Text()) // one that an answer can be found by
		err := errors.New("not asked")
		for err != nil && ctx.Err() == nil {
			err = s.requester.Publish(ctx, bus.RequestSubject(Credential), &pawlv1.Request{}, nats.Header{jetstream.MsgIDHeader: {id}})
		}
		if err != nil {
			s.t.Fatal(err)
		}
		answer := s.answer(ctx, id)
		if answer.GetOutcome() == pawlv1.Outcome_OUTCOME_ACCEPTED {
			return
		}
		if !strings.Contains(answer.GetReason(), "does not answer") {
			s.t.Fatalf("refused: %s", answer.GetReason())
		}
		s.t.Logf("asked again, refused: %s", answer.GetReason())
	}
}

// answer waits for what the scheduler stores about a request.
func (s *stack) answer(ctx context.Context, id string) *pawlv1.Answer {
	s.t.Helper()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		answer, err := s.stored(ctx, id)
		if err == nil {
			return answer
		}
		select {
		case <-ctx.Done():
			s.t.Fatalf("request %s is not answered: %v", id, err)
		case <-tick.C:
		}
	}
}

func (s *stack) stored(ctx context.Context, id string) (*pawlv1.Answer, error) {
	ctx, cancel := bus.Bound(ctx)
	defer cancel()
	stream, err := s.operator.Stream(ctx, bus.StreamAnswer)
	if err != nil {
		return nil, err
	}
	m, err := stream.GetLastMsgForSubject(ctx, bus.AnswerSubject(id))
	if err != nil {
		return nil, err
	}
	answer := &pawlv1.Answer{}
	return answer, bus.Decode(m.Header, m.Data, answer)
}

// await returns the id of the rotation that completes next.
func (s *stack) await() (rotation string) {
	s.t.Helper()
	patience := time.After(3 * time.Minute) // what a killed container had in hand is delivered again after half a minute
	var told strings.Builder
	for {
		select {
		case <-patience:
			s.t.Fatalf("no rotation has completed; since the last one did:%s", &told)
		case m := <-s.events:
			_, rotation, event, err := bus.ParseLogSubject(m.Subject)
			if err != nil || !telemetry.Extract(m.Header).IsValid() {
				s.t.Fatalf("%s: %v, trace %v", m.Subject, err, m.Header)
			}
			fmt.Fprintf(&told, "\n%s %s %s", m.Time.Format(time.StampMilli), rotation, event)
			switch saga.Event(event) {
			case saga.Completed:
				return rotation
			case saga.RolledBack:
				s.t.Fatalf("it was rolled back: %s", m.Data)
			}
		}
	}
}

// traces is Jaeger's answer, as far as it is looked at.
type traces struct {
	Data []struct {
		Processes map[string]struct{ ServiceName string }
		Spans     []span
	}
}

type span struct {
	Tags []struct {
		Key   string
		Value any
	}
}

// has reports whether the span has the tag.
func (s span) has(key, value string) bool {
	for _, tag := range s.Tags {
		if tag.Key == key && tag.Value == value {
			return true
		}
	}
	return false
}

func (a traces) services() (names []string) {
	for _, trace := range a.Data {
		for _, p := range trace.Processes {
			names = append(names, p.ServiceName)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// checkTraces finds each rotation in Jaeger by what a person knows of it.
func (s *stack) checkTraces(byRequest, byAlert string) {
	s.t.Helper()
	jaeger := "http://" + s.address("jaeger", "16686") + "/api/traces"
	all := slices.Sorted(slices.Values(saga.Services))
	find := func(tag, value string) (found traces) {
		s.t.Helper()
		tags, _ := json.Marshal(map[string]string{tag: value})
		query := jaeger + "?" + url.Values{"service": {saga.Scheduler}, "tags": {string(tags)}}.Encode()
		s.get(query, &found, func() bool { return slices.Equal(found.services(), all) })
		return found
	}
	for what, rotation := range map[string]string{"asked for": byRequest, "by an alert": byAlert} {
		if found := find("rotation.id", rotation); len(found.Data) != 1 {
			s.t.Errorf("the rotation %s is in %d traces", what, len(found.Data))
		}
	}
	find("rotation.credential", Credential)
	found := find("alert.receiver", "alertmanager")
	if !slices.ContainsFunc(found.Data[0].Spans, func(span span) bool { return span.has("rotation.id", byAlert) }) {
		s.t.Error("the alert's trace is not that of the rotation which it began")
	}
}

// checkContainers holds each of Pawl's to what docker-compose.yml promises.
func (s *stack) checkContainers() {
	s.t.Helper()
	for _, service := range append([]string{"app"}, saga.Services...) {
		var info []struct {
			Config struct {
				User string
				Env  []string
			}
			HostConfig struct {
				ReadonlyRootfs bool
				CapDrop        []string
			}
			Image string
		}
		if err := json.Unmarshal([]byte(s.docker("inspect", s.container(service))), &info); err != nil {
			s.t.Fatal(err)
		}
		c := info[0]
		if c.Config.User != "65532:65532" || !c.HostConfig.ReadonlyRootfs || !slices.Contains(c.HostConfig.CapDrop, "ALL") {
			s.t.Errorf("%s runs as %q, read-only %v, without %v", service, c.Config.User, c.HostConfig.ReadonlyRootfs, c.HostConfig.CapDrop)
		}
		for _, variable := range c.Config.Env {
			if !strings.HasPrefix(variable, "PATH=") {
				s.t.Errorf("%s has %s in its environment", service, variable)
			}
		}
		var image []struct{ Size int64 }
		if err := json.Unmarshal([]byte(s.docker("image", "inspect", c.Image)), &image); err != nil {
			s.t.Fatal(err)
		}
		if megabytes := image[0].Size >> 20; megabytes >= 60 {
			s.t.Errorf("the image of %s has %d MB", service, megabytes)
		}
	}
}

// Both layouts are the same but for the bus.
func TestConfigurationForThreeServersIsTheOther(t *testing.T) {
	read := func(name string) (lines []string) {
		text, err := os.ReadFile(filepath.Join(Root(), "deploy/compose", name))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "nats:") {
				lines = append(lines, line)
			}
		}
		return lines
	}
	if one, three := read("pawl.yaml"), read("pawl-three.yaml"); !slices.Equal(one, three) {
		t.Errorf("pawl.yaml:\n%s\npawl-three.yaml:\n%s", strings.Join(one, ""), strings.Join(three, ""))
	}
}
