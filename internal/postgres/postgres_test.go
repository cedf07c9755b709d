package postgres

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/secret"
)

// server logs and counts everything it may.
var server *pgserver.Server

func TestMain(m *testing.M) {
	var err error
	server, err = pgserver.Start(context.Background(), pgserver.Options{NoSync: true, Settings: map[string]string{
		"log_statement": "all", "log_min_duration_statement": "0", "log_transaction_sample_rate": "1", "log_min_error_statement": "debug5",
		"log_connections": "on", "max_prepared_transactions": "10", "shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track": "all",
	}, HBA: []string{"host all trusted 127.0.0.1/32 trust"}})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := server.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func superuser() Target {
	return Target{Host: server.Host, Port: server.Port, Database: "postgres", User: server.Superuser, Password: server.Password, SSLMode: "disable"}
}

func connect(t *testing.T, target Target) *pgx.Conn {
	t.Helper()
	conn, err := Login(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func run(t *testing.T, statements ...string) {
	t.Helper()
	conn := connect(t, superuser())
	for _, sql := range statements {
		if _, err := conn.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatalf("%s: %v", sql, clean(err))
		}
	}
}

// major version of the server, such as 15.
func major(t *testing.T) (version int) {
	t.Helper()
	if err := connect(t, superuser()).QueryRow(t.Context(), "SELECT current_setting('server_version_num')::int / 10000").Scan(&version); err != nil {
		t.Fatal(clean(err))
	}
	return version
}

// admin returns the account, reached at address (empty: the server itself).
func admin(t *testing.T, user string, password secret.String, address string) *Admin {
	t.Helper()
	return adminOf(t, &inventory.Cluster{Name: "main", Admin: accountOf(t, user, password)}, address, nil)
}

// accountOf is an account whose password is in a file.
func accountOf(t *testing.T, user string, password secret.String) inventory.Account {
	t.Helper()
	account := ownAccount(user, filepath.Join(t.TempDir(), "password"))
	if err := os.WriteFile(account.PasswordFile, []byte(password.Reveal()), 0o600); err != nil {
		t.Fatal(err)
	}
	return account
}

// adminOf returns the cluster's.
func adminOf(t *testing.T, cluster *inventory.Cluster, address string, others Others) *Admin {
	t.Helper()
	if address == "" {
		address = net.JoinHostPort(server.Host, strconv.Itoa(int(server.Port)))
	}
	host, port, _ := net.SplitHostPort(address)
	number, _ := strconv.ParseUint(port, 10, 16)
	a, err := NewAdmin(inventory.Node{Name: "coordinator", Host: host, Port: uint16(number)}, cluster, others)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

func ownAccount(user, file string) inventory.Account {
	return inventory.Account{User: user, PasswordFile: file, Database: "postgres", SSLMode: "disable"}
}

func root(t *testing.T) *Admin { return admin(t, server.Superuser, server.Password, "") }

func newPassword(t *testing.T) (password, verifier secret.String) {
	t.Helper()
	password, err := secret.Generate(secret.DefaultLength)
	if err != nil {
		t.Fatal(err)
	}
	if verifier, err = Verifier(password); err != nil {
		t.Fatal(err)
	}
	return password, verifier
}

// assertQuiet searches the server's log and statistics for what must not be there.
func assertQuiet(t *testing.T, secrets ...secret.String) {
	t.Helper()
	log, err := os.ReadFile(server.LogFile)
	if err != nil {
		t.Fatal(err)
	}
	conn := connect(t, superuser())
	if _, err := conn.Exec(t.Context(), "CREATE EXTENSION IF NOT EXISTS pg_stat_statements"); err != nil {
		t.Fatal(clean(err))
	}
	var counted string
	if err := conn.QueryRow(t.Context(), "SELECT string_agg(query, ' ') FROM pg_stat_statements").Scan(&counted); err != nil {
		t.Fatal(clean(err))
	}
	if !strings.Contains(string(log), "INSERT INTO pawl.fence") && !strings.Contains(string(log), "SELECT set_config") {
		t.Error("the log holds nothing of Pawl's: this test proves nothing")
	}
	for _, s := range secrets {
		if strings.Contains(string(log), s.Reveal()) {
			t.Error("the server's log holds a secret")
		}
		if strings.Contains(counted, s.Reveal()) {
			t.Error("pg_stat_statements holds a secret")
		}
	}
}
