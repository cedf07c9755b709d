package compose

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/telemetry"
)

const credential = "ruvector-app"

// What a team starts with one command turns a credential when a stock NATS client
// asks, and when Alertmanager does; nobody is refused meanwhile but the thief, and
// Jaeger shows either as one trace of all six services.
func TestStackTurnsACredentialByRequestAndByAlert(t *testing.T) {
	s := start(t)
	s.checkContainers()
	operator, requester := s.join(bus.Operator), s.join(bus.Requester)
	ended, err := operator.NATS.SubscribeSync("pawl.rotation." + credential + ".*." + string(saga.Completed))
	if err != nil {
		t.Fatal(err)
	}
	refused, err := operator.NATS.SubscribeSync("pawl.rotation." + credential + ".*." + string(saga.RolledBack))
	if err != nil {
		t.Fatal(err)
	}
	if err := operator.NATS.Flush(); err != nil {
		t.Fatal(err)
	}

	app := "http://" + s.address("app", "8080")
	s.send(http.MethodPost, app+"/load", "", nil)
	if err := requester.NATS.Publish(bus.RequestSubject(credential), nil); err != nil {
		t.Fatal(err)
	}
	byRequest := s.await(ended, refused)
	var logins struct{ Attempted, Failed, Broken int }
	s.send(http.MethodDelete, app+"/load", "", &logins)
	t.Logf("the application's logins while its credential turned: %+v", logins)
	if logins.Attempted == 0 || logins.Failed > 0 { // broken are those that a busy machine did not get to in time
		t.Error("logins were refused, or none was tried")
	}

	s.send(http.MethodPost, "http://"+s.address("alertmanager", "9093")+"/api/v2/alerts",
		`[{"labels": {"alertname": "CredentialLeaked", "cluster": "ruvector", "pg_role": "dpg_cluster"}}]`, nil)
	byAlert := s.await(ended, refused)
	if byAlert == byRequest {
		t.Fatalf("the alert began no rotation of its own: %s", byAlert)
	}

	t.Log("memory:\n" + s.memory())
	t.Run("traces", func(t *testing.T) { s.checkTraces(t, byRequest, byAlert) })
	t.Run("metrics", s.checkMetrics)
}

// memory is what each of the six uses now.
func (s *stack) memory() string {
	s.t.Helper()
	args := []string{"stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}"}
	for _, service := range saga.Services {
		args = append(args, s.container(service))
	}
	return s.docker(time.Minute, args...)
}

// await returns the id of the rotation that completes next.
func (s *stack) await(ended, refused *nats.Subscription) (rotation string) {
	s.t.Helper()
	m, err := ended.NextMsg(90 * time.Second)
	if err != nil {
		if m, failed := refused.NextMsg(time.Millisecond); failed == nil {
			s.t.Fatalf("it was rolled back: %s", m.Data)
		}
		s.t.Fatalf("no rotation has completed: %v", err)
	}
	_, rotation, _, err = bus.ParseLogSubject(m.Subject)
	if err != nil || !telemetry.Extract(m.Header).IsValid() {
		s.t.Fatalf("%s: %v, trace %v", m.Subject, err, m.Header)
	}
	return rotation
}

func (s *stack) send(method, url, body string, into any) {
	s.t.Helper()
	request, err := http.NewRequestWithContext(s.t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		s.t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		s.t.Fatalf("%s %s: %s", method, url, answer.Status)
	}
	if into != nil {
		if err := json.NewDecoder(answer.Body).Decode(into); err != nil {
			s.t.Fatal(err)
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
func (s *stack) checkTraces(t *testing.T, byRequest, byAlert string) {
	jaeger := "http://" + s.address("jaeger", "16686") + "/api/traces"
	all := slices.Sorted(slices.Values(saga.Services))
	find := func(tag, value string) (found traces) {
		t.Helper()
		tags, _ := json.Marshal(map[string]string{tag: value})
		query := jaeger + "?" + url.Values{"service": {saga.Scheduler}, "tags": {string(tags)}}.Encode()
		s.get(query, &found, func() bool { return slices.Equal(found.services(), all) })
		return found
	}
	for what, rotation := range map[string]string{"asked for": byRequest, "by an alert": byAlert} {
		if found := find("rotation.id", rotation); len(found.Data) != 1 {
			t.Errorf("the rotation %s is in %d traces", what, len(found.Data))
		}
	}
	find("rotation.credential", credential)
	found := find("alert.receiver", "alertmanager")
	if !slices.ContainsFunc(found.Data[0].Spans, func(span span) bool { return span.has("rotation.id", byAlert) }) {
		t.Error("the alert's trace is not that of the rotation which it began")
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
		if err := json.Unmarshal([]byte(s.docker(time.Minute, "inspect", s.container(service))), &info); err != nil {
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
		if err := json.Unmarshal([]byte(s.docker(time.Minute, "image", "inspect", c.Image)), &image); err != nil {
			s.t.Fatal(err)
		}
		if megabytes := image[0].Size >> 20; megabytes >= 60 {
			s.t.Errorf("the image of %s has %d MB", service, megabytes)
		}
	}
}
