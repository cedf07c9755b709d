// Command demosetup makes what docker-compose.yml's demo has beside Pawl: roles
// with their first passwords, known to PostgreSQL by their verifiers alone, the
// application's .env, and what Alertmanager shows to the scheduler. It runs once,
// as root, and gives each file to the one user that reads it; where it has run
// before, it does nothing.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/secret"
)

// Users of the images: Pawl's own, and those that PostgreSQL's and Prometheus'
// images bring along.
const (
	pawl       = 65532
	postgresql = 999
	nobody     = 65534
)

const (
	credential = "ruvector-app"
	replicator = "replication" // whom standbys log in as
)

func main() {
	config := flag.String("c", "pawl.yaml", "configuration file")
	keys := flag.String("keys", "/keys", "folder of the services' folders, as of `pawl keys`")
	out := flag.String("out", "/demo", "folder of the others': postgres, app, alertmanager")
	flag.Parse()
	if err := setUp(*config, *keys, *out); err != nil {
		fmt.Fprintln(os.Stderr, "demosetup:", err)
		os.Exit(1)
	}
}

func setUp(config, keys, out string) error {
	roles := filepath.Join(out, "postgres", "roles.sql")
	if _, err := os.Stat(roles); err == nil {
		return nil // it is written last
	}
	inv, err := inventory.Load(config)
	if err != nil {
		return err
	}
	app, ok := inv.Credentials[credential]
	if !ok {
		return fmt.Errorf("%s has no credential %s", config, credential)
	}
	admin, observer := app.Cluster.Admin, app.Cluster.Observer
	sql := bytes.NewBufferString("\\set ON_ERROR_STOP on\n")
	password := func(role, kind string) (secret.String, error) {
		password, err := secret.Generate(secret.DefaultLength)
		if err != nil {
			return password, err
		}
		verifier, err := postgres.Verifier(password)
		fmt.Fprintf(sql, "CREATE ROLE %s %s PASSWORD '%s';\n", role, kind, verifier.Reveal())
		return password, err
	}
	of := func(service, account string) string { return filepath.Join(keys, service, "secrets", account) }
	for _, f := range []struct {
		paths            []string
		role, kind, text string
		owner            int
	}{
		{[]string{of("db-rotator", admin.User)}, admin.User, "LOGIN NOINHERIT", "%s\n", pawl},
		{[]string{of("verifier", observer.User), of("db-rotator", observer.User)}, observer.User, "LOGIN NOINHERIT", "%s\n", pawl},
		{[]string{filepath.Join(out, "postgres", replicator)}, replicator, "LOGIN REPLICATION", "%s", postgresql},
		{[]string{filepath.Join(out, "app", ".env")}, app.Role, "LOGIN", "# Settings of the demo's application\nRUVECTOR_USER=" + app.Role + "\nRUVECTOR_PASSWORD=%s\n", pawl},
	} {
		password, err := password(f.role, f.kind)
		if err != nil {
			return err
		}
		for _, path := range f.paths {
			if err := give(path, fmt.Sprintf(f.text, password.Reveal()), f.owner); err != nil {
				return err
			}
		}
	}
	// Whoever renames a file needs its folder.
	if err := os.Chown(filepath.Join(out, "app"), pawl, pawl); err != nil {
		return err
	}
	if err := alertmanager(filepath.Join(keys, "scheduler", "secrets"), filepath.Join(out, "alertmanager")); err != nil {
		return err
	}
	if err := token(filepath.Join(keys, "auditor", "secrets", "dashboard"), pawl); err != nil {
		return err
	}
	fmt.Fprintf(sql, "CREATE DATABASE %s OWNER %s;\n%s", app.Database, app.Role, postgres.AdminSQL(admin, observer, app.Logins()))
	return give(roles, sql.String(), postgresql)
}

// alertmanager gives both ends what they show each other.
func alertmanager(scheduler, sender string) error {
	text, err := secret.Generate(secret.DefaultLength)
	if err != nil {
		return err
	}
	certificate, key, err := selfSigned("scheduler")
	if err != nil {
		return err
	}
	for _, f := range []struct {
		path, text string
		owner      int
	}{
		{filepath.Join(scheduler, "alertmanager"), text.Reveal(), pawl},
		{filepath.Join(scheduler, "alerts.pem"), certificate, pawl},
		{filepath.Join(scheduler, "alerts.key"), key, pawl},
		{filepath.Join(sender, "token"), text.Reveal(), nobody},
		{filepath.Join(sender, "scheduler.pem"), certificate, nobody},
	} {
		if err := give(f.path, f.text, f.owner); err != nil {
			return err
		}
	}
	return nil
}

func token(path string, owner int) error {
	text, err := secret.Generate(secret.DefaultLength)
	if err != nil {
		return err
	}
	return give(path, text.Reveal(), owner)
}

// give writes a file whole, for its owner alone.
func give(path, text string, owner int) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	mode := os.FileMode(0o400)
	if filepath.Base(path) == ".env" {
		mode = 0o600
	}
	pending, err := renameio.NewPendingFile(path, renameio.WithPermissions(mode))
	if err != nil {
		return err
	}
	defer pending.Cleanup()
	if _, err := pending.WriteString(text); err != nil {
		return err
	}
	if err := pending.Chown(owner, owner); err != nil {
		return err
	}
	return pending.CloseAtomicallyReplace()
}
