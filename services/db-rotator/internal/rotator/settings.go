package rotator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"pawl.dev/internal/effect"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/service"
)

// Whoever has a login can give it settings that outlive a password: a search_path,
// a role, a statement_timeout that ends every statement. So a login has the settings
// that adoption recorded, and none that were found on a login later.

// maxNamed is how many settings one message names.
const maxNamed = 20

// reader is a session or a transaction.
type reader interface {
	Settings(ctx context.Context, logins ...string) (map[string][]postgres.Setting, error)
}

// settingsOf reads the settings of the credential from one of its logins.
func settingsOf(ctx context.Context, from reader, c *inventory.Credential, login string) ([]sealed.Setting, error) {
	found, err := from.Settings(ctx, login)
	if err != nil {
		return nil, settle(err)
	}
	settings := postgres.OfCredential(c.Role, found[login])
	if err := postgres.Recordable(login, settings); err != nil {
		return nil, saga.Permanent(err)
	}
	recorded := make([]sealed.Setting, len(settings))
	for i, s := range settings {
		recorded[i] = sealed.Setting(s)
	}
	return recorded, nil
}

// settingsAt are those that were recorded of the node.
func settingsAt(envelope *sealed.Credential, node string) []postgres.Setting {
	settings := make([]postgres.Setting, len(envelope.Settings[node]))
	for i, s := range envelope.Settings[node] {
		settings[i] = postgres.Setting(s)
	}
	return settings
}

// withSettings names what an adoption recorded.
func withSettings(envelope *sealed.Credential) string {
	all := map[string]bool{}
	for _, settings := range envelope.Settings {
		for _, s := range settings {
			all[s.Name] = true
		}
	}
	if len(all) == 0 {
		return ""
	}
	return "; settings recorded: " + named(slices.Sorted(maps.Keys(all)))
}

func named(all []string) string {
	if more := len(all) - maxNamed; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(all[:maxNamed], ", "), more)
	}
	return strings.Join(all, ", ")
}

// recorded returns what a rotation from the basis goes on with: what is recorded
// already; of a node of which nothing is, what its login has now, with a warning.
// Pawl's own accounts may be given others at any time, by `pawl init --admin-sql`.
func (o *Rotator) recorded(ctx context.Context, c *inventory.Credential, basis *sealed.Credential) (map[string][]sealed.Setting, error) {
	all := map[string][]sealed.Setting{}
	var mu sync.Mutex
	err := o.onEach(ctx, c, "read settings", func(ctx context.Context, s *primary) error {
		settings, known := basis.Settings[s.Name]
		if !known || c.IsOwn() {
			var err error
			if settings, err = settingsOf(ctx, s.Admin, c, basis.User); err != nil {
				return fmt.Errorf("%s: %w", s.Node, err)
			}
			if len(settings) > 0 && !c.IsOwn() {
				effect.Warn(ctx, "%s: the settings of role %q were not recorded before and are from now on, as they are: %s", s.Node, basis.User, settingNames(settings))
			}
		}
		mu.Lock()
		defer mu.Unlock()
		all[s.Name] = settings
		return nil
	})
	return all, err
}

func settingNames(settings []sealed.Setting) string {
	var names []string
	for _, s := range settings {
		names = append(names, s.Name)
	}
	return named(slices.Compact(names))
}

// lastRecorded is what is recorded in the newest of the envelopes, by node. They are
// in the order of their generations, the newest first.
func lastRecorded(known []*sealed.Credential, c *inventory.Credential) map[string][]sealed.Setting {
	all := map[string][]sealed.Setting{}
	for _, node := range c.Nodes {
		for _, e := range known {
			if settings, ok := e.Settings[node.Name]; ok {
				all[node.Name] = settings
				break
			}
		}
	}
	return all
}

// changedSettings compares what the logins have on a node with what was recorded.
func changedSettings(ctx context.Context, on reader, node string, c *inventory.Credential, envelope *sealed.Credential, logins []string) (all []postgres.Difference, err error) {
	if _, known := envelope.Settings[node]; !known {
		return nil, nil
	}
	found, err := on.Settings(ctx, logins...)
	if err != nil {
		return nil, err
	}
	recorded := settingsAt(envelope, node)
	for _, login := range logins {
		has := found[login]
		if login == c.Role {
			has = postgres.OfCredential(c.Role, has)
		}
		all = append(all, postgres.Differences(login, postgres.OfLogin(login, c.Role, recorded), has)...)
	}
	return all, nil
}

// unchangedSettings refuses a rotation if somebody gave its logins other settings.
func unchangedSettings(ctx context.Context, tx *postgres.Tx, node string, c *inventory.Credential, envelope *sealed.Credential) error {
	if c.IsOwn() {
		return nil
	}
	logins := c.Logins()
	if !slices.Contains(logins, envelope.User) { // in place, on a sibling from before
		logins = []string{envelope.User}
	}
	changed, err := changedSettings(ctx, tx, node, c, envelope, logins)
	if err == nil && len(changed) > 0 {
		err = saga.Permanentf("%s: %s", node, changedText(changed))
	}
	return err
}

