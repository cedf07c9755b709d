#!/usr/bin/env bash
# A server is reloaded with a configuration that moves a user out of the account that
# has JetStream into a new account, which imports JetStream's API from the old one. The
# user is let in, and its requests find no responders, for as long as one waits.
# Reloading the very same configuration once more mends it. A server that starts with
# this configuration needs no reload.
#
# nats-server 2.15.2, nats.go 1.55.0. Seen:
#   after one reload:  no responders
#   after another one: answered
set -euo pipefail
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
export GOFLAGS=-mod=mod GOWORK=off
go mod init finding >/dev/null 2>&1
go get github.com/nats-io/nats-server/v2@v2.15.2 github.com/nats-io/nats.go@v1.55.0 >/dev/null 2>&1
cat >main.go <<'GO'
package main

import (
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

const before = `
accounts {
  HUB { jetstream: enabled, users: [{user: u, password: u}] }
}`

const after = `
accounts {
  HUB { jetstream: enabled, exports: [{service: "$JS.API.>", accounts: [OWN]}] }
  OWN { users: [{user: u, password: u}], imports: [{service: {account: HUB, subject: "$JS.API.>"}}] }
}`

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return v
}

func options(accounts string, port int, store string) *server.Options {
	if err := os.WriteFile("nats.conf", []byte(fmt.Sprintf("listen: 127.0.0.1:%d\njetstream {store_dir: %q}\n%s", port, store, accounts)), 0o600); err != nil {
		log.Fatal(err)
	}
	o := must(server.ProcessConfigFile("nats.conf"))
	o.NoSigs, o.NoLog = true, true
	return o
}

// asks for up to 5 s, as a user that connects anew.
func asks(s *server.Server) string {
	last := ""
	for until := time.Now().Add(5 * time.Second); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
		u := must(nats.Connect(s.ClientURL(), nats.UserInfo("u", "u")))
		_, err := u.Request("$JS.API.STREAM.NAMES", nil, time.Second)
		u.Close()
		switch {
		case err == nil:
			return "answered"
		case errors.Is(err, nats.ErrNoResponders):
			last = "no responders"
		default:
			last = err.Error()
		}
	}
	return last
}

func main() {
	store := must(os.MkdirTemp(".", "store"))
	s := must(server.NewServer(options(before, -1, store)))
	s.Start()
	defer s.Shutdown()
	if !s.ReadyForConnections(10 * time.Second) {
		log.Fatal("not ready")
	}
	if got := asks(s); got != "answered" {
		log.Fatal("before: ", got)
	}
	reload := func() string {
		if err := s.ReloadOptions(options(after, -1, store)); err != nil {
			log.Fatal(err)
		}
		return asks(s)
	}
	once, twice := reload(), reload()
	fmt.Printf("after one reload:  %s\nafter another one: %s\n", once, twice)
	if once != "no responders" || twice != "answered" {
		log.Fatal("it behaves differently now")
	}
}
GO
go run .
