package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"pawl.dev/cmd/pawl/internal/client"
	"pawl.dev/cmd/pawl/internal/render"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

func newDoctor() *cobra.Command {
	return &cobra.Command{
		Use: "doctor [CREDENTIAL]", Short: "Compare what is published, what each node holds and what each consumer uses, and show what keeps Pawl from working", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			inv, conn, err := connect(cmd)
			if err != nil {
				return err
			}
			defer conn.NATS.Close()
			tellEdited(cmd, inv, conn)
			credentials, err := chosen(inv, args)
			if err != nil {
				return err
			}
			failing := failingError(tellServices(cmd, conn))
			all := make([]render.Doctor, 0, len(credentials))
			var disagree []string
			for _, c := range credentials {
				d, err := examine(cmd.Context(), conn, c)
				if err != nil {
					return err
				}
				if !d.Agrees {
					disagree = append(disagree, c.Name)
				}
				all = append(all, d)
			}
			err = output(cmd, all, func(w io.Writer, s render.Style) error { return doctorTables(w, all, s) })
			if err == nil && len(disagree) > 0 {
				err = errors.New("disagreement: " + strings.Join(disagree, ", "))
			}
			return errors.Join(err, failing)
		},
	}
}

func doctorTables(w io.Writer, all []render.Doctor, s render.Style) error {
	for i, d := range all {
		if i > 0 {
			fmt.Fprintln(w)
		}
		if err := render.DoctorTable(w, d, s); err != nil {
			return err
		}
	}
	return nil
}

// examine asks the three services that can see something of the credential.
func examine(ctx context.Context, c *client.Client, credential *inventory.Credential) (render.Doctor, error) {
	want, err := expect(ctx, c, credential)
	if err != nil {
		return render.Doctor{}, err
	}
	d := render.Doctor{Credential: credential.Name, Agrees: true, Expected: want.String()}
	parts := map[string]*[]render.Finding{saga.SecretPublisher: &d.Published, saga.DBRotator: &d.Stored, saga.Verifier: &d.Used}
	var wait sync.WaitGroup
	for name, part := range parts {
		wait.Go(func() { *part = ask(ctx, c, name, credential.Name) })
	}
	wait.Wait()
	for name, part := range parts {
		for i := range *part {
			f := &(*part)[i]
			if why := want.contradicts(name, *f); !f.Refused && why != "" {
				f.Refused, f.Finding = true, f.Finding+": "+why
			}
			d.Agrees = d.Agrees && !f.Refused
		}
	}
	return d, nil
}

func ask(ctx context.Context, c *client.Client, name, credential string) []render.Finding {
	checks, err := service.Ask(ctx, c.Bus, bus.ExamineSubject(name, credential))
	if errors.Is(err, nats.ErrNoResponders) {
		err = errors.New("is not running")
	}
	if err != nil {
		checks = []*pawlv1.Check{{Service: name, Target: "-", Finding: err.Error(), Refused: true}}
	}
	found := make([]render.Finding, 0, len(checks))
	for _, check := range checks {
		found = append(found, render.Finding{Service: check.GetService(), Target: check.GetTarget(), Finding: check.GetFinding(), Refused: check.GetRefused()})
	}
	return found
}

// expected is what the log says of a credential.
type expected struct {
	user        string   // empty: not adopted
	rotation    string   // under which it is sealed
	fingerprint string   // of the current login
	logins      []string // all that the credential owns
	running     string   // the rotation that is under way: old and new may be found then
}

func expect(ctx context.Context, c *client.Client, credential *inventory.Credential) (expected, error) {
	want := expected{logins: credential.Logins()}
	log, err := c.ReadNewest(ctx, credential.Name)
	if err != nil || len(log.Records) == 0 {
		return want, err
	}
	state, err := log.Fold()
	if err != nil {
		return want, fmt.Errorf("%s: %w", credential.Name, err)
	}
	if state.Open() {
		want.running = log.Rotation
	}
	current := bus.CurrentOf(log, state)
	want.user, want.rotation = current.User, current.Rotation
	if current.Rotation == "" {
		return want, nil
	}
	if current.Rotation != log.Rotation {
		if log, err = c.ReadRotation(ctx, credential.Name, current.Rotation); err != nil {
			return want, err
		}
	}
	for _, r := range log.Records {
		if f := r.Body.GetStaged().GetFingerprint(); f != "" {
			want.fingerprint = f
		}
	}
	return want, nil
}

func (w expected) String() string {
	switch {
	case w.running != "":
		return fmt.Sprintf("rotation %s is under way: the old login and the new one may both be found", w.running)
	case w.user == "":
		return "not adopted"
	case w.rotation == "":
		return "locked: nobody may log in"
	}
	return strings.TrimSpace(fmt.Sprintf("%s of rotation %s %s", w.user, w.rotation, w.fingerprint))
}

// contradicts compares a finding, which its service found sound by itself, with
// the log. The services' words are compared, which is all that they send.
func (w expected) contradicts(name string, f render.Finding) string {
	if w.rotation == "" || w.running != "" {
		return ""
	}
	switch name {
	case saga.SecretPublisher:
		if strings.HasPrefix(f.Finding, "login ") && !strings.HasPrefix(f.Finding, fmt.Sprintf("login %q ", w.user)) {
			return "" // of a lookup sink, which holds the idle login too
		}
		if w.fingerprint != "" && !strings.Contains(f.Finding, w.fingerprint) {
			return "not the current login"
		}
	case saga.DBRotator:
		if strings.HasPrefix(f.Finding, fmt.Sprintf("role %q ", w.user)) && !strings.Contains(f.Finding, w.rotation) {
			return "not the current password"
		}
	case saga.Verifier:
		for _, login := range w.logins {
			if login != w.user && strings.Contains(f.Finding, fmt.Sprintf(" as %q", login)) {
				return fmt.Sprintf("not the current login %q", w.user)
			}
		}
	}
	return ""
}
