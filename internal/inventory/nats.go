package inventory

import (
	"net"
	"net/url"
	"path/filepath"
	"strings"
)

// NATS says where the bus is. With URL empty, `pawl up` embeds it on Listen.
type NATS struct {
	URL    string // one server of your own, or several of its cluster with commas between
	Listen string // default 127.0.0.1:4222
	// Replicas is on how many servers of the cluster each stream lies: 1, or 3, of
	// which one may be away.
	Replicas int
}

// Address is the URL by which Pawl joins the bus.
func (n NATS) Address() string {
	if n.URL != "" {
		return n.URL
	}
	return "nats://" + n.Listen
}

// TLS reports whether the bus is reached by mutual TLS, with the certificates of
// TLSDir.
func (n NATS) TLS() bool {
	return strings.HasPrefix(n.URL, "tls://") || strings.HasPrefix(n.URL, "wss://")
}

// TLSDir holds ca.pem, the authority of the bus, and USER.pem and USER.key of
// each user.
func (i *Inventory) TLSDir() string { return filepath.Join(i.KeysDir, "tls") }

func readNATS(v value) NATS {
	o := v.object("url", "listen", "replicas")
	n := NATS{URL: o.at("url").servers(), Listen: o.at("listen").address("127.0.0.1:4222", 1), Replicas: o.at("replicas").integer(1, 1, 3)}
	switch {
	case o.at("url").node != nil && o.at("listen").node != nil:
		o.at("listen").fault("stands beside url: keep listen for the embedded server, or url for yours")
	case o.at("listen").node != nil && !isLoopback(n.Listen):
		o.at("listen").fault("is reached by other machines, and the embedded server speaks no TLS: listen on 127.0.0.1, or run a nats-server of your own (`pawl nats-config`, docs/nats.md) and name it in url")
	case n.Replicas == 2:
		o.at("replicas").fault("two servers are less than one: without either, nothing is decided: write 1 or 3")
	case n.Replicas > 1 && o.at("url").node == nil:
		o.at("replicas").fault("the embedded server is one: name the servers of your cluster in url")
	}
	return n
}

// servers is one NATS URL, or several with commas between.
func (v value) servers() string {
	text := v.text()
	if text == "" {
		return ""
	}
	var all []string
	scheme, clear := "", false
	for server := range strings.SplitSeq(text, ",") {
		server = strings.TrimSpace(server)
		faults := len(v.doc.faults)
		v.checkURL(server, []string{"nats", "tls", "ws", "wss"})
		if len(v.doc.faults) > faults {
			return ""
		}
		u, err := url.Parse(server)
		if err != nil {
			return "" // said above
		}
		if scheme != "" && u.Scheme != scheme {
			v.fault("names servers by %s:// and by %s://: write all of them by one, tls:// but for tests", scheme, u.Scheme)
			return ""
		}
		scheme = u.Scheme
		clear = clear || (scheme == "nats" || scheme == "ws") && !isLoopback(net.JoinHostPort(u.Hostname(), "0"))
		all = append(all, server)
	}
	if clear {
		v.warn("what Pawl and its bus tell each other passes the network in clear: use tls://, with the certificates that `pawl nats-config` makes")
	}
	return strings.Join(all, ",")
}
