package sink

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgbouncer"
)

// userlist is the format of pgbouncer's auth_file.
type userlist struct{ credential *inventory.Credential }

func (u userlist) read(content []byte) (found []Content, err error) {
	list, err := pgbouncer.ParseUserlist(content)
	if err != nil {
		return nil, err
	}
	for _, login := range both(u.credential) {
		held, ok := list.Lookup(login)
		switch {
		case !ok:
		case pgbouncer.Hashed(held):
			found = append(found, Content{Login: inventory.Login{User: login}, Verifier: held})
		default:
			found = append(found, Content{Login: inventory.Login{User: login, Password: held}})
		}
	}
	return found, nil
}

func (u userlist) held(content []byte) ([]Content, error) { return u.read(content) }

func (u userlist) render(old []byte, want Content) ([]byte, error) {
	if old == nil {
		return nil, errors.New("does not exist: create it with the lines of pgbouncer's users")
	}
	if want.Verifier.IsZero() {
		return nil, errors.New("the sealed credential has no verifier, it is of an older version: run pawl adopt")
	}
	list, err := pgbouncer.ParseUserlist(old)
	if err != nil {
		return nil, err
	}
	list.Set(want.User, want.Verifier, besides(u.credential, want.User))
	return list.Bytes(), nil
}

// pooler is a userlist and the pgbouncer that reads it.
type pooler struct {
	*file
	sink       *inventory.Userlist
	credential *inventory.Credential
}

func (p *pooler) Reload(ctx context.Context) error {
	console, err := pgbouncer.Open(ctx, p.sink.Console)
	if err != nil {
		return err
	}
	defer console.Close()
	return console.Reload(ctx)
}

// Cut ends every connection of the databases in which one of the logins has any.
func (p *pooler) Cut(ctx context.Context) error {
	console, err := pgbouncer.Open(ctx, p.sink.Console)
	if err != nil {
		return err
	}
	defer console.Close()
	_, err = console.Cut(ctx, both(p.credential))
	return err
}

func (p *pooler) Check(ctx context.Context, want Content) (warnings []string, err error) {
	if warnings, err = p.file.Check(ctx, want); err != nil {
		return nil, err
	}
	console, err := pgbouncer.Open(ctx, p.sink.Console)
	if err != nil {
		return nil, settle(err)
	}
	defer console.Close()
	settings, err := console.Config(ctx)
	if err != nil {
		return nil, settle(err)
	}
	if err := console.Admin(settings); err != nil {
		return nil, settle(err)
	}
	more, err := p.checkSettings(settings)
	if err != nil {
		return nil, err
	}
	// With a verifier pgbouncer can only pass on what its clients prove.
	forced, err := console.Forced(ctx, p.credential.Logins())
	if err == nil && len(forced) > 0 {
		err = refuse("pgbouncer logs in to %s as this credential for whoever asks (user= in [databases]), and cannot with a verifier: delete user= there", strings.Join(forced, ", "))
	}
	return append(warnings, more...), err
}

// settle makes a refusal of what trying again cannot mend.
func settle(err error) error {
	if errors.As(err, new(*pgbouncer.Refused)) {
		return Refusal{err}
	}
	return err
}

func (p *pooler) checkSettings(settings map[string]string) (warnings []string, err error) {
	switch authFile := settings["auth_file"]; {
	case authFile == "":
		return nil, refuse("pgbouncer reads no userlist: set auth_file = %s, and RELOAD", p.sink.AuthFile)
	case !filepath.IsAbs(authFile):
		return nil, refuse("pgbouncer's auth_file %q is relative, to where nobody here can tell: write the whole path, and RELOAD", authFile)
	case !sameFile(authFile, p.sink.AuthFile):
		return nil, refuse("pgbouncer reads %s, not %s: name that file as userlist, or, where it is this file that pgbouncer sees there, write auth_file: %s", authFile, p.sink.AuthFile, authFile)
	}
	switch auth := settings["auth_type"]; auth {
	case "scram-sha-256":
	case "md5": // asks for SCRAM where a verifier stands
	case "hba":
		warnings = append(warnings, "pgbouncer's auth_type is hba: only lines of auth_hba_file with scram-sha-256 take what is written here")
	default:
		return nil, refuse("pgbouncer's auth_type is %s, which checks no verifier: set auth_type = scram-sha-256, and RELOAD", auth)
	}
	if asker := settings["auth_user"]; asker != "" {
		warnings = append(warnings, fmt.Sprintf("pgbouncer's auth_user is %q: it asks PostgreSQL for logins that its userlist lacks, and needs no sink for those", asker))
	}
	return warnings, nil
}

// sameFile compares what the paths lead to; one that leads nowhere here, since
// pgbouncer runs elsewhere, by its name.
func sameFile(a, b string) bool {
	first, err1 := os.Stat(a)
	second, err2 := os.Stat(b)
	return filepath.Clean(a) == filepath.Clean(b) || err1 == nil && err2 == nil && os.SameFile(first, second)
}
