package postgres

import (
	"errors"
	"net"
	"strings"
	"testing"

	"pawl.dev/internal/secret"
)

func TestVerifierOfAnotherImplementationMatches(t *testing.T) {
	password := secret.New("correct horse")
	run(t, "CREATE ROLE hashed_by_server PASSWORD 'correct horse'")
	role, err := root(t).RoleState(t.Context(), "hashed_by_server")
	if err != nil {
		t.Fatal(err)
	}
	if !Matches(role.Name, password, role.Verifier) {
		t.Error("the server's own verifier does not match its password")
	}
	if Matches(role.Name, secret.New("wrong"), role.Verifier) {
		t.Error("a wrong password matches")
	}
	if Matches(role.Name, secret.String{}, secret.String{}) {
		t.Error("no password matches no verifier")
	}
	run(t, "SET password_encryption = 'md5'; CREATE ROLE hashed_md5 PASSWORD 'correct horse'")
	if role, err = root(t).RoleState(t.Context(), "hashed_md5"); err != nil {
		t.Fatal(err)
	}
	if !Matches(role.Name, password, role.Verifier) || Matches("another", password, role.Verifier) {
		t.Error("md5: want a match for this user and password alone")
	}
}

func TestLoginWithoutPasswordProvesNothing(t *testing.T) {
	run(t, "CREATE ROLE trusted LOGIN")
	target := superuser()
	target.User, target.Password = "trusted", secret.New("anything")
	_, err := Login(t.Context(), target)
	unreachable := new(Unreachable)
	if !errors.As(err, &unreachable) || !strings.Contains(err.Error(), "scram-sha-256") {
		t.Errorf("error %v; want one that names the method", err)
	}
}

func TestRefusedLoginTellsWhyAndNeverThePassword(t *testing.T) {
	password := secret.New("canary-of-login")
	run(t, "CREATE ROLE locked NOLOGIN PASSWORD 'canary-of-login'", "CREATE ROLE one_slot LOGIN CONNECTION LIMIT 0 PASSWORD 'canary-of-login'",
		"CREATE ROLE unlimited LOGIN PASSWORD 'canary-of-login'")
	for _, c := range []struct {
		name, user, database, sqlstate string
		password                       secret.String
	}{
		{"wrong password", "one_slot", "postgres", WrongPassword, secret.New("canary-of-login-not")},
		{"no such role", "nobody_here", "postgres", WrongPassword, password},
		{"may not log in", "locked", "postgres", NoLogin, password},
		{"no slot", "one_slot", "postgres", NoSlot, password},
		{"no database", "unlimited", "nowhere", "3D000", password},
	} {
		target := superuser()
		target.User, target.Password, target.Database = c.user, c.password, c.database
		_, err := Login(t.Context(), target)
		if !IsRefused(err, c.sqlstate) {
			t.Errorf("%s: %v; want SQLSTATE %s", c.name, err, c.sqlstate)
		}
		if err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: the error holds the password", c.name)
		}
	}
	nowhere := superuser()
	nowhere.Port = 1
	if _, err := Login(t.Context(), nowhere); !errors.As(err, new(*Unreachable)) || strings.Contains(err.Error(), server.Password.Reveal()) {
		t.Errorf("error %v; want *Unreachable without the password", err)
	}
}

func TestEnvironmentDoesNotReachALogin(t *testing.T) {
	for name, value := range map[string]string{
		"PGHOST": "nowhere.invalid", "PGPORT": "1", "PGUSER": "nobody", "PGPASSWORD": "wrong", "PGDATABASE": "nowhere", "PGAPPNAME": "leaked",
		"PGOPTIONS": "-c search_path=leaked", "PGTZ": "Mars/Base", "PGSSLMODE": "verify-full", "PGSSLROOTCERT": "/nowhere", "PGSSLCERT": "/nowhere",
		"PGSSLCERTMODE": "require", "PGREQUIREAUTH": "none", "PGPASSFILE": "/nowhere", "PGTARGETSESSIONATTRS": "standby", "PGMINPROTOCOLVERSION": "9",
		"PGCHANNELBINDING": "require", "PGCONNECT_TIMEOUT": "x",
	} {
		t.Setenv(name, value)
	}
	var application, path, user string
	conn := connect(t, superuser())
	if err := conn.QueryRow(t.Context(), "SELECT current_setting('application_name'), current_setting('search_path'), current_user").Scan(&application, &path, &user); err != nil {
		t.Fatal(err)
	}
	if application != ApplicationName || strings.Contains(path, "leaked") || user != server.Superuser {
		t.Errorf("application %q, search_path %q, user %q", application, path, user)
	}
	t.Setenv("PGSERVICE", "production")
	if _, err := Login(t.Context(), superuser()); err == nil || !strings.Contains(err.Error(), "unset it") {
		t.Errorf("PGSERVICE: error %v; want one that names the fix", err)
	}
}

func TestBadTLSSettingsAreNamed(t *testing.T) {
	target := superuser()
	target.SSLMode = "sometimes"
	if _, err := Login(t.Context(), target); err == nil || !strings.Contains(err.Error(), `"sometimes"`) {
		t.Errorf("sslmode: %v", err)
	}
	target.SSLMode, target.SSLRootCert = "verify-full", "/nowhere.crt"
	if _, err := Login(t.Context(), target); err == nil || !strings.Contains(err.Error(), "/nowhere.crt") {
		t.Errorf("sslrootcert: %v", err)
	}
}

// pgx says it once for each attempt, with TLS and without, and three times in each.
func TestDeadServerIsNamedOnce(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()
	target := superuser()
	target.Port, target.SSLMode = uint16(listener.Addr().(*net.TCPAddr).Port), "prefer"
	if _, err := Login(t.Context(), target); err == nil || err.Error() != address+": connect: connection refused" {
		t.Errorf("%v; want %s and why, once", err, address)
	}
	target.Host = "nowhere.invalid"
	if _, err := Login(t.Context(), target); err == nil || strings.Count(err.Error(), "nowhere.invalid") > 2 || !strings.Contains(err.Error(), "nowhere.invalid") {
		t.Errorf("%v; want the name that is not known", err)
	}
}
