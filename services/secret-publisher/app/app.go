// Package app is the secret-publisher: it writes a credential's login to all of
// its sinks, and back.
package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"pawl.dev/internal/docker"
	"pawl.dev/internal/effect"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/secret"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
	"pawl.dev/services/secret-publisher/internal/backup"
	"pawl.dev/services/secret-publisher/internal/sink"
)

// envelopes is what is used of sealed.Store.
type envelopes interface {
	Open(ctx context.Context, credential, rotation string) (*sealed.Credential, error)
	Rotations(ctx context.Context, credential string) ([]string, error)
	Fingerprint(user string, password secret.String) string
	SealBytes(plaintext []byte) ([]byte, error)
}

type app struct {
	sealed  envelopes
	backups backup.Store
	docker  *docker.Engine
	note    func(context.Context, *pawlv1.Note)
}

// New returns the service. Backups go to DATA_DIR/backups.
func New(d service.Dependencies) (*service.Service, error) {
	if d.Sealed == nil {
		return nil, errors.New("no sealing key: credentials cannot be opened")
	}
	a := newApp(d.Sealed, d.Inventory.DataDir, docker.NewEngine(d.Inventory.Docker))
	a.note = d.Note
	s := a.service()
	s.Run = newReconciler(a, d).run
	return s, nil
}

func newApp(e envelopes, dataDir string, engine *docker.Engine) *app {
	return &app{sealed: e, backups: backup.Store{Dir: filepath.Join(dataDir, "backups"), Seal: e.SealBytes}, docker: engine}
}

func (a *app) service() *service.Service {
	return &service.Service{
		Name:    saga.SecretPublisher,
		Steps:   map[string]service.Handler{"publish": a.publish, "match": a.match, "restore": a.restore},
		Check:   a.preflight,
		Examine: a.examine,

		CheckSealed: a.checkKnown,
	}
}

// sinks of a credential: files before services of Docker, whose tasks start and
// read at once.
func (a *app) sinks(c *inventory.Credential) []sink.Sink {
	return append(sink.Of(c), sink.OfSwarm(c, a.docker)...)
}

// publish looks at every sink before it touches the first, so that what can be
// known beforehand fails the step with nothing done.
func (a *app) publish(ctx context.Context, r *service.Rotation) (*pawlv1.Event, error) {
	envelope, err := a.open(ctx, r, r.ID)
	if err != nil {
		return nil, err
	}
	want := a.content(envelope, r.Requested().GetGeneration())
	known := a.known(r.Credential, r.Requested().GetBasisUser(), envelope)
	sinks, told := a.sinks(r.Credential), false
	for _, s := range sinks {
		if sink.Holds(ctx, s, want) == nil { // by an earlier attempt
			told = told || !s.Lookup()
			continue
		}
		err := check(ctx, s, want)
		if err == nil {
			err = sink.Admit(ctx, s, known)
		}
		if err != nil && !r.Step.Retriable() {
			return nil, fail(err)
		}
	}
	changed, failed := 0, []error(nil)
	for _, s := range sinks {
		wrote, err := a.write(ctx, r, s, want, known)
		if err == nil && r.State.Flow.Urgent && !told {
			err = cut(ctx, s)
		}
		switch {
		case err != nil && !r.Step.Retriable():
			return nil, fail(err)
		case err != nil: // in an emergency a broken sink keeps no other from it
			failed = append(failed, err)
		case wrote:
			changed++
		}
	}
	if err := errors.Join(failed...); err != nil {
		return nil, err
	}
	return a.done(ctx, r, want, len(sinks), changed), nil
}

// forget has sinks that keep earlier logins remove those.
func (a *app) forget(ctx context.Context, sinks []sink.Sink, want sink.Content, compromised bool, stillDue func(context.Context) error) error {
	var failed []error
	for _, s := range sinks {
		if keeper, ok := s.(sink.Keeper); ok {
			failed = append(failed, effect.Do(ctx, "forget earlier logins", s.Name(), func(ctx context.Context) error {
				return keeper.Forget(ctx, want, compromised, stillDue)
			}))
		}
	}
	return errors.Join(failed...)
}

