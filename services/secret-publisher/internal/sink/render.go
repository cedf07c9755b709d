package sink

import (
	"encoding/json"
	"errors"
	"strings"

	"pawl.dev/internal/dotenv"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/published"
)

// whole is the format of a file that holds one login, in any way: that of the
// dotenv and file sinks.
type whole struct {
	credential *inventory.Credential
	entries    []inventory.Sink // all of this file
}

func (f whole) read(content []byte) ([]Content, error) {
	login, err := published.Parse(content, f.entries...)
	return []Content{{Login: login}}, err
}

func (f whole) held(content []byte) (held []Content, err error) {
	logins, err := published.Passwords(content, f.entries...)
	for _, login := range logins {
		held = append(held, Content{Login: login})
	}
	return held, err
}

func (f whole) render(old []byte, want Content) ([]byte, error) {
	next := old
	for _, e := range f.entries {
		var err error
		switch {
		case e.Dotenv != nil && old == nil:
			err = errors.New("does not exist: create it with its keys, such as KEY=")
		case e.Dotenv != nil:
			next, err = f.renderDotenv(next, e.Dotenv, want)
		default:
			next, err = f.renderFile(next, e.File, want)
		}
		if err != nil {
			return nil, err
		}
	}
	return next, nil
}

func (f whole) renderDotenv(old []byte, d *inventory.Dotenv, want Content) ([]byte, error) {
	env, err := dotenv.Parse(old)
	if err != nil {
		return nil, err
	}
	set := func(key, value string) error {
		err := env.Set(key, value)
		if d.MissingKeysOK && errors.Is(err, dotenv.ErrNoKey) && !strings.HasSuffix(key, "]") {
			return env.Append(key, value)
		}
		return err
	}
	if d.DSN != "" {
		now, err := env.Lookup(d.DSN)
		if err != nil && !(d.MissingKeysOK && errors.Is(err, dotenv.ErrNoKey)) {
			return nil, err
		}
		dsn, err := f.dsn(now)
		if err != nil {
			return nil, err
		}
		if err := set(d.DSN, dsn.With(want.Login)); err != nil {
			return nil, err
		}
	}
	if d.User != "" {
		if err := set(d.User, want.User); err != nil {
			return nil, err
		}
	}
	if d.Password != "" {
		if err := set(d.Password, want.Password.Reveal()); err != nil {
			return nil, err
		}
	}
	return env.Bytes(), nil
}

func (f whole) renderFile(old []byte, e *inventory.File, want Content) ([]byte, error) {
	switch e.Format {
	case inventory.FormatPassword:
		return []byte(want.Password.Reveal()), nil
	case inventory.FormatDSN:
		line := strings.TrimRight(string(old), "\r\n")
		dsn, err := f.dsn(line)
		return []byte(dsn.With(want.Login) + string(old)[len(line):]), err
	case inventory.FormatJSON:
		return f.renderJSON(old, want)
	}
	return nil, errors.New("unknown format " + e.Format)
}

// dsn is the URL that is there, or else that of the credential's primary.
func (f whole) dsn(now string) (published.DSN, error) {
	if now != "" {
		dsn, err := published.ParseDSN(now)
		if errors.Is(err, published.ErrNoPassword) {
			err = nil // it is about to get one
		}
		return dsn, err
	}
	node := f.credential.Primary()
	return published.NewDSN(node.Host, node.Port, f.credential.Database), nil
}

// renderJSON keeps the members that are there: a host may be a pooler's.
func (f whole) renderJSON(old []byte, want Content) ([]byte, error) {
	members := map[string]json.RawMessage{}
	if len(old) > 0 && json.Unmarshal(old, &members) != nil || members == nil {
		return nil, errors.New("holds no JSON object") // the decoder's error could quote it
	}
	node := f.credential.Primary()
	for name, value := range map[string]any{"host": node.Host, "port": node.Port, "database": f.credential.Database} {
		if _, ok := members[name]; !ok {
			members[name], _ = json.Marshal(value)
		}
	}
	for name, value := range map[string]any{"user": want.User, "password": want.Password.Reveal(), "generation": want.Generation} {
		members[name], _ = json.Marshal(value) // strings and numbers always do
	}
	text, err := json.MarshalIndent(members, "", "  ")
	return append(text, '\n'), err
}