// changedText says what was changed, and both ways out.
func changedText(changed []postgres.Difference) string {
	var what, fixes []string
	for _, d := range changed[:min(len(changed), maxNamed)] {
		what, fixes = append(what, d.String()), append(fixes, d.Fix())
	}
	more := ""
	if len(changed) > maxNamed {
		more = fmt.Sprintf("; and %d more", len(changed)-maxNamed)
	}
	return fmt.Sprintf("%s%s. Fix: undo it (%s); or, if it is right, run pawl adopt, which records the settings of the login that is published", strings.Join(what, "; "), more, strings.Join(fixes, "; "))
}

// checkSettings looks at the settings of the logins that exist.
func checkSettings(ctx context.Context, f *findings, s *primary, c *inventory.Credential, current *sealed.Credential, refuse bool) error {
	if c.IsOwn() {
		return nil
	}
	roles, err := s.RoleStates(ctx, append(c.Logins(), current.User)...)
	if err != nil {
		return err
	}
	var logins []string
	for name, role := range roles {
		if role.Exists && stranger(ctx, s.Admin, c, name) == nil {
			logins = append(logins, name)
		}
	}
	slices.Sort(logins)
	changed, err := changedSettings(ctx, s.Admin, s.Name, c, current, logins)
	if err == nil && len(changed) > 0 {
		text := changedText(changed)
		if !refuse {
			text = "warning: " + text
		}
		f.add(refuse, text)
	}
	return err
}

// restoreSettings gives the logins the recorded settings, and only those, before one
// of them returns. What it finds and undoes is told; nothing of it keeps the
// application away.
func restoreSettings(ctx context.Context, tx *postgres.Tx, node string, r *service.Rotation, envelope *sealed.Credential) error {
	logins := append([]string{envelope.User}, stolen(r.Events[saga.Contained].GetContained())...)
	if _, known := envelope.Settings[node]; !known {
		return tellUnrecorded(ctx, tx, node, r.Credential, logins)
	}
	changed, err := changedSettings(ctx, tx, node, r.Credential, envelope, logins)
	if err != nil {
		return err
	}
	held := map[string]error{} // all settings of a login in one database are one row
	for i, d := range changed {
		row := d.Login + "/" + d.Database()
		refused := held[row]
		if refused == nil {
			if refused, err = tx.RestoreSetting(ctx, d); err != nil {
				return err
			}
		}
		if errors.Is(refused, postgres.ErrLocked) {
			held[row] = refused
		}
		switch {
		case i >= maxNamed:
		case refused != nil:
			effect.Warn(ctx, "%s: %s: it could not be undone (%v). Fix, as a superuser: %s", node, d, refused, d.Fix())
		case d.Found != nil || d.Login != envelope.User: // else it was only just created
			effect.Warn(ctx, "%s: %s: it was undone", node, d)
		}
	}
	if more := len(changed) - maxNamed; more > 0 {
		effect.Warn(ctx, "%s: %d more settings were not as recorded", node, more)
	}
	return nil
}

// tellUnrecorded names the settings of which nobody knows whose they are. A login
// that is there keeps them; one that was created has none.
func tellUnrecorded(ctx context.Context, tx *postgres.Tx, node string, c *inventory.Credential, logins []string) error {
	found, err := tx.Settings(ctx, logins...)
	for _, login := range logins {
		var names []string
		for _, s := range postgres.OfCredential(c.Role, found[login]) {
			names = append(names, s.Name)
		}
		if len(names) > 0 {
			effect.Warn(ctx, "%s: no settings were recorded before this emergency, so nobody knows who gave role %q these: %s. It keeps them, and a login that was created now has none of them", node, login, named(names))
		}
	}
	return err
}

// settingsAgain looks once nobody can come in with what was stolen: whoever came in
// meanwhile may have given a login settings before he was ended.
func settingsAgain(ctx context.Context, s *primary, r *service.Rotation, envelope *sealed.Credential) error {
	logins := append([]string{envelope.User}, stolen(r.Events[saga.Contained].GetContained())...)
	changed, err := changedSettings(ctx, s.Admin, s.Name, r.Credential, envelope, logins)
	if err != nil || len(changed) == 0 {
		return err
	}
	return behindFence(ctx, s, fence(r, phaseRetire), r.StillDue, func(ctx context.Context, tx *postgres.Tx) error {
		return restoreSettings(ctx, tx, s.Name, r, envelope)
	})
}

// settings are those of a login that has to be made again: what was recorded, else
// what the other login has.
func (e *expectation) settings(ctx context.Context, tx *postgres.Tx, node string) ([]postgres.Setting, error) {
	if _, known := e.current.Settings[node]; known {
		return settingsAt(e.current, node), nil
	}
	found, err := tx.Settings(ctx, e.credential.Role)
	return postgres.OfCredential(e.credential.Role, found[e.credential.Role]), err
}
