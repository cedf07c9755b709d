// Package pgpass rewrites passwords in libpq's password files, lines of
// host:port:database:user:password, and leaves every other byte as it was.
package pgpass

import (
	"errors"
	"net"
	"slices"
	"strings"
)

// File is a parsed file. It is not safe for concurrent use.
type File struct{ lines []line }

// line is one line with its end. One that libpq passes over has no fields.
type line struct {
	head     string // up to the password
	password string // as it stands there
	tail     string // from there on
	fields   []field
}

const (
	host = iota
	port
	database
	user
	count // of fields before the password
)

// field is one as it is meant: escapes resolved, and whether it fits all.
type field struct {
	text string
	any  bool
}

// Parse reads a file. Lines that libpq would pass over are kept. Bytes gives
// back exactly what Parse was given.
func Parse(content []byte) *File {
	f := &File{}
	for text := range strings.SplitAfterSeq(string(content), "\n") {
		if text != "" {
			f.lines = append(f.lines, parse(text))
		}
	}
	return f
}

func parse(text string) line {
	body := strings.TrimRight(text, "\r\n")
	if strings.HasPrefix(body, "#") {
		return line{head: text}
	}
	var fields []field
	at := 0
	for range count {
		end := at + fieldEnd(body[at:])
		if end == len(body) {
			return line{head: text}
		}
		raw := body[at:end]
		fields = append(fields, field{unescape(raw), raw == "*"})
		at = end + 1
	}
	end := at + fieldEnd(body[at:])
	return line{head: text[:at], password: text[at:end], tail: text[end:], fields: fields}
}

// fieldEnd returns where the first colon stands that no backslash hides.
func fieldEnd(text string) int {
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case ':':
			return i
		}
	}
	return len(text)
}

func unescape(raw string) string {
	var b strings.Builder
	for i := 0; i < len(raw); i++ {
		if raw[i] == '\\' && i+1 < len(raw) {
			i++
		}
		b.WriteByte(raw[i])
	}
	return b.String()
}

var escape = strings.NewReplacer(`\`, `\\`, `:`, `\:`).Replace

// Bytes returns the file as it now reads.
func (f *File) Bytes() []byte {
	var b strings.Builder
	for _, l := range f.lines {
		b.WriteString(l.text())
	}
	return []byte(b.String())
}

func (l line) text() string { return l.head + l.password + l.tail }

// Lookup returns the passwords of the login's lines that fit one of the hosts
// (host:port, where * fits all), in their order.
func (f *File) Lookup(login string, hosts []string) (passwords []string) {
	for _, i := range f.find(login, hosts) {
		passwords = append(passwords, unescape(f.lines[i].password))
	}
	return passwords
}

// Shadow returns the number, from 1, of a line that has * for the user and that
// libpq would take instead of one of the login below it; 0: there is none.
func (f *File) Shadow(login string, hosts []string) int {
	for _, i := range f.find(login, hosts) {
		for above, l := range f.lines[:i] {
			if l.fields != nil && l.fields[user].any && l.fits(hosts) && meet(l.fields[database], f.lines[i].fields[database]) {
				return above + 1
			}
		}
	}
	return 0
}

// Set gives the login's lines that fit one of the hosts another password, and
// returns how many there are. Idempotent.
func (f *File) Set(login, password string, hosts []string) (int, error) {
	if err := writable(password); err != nil {
		return 0, err
	}
	found := f.find(login, hosts)
	for _, i := range found {
		if unescape(f.lines[i].password) != password {
			f.lines[i].password = escape(password)
		}
	}
	return len(found), nil
}

// Copy puts, right after each line of the login from that fits one of the
// hosts, the same line for login. It returns how many there are.
func (f *File) Copy(from, login, password string, hosts []string) (int, error) {
	if err := errors.Join(writable(login), writable(password)); err != nil {
		return 0, err
	}
	found := f.find(from, hosts)
	for _, i := range slices.Backward(found) { // the earlier ones keep their places
		l := f.lines[i]
		if !strings.HasSuffix(l.tail, "\n") { // the last line
			f.lines[i].tail += "\n"
		}
		l.head = l.head[:len(l.head)-len(userField(l.head))] + escape(login) + ":"
		l.password = escape(password)
		l.fields = slices.Clone(l.fields)
		l.fields[user] = field{text: login}
		f.lines = slices.Insert(f.lines, i+1, l)
	}
	return len(found), nil
}

// userField returns the last field of a head, with its colon.
func userField(head string) string {
	for range user {
		head = head[fieldEnd(head)+1:]
	}
	return head
}

func (f *File) find(login string, hosts []string) (at []int) {
	for i, l := range f.lines {
		if l.fields != nil && !l.fields[user].any && l.fields[user].text == login && l.fits(hosts) {
			at = append(at, i)
		}
	}
	return at
}

func (l line) fits(hosts []string) bool {
	return slices.ContainsFunc(hosts, func(address string) bool {
		h, p, err := net.SplitHostPort(address)
		return err == nil && meet(l.fields[host], field{h, h == "*"}) && meet(l.fields[port], field{p, p == "*"})
	})
}

// meet reports whether there is something that both fit.
func meet(a, b field) bool { return a.any || b.any || a.text == b.text }

// writable refuses what no line can hold.
func writable(text string) error {
	if strings.ContainsAny(text, "\r\n\x00") {
		return errors.New("a password file cannot hold a login with a line break or a NUL byte")
	}
	return nil
}
