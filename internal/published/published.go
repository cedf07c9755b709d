// Package published reads back the login that a sink holds.
package published

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"pawl.dev/internal/dotenv"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/secret"
)

// MaxSize of a file that is read, in bytes.
const MaxSize = 1 << 20

// Group puts the entries of one file together, in the order of their first one:
// together they are one sink, which holds one login. Symbolic links count as
// what they point to. Lookup sinks, which hold several, are left out, and so are
// Docker secrets, which nobody can read.
func Group(sinks []inventory.Sink) [][]inventory.Sink {
	var groups [][]inventory.Sink
	at := map[string]int{}
	for _, s := range sinks {
		if s.Lookup() || s.DockerSecret != nil {
			continue
		}
		path := Path(s)
		if target, err := filepath.EvalSymlinks(path); err == nil {
			path = target
		}
		i, ok := at[path]
		if !ok {
			i, at[path] = len(groups), len(groups)
			groups = append(groups, nil)
		}
		groups[i] = append(groups[i], s)
	}
	return groups
}

// Read returns the login that the entries of one file (one of Group) now hold
// there. Errors name the file and the key or line at fault, never what stands
// there.
func Read(entries ...inventory.Sink) (inventory.Login, error) {
	if len(entries) == 0 {
		return inventory.Login{}, errors.New("no sink to read")
	}
	path := Path(entries[0])
	content, err := ReadFile(path)
	if err != nil {
		return inventory.Login{}, err
	}
	login, err := Parse(content, entries...)
	if err != nil {
		return inventory.Login{}, fmt.Errorf("%s: %w", path, err)
	}
	return login, nil
}

// Path of the file that the sink is.
func Path(s inventory.Sink) string {
	switch {
	case s.Dotenv != nil:
		return s.Dotenv.Path
	case s.File != nil:
		return s.File.Path
	case s.Pgpass != nil:
		return s.Pgpass.Path
	case s.Pgbouncer != nil:
		return s.Pgbouncer.Path
	}
	return ""
}

// ReadFile reads a regular file of at most MaxSize.
func ReadFile(path string) ([]byte, error) {
	// Opening a pipe would block.
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, err
	}
	if len(content) > MaxSize {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, MaxSize)
	}
	return content, nil
}

// Parse returns the login that the entries of one file hold in its content. It
// fails where they hold different ones, or no password.
func Parse(content []byte, entries ...inventory.Sink) (inventory.Login, error) {
	var login inventory.Login
	var user, password string // where they were found
	for _, entry := range entries {
		found, err := parse(content, entry)
		if err != nil {
			return inventory.Login{}, err
		}
		for _, p := range found {
			if p.fault != nil {
				return inventory.Login{}, p.fault
			}
			switch {
			case p.User == "":
			case user != "" && p.User != login.User:
				return inventory.Login{}, fmt.Errorf("%s and %s hold different users", p.at, user)
			default:
				login.User, user = p.User, p.at
			}
			switch {
			case p.Password.IsZero():
			case password != "" && !p.Password.Equal(login.Password):
				return inventory.Login{}, fmt.Errorf("%s and %s hold different passwords", p.at, password)
			default:
				login.Password, password = p.Password, p.at
			}
		}
	}
	if password == "" {
		return inventory.Login{}, errors.New("holds no password")
	}
	return login, nil
}

// Passwords returns every password that the entries of one file hold in its content,
// each with its user, even if they do not belong together. A value that is empty or
// absent is none; for one that cannot be read the whole content stands. Errors quote
// nothing.
func Passwords(content []byte, entries ...inventory.Sink) (held []inventory.Login, err error) {
	if len(bytes.TrimSpace(content)) == 0 {
		return nil, nil
	}
	whole := inventory.Login{Password: secret.New(strings.TrimRight(string(content), "\r\n"))}
	var user string
	for _, entry := range entries {
		if f := entry.File; f != nil && f.Format == inventory.FormatPassword { // also more than one line
			held = append(held, whole)
			continue
		}
		found, err := parse(content, entry)
		if err != nil {
			return nil, err
		}
		for _, p := range found {
			switch {
			case p.absent:
			case p.fault != nil:
				held = append(held, whole)
			case p.Password.IsZero():
				user = p.User
			default:
				held = append(held, p.Login)
			}
		}
	}
	for i := range held {
		held[i].User = cmp.Or(held[i].User, user)
	}
	return held, nil
}

// part is what one key of a file holds of a login.
type part struct {
	inventory.Login
	at     string
	fault  error // why it cannot be read
	absent bool  // since the key is missing or empty
}

func parse(content []byte, entry inventory.Sink) ([]part, error) {
	switch {
	case entry.Dotenv != nil:
		return parseDotenv(content, entry.Dotenv)
	case entry.File != nil:
		login, err := parseFile(content, entry.File)
		if errors.Is(err, ErrNoPassword) {
			return []part{{fault: err, absent: true}}, nil
		}
		return []part{{Login: login, at: entry.File.Format}}, err
	}
	return nil, errors.New("a sink of a kind that cannot be read back")
}

func parseDotenv(content []byte, d *inventory.Dotenv) (found []part, err error) {
	file, err := dotenv.Parse(content)
	if err != nil {
		return nil, err
	}
	for _, key := range []string{d.DSN, d.User, d.Password} {
		if key == "" {
			continue
		}
		value, err := file.Lookup(key)
		p := part{at: key}
		switch {
		case errors.Is(err, dotenv.ErrNoKey):
			p.fault, p.absent = err, true
		case err != nil:
			p.fault = err
		case value == "":
			p.fault, p.absent = fmt.Errorf("%s is empty", key), true
		case key == d.DSN:
			dsn, err := ParseDSN(value)
			switch {
			case errors.Is(err, ErrNoPassword):
				p.fault, p.absent = fmt.Errorf("%s: %w", key, err), true
			case err != nil:
				return nil, fmt.Errorf("%s: %w", key, err)
			}
			p.Login = dsn.Login
		case key == d.User:
			p.User = value
		default:
			p.Password = secret.New(value)
		}
		found = append(found, p)
	}
	return found, nil
}

func parseFile(content []byte, f *inventory.File) (inventory.Login, error) {
	line := strings.TrimRight(string(content), "\r\n")
	switch f.Format {
	case inventory.FormatPassword:
		if strings.ContainsAny(line, "\r\n\x00") {
			return inventory.Login{}, errors.New("more than one line: not a file that holds a password alone")
		}
		return inventory.Login{Password: secret.New(line)}, nil
	case inventory.FormatDSN:
		dsn, err := ParseDSN(line)
		return dsn.Login, err
	case inventory.FormatJSON:
		return parseJSON(content)
	}
	return inventory.Login{}, fmt.Errorf("unknown format %q", f.Format)
}

// parseJSON takes the members by exact name, as most readers have it. An object
// without a password is ErrNoPassword.
func parseJSON(content []byte) (inventory.Login, error) {
	var fields map[string]any
	_ = json.Unmarshal(content, &fields) // the decoder's own error could quote the file
	user, _ := fields["user"].(string)
	password, isText := fields["password"].(string)
	switch {
	case user != "" && password != "":
		return inventory.Login{User: user, Password: secret.New(password)}, nil
	case fields != nil && password == "" && (isText || fields["password"] == nil):
		return inventory.Login{}, fmt.Errorf("%s: %w", notJSON, ErrNoPassword)
	}
	return inventory.Login{}, errors.New(notJSON)
}

const notJSON = `not a JSON object with the strings "user" and "password"`
