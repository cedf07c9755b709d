#!/usr/bin/env bash
# A user may publish to a stream's subject, and may not subscribe to the inbox in which the
# client library waits for acknowledgements. Every message is stored, and every publish
# fails with a deadline: whoever tries again stores it again. The refusal of the inbox is
# told to the connection's error handler alone.
#
# nats-server 2.15.2, nats.go 1.55.0. Seen:
#   publish: context deadline exceeded
#   stored: 1
#   told the error handler: permissions violation
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

const configuration = `listen: "127.0.0.1:24224"
jetstream { store_dir: "store" }
no_auth_user: all
authorization { users: [
  {user: all, password: all}
  {user: some, password: some, permissions: {publish: ["orders"], subscribe: ["news"]}}
]}`

func main() {
	if err := os.WriteFile("nats.conf", []byte(configuration), 0o600); err != nil {
		log.Fatal(err)
	}
	o := must(server.ProcessConfigFile("nats.conf"))
	o.NoSigs = true
	s := must(server.NewServer(o))
	s.Start()
	defer s.Shutdown()
	if !s.ReadyForConnections(10 * time.Second) {
		log.Fatal("not ready")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	all := must(jetstream.New(must(nats.Connect(s.ClientURL(), nats.UserInfo("all", "all")))))
	stream := must(all.CreateStream(ctx, jetstream.StreamConfig{Name: "O", Subjects: []string{"orders"}}))
	told := make(chan error, 16)
	some := must(jetstream.New(must(nats.Connect(s.ClientURL(), nats.UserInfo("some", "some"),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { told <- err })))))
	once, end := context.WithTimeout(ctx, 3*time.Second)
	defer end()
	_, err := some.Publish(once, "orders", []byte("one"), jetstream.WithRetryAttempts(0))
	fmt.Println("publish:", err)
	fmt.Println("stored:", must(stream.Info(ctx)).State.Msgs)
	if violation := <-told; errors.Is(violation, nats.ErrPermissionViolation) {
		fmt.Println("told the error handler: permissions violation")
	}
}
GO
go run . | tee seen
diff seen - <<'SEEN'
publish: context deadline exceeded
stored: 1
told the error handler: permissions violation
SEEN
