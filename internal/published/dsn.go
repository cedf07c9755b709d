package published

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/secret"
)

// DSN is a PostgreSQL connection URL whose login can be replaced while all else
// stays as it was written. net/url does not do: it refuses the lists of hosts
// that libpq allows, and its errors quote the URL.
type DSN struct {
	inventory.Login
	scheme string // with ://
	rest   string // from the @ on
}

// NewDSN returns the URL of a database, yet without a login.
func NewDSN(host string, port uint16, database string) DSN {
	return DSN{scheme: "postgres://", rest: "@" + net.JoinHostPort(host, strconv.Itoa(int(port))) + "/" + escape(database)}
}

// ServerDSN returns the URL that a person wrote of a server, yet without a login.
func ServerDSN(text string) DSN {
	scheme, rest, _ := strings.Cut(text, "://")
	return DSN{scheme: scheme + "://", rest: "@" + rest}
}

// ErrNoPassword is of a URL, or a JSON object, that is whole but for its password.
var ErrNoPassword = errors.New("no password")

// ParseDSN reads a URL that carries user and password before its host. Errors
// do not quote it. With ErrNoPassword it returns the URL.
func ParseDSN(text string) (DSN, error) {
	scheme, rest, ok := strings.Cut(text, "://")
	if !ok || !strings.HasPrefix(scheme, "postgres") {
		return DSN{}, errors.New("not a postgres:// URL")
	}
	authority := rest
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority = rest[:i]
	}
	at := strings.IndexByte(authority, '@')
	if at < 0 {
		return DSN{}, errors.New("the URL carries no user and password before its host (an @ and / in either must be percent-encoded)")
	}
	if strings.Contains(authority[at+1:], "@") {
		return DSN{}, errors.New("the URL has two @ before its path: drivers disagree on where the password ends: percent-encode it")
	}
	name, word, _ := strings.Cut(authority[:at], ":")
	user, err := url.PathUnescape(name)
	password, err2 := url.PathUnescape(word)
	if err != nil || err2 != nil {
		return DSN{}, errors.New("the URL's user or password is not percent-encoded properly")
	}
	_, query, _ := strings.Cut(rest, "?")
	for parameter := range strings.SplitSeq(query, "&") {
		if key, _, _ := strings.Cut(parameter, "="); key == "user" || key == "password" {
			return DSN{}, errors.New("the URL carries a user or password among its parameters, which overrides the one before its host: remove it there")
		}
	}
	dsn := DSN{Login: inventory.Login{User: user, Password: secret.New(password)}, scheme: scheme + "://", rest: rest[at:]}
	switch {
	case password == "":
		return dsn, fmt.Errorf("the URL carries %w", ErrNoPassword)
	case user == "":
		return DSN{}, errors.New("the URL carries no user")
	}
	return dsn, nil
}

// With returns the URL with another login: a secret.
func (d DSN) With(l inventory.Login) string {
	return d.scheme + escape(l.User) + ":" + escape(l.Password.Reveal()) + d.rest
}

// escape percent-encodes all but letters, digits and -_.~, so that no reader of
// a .env file, shell or URL cuts the value.
func escape(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }
