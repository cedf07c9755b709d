package inventory

import (
	"strings"
	"testing"
)

func TestBusOfOnesOwn(t *testing.T) {
	for _, c := range []struct {
		section, address string
		replicas         int
		tls, warned      bool
	}{
		{"{}", "nats://127.0.0.1:4222", 1, false, false},
		{`{listen: "127.0.0.1:4333"}`, "nats://127.0.0.1:4333", 1, false, false},
		{`{url: "tls://nats:4222"}`, "tls://nats:4222", 1, true, false},
		{`{url: "tls://a:4222, tls://b:4222,tls://c:4222", replicas: 3}`, "tls://a:4222,tls://b:4222,tls://c:4222", 3, true, false},
		{`{url: "nats://localhost:4222"}`, "nats://localhost:4222", 1, false, false},
		{`{url: "nats://bus.example.org:4222"}`, "nats://bus.example.org:4222", 1, false, true},
	} {
		inv, err := parse("pawl.yaml", []byte("nats: "+c.section))
		if err != nil {
			t.Errorf("%s: %v", c.section, err)
			continue
		}
		warned := len(inv.Warnings) == 1 && strings.Contains(inv.Warnings[0], "passes the network in clear")
		if n := inv.NATS; n.Address() != c.address || n.Replicas != c.replicas || n.TLS() != c.tls || warned != c.warned {
			t.Errorf("%s: %+v, warnings %q", c.section, n, inv.Warnings)
		}
	}
}
