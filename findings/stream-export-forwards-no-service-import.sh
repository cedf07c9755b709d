#!/usr/bin/env bash
# An account exports the same subject twice: as a service, so that another account can
# publish there, and as a stream, so that a third can listen. A message of the account
# itself reaches the listener. A message that came in by the service import does not,
# without an error anywhere: a subscriber inside the account hears both.
#
# nats-server 2.15.2, nats.go 1.55.0. Seen:
#   published inside:          inside 1, listener 1
#   published by the importer: inside 1, listener 0
set -euo pipefail
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
export GOFLAGS=-mod=mod GOWORK=off
go mod init finding >/dev/null 2>&1
go get github.com/nats-io/nats-server/v2@v2.15.2 github.com/nats-io/nats.go@v1.55.0 >/dev/null 2>&1
cat >main.go <<'GO'
package main

import (
	"fmt"
	"log"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

const config = `
accounts {
  HUB { users: [{user: h, password: h}], exports: [{service: "in.>", accounts: [SENDER]}, {stream: "in.>", accounts: [LISTENER]}] }
  SENDER { users: [{user: s, password: s}], imports: [{service: {account: HUB, subject: "in.>"}}] }
  LISTENER { users: [{user: l, password: l}], imports: [{stream: {account: HUB, subject: "in.>"}}] }
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
	o.Host, o.Port, o.NoSigs = "127.0.0.1", -1, true
	s := must(server.NewServer(o))
	s.Start()
	defer s.Shutdown()
	if !s.ReadyForConnections(10 * time.Second) {
		log.Fatal("not ready")
	}
	join := func(user string) *nats.Conn { return must(nats.Connect(s.ClientURL(), nats.UserInfo(user, user))) }
	hub, sender, listener := join("h"), join("s"), join("l")
	inside, outside := must(hub.SubscribeSync("in.>")), must(listener.SubscribeSync("in.>"))
	if err := listener.Flush(); err != nil {
		log.Fatal(err)
	}
	heard := func(sub *nats.Subscription) (n int) {
		for {
			if _, err := sub.NextMsg(500 * time.Millisecond); err != nil {
				return n
			}
			n++
		}
	}
	var got [4]int
	for i, from := range []*nats.Conn{hub, sender} {
		if err := from.Publish("in.x", nil); err != nil {
			log.Fatal(err)
		}
		got[2*i], got[2*i+1] = heard(inside), heard(outside)
	}
	fmt.Printf("published inside:          inside %d, listener %d\npublished by the importer: inside %d, listener %d\n", got[0], got[1], got[2], got[3])
	if got != [4]int{1, 1, 1, 0} {
		log.Fatal("it behaves differently now")
	}
}
GO
go run .
