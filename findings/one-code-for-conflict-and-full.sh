#!/usr/bin/env bash
# JetStream answers a publish with error code 10077 for two things that want opposite
# answers from a client: a subject that holds its one message already (Discard: new per
# subject, which people use as a compare-and-set; trying again is useless), and a stream
# that is full by messages or bytes (trying later is right). Only the text tells them
# apart, and the HTTP-like code is 503 for both.
#
# nats-server 2.15.2, nats.go 1.55.0. Seen:
#   subject taken: 503 10077 maximum messages per subject exceeded
#   stream full:   503 10077 maximum messages exceeded
#   too many bytes: 503 10077 maximum bytes exceeded
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
	"errors"
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
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	js := must(jetstream.New(must(nats.Connect(s.ClientURL()))))
	texts := map[string]bool{}
	for what, c := range map[string]jetstream.StreamConfig{
		"subject taken":  {Name: "A", Subjects: []string{"a.*"}, MaxMsgsPerSubject: 1, Discard: jetstream.DiscardNew, DiscardNewPerSubject: true},
		"stream full":    {Name: "B", Subjects: []string{"b.*"}, MaxMsgs: 1, Discard: jetstream.DiscardNew},
		"too many bytes": {Name: "C", Subjects: []string{"c.*"}, MaxBytes: 60, Discard: jetstream.DiscardNew},
	} {
		must(js.CreateStream(ctx, c))
		subject := c.Subjects[0][:2] + "x"
		must(js.Publish(ctx, subject, []byte("1")))
		_, err := js.Publish(ctx, subject, []byte("2"))
		refused := new(jetstream.APIError)
		if !errors.As(err, &refused) {
			log.Fatalf("%s: %v", what, err)
		}
		fmt.Printf("%s: %d %d %s\n", what, refused.Code, refused.ErrorCode, refused.Description)
		if refused.ErrorCode != 10077 || refused.Code != 503 {
			log.Fatal("it behaves differently now")
		}
		texts[refused.Description] = true
	}
	if len(texts) != 3 {
		log.Fatal("it behaves differently now: the texts were three")
	}
}
GO
go run .
