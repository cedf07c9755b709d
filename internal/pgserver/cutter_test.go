package pgserver

import "testing"

// through logs in at the address of another instead of at the server's own.
func (s *Server) through(host string, port uint16) *Server {
	return &Server{Host: host, Port: port, Superuser: s.Superuser, Password: s.Password}
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