// restore writes the predecessor back. One sink that fails must not keep the
// others from it: all are tried, and the step is retried for those that failed.
func (a *app) restore(ctx context.Context, r *service.Rotation) (*pawlv1.Event, error) {
	requested := r.Requested()
	predecessor, generation := requested.GetBasis(), requested.GetBasisGeneration()
	rollback := requested.GetAction() == pawlv1.Action_ACTION_ROLLBACK
	if rollback {
		predecessor, generation = requested.GetRestores(), requested.GetGeneration()
	}
	envelope, err := a.open(ctx, r, predecessor)
	if err != nil {
		return nil, err
	}
	want := a.content(envelope, generation)
	known := a.known(r.Credential, requested.GetBasisUser(), envelope)
	sinks := a.sinks(r.Credential)
	changed, failed := 0, []error(nil)
	for _, s := range sinks {
		wrote, err := a.write(ctx, r, s, want, known)
		switch {
		case err == nil && wrote:
			changed++
		case err != nil && !rollback && sink.IsRefusal(err) && !a.backups.Has(r.Credential.Name, r.ID, s.Name()):
			// publish backs up before it writes, and it cannot write any more.
			effect.Warn(ctx, "%s is left as it is, this rotation never wrote it: %v", s.Name(), err)
		case err != nil:
			failed = append(failed, err)
		}
	}
	if len(failed) > 0 {
		return nil, errors.Join(failed...)
	}
	return a.done(ctx, r, want, len(sinks), changed), nil
}

// match finds every sink holding the adopted login, and writable.
func (a *app) match(ctx context.Context, r *service.Rotation) (*pawlv1.Event, error) {
	envelope, err := a.open(ctx, r, r.ID)
	if err != nil {
		return nil, err
	}
	want := a.content(envelope, r.Requested().GetGeneration())
	sinks := a.sinks(r.Credential)
	for _, s := range sinks {
		if err := take(ctx, r, s, want); err != nil {
			return nil, fail(err)
		}
		err := effect.Do(ctx, "read sink", s.Name(), func(ctx context.Context) error {
			if err := sink.Holds(ctx, s, want); err != nil {
				return fmt.Errorf("%w; adopted was the login of %s: make them the same first", err, want.User)
			}
			return nil
		})
		if err == nil {
			err = check(ctx, s, want)
		}
		if err != nil {
			return nil, saga.Permanent(err)
		}
	}
	return &pawlv1.Event{Summary: fmt.Sprintf("%s the login of %s and can be written", hold(len(sinks)), want.User)}, nil
}

// take has a sink that nobody can read say that it holds what is adopted.
func take(ctx context.Context, r *service.Rotation, s sink.Sink, want sink.Content) error {
	closed, ok := s.(sink.Unreadable)
	if !ok {
		return nil
	}
	return effect.Do(ctx, "take over", s.Name(), func(ctx context.Context) error { return closed.Take(ctx, want, r.StillDue) })
}

// open returns what is sealed under a rotation.
func (a *app) open(ctx context.Context, r *service.Rotation, rotation string) (envelope *sealed.Credential, err error) {
	err = effect.Do(ctx, "open envelope", r.Credential.Name, func(ctx context.Context) error {
		envelope, err = a.sealed.Open(ctx, r.Credential.Name, rotation)
		return err
	})
	return envelope, err
}

func (a *app) content(c *sealed.Credential, generation uint64) sink.Content {
	return sink.Content{Login: inventory.Login{User: c.User, Password: c.Password}, Verifier: c.Verifier,
		Generation: generation, Rotation: c.Rotation, Fingerprint: a.sealed.Fingerprint(c.User, c.Password)}
}

func check(ctx context.Context, s sink.Sink, want sink.Content) error {
	return effect.Do(ctx, "check sink", s.Name(), func(ctx context.Context) error {
		warnings, err := s.Check(ctx, want)
		for _, w := range warnings {
			effect.Warn(ctx, "%s", w)
		}
		return err
	})
}

// write replaces what the sink holds, if that is known.
func (a *app) write(ctx context.Context, r *service.Rotation, s sink.Sink, want sink.Content, known *sink.Known) (changed bool, err error) {
	foreign := false
	guard := sink.Guard{
		StillDue: r.StillDue,
		Admit: func(held []sink.Content) (err error) {
			foreign, err = admit(ctx, r, s, known, held)
			return err
		},
		Backup: func(ctx context.Context, old []byte) error {
			err := effect.Do(ctx, "back up sink", s.Name(), func(context.Context) error {
				return a.backups.Keep(r.Credential.Name, r.ID, s.Name(), old)
			})
			if err == nil && foreign {
				a.tellOverwritten(ctx, r, s)
			}
			return err
		},
	}
	err = effect.Do(ctx, "write sink", s.Name(), func(ctx context.Context) error {
		changed, err = s.Write(ctx, want, guard)
		return err
	})
	if reader, ok := s.(sink.Reloader); ok && err == nil {
		err = effect.Do(ctx, "reload", s.Name(), reader.Reload)
	}
	return changed, err
}

// cut has a pooler end its clients before any sink has told the application of
// the new login: whoever was let in with what was stolen would be served, as soon
// as the application has brought the new keys.
func cut(ctx context.Context, s sink.Sink) error {
	pooler, ok := s.(sink.Cutter)
	if !ok {
		return nil
	}
	return effect.Do(ctx, "cut", s.Name(), pooler.Cut)
}

