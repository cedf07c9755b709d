package inventory

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
)

var sinkKinds = []string{"dotenv", "file", "pgpass", "pgbouncer", "docker_secret"}

func readPublish(v value, c *Credential) []Sink {
	var sinks []Sink
	var places []value
	for _, item := range v.list() {
		kind, body := item.variant("sink", sinkKinds)
		switch kind {
		case "dotenv":
			sinks, places = append(sinks, Sink{Dotenv: readDotenv(body)}), append(places, body)
		case "file":
			sinks, places = append(sinks, Sink{File: readFile(body)}), append(places, body)
		case "pgpass":
			sinks, places = append(sinks, Sink{Pgpass: readPgpass(body, c)}), append(places, body)
		case "pgbouncer":
			sinks, places = append(sinks, Sink{Pgbouncer: readUserlist(body, c)}), append(places, body)
		case "docker_secret":
			sinks, places = append(sinks, Sink{DockerSecret: readDockerSecret(body)}), append(places, body)
		}
	}
	if v.node == nil || v.isEmptyList() {
		v.missing("a credential needs a place where it is published, such as - dotenv: {path: .env, user: APP_USER, password: APP_PASSWORD}")
	}
	if len(sinks) > 0 && !slices.ContainsFunc(sinks, func(s Sink) bool { return !s.Lookup() }) {
		v.fault("pgpass and pgbouncer tell what password a login has, not which login to use: add a dotenv or a file sink, which applications read that from")
	}
	checkWhole(sinks, places, c.Strategy)
	checkServices(sinks, places, c.Strategy)
	return sinks
}

func readDotenv(v value) *Dotenv {
	o := v.object("path", "user", "password", "dsn", "allow_tracked", "missing_keys_ok")
	s := &Dotenv{
		Path:          o.sinkPath("path"),
		AllowTracked:  o.at("allow_tracked").boolean(),
		MissingKeysOK: o.at("missing_keys_ok").boolean(),
	}
	s.User = o.at("user").dotenvKey(s.Path, false)
	s.Password = o.at("password").dotenvKey(s.Path, true)
	s.DSN = o.at("dsn").dotenvKey(s.Path, false)
	if base, _, _ := strings.Cut(s.Password, "["); base == "POSTGRES_PASSWORD" {
		o.at("password").warn("PostgreSQL's image reads POSTGRES_PASSWORD only when it first fills an empty data directory: a running server has the password that Pawl gave it, and restarting it changes nothing")
	}
	return s
}

func readFile(v value) *File {
	o := v.object("path", "format", "mode")
	s := &File{Path: o.sinkPath("path"), Mode: o.at("mode").mode()}
	if o.readable() {
		s.Format = o.at("format").choice("", FormatDSN, FormatJSON, FormatPassword)
	}
	o.at("path").claim(s.Path, "")
	return s
}

func (o object) sinkPath(key string) string {
	at := o.at(key)
	if at.node == nil && o.readable() {
		at.missing("the file to write")
	}
	path := at.file("")
	if path != "" && o.doc.resolve(path) == o.doc.resolve(o.doc.file) {
		at.fault("is this configuration itself, and passwords never stand in it: name another file")
	}
	return path
}

var (
	keyForm    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]*$`)
	listMember = regexp.MustCompile(`^(.*)\[\d{1,4}\]$`)
)

// dotenvKey is the name of a key in a .env file, or of a list member. It is not
// quoted where it does not fit: it may be a password in the wrong place.
func (v value) dotenvKey(path string, list bool) string {
	key := v.text()
	if key == "" {
		return ""
	}
	base := key
	if m := listMember.FindStringSubmatch(key); m != nil && list {
		base = m[1]
	}
	switch {
	case base == "REPLICA_PASSWORDS" || base == "REPLICA_PASSWORD":
		v.fault("a physical replica has no password of its own, it follows its primary: delete this sink, and let what connects to replicas read the primary's credential")
	case keyForm.MatchString(base):
		v.claim(path, key)
	case list:
		v.fault("must be the name of a key in the file, such as APP_PASSWORD, or of a list member, such as APP_PASSWORDS[0]; the password itself never stands here")
	default:
		v.fault("must be the name of a key in the file, such as APP_USER or DATABASE_URL")
	}
	return key
}

// place is a key of a file, or all of it.
type place struct{ file, key string }

const (
	wholeFile = ""
	anyKey    = "*"
	anyMember = "[*]"
)

// claim refuses a second writer of one key. A file and its keys exclude each
// other, and so do a list and its members.
func (v value) claim(path, key string) {
	if path == "" {
		return
	}
	file := v.doc.resolve(path)
	clashes, marks := []string{key, wholeFile}, []string{key, anyKey}
	base, _, member := strings.Cut(key, "[")
	switch {
	case key == wholeFile:
		clashes = append(clashes, anyKey)
	case member:
		clashes, marks = append(clashes, base), append(marks, base+anyMember)
	default:
		clashes = append(clashes, key+anyMember)
	}
	for _, clash := range clashes {
		if other, taken := v.doc.published[place{file, clash}]; taken {
			v.fault("%s already writes this to %s (line %d): give each a key or a file of its own", other.path, path, other.line)
			return
		}
	}
	for _, mark := range marks {
		v.doc.published[place{file, mark}] = v
	}
}

// mode is a file mode, octal whether or not it begins with 0.
func (v value) mode() uint32 {
	text := v.text()
	if text == "" {
		return 0o600
	}
	mode, err := strconv.ParseUint(strings.TrimPrefix(text, "0o"), 8, 32)
	switch {
	case err != nil || mode > 0o777 || mode&0o111 != 0 || mode&0o600 != 0o600:
		v.fault("%.60q must be an octal file mode that lets the owner read and write, and nobody execute: 0600 or 0640", text)
	case mode&0o002 != 0:
		v.fault("%.60q lets everybody on the machine change the file: use 0600 or 0640", text)
	case mode&0o004 != 0:
		v.warn("%.60q lets everybody on the machine read the password", text)
	}
	return uint32(mode)
}

// written is what a credential's entries for one .env file write together.
type written struct {
	user, password, dsn bool
	at                  value
}

// checkWhole refuses sinks that cannot carry the credential. Under alternating
// the user name changes with the password, and a reader must never see the one
// without the other.
func checkWhole(sinks []Sink, places []value, strategy string) {
	files := map[string]*written{}
	var order []*written
	for i, s := range sinks {
		switch {
		case s.File != nil && s.File.Format == FormatPassword && strategy == Alternating:
			places[i].fault("alternating changes the user name too, and this file would hold the password alone: use format dsn or json, or strategy in-place")
		case s.Dotenv != nil && s.Dotenv.Path != "":
			w := files[s.Dotenv.Path]
			if w == nil {
				w = &written{at: places[i]}
				files[s.Dotenv.Path], order = w, append(order, w)
			}
			w.user = w.user || s.Dotenv.User != ""
			w.password = w.password || s.Dotenv.Password != ""
			w.dsn = w.dsn || s.Dotenv.DSN != ""
		}
	}
	for _, w := range order {
		switch {
		case !w.password && !w.dsn:
			w.at.fault("writes no password to this file: add the key password, or dsn")
		case strategy != Alternating:
		case !w.user && !w.dsn:
			w.at.fault("alternating changes the user name too, and nothing writes it to this file: add the key user, or dsn, or use strategy in-place")
		case !w.user && w.password:
			w.at.warn("alternating changes the user name too: whoever reads the key password must take the user name from dsn, or add the key user")
		}
	}
}
