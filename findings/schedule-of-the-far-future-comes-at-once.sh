#!/usr/bin/env bash
# A message is scheduled for a year that nobody will see, which the server accepts. Times
# after 2262-04-11 do not fit into the nanoseconds that it counts in, and the message is
# delivered at once. One for the last day that fits waits.
#
# nats-server 2.15.2, nats.go 1.55.0. Seen:
#   2262-04-10: accepted, waits
#   2500-01-01: accepted, delivered at once
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
	js := must(jetstream.New(must(nats.Connect(s.ClientURL()))))
	stream := must(js.CreateStream(ctx, jetstream.StreamConfig{Name: "T", Subjects: []string{"arm.>", "due.>"}, AllowMsgSchedules: true, AllowDirect: true}))
	for _, day := range []string{"2262-04-10", "2500-01-01"} {
		due := must(stream.CreateConsumer(ctx, jetstream.ConsumerConfig{FilterSubject: "due." + day}))
		m := nats.NewMsg("arm." + day)
		m.Header.Set("Nats-Schedule", "@at "+day+"T00:00:00Z")
		m.Header.Set("Nats-Schedule-Target", "due."+day)
		must(js.PublishMsg(ctx, m))
		became := "delivered at once"
		if _, err := due.Next(jetstream.FetchMaxWait(10 * time.Second)); err != nil {
			became = "waits"
		}
		fmt.Printf("%s: accepted, %s\n", day, became)
	}
}
GO
go run . | tee seen
diff seen - <<'SEEN'
2262-04-10: accepted, waits
2500-01-01: accepted, delivered at once
SEEN
