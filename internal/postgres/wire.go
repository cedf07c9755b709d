package postgres

import (
	"fmt"
	"strings"

	"pawl.dev/internal/loopback"
)

// wire returns how the session is protected on its way. Whoever stands between can
// take TLS away from prefer, and show a certificate of their own to require; to a
// server on another machine, what is not written in pawl.yaml is verify-full. With
// TLS demanded, SCRAM is bound to the certificate (RFC 5929, tls-server-end-point),
// so that a proof cannot be passed on to the real server.
func (t Target) wire() (mode, binding string) {
	mode, binding = t.SSLMode, t.ChannelBinding
	if mode == "" {
		if mode = "verify-full"; local(t.Host) {
			mode = "prefer"
		}
	}
	if binding == "" {
		if binding = "prefer"; demandsTLS(mode) {
			binding = "require"
		}
	}
	return mode, binding
}

func demandsTLS(mode string) bool {
	return mode == "require" || strings.HasPrefix(mode, "verify-")
}

// local reports whether a host is this machine: a socket's folder, or loopback.
func local(host string) bool {
	return strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") || loopback.Name(host)
}

// Exposed says what an attacker on the network could do to sessions of the target,
// because of what pawl.yaml says; empty: nothing that TLS keeps away, or the server
// is on this machine.
func (t Target) Exposed() string {
	mode, binding := t.wire()
	switch {
	case local(t.Host) || mode == "verify-full" && binding == "require":
		return ""
	case !demandsTLS(mode):
		return fmt.Sprintf("sslmode %s: whoever is between can read and change all that is said, and take over the session", mode)
	case mode == "verify-full":
		return fmt.Sprintf("channel_binding %s: the certificate alone keeps others away", binding)
	case binding == "require":
		return fmt.Sprintf("sslmode %s: the server's name is not checked, its certificate only by channel binding", mode)
	default:
		return fmt.Sprintf("sslmode %s with channel_binding %s: whoever is between with a certificate of their own can take over the session", mode, binding)
	}
}

// wireFix adds to a failure of TLS what to do about it.
func (t Target) wireFix(err error) error {
	mode, binding := t.wire()
	text := err.Error()
	fix := ""
	switch {
	case strings.Contains(text, "server refused TLS connection"):
		fix = fmt.Sprintf("%s:%d speaks no TLS, and sslmode is %s: set ssl = on in postgresql.conf, or write sslmode: disable in pawl.yaml where the network is trusted", t.Host, t.Port, mode)
	case strings.Contains(text, "certificate signed by unknown authority"):
		fix = "name the authority of the server's certificate in sslrootcert; for a self-signed one, the certificate itself"
	case strings.Contains(text, "certificate is valid for") || strings.Contains(text, "doesn't contain any IP SANs") || strings.Contains(text, "not valid for any names"):
		fix = fmt.Sprintf("the server's certificate does not name %s: use the name that it has as host, make one that does, or write sslmode: verify-ca", t.Host)
	case strings.Contains(text, "channel binding is undefined for certificate") || strings.Contains(text, "channel binding negotiation error"):
		fix = "for a certificate that is signed in this way (Ed25519, for one) no channel binding is defined: give the server one of ECDSA or RSA, or write channel_binding: disable"
	case binding == "require" && strings.Contains(text, "channel binding"):
		fix = "the server offers no channel binding: somebody may be in between; where it is a pooler that has none, write channel_binding: prefer"
	default:
		return err
	}
	return &hint{err, fix}
}
