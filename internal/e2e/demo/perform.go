package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/nats-io/nats.go"

	"pawl.dev/internal/inventory"
)

// perform has the application log in all the time, requests a rotation, shows
// it, and holds the outcome against the promise.
func (s *stage) perform(ctx context.Context, number int, a act) error {
	say("\n%s\n\n", paint(bold, fmt.Sprintf("%d  %s: %s", number, a.Credential, a.title)))
	var o outcome
	var err error
	if o.before, err = s.proven(ctx, a.Credential); err != nil {
		return err
	}
	app := s.apps[a.Credential]
	if err := app.underLoad(ctx); err != nil {
		return err
	}
	rotation, err := s.rotate(ctx, a)
	if err != nil {
		return err
	}
	if o.counts, err = app.relieve(ctx); err != nil {
		return err
	}
	if o.after, err = s.proven(ctx, a.Credential); err != nil {
		return err
	}
	if o.outage, err = s.outage(ctx, a.Credential, rotation); err != nil {
		return err
	}
	if a.trace {
		waterfall, err := s.command(ctx, "trace", rotation)
		if err != nil {
			return err
		}
		say("\n%s", paint(dim, "  $ pawl trace "+rotation+"\n"))
		show(waterfall)
	}
	asPromised, verdict := a.judge(o)
	if o.counts.Broken > 0 {
		asPromised = false
		verdict += fmt.Sprintf("; %d could not be made at all", o.counts.Broken)
	}
	if !asPromised {
		say("\n  %s\n", paint(red, "✗ "+verdict))
		return errors.New("not as promised")
	}
	say("\n  %s\n", paint(green, "✓ "+verdict))
	return nil
}

// proven returns what the .env says, after a login with it.
func (s *stage) proven(ctx context.Context, credential string) (inventory.Login, error) {
	login, err := s.published(credential)
	if err != nil {
		return login, err
	}
	conn, err := s.logIn(ctx, login)
	if err != nil {
		return login, fmt.Errorf("log in as %s: %w", login.User, err)
	}
	return login, conn.Close(ctx)
}

// line is one of `pawl watch --json`.
type line struct {
	At       time.Time
	Rotation string
	Service  string
	Event    string
	Note     string
	Text     string
	Failed   bool
	Seconds  float64
}

// rotate requests a rotation and shows the timeline until it has ended.
func (s *stage) rotate(ctx context.Context, a act) (rotation string, err error) {
	watch, err := s.start("pawl watch", "pawl", "watch", a.Credential, "--json", "-c", s.file())
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, watch.stop()) }()
	if err := watch.await(ctx, "watching"); err != nil {
		return "", err
	}
	if err := s.request(a.Credential); err != nil {
		return "", err
	}
	say("%s", paint(dim, fmt.Sprintf("  $ nats --nkey .pawl/clients/requester.nk pub pawl.request.%s ''\n", a.Credential)))
	var last line
	shown := 0
	err = watch.until(ctx, "the end of the rotation", func() bool {
		said, err := os.ReadFile(watch.log)
		for err == nil && last.Event != "completed" && last.Event != "rolled-back" {
			text, _, whole := bytes.Cut(said[shown:], []byte("\n"))
			if !whole {
				return false
			}
			shown += len(text) + 1
			if last = (line{}); json.Unmarshal(text, &last) == nil && last.Note != "request accepted" {
				last.show()
			}
		}
		return err == nil
	})
	if err == nil && last.Event != a.ends {
		err = fmt.Errorf("ended %s, should have been %s", last.Event, a.ends)
	}
	return last.Rotation, err
}

// request publishes as any NATS client would: an empty message, by plain
// publish, as the user who may request and nothing else.
func (s *stage) request(credential string) error {
	key, err := nats.NkeyOptionFromSeed(s.path(".pawl/clients/requester.nk"))
	if err != nil {
		return err
	}
	conn, err := nats.Connect("nats://"+s.nats, key)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.Publish("pawl.request."+credential, nil); err != nil {
		return err
	}
	return conn.Flush()
}

// outage is what the rotation's record says of it.
func (s *stage) outage(ctx context.Context, credential, rotation string) (time.Duration, error) {
	raw, err := s.command(ctx, "history", credential, "--json")
	if err != nil {
		return 0, err
	}
	var rotations []struct {
		Rotation      string
		OutageSeconds float64 `json:"outage_seconds"`
	}
	if err := json.Unmarshal(raw, &rotations); err != nil {
		return 0, fmt.Errorf("pawl history: %w", err)
	}
	for _, r := range rotations {
		if r.Rotation == rotation {
			return time.Duration(r.OutageSeconds * float64(time.Second)), nil
		}
	}
	return 0, fmt.Errorf("pawl history does not list rotation %s", rotation)
}
