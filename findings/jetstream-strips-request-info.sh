#!/usr/bin/env bash
# A service import with `share: true` tells the exporting account who sent a message, in
# the header Nats-Request-Info. Whoever subscribes there sees it. A stream that takes the
# very same message stores it without that header: whoever works on the stream cannot
# know who asked. (Renaming the subject in the import does survive.)
#
# nats-server 2.15.2, nats.go 1.55.0. Seen:
#   subscriber: Nats-Request-Info present, account ASKING
#   stream:     Nats-Request-Info absent
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

const config = `
accounts {
  WORK { jetstream: enabled, users: [{user: w, password: w}], exports: [{service: "ask.*", accounts: [ASKING]}] }
  ASKING { users: [{user: a, password: a}], imports: [{service: {account: WORK, subject: "ask.*"}, share: true}] }
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
	o.Host, o.Port, o.JetStream, o.StoreDir, o.NoSigs = "127.0.0.1", -1, true, must(os.MkdirTemp(".", "store")), true
	s := must(server.NewServer(o))
	s.Start()
	defer s.Shutdown()
	if !s.ReadyForConnections(10 * time.Second) {
		log.Fatal("not ready")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	work := must(nats.Connect(s.ClientURL(), nats.UserInfo("w", "w")))
	js := must(jetstream.New(work))
	stream := must(js.CreateStream(ctx, jetstream.StreamConfig{Name: "ASK", Subjects: []string{"ask.*"}}))
	heard := must(work.SubscribeSync("ask.*"))
	asking := must(nats.Connect(s.ClientURL(), nats.UserInfo("a", "a")))
	must(asking.Request("ask.one", []byte("x"), 5*time.Second)) // the stream's acknowledgement
	m := must(heard.NextMsg(5 * time.Second))
	stored := must(stream.GetMsg(ctx, 1))
	seen, kept := m.Header.Get("Nats-Request-Info"), stored.Header.Get("Nats-Request-Info")
	fmt.Printf("subscriber: %q\nstream:     %q\n", seen, kept)
	if !strings.Contains(seen, `"acc":"ASKING"`) || kept != "" {
		log.Fatal("it behaves differently now")
	}
}
GO
go run .
