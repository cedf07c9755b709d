package pgbouncer

import (
	"fmt"
	"slices"
	"strings"

	"pawl.dev/internal/secret"
)

// Userlist is a parsed auth_file, of lines "user" "password or verifier". All
// but the secrets stays byte for byte. It is not safe for concurrent use.
type Userlist struct {
	entries []entry
	rest    string // behind the last entry
}

// entry reads before "user" between "secret" after; user and secret as they
// stand there, a quote doubled.
type entry struct{ before, user, between, secret, after string }

func (e entry) text() string {
	return e.before + `"` + e.user + `"` + e.between + `"` + e.secret + `"` + e.after
}

var (
	quote   = strings.NewReplacer(`"`, `""`).Replace
	unquote = strings.NewReplacer(`""`, `"`).Replace
)

// ParseUserlist reads a file as pgbouncer does. It fails where pgbouncer would
// stop reading, and would know no login below.
func ParseUserlist(content []byte) (*Userlist, error) {
	u := &Userlist{}
	text := string(content)
	if i := strings.IndexByte(text, 0); i >= 0 {
		return nil, broken(text[:i])
	}
	for text != "" {
		begins := start(text)
		if begins == len(text) {
			break
		}
		e := entry{before: text[:begins]}
		rest, ok := text[begins:], false
		if e.user, rest, ok = quoted(rest); ok {
			if i := strings.IndexByte(rest, '"'); i >= 0 {
				e.between = rest[:i]
				e.secret, rest, ok = quoted(rest[i:])
			} else {
				ok = false
			}
		}
		if !ok {
			return nil, broken(string(content[:len(content)-len(text)+begins]))
		}
		e.after = rest
		if i := strings.IndexByte(rest, '\n'); i >= 0 {
			e.after = rest[:i+1]
		}
		u.entries = append(u.entries, e)
		text = rest[len(e.after):]
	}
	u.rest = text
	return u, nil
}

func broken(above string) error {
	return fmt.Errorf("line %d: pgbouncer reads no further than this, which is no \"user\" \"password\" in double quotes: mend the line, or put ; before it", strings.Count(above, "\n")+1)
}

// start returns where the next entry begins, behind blanks and ; comments.
func start(text string) int {
	at := 0
	for at < len(text) {
		switch c := text[at]; {
		case strings.IndexByte(" \t\r\n\v\f", c) >= 0:
			at++
		case c == ';':
			line, _, _ := strings.Cut(text[at:], "\n")
			at += len(line)
		default:
			return at
		}
	}
	return at
}

// quoted cuts a string in quotes off the beginning of text.
func quoted(text string) (inner, rest string, ok bool) {
	if !strings.HasPrefix(text, `"`) {
		return "", text, false
	}
	for i := 1; i < len(text); i++ {
		switch {
		case text[i] != '"':
		case i+1 < len(text) && text[i+1] == '"':
			i++
		default:
			return text[1:i], text[i+1:], true
		}
	}
	return "", text, false
}

// Bytes returns the file as it now reads.
func (u *Userlist) Bytes() []byte {
	var b strings.Builder
	for _, e := range u.entries {
		b.WriteString(e.text())
	}
	return []byte(b.String() + u.rest)
}

// Lookup returns what stands for the login. Of several entries the last counts,
// as it does to pgbouncer.
func (u *Userlist) Lookup(login string) (found secret.String, ok bool) {
	for _, e := range u.entries {
		if unquote(e.user) == login {
			found, ok = secret.New(unquote(e.secret)), true
		}
	}
	return found, ok
}

// Hashed reports whether pgbouncer takes the secret for a verifier, and not for
// the password itself.
func Hashed(s secret.String) bool {
	text := s.Reveal()
	return strings.HasPrefix(text, "SCRAM-SHA-256$") || strings.HasPrefix(text, "md5") && len(text) == len("md5")+32
}

// Set gives every entry of the login another secret. Where there is none, one
// is added right behind the last of next to, or at the end. Idempotent.
func (u *Userlist) Set(login string, value secret.String, nextTo string) {
	behind, found := len(u.entries), false
	for i, e := range u.entries {
		switch unquote(e.user) {
		case login:
			u.entries[i].secret, found = quote(value.Reveal()), true
		case nextTo:
			behind = i + 1
		}
	}
	if found {
		return
	}
	if behind > 0 && !strings.HasSuffix(u.entries[behind-1].after, "\n") { // the last line
		u.entries[behind-1].after += "\n"
	}
	u.entries = slices.Insert(u.entries, behind, entry{user: quote(login), between: " ", secret: quote(value.Reveal()), after: "\n"})
}
