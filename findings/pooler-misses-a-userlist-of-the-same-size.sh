#!/usr/bin/env bash
# The userlist of a pooler is written anew, in place, within the second in which it was
# written before, and has the same length, as with every password of a fixed length. RELOAD
# succeeds, and goes on with the old password, however often it is repeated: the pooler
# compares the length and the whole seconds of the time of change. Once the file is
# touched, the next RELOAD reads it.
#
# pgbouncer 1.18.0 (Debian 12), pgx 5.7.5. Seen:
#   written anew in the same second, RELOAD twice: old password true, new password false
#   touched, RELOAD: old password false, new password true
set -euo pipefail
cd "$(mktemp -d)"
trap 'kill "$pooler" 2>/dev/null || :; rm -rf "$PWD"' EXIT
pooler=
apt-get download -qq pgbouncer=1.18.0-1+deb12u1 libevent-2.1-7 libc-ares2 >/dev/null 2>&1
for package in ./*.deb; do dpkg -x "$package" root; done
export LD_LIBRARY_PATH=$(echo root/usr/lib/*-linux-gnu | sed "s|^|$PWD/|")
export GOFLAGS=-mod=mod GOWORK=off
go mod init finding >/dev/null 2>&1
go get github.com/jackc/pgx/v5@v5.7.5 >/dev/null 2>&1
cat >pgbouncer.ini <<INI
[databases]
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = 26432
unix_socket_dir =
auth_type = plain
auth_file = $PWD/userlist.txt
admin_users = boss
pidfile =
logfile = $PWD/log
INI
cat >main.go <<'GO'
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
)

func console(user, password string) (*pgx.Conn, error) {
	c, err := pgx.ParseConfig("host=127.0.0.1 port=26432 dbname=pgbouncer sslmode=disable user=" + user + " password=" + password)
	if err != nil {
		log.Fatal(err)
	}
	c.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return pgx.ConnectConfig(ctx, c)
}

func letsIn(password string) bool {
	c, err := console("boss", password)
	if err == nil {
		c.Close(context.Background())
	}
	return err == nil
}

func reload(password string) {
	c, err := console("boss", password)
	if err == nil {
		defer c.Close(context.Background())
		_, err = c.Exec(context.Background(), "RELOAD")
	}
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	text, err := os.ReadFile("userlist.txt")
	if err != nil {
		log.Fatal(err)
	}
	written, err := os.Stat("userlist.txt")
	if err != nil {
		log.Fatal(err)
	}
	if next := "\"boss\" \"bbbb\"\n"; len(text) != len(next) {
		log.Fatal("the lengths differ")
	}
	if err := os.WriteFile("userlist.txt", []byte(`"boss" "bbbb"`+"\n"), 0o644); err != nil {
		log.Fatal(err)
	}
	second := written.ModTime().Truncate(time.Second) // the same one, later
	if err := os.Chtimes("userlist.txt", second, second.Add(900*time.Millisecond)); err != nil {
		log.Fatal(err)
	}
	reload("aaaa")
	reload("aaaa")
	time.Sleep(time.Second) // it reads what it reloads after it has answered
	fmt.Printf("written anew in the same second, RELOAD twice: old password %v, new password %v\n", letsIn("aaaa"), letsIn("bbbb"))
	if err := os.Chtimes("userlist.txt", time.Now(), time.Now().Add(2*time.Second)); err != nil {
		log.Fatal(err)
	}
	reload("aaaa")
	time.Sleep(time.Second)
	fmt.Printf("touched, RELOAD: old password %v, new password %v\n", letsIn("aaaa"), letsIn("bbbb"))
}
GO
go build -o try . 2>/dev/null
echo '"boss" "aaaa"' >userlist.txt
touch -d "$(date -d '2 seconds ago' '+%F %T').1" userlist.txt
chmod -R go+rX .
: >log && chmod 666 log
as=()
[ "$(id -u)" != 0 ] || as=(setpriv --reuid 65534 --regid 65534 --clear-groups)
"${as[@]}" root/usr/sbin/pgbouncer pgbouncer.ini >/dev/null 2>&1 &
pooler=$!
until grep -q "process up" log; do kill -0 "$pooler"; sleep 0.1; done
./try | tee seen
diff seen - <<'SEEN'
written anew in the same second, RELOAD twice: old password true, new password false
touched, RELOAD: old password false, new password true
SEEN
