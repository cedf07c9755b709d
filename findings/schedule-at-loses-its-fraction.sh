#!/usr/bin/env bash
# A message is scheduled, by the client library's own option, for a moment that is not a
# whole second. The library writes the moment without its fraction, so the server delivers
# it up to a second before the time that was asked for. A schedule that is written by hand
# with its fraction is delivered no earlier than it says.
#
# nats-server 2.15.2, nats.go 1.55.0. Seen:
#   asked for the fraction .900, stored without a fraction, delivered before the time: true
#   written by hand with .900: delivered before the time: false
set -euo pipefail
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
export GOFLAGS=-mod=mod GOWORK=off
go mod init finding >/dev/null 2>&1
go get github.com/nats-io/nats-server/v2@v2.15.2 github.com/nats-io/nats.go@v1.55.0 >/dev/null 2>&1
cat >main.go <<'GO'
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return v
}

func main() {
	s := must(server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: must(os.MkdirTemp(".", "store")), NoSigs: true}))
	s.Start()
	defer s.Shutdown()
	if !s.ReadyForConnections(10 * time.Second) {
		log.Fatal("not ready")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	nc := must(nats.Connect(s.ClientURL()))
	js := must(jetstream.New(nc))
	stream := must(js.CreateStream(ctx, jetstream.StreamConfig{Name: "T", Subjects: []string{"arm.>", "due.>"}, AllowMsgSchedules: true, AllowDirect: true}))
	due := must(stream.CreateConsumer(ctx, jetstream.ConsumerConfig{FilterSubject: "due.>"}))
	// early stores a schedule for a moment that ends in .9, and tells what was stored and
	// whether the message came before that moment.
	early := func(name string, store func(subject, target string, at time.Time)) (string, bool) {
		at := time.Now().Truncate(time.Second).Add(2900 * time.Millisecond)
		store("arm."+name, "due."+name, at)
		stored := must(stream.GetLastMsgForSubject(ctx, "arm."+name)).Header.Get("Nats-Schedule")
		must(due.Next(jetstream.FetchMaxWait(20 * time.Second)))
		return stored, time.Now().Before(at)
	}
	stored, before := early("option", func(subject, target string, at time.Time) {
		must(js.Publish(ctx, subject, nil, jetstream.WithScheduleAt(at), jetstream.WithScheduleTarget(target)))
	})
	fraction := "without a fraction"
	if strings.Contains(stored, ".") {
		fraction = "with a fraction"
	}
	fmt.Printf("asked for the fraction .900, stored %s, delivered before the time: %v\n", fraction, before)
	_, before = early("hand", func(subject, target string, at time.Time) {
		m := nats.NewMsg(subject)
		m.Header.Set("Nats-Schedule", "@at "+at.UTC().Format(time.RFC3339Nano))
		m.Header.Set("Nats-Schedule-Target", target)
		must(js.PublishMsg(ctx, m))
	})
	fmt.Printf("written by hand with .900: delivered before the time: %v\n", before)
}
GO
go run . | tee seen
diff seen - <<'SEEN'
asked for the fraction .900, stored without a fraction, delivered before the time: true
written by hand with .900: delivered before the time: false
SEEN