func (a *app) done(ctx context.Context, r *service.Rotation, want sink.Content, sinks, changed int) *pawlv1.Event {
	err := effect.Do(ctx, "prune backups", r.Credential.Name, func(context.Context) error {
		return a.backups.Prune(r.Credential.Name, r.ID)
	})
	if err != nil {
		effect.Warn(ctx, "%v", err) // the sinks are written: that is what counts
	}
	return &pawlv1.Event{Summary: fmt.Sprintf("%s the login of %s, %d written now", hold(sinks), want.User, changed)}
}

func hold(sinks int) string {
	if sinks == 1 {
		return "the sink holds"
	}
	return fmt.Sprintf("all %d sinks hold", sinks)
}

// fail makes a refusal fail the step at once: until somebody mends the sink,
// every further attempt would only prolong an outage.
func fail(err error) error {
	if sink.IsRefusal(err) {
		return saga.Permanent(err)
	}
	return err
}

// example is a verifier as nodes hold them, of no login. All are of the same shape, and
// deriving one takes as long as a login: so once for all preflights.
var example = sync.OnceValue(func() secret.String {
	verifier, err := postgres.Verifier(secret.New(strings.Repeat("x", secret.DefaultLength)))
	if err != nil {
		panic(err) // of a password that is always the same
	}
	return verifier
})

// preflight asks whether each sink could take a login such as the next one.
func (a *app) preflight(ctx context.Context, c *inventory.Credential) []*pawlv1.Check {
	logins := c.Logins()
	want := sink.Content{Login: inventory.Login{
		User:     logins[len(logins)-1],
		Password: secret.New(strings.Repeat("x", max(c.PasswordLength, secret.DefaultLength))),
	}}
	want.Verifier = example()
	var found []*pawlv1.Check
	for _, s := range a.sinks(c) {
		warnings, err := s.Check(ctx, want)
		line := &pawlv1.Check{Service: saga.SecretPublisher, Target: s.Name(), Finding: "can be written"}
		if err != nil {
			line.Finding, line.Refused = err.Error(), true
		}
		found = append(found, line)
		for _, w := range warnings {
			found = append(found, &pawlv1.Check{Service: saga.SecretPublisher, Target: s.Name(), Finding: w})
		}
	}
	if err := a.backups.Check(c.Name); err != nil {
		found = append(found, &pawlv1.Check{Service: saga.SecretPublisher, Target: "backups", Finding: err.Error(), Refused: true})
	}
	return found
}

// examine tells by fingerprint which login each sink holds, or of a lookup sink
// what each login has there. A sink without a user name is taken to mean the
// role.
func (a *app) examine(ctx context.Context, c *inventory.Credential) []*pawlv1.Check {
	var found []*pawlv1.Check
	for _, s := range a.sinks(c) {
		say := func(refused bool, format string, args ...any) {
			found = append(found, &pawlv1.Check{Service: saga.SecretPublisher, Target: s.Name(), Finding: fmt.Sprintf(format, args...), Refused: refused})
		}
		held, err := s.Read(ctx)
		switch {
		case err != nil:
			say(true, "%v", err)
		case s.Lookup():
			a.examineLookup(ctx, c, held, say)
		case held[0].Fingerprint != "":
			say(false, "holds %s, as its label says", held[0].Fingerprint)
		default:
			user := cmp.Or(held[0].User, c.Role)
			say(false, "holds %s of %s", a.sealed.Fingerprint(user, held[0].Password), user)
		}
	}
	return found
}

func (a *app) examineLookup(ctx context.Context, c *inventory.Credential, held []sink.Content, say func(bool, string, ...any)) {
	for _, login := range c.Logins() {
		var has []string
		for _, h := range held {
			switch {
			case h.User != login:
			case h.Verifier.IsZero():
				has = append(has, a.sealed.Fingerprint(login, h.Password))
			default:
				has = append(has, a.whose(ctx, c, h))
			}
		}
		if slices.Sort(has); len(has) == 0 {
			has = []string{"no line"}
		}
		say(false, "login %q has %s", login, strings.Join(slices.Compact(has), " and "))
	}
}

// whose tells by fingerprint of which sealed password this is the verifier.
func (a *app) whose(ctx context.Context, c *inventory.Credential, held sink.Content) string {
	rotations, err := a.sealed.Rotations(ctx, c.Name)
	if err != nil {
		return "a verifier, of what cannot be told: " + err.Error()
	}
	for _, rotation := range rotations {
		if e, err := a.sealed.Open(ctx, c.Name, rotation); err == nil && e.User == held.User && e.Verifier.Equal(held.Verifier) {
			return "the nodes' verifier of " + a.sealed.Fingerprint(e.User, e.Password)
		}
	}
	return "a verifier that Pawl did not set"
}
