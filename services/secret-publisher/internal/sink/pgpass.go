package sink

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgpass"
	"pawl.dev/internal/secret"
)

// both lists the two logins that a credential may have, whatever its strategy:
// it may have been alternating before.
func both(c *inventory.Credential) []string { return []string{c.Role, c.Sibling()} }

// besides returns the login of the credential that user takes turns with, ""
// where there is none.
func besides(c *inventory.Credential, user string) string {
	for _, login := range c.Logins() {
		if login != user {
			return login
		}
	}
	return ""
}

// passwords is the format of libpq's password file.
type passwords struct {
	credential *inventory.Credential
	hosts      []string
}

func (p passwords) read(content []byte) (found []Content, err error) {
	file := pgpass.Parse(content)
	for _, login := range both(p.credential) {
		for _, password := range file.Lookup(login, p.hosts) {
			found = append(found, Content{Login: inventory.Login{User: login, Password: secret.New(password)}})
		}
	}
	return found, nil
}

func (p passwords) held(content []byte) ([]Content, error) { return p.read(content) }

func (p passwords) render(old []byte, want Content) ([]byte, error) {
	file := pgpass.Parse(old)
	n, err := file.Set(want.User, want.Password.Reveal(), p.hosts)
	if other := besides(p.credential, want.User); err == nil && n == 0 && other != "" {
		n, err = file.Copy(other, want.User, want.Password.Reveal(), p.hosts)
	}
	switch by := file.Shadow(want.User, p.hosts); {
	case err != nil:
		return nil, err
	case old == nil:
		return nil, errors.New("does not exist: create it, mode 0600, with " + p.example())
	case n == 0:
		return nil, errors.New("has no line for a login of this credential: add " + p.example())
	case by > 0:
		return nil, fmt.Errorf("line %d is for any user, and libpq takes it before that of %s below: move it down", by, want.User)
	}
	return file.Bytes(), nil
}

// example is a line as it must be there, but for its password.
func (p passwords) example() string {
	host := strings.NewReplacer("[", "", "]", "").Replace(p.hosts[0])
	if i := strings.LastIndexByte(host, ':'); slices.Contains([]byte(host[:i]), ':') {
		host = strings.ReplaceAll(host[:i], ":", `\:`) + host[i:]
	}
	return fmt.Sprintf("%s:*:%s:PASSWORD", host, p.credential.Role)
}
