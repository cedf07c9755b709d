package pgserver

import (
	"testing"

	"pawl.dev/internal/secret"
)

// through logs in at the address of another instead of at the server's own.
func (s *Server) through(host string, port uint16) *Server {
	return &Server{Host: host, Port: port, Superuser: s.Superuser, Password: s.Password}
}

func TestPoolerServesWhomTheUserlistNames(t *testing.T) {
	s := start(t, Options{})
	verifier := s.ask(t, "SELECT rolpassword FROM pg_authid WHERE rolname = 'postgres'")
	p, err := StartPooler(t.Context(), s.Address(), PoolerOptions{Users: map[string]secret.String{"postgres": secret.New(verifier)}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	})
	if got := s.through(p.Host, p.Port).ask(t, "SELECT inet_server_port()"); got == "" {
		t.Error("no answer through the pooler")
	}
	stranger := s.through(p.Host, p.Port)
	stranger.Superuser = "stranger"
	if _, err := stranger.session(t.Context()); err == nil {
		t.Error("the pooler lets in somebody who is not in its userlist")
	}
	admin := &Server{Host: p.Host, Port: p.Port, Superuser: p.Admin, Password: p.Password}
	conn, err := admin.sessionIn(t.Context(), "pgbouncer")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if row, err := query(t.Context(), conn, "SHOW VERSION"); err != nil || len(row) == 0 {
		t.Errorf("admin console: %v, %v", row, err)
	}
}

func TestBadPoolerSettingIsNamedFromTheLog(t *testing.T) {
	if _, err := StartPooler(t.Context(), "127.0.0.1:1", PoolerOptions{Settings: map[string]string{"no_such_setting": "1"}}); err == nil {
		t.Error("pgbouncer starts with a setting that it does not know")
	}
}

func TestRetargetedAddressLeadsToTheOtherServer(t *testing.T) {
	old, other := start(t, Options{}), start(t, Options{})
	c, err := NewCutter(old.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	at := old.through(c.Host, c.Port)
	conn, err := at.session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	other.ask(t, "CREATE TABLE other ()")
	c.Retarget(other.Address())
	if _, err := query(t.Context(), conn, "SELECT 1"); err == nil {
		t.Error("a connection to the old server outlives the failover")
	}
	if got := at.ask(t, caughtUp+"other'"); got != "1" {
		t.Error("a new connection goes to the old server")
	}
}
