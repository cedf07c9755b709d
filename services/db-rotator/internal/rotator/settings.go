package rotator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

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

// restoreFor is how long the application waits for settings to be undone. Whoever had its
// login may have left thousands, and the line may be slow. The release has more time.
const (
	restoreFor      = 2 * time.Second
	restoreAgainFor = nodeTimeout / 2
)

// restoreSettings gives the logins the recorded settings, and only those: before one of
// them returns, and once more before the release. What it finds and undoes is told;
// nothing of it keeps the application away. When the time is up, left is how many it has
// not come to, and would by another try.
func (o *Rotator) restoreSettings(ctx context.Context, tx *postgres.Tx, node string, r *service.Rotation, envelope *sealed.Credential, within time.Duration) (left int, err error) {
	logins := append([]string{envelope.User}, stolen(r.Events[saga.Contained].GetContained())...)
	if _, known := envelope.Settings[node]; !known {
		return 0, tellUnrecorded(ctx, tx, node, r.Credential, logins)
	}
	until := time.Now().Add(within)
	look := func() ([]postgres.Difference, error) {
		changed, err := changedSettings(ctx, tx, node, r.Credential, envelope, logins)
		firstWhatTheApplicationMeets(changed, envelope.User, r.Credential.LoginDatabase())
		return changed, err
	}
	changed, err := look()
	if err != nil {
		return 0, err
	}
	reset, err := resetMany(ctx, tx, node, changed, until.Add(-within/2)) // what was recorded is to be given in time
	if err == nil && len(reset) > 0 {
		changed, err = look()
	}
	if err != nil {
		return 0, err
	}
	fixed := o.fixedSettings(r, node)
	changed, stay := fixed.split(changed)
	known, refused, err := tx.RestoreSettings(ctx, changed, until)
	if err != nil {
		return 0, err
	}
	unnamed, locked := 0, 0
	for i, d := range changed[:known] {
		why := refused[i]
		if errors.Is(why, postgres.ErrLocked) {
			locked++
		} else if why != nil {
			fixed.add(d, why)
		}
		switch {
		case i >= maxNamed && why != nil:
			unnamed++
		case i >= maxNamed:
		case why != nil:
			tellStays(ctx, node, d, why)
		case d.Found == nil && (reset[d.Row()] || d.Login == envelope.User): // it was only just reset, or created
		default:
			effect.Warn(ctx, "%s: %s: it was undone", node, d)
		}
	}
	if more := known - maxNamed; more > 0 {
		effect.Warn(ctx, "%s: %d more settings were not as recorded, of which %d could not be undone", node, more, unnamed)
	}
	fixed.tell(ctx, node, stay)
	if left = len(changed) - known; left > 0 {
		effect.Warn(ctx, "%s: %s not as recorded, and could not be undone in %v: that is tried again before the release", node, service.Count(left, "more setting"), within)
	}
	if locked == known { // nor would another try come any further
		return 0, nil
	}
	return left, nil
}

// firstWhatTheApplicationMeets puts those first without which it could come back to what
// somebody has left for it: of the login that returns, in its own database, and of
// PostgreSQL's own.
func firstWhatTheApplicationMeets(changed []postgres.Difference, returns, database string) {
	far := func(d postgres.Difference) (distance int) {
		if d.Login != returns {
			distance += 4
		}
		if d.Database() != "" && d.Database() != database {
			distance += 2
		}
		if !d.IsOfPostgres() {
			distance++
		}
		return distance
	}
	slices.SortStableFunc(changed, func(a, b postgres.Difference) int { return far(a) - far(b) })
}

// resetMany resets all settings of a login in a database at once if too many of them are
// not as recorded. The recorded ones are given again like those that somebody took.
func resetMany(ctx context.Context, tx *postgres.Tx, node string, changed []postgres.Difference, until time.Time) (reset map[string]bool, err error) {
	names := map[string][]string{}
	for _, d := range changed {
		names[d.Row()] = append(names[d.Row()], d.Name())
	}
	reset = map[string]bool{}
	for _, d := range changed {
		row := d.Row()
		if len(names[row]) <= maxNamed || time.Now().After(until) {
			continue
		}
		if reset[row], err = tx.ResetSettings(ctx, d.Login, d.Database()); err != nil {
			return nil, err
		}
		if reset[row] {
			effect.Warn(ctx, "%s: %d settings of role %q%s were not as recorded: all of them were reset, and the recorded ones given again. They were %s", node, len(names[row]), d.Login, d.Where(), named(names[row]))
		}
		delete(names, row)
	}
	return reset, nil
}

func tellStays(ctx context.Context, node string, d postgres.Difference, why error) {
	effect.Warn(ctx, "%s: %s: it could not be undone (%v). Fix, as a superuser: %s", node, d, why, d.Fix())
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
// meanwhile may have given a login settings before he was ended, and some may be left from
// before. It is not by this that a login returns, so the fence keeps its time: by that it
// is known who began to log in before.
func (o *Rotator) settingsAgain(ctx context.Context, s *primary, r *service.Rotation, envelope *sealed.Credential) error {
	logins := append([]string{envelope.User}, stolen(r.Events[saga.Contained].GetContained())...)
	changed, err := changedSettings(ctx, s.Admin, s.Name, r.Credential, envelope, logins)
	if err != nil || len(changed) == 0 {
		return err
	}
	fixed := o.fixedSettings(r, s.Name)
	if news, stay := fixed.split(changed); len(news) == 0 {
		fixed.tell(ctx, s.Name, stay)
		return nil
	}
	f := fence(r, phaseRetire)
	f.Keeps = true
	left := 0
	err = behindFence(ctx, s, f, r.StillDue, func(ctx context.Context, tx *postgres.Tx) (err error) {
		left, err = o.restoreSettings(ctx, tx, s.Name, r, envelope, restoreAgainFor)
		return err
	})
	if err == nil && left > 0 {
		err = &saga.NotYet{Again: 10 * time.Millisecond, Why: fmt.Sprintf("%s: %s yet to be undone", s.Node, service.Count(left, "setting"))}
	}
	return err
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
