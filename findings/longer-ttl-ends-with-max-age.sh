#!/usr/bin/env bash
# A stream removes its messages after two seconds, and one message asks to live for an
# hour. The server accepts that, and removes it with the others: the longer life that a
# message asks for counts for nothing, but a message that asks never to expire is kept.
#
# nats-server 2.15.2, nats.go 1.55.0. Seen:
#   Nats-TTL 1h, max_age 2s: stored, then removed
#   Nats-TTL never, max_age 2s: stored, then kept
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
	stream := must(js.CreateStream(ctx, jetstream.StreamConfig{Name: "T", Subjects: []string{"t.>"}, MaxAge: 2 * time.Second, AllowMsgTTL: true}))
	for _, life := range []string{"1h", "never"} {
		m := nats.NewMsg("t." + life)
		m.Header.Set("Nats-TTL", life)
		must(js.PublishMsg(ctx, m))
		must(js.Publish(ctx, "t.plain", nil)) // goes when its time comes, and so tells that it has
		for must(stream.Info(ctx, jetstream.WithSubjectFilter("t.plain"))).State.Subjects["t.plain"] > 0 {
			time.Sleep(100 * time.Millisecond)
		}
		became := "kept"
		if must(stream.Info(ctx, jetstream.WithSubjectFilter("t."+life))).State.Subjects["t."+life] == 0 {
			became = "removed"
		}
		fmt.Printf("Nats-TTL %s, max_age 2s: stored, then %s\n", life, became)
	}
}
GO
go run . | tee seen
diff seen - <<'SEEN'
Nats-TTL 1h, max_age 2s: stored, then removed
Nats-TTL never, max_age 2s: stored, then kept
SEEN
