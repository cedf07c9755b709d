#!/usr/bin/env bash
# A running client's permission to subscribe is taken away by a reload of the server's
# configuration, and given back by the next one. The server ends the subscription at the
# first reload and does not begin it again at the second; the client is told once, by its
# error handler, and goes on to say that the subscription is valid. It hears nothing more
# on a connection that is otherwise well.
#
# nats-server 2.15.2, nats.go 1.55.0. Seen:
#   before: heard
#   after both reloads: IsValid true, connection CONNECTED, nothing heard
#   subscribed anew: heard
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
	"os"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return v
}

const file = "nats.conf"

func write(subjects string) {
	text := fmt.Sprintf(`listen: "127.0.0.1:24223"
authorization { users: [
  {user: a, password: a, permissions: {subscribe: [%s]}}
  {user: b, password: b}
]}`, subjects)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		log.Fatal(err)
	}
}

func main() {
	write(`"news"`)
	o := must(server.ProcessConfigFile(file))
	o.NoSigs = true
	s := must(server.NewServer(o))
	s.Start()
	defer s.Shutdown()
	if !s.ReadyForConnections(10 * time.Second) {
		log.Fatal("not ready")
	}
	told := make(chan error, 16)
	a := must(nats.Connect(s.ClientURL(), nats.UserInfo("a", "a"), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { told <- err })))
	b := must(nats.Connect(s.ClientURL(), nats.UserInfo("b", "b")))
	sub := must(a.SubscribeSync("news"))
	heard := func(sub *nats.Subscription) bool {
		if err := a.Flush(); err != nil {
			log.Fatal(err)
		}
		if err := b.Publish("news", nil); err != nil {
			log.Fatal(err)
		}
		_, err := sub.NextMsg(2 * time.Second)
		return err == nil
	}
	before := heard(sub)
	for _, subjects := range []string{`"other"`, `"news"`} {
		write(subjects)
		if err := s.Reload(); err != nil {
			log.Fatal(err)
		}
		if subjects == `"other"` {
			fmt.Println("told:", <-told)
		}
	}
	after, valid, status := heard(sub), sub.IsValid(), a.Status()
	anew := heard(must(a.SubscribeSync("news")))
	fmt.Printf("before: heard %v\nafter both reloads: IsValid %v, connection %v, heard %v\nsubscribed anew: heard %v\n", before, valid, status, after, anew)
	if !before || !valid || status != nats.CONNECTED || after || !anew {
		log.Fatal("it behaves differently now")
	}
}
GO
go run .
