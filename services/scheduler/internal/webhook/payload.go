package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/telemetry"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// payload is what Alertmanager (version 4) and Grafana (version 1) send; the
// second adds fields, which are not read.
type payload struct {
	Version         string  `json:"version"`
	TruncatedAlerts uint64  `json:"truncatedAlerts"`
	GroupKey        string  `json:"groupKey"`
	Alerts          []alert `json:"alerts"`
}

type alert struct {
	Status      string            `json:"status"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	StartsAt    time.Time         `json:"startsAt"`
	Fingerprint string            `json:"fingerprint"`
}

var versions = map[string]string{inventory.Alertmanager: "4", inventory.Grafana: "1"}

// storing is how long all alerts of a webhook may take to be stored.
const storing = 10 * time.Second

// proven returns the body once it is known who sent it, and what gives back the
// receiver's slot. A stranger takes none: his body is not read where the headers are to
// prove him, and at his address's expense where the body is.
func (s *Server) proven(w http.ResponseWriter, q *http.Request, name string, r inventory.Receiver) (body []byte, done func(), err error) {
	if err := known(r, q); err != nil {
		return nil, nil, err
	}
	if r.HMACFile != "" {
		if body, err = s.signedBody(w, q, r); err != nil {
			return nil, nil, err
		}
		done, err = s.working.take(name)
		return body, done, err
	}
	if done, err = s.working.take(name); err != nil {
		return nil, nil, err
	}
	if body, err = read(w, q); err != nil {
		done()
	}
	return body, done, err
}

// signedBody reads what its signature is to prove.
func (s *Server) signedBody(w http.ResponseWriter, q *http.Request, r inventory.Receiver) ([]byte, error) {
	done, err := s.reading.take(host(q.RemoteAddr))
	if err != nil {
		return nil, err
	}
	defer done()
	body, err := read(w, q)
	if err != nil {
		return nil, err
	}
	return body, s.signed(r, q.Header, body)
}

func read(w http.ResponseWriter, q *http.Request) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, q.Body, maxBody))
	if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
		return nil, refusal{oversized, fmt.Errorf("larger than %d bytes: have the sender put fewer alerts into one (max_alerts, group_by)", maxBody)}
	}
	if err != nil {
		return nil, refusal{malformed, fmt.Errorf("the body cannot be read: %w", err)}
	}
	return body, nil
}

// take returns nil once everything that the webhook says is stored.
func (s *Server) take(w http.ResponseWriter, q *http.Request, name string, r inventory.Receiver) error {
	body, done, err := s.proven(w, q, name, r)
	if err != nil {
		return err
	}
	defer done()
	if !s.d.Bus.NATS.IsConnected() {
		return refusal{unavailable, errors.New("the bus is not there: send it again")}
	}
	ctx, cancel := context.WithTimeout(q.Context(), storing)
	defer cancel()
	ctx, span := s.d.Tracer.Start(ctx, "alerts received", trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(attribute.String("alert.receiver", name)))
	defer span.End()
	var p payload
	if err := json.Unmarshal(body, &p); err != nil {
		return s.dead(ctx, name, fmt.Errorf("not JSON as %s sends it: %w", r.Kind, err))
	}
	if p.Version != versions[r.Kind] {
		return s.dead(ctx, name, fmt.Errorf("version is %.20q: the webhooks of %s that are read here have %q; is kind in pawl.yaml right?", p.Version, r.Kind, versions[r.Kind]))
	}
	if p.TruncatedAlerts > 0 {
		s.cut.Add(ctx, int64(p.TruncatedAlerts), metric.WithAttributes(attribute.String("receiver", name)))
		s.d.Note(ctx, &pawlv1.Note{Kind: "alerts truncated", Actor: "alert " + name,
			Text: fmt.Sprintf("%d alerts were cut from a webhook, and a credential's may be among them: group by cluster and pg_role, or raise max_alerts (group %.200s)", p.TruncatedAlerts, p.GroupKey)})
	}
	span.SetAttributes(attribute.Int("alert.count", len(p.Alerts)), attribute.Int64("alert.truncated", int64(p.TruncatedAlerts)))
	return s.publish(ctx, name, p.Alerts)
}

// publish stores all alerts, and returns an error unless it has seen that all
// are. Those that cannot be read are told of on pawl.dead, and delay no other.
func (s *Server) publish(ctx context.Context, name string, alerts []alert) error {
	var stored []jetstream.PubAckFuture
	var unread []error
	for i, a := range alerts {
		m, err := message(ctx, name, a)
		if err != nil {
			unread = append(unread, fmt.Errorf("alerts[%d]: %w", i, err))
			continue
		}
		future, err := s.d.Bus.JetStream.PublishMsgAsync(m)
		if err != nil {
			return refusal{unavailable, fmt.Errorf("alerts[%d] is not stored: %w", i, err)}
		}
		stored = append(stored, future)
	}
	if len(unread) > 0 {
		if err := s.bury(ctx, name, fmt.Errorf("%d of %d alerts cannot be read; the first: %w", len(unread), len(alerts), unread[0])); err != nil {
			return refusal{unavailable, err}
		}
	}
	for _, future := range stored {
		select {
		case <-future.Ok():
			_ = s.d.Bus.Refused(future.Msg().Subject, nil) // the stream takes alerts again
		case err := <-future.Err():
			return refusal{unavailable, fmt.Errorf("an alert is not stored: %w", s.d.Bus.Refused(future.Msg().Subject, err))}
		case <-ctx.Done():
			return refusal{unavailable, fmt.Errorf("an alert is not stored within %v", storing)}
		}
	}
	return nil
}

// largest is what an alert may have for its annotations to be kept.
const largest = bus.MaxEvent / 2

// message is the alert as the bus has it. It has no message id: whoever knew that
// could have it be taken for a repetition. The ledger of decisions knows repetitions.
func message(ctx context.Context, name string, a alert) (*nats.Msg, error) {
	if a.Status != "firing" && a.Status != "resolved" {
		return nil, fmt.Errorf("status is %.20q: it must be firing or resolved", a.Status)
	}
	if a.StartsAt.IsZero() {
		return nil, errors.New("it has no startsAt")
	}
	body := &pawlv1.Alert{Fingerprint: a.Fingerprint, StartsAt: timestamppb.New(a.StartsAt), Resolved: a.Status == "resolved", Labels: a.Labels, Annotations: a.Annotations}
	if proto.Size(body) > largest || len(a.Annotations) > 64 {
		body.Annotations = nil // no decision needs them
	}
	data, err := bus.Encode(body)
	if err == nil && len(data) > bus.MaxEvent-1024 { // headers count, too
		err = fmt.Errorf("its labels have %d bytes: at most %d are kept", len(data), bus.MaxEvent-1024)
	}
	if err != nil {
		return nil, err
	}
	m := &nats.Msg{Subject: bus.AlertSubject(name), Header: telemetry.Inject(ctx), Data: data}
	m.Header.Set("Content-Type", "application/protobuf")
	return m, nil
}

// dead keeps what cannot be read, and refuses it.
func (s *Server) dead(ctx context.Context, name string, fault error) error {
	if err := s.bury(ctx, name, fault); err != nil {
		return refusal{unavailable, err}
	}
	return refusal{malformed, fault}
}

func (s *Server) bury(ctx context.Context, name string, fault error) error {
	return s.d.Bus.Publish(ctx, bus.DeadSubject(saga.Scheduler), &pawlv1.Note{Kind: "undecodable", Actor: "alert " + name, Text: "webhook: " + fault.Error()}, telemetry.Inject(ctx))
}
