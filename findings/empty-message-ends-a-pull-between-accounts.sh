#!/usr/bin/env bash
# A pull consumer is read from another account, by a service whose answers are a stream.
# The client asks for 100 messages at a time. A stored message without headers and
# content is delivered, and with it the server takes the answer for ended: it goes on
# counting what is stored later as delivered to the same request, and the client hears
# nothing of it until it asks again. Inside one account, all is heard.
#
# nats-server 2.15.2, nats.go 1.55.0. Seen:
#   same account:    heard 3 of 3
#   between accounts: heard 1 of 3, the server says 3 were delivered
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

const config = `
jetstream {}
accounts {
  HUB { jetstream: enabled, users: [{user: h, password: h}], exports: [{service: "$JS.API.>", response: stream, threshold: "2m"}, {service: "$JS.ACK.>"}] }
  READER { users: [{user: r, password: r}], imports: [{service: {account: HUB, subject: "$JS.API.>"}}, {service: {account: HUB, subject: "$JS.ACK.>"}}] }
}`

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return v
}

func main() {
	o := &server.Options{}
	if err := o.ProcessConfigString(config); err != nil {
		log.Fatal(err)
	}
	dir := must(os.MkdirTemp("", ""))
	defer os.RemoveAll(dir)
	o.Host, o.Port, o.NoSigs, o.StoreDir = "127.0.0.1", -1, true, dir
	s := must(server.NewServer(o))
	s.Start()
	defer s.Shutdown()
	if !s.ReadyForConnections(10 * time.Second) {
		log.Fatal("not ready")
	}
	ctx := context.Background()
	join := func(user string) jetstream.JetStream {
		return must(jetstream.New(must(nats.Connect(s.ClientURL(), nats.UserInfo(user, user)))))
	}
	hub := join("h")
	read := func(name string, reader jetstream.JetStream) (heard int, delivered uint64) {
		stream := must(hub.CreateStream(ctx, jetstream.StreamConfig{Name: name, Subjects: []string{name}}))
		must(stream.CreateConsumer(ctx, jetstream.ConsumerConfig{Durable: "reads", AckPolicy: jetstream.AckExplicitPolicy}))
		took := make(chan bool, 3)
		consumer := must(reader.Consumer(ctx, name, "reads"))
		reading := must(consumer.Consume(func(m jetstream.Msg) { took <- true; _ = m.Ack() }, jetstream.PullMaxMessages(100)))
		defer reading.Stop()
		for _, content := range []string{"", "second", "third"} {
			must(hub.Publish(ctx, name, []byte(content)))
			select {
			case <-took:
				heard++
			case <-time.After(2 * time.Second):
			}
		}
		return heard, must(consumer.Info(ctx)).Delivered.Stream
	}
	inside, _ := read("INSIDE", hub)
	between, delivered := read("BETWEEN", join("r"))
	fmt.Printf("same account:     heard %d of 3\nbetween accounts: heard %d of 3, the server says %d were delivered\n", inside, between, delivered)
	if inside != 3 || between != 1 || delivered != 3 {
		log.Fatal("it behaves differently now")
	}
}
GO
go run .
