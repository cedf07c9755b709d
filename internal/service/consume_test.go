package service_test

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// TestConsumerThatTheServerEndedIsBoundAgain: the client library takes the end of a
// consumer for the end of the work, and says nothing.
func TestConsumerThatTheServerEndedIsBoundAgain(t *testing.T) {
	server := bustest.Start(t)
	operator, provisioner := server.Connect(t, bus.Operator), server.Connect(t, bus.Provisioner)
	heard := make(chan string, 10)
	stop, err := service.Consume(t.Context(), service.Dependencies{Bus: server.Connect(t, saga.Scheduler), Log: slog.New(slog.DiscardHandler)},
		bus.StreamRequest, bus.ConsumerRequests, func(m service.Message) {
			if err := m.DoubleAck(t.Context()); err != nil {
				t.Error(err)
			}
			heard <- m.Subject()
		})
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	for _, credential := range []string{"before", "after"} {
		if err := operator.Publish(t.Context(), bus.RequestSubject(credential), &pawlv1.Request{Reason: credential}, nil); err != nil {
			t.Fatal(err)
		}
		select {
		case subject := <-heard:
			if subject != bus.RequestSubject(credential) {
				t.Errorf("heard %s", subject)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("the request for %q is not heard", credential)
		}
		if err := provisioner.JetStream.DeleteConsumer(t.Context(), bus.StreamRequest, bus.ConsumerRequests); err != nil {
			t.Fatal(err)
		}
		if err := bus.Provision(t.Context(), provisioner.JetStream, bus.Settings{AckWait: bus.DefaultAckWait}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestEmptyMessageHoldsNothingUp: an empty message is a whole request, and the server
// takes it for the end of what the consumer has asked for.
func TestEmptyMessageHoldsNothingUp(t *testing.T) {
	for _, c := range []struct {
		user, subject, stream, durable, owner string
		deliveries                            uint64 // at most
	}{
		{bus.Requester, bus.RequestSubject("c%d"), bus.StreamAsked, bus.ConsumerAsked, saga.Scheduler, 1},
		{bus.Operator, bus.RequestSubject("c%d"), bus.StreamRequest, bus.ConsumerRequests, saga.Scheduler, 1},
		{bus.Operator, bus.EmergencySubject("c%d"), bus.StreamEmergency, bus.ConsumerEmergencies, saga.Scheduler, 1},
		{bus.Requester, bus.AlertSubject("c%d"), bus.StreamAlert, bus.ConsumerAlerts, saga.Scheduler, 1},
		// By a stolen key: what was on its way is delivered again, once.
		{saga.DBRotator, bus.LogSubject("c%d", "r", saga.Staged), bus.StreamLog, saga.SecretPublisher, saga.SecretPublisher, 2},
	} {
		t.Run(c.stream, func(t *testing.T) {
			t.Parallel()
			server := bustest.Start(t)
			heard := make(chan uint64, 10)
			stop, err := service.Consume(t.Context(), service.Dependencies{Bus: server.Connect(t, c.owner), Log: slog.New(slog.DiscardHandler)}, c.stream, c.durable, func(m service.Message) {
				meta, err := m.Metadata()
				if err == nil {
					err = m.DoubleAck(t.Context())
				}
				if err != nil {
					t.Error(err)
					return
				}
				heard <- meta.NumDelivered
			})
			if err != nil {
				t.Fatal(err)
			}
			defer stop()
			sender := server.Connect(t, c.user)
			headers := []nats.Header{nil, nil, nil}
			if c.deliveries == 1 { // an outsider's headers are not the server's word
				for _, status := range []string{"100", "404", "408", "409", "423", "503"} {
					headers = append(headers, nats.Header{"Status": {status}, "Description": {"Consumer Deleted"}, "Nats-Last-Consumer": {"7"}})
				}
				headers = append(headers, nats.Header{"Nats-Pin-Id": {"x"}})
			}
			for i, header := range append(headers, nil) {
				if err := sender.NATS.PublishMsg(&nats.Msg{Subject: fmt.Sprintf(c.subject, i), Header: header}); err != nil {
					t.Fatal(err)
				}
				if deliveries := <-heard; deliveries > c.deliveries {
					t.Errorf("message %d was heard at its delivery %d", i+1, deliveries)
				}
			}
		})
	}
}
