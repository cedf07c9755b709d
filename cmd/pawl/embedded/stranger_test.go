package embedded

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"testing"
)

// TestNobodyRestartsTheServerByAName: what NATS logs about a client holds what the
// client calls itself, also when it is not let in.
func TestNobodyRestartsTheServerByAName(t *testing.T) {
	s, inv := startOn(t, t.TempDir(), nil)
	s.stop()
	s.watching.Wait() // so that nobody takes what is told of a failure
	const name = "no space left on device"
	for _, who := range []map[string]string{{"nkey": name, "sig": "x"}, {"user": name, "pass": "x"}, {"name": name, "lang": name, "version": name}} {
		c, err := net.Dial("tcp", inv.NATS.Listen)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		in := bufio.NewReader(c)
		if _, err := in.ReadString('\n'); err != nil { // INFO
			t.Fatal(err)
		}
		text, err := json.Marshal(who)
		if err == nil {
			_, err = fmt.Fprintf(c, "CONNECT %s\r\nPING\r\n", text)
		}
		if err != nil {
			t.Fatal(err)
		}
		if said, err := in.ReadString('\n'); err != nil || !strings.Contains(said, "Authorization Violation") {
			t.Fatalf("%q, %v", said, err)
		}
	}
	// The server logs before it answers.
	select {
	case line := <-s.failures:
		t.Errorf("a stranger would have the server restarted by %q", line)
	default:
	}
	s.tell("Filestore [S] Critical write error")
	if len(s.failures) == 0 {
		t.Error("no failure is told of at all: this test proves nothing")
	}
}
