package sealed

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/secret"
)

// Subject of one envelope.
func Subject(credential, rotation, recipient string) string {
	return "pawl.sealed." + credential + "." + rotation + "." + recipient
}

// ErrNotFound is returned for an envelope that was never written, or erased.
var ErrNotFound = errors.New("no sealed credential")

// ErrWrongKey is returned for an envelope that was sealed to another key.
var ErrWrongKey = errors.New("cannot be opened with this key")

// Store reads and writes envelopes as one recipient.
type Store struct {
	bus      *bus.Bus
	self     string
	keys     *Keys
	accesses accesses
}

// NewStore returns a store that opens self's envelopes.
func NewStore(b *bus.Bus, self string, keys *Keys) *Store {
	return &Store{bus: b, self: self, keys: keys, accesses: accesses{opened: map[string]bool{}, unsure: map[string]<-chan struct{}{}}}
}

// Open returns the credential sealed to this recipient under the rotation, or
// ErrNotFound. That this process has opened it is noted; see Noted.
func (s *Store) Open(ctx context.Context, credential, rotation string) (*Credential, error) {
	if !bus.ValidToken(rotation) {
		return nil, fmt.Errorf("%s under %q for %s: %w", credential, rotation, s.self, ErrNotFound)
	}
	box, err := s.read(ctx, Subject(credential, rotation, s.self))
	if errors.Is(err, ErrNotFound) {
		return nil, fmt.Errorf("%s under %s for %s: %w", credential, rotation, s.self, err)
	}
	if err != nil {
		return nil, fmt.Errorf("sealed store: %w", err)
	}
	plain, err := s.keys.open(box)
	if err != nil {
		return nil, fmt.Errorf("sealed credential of %s under %s: %w (is this the %s key it was sealed to?)", credential, rotation, err, s.self)
	}
	c, err := parse(plain)
	if err != nil {
		return nil, err
	}
	if c.Credential != credential || c.Rotation != rotation {
		return nil, fmt.Errorf("sealed credential of %s under %s is that of %s under %s", credential, rotation, c.Credential, c.Rotation)
	}
	s.note(ctx, credential, rotation)
	return c, nil
}

// behind is how soon a server is asked again that does not yet have what the
// leader has.
const behind = 10 * time.Millisecond

// read returns ErrNotFound only where the stream's leader does: whoever is told
// that nothing was sealed concludes that nothing was altered.
func (s *Store) read(ctx context.Context, subject string) ([]byte, error) {
	ctx, cancel := bus.Bound(ctx)
	defer cancel()
	stream, err := s.bus.Stream(ctx, bus.StreamSealed)
	if err != nil {
		return nil, err
	}
	for {
		message, err := stream.GetLastMsgForSubject(ctx, subject)
		if err == nil {
			return message.Data, nil
		}
		if !errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil, err
		}
		stored, err := s.bus.Stored(ctx, bus.StreamSealed, subject)
		if err != nil {
			return nil, err
		}
		if len(stored) == 0 {
			return nil, ErrNotFound
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%s is stored, and the server that answers does not have it yet: %w", subject, ctx.Err())
		case <-time.After(behind):
		}
	}
}

// Logins returns the logins that the credential may have now, the likeliest
// first: of its newest rotation, of the one that this restores, and of the one
// that it began from. It is the way in where what is published is lost or old.
func (s *Store) Logins(ctx context.Context, credential string) ([]inventory.Login, error) {
	log, err := s.bus.ReadNewest(ctx, credential)
	if err != nil || len(log.Records) == 0 {
		return nil, err
	}
	begin := log.Records[0].Body.GetRequested()
	var logins []inventory.Login
	for _, rotation := range []string{log.Rotation, begin.GetRestores(), begin.GetBasis()} {
		if rotation == "" {
			continue
		}
		c, err := s.Open(ctx, credential, rotation)
		if errors.Is(err, ErrNotFound) || errors.Is(err, ErrWrongKey) {
			continue // not sealed yet, erased, or lost
		}
		if err != nil {
			return nil, err
		}
		logins = append(logins, inventory.Login{User: c.User, Password: c.Password})
	}
	return logins, nil
}

// Seal writes c to its recipient, once, and reports whether it did: if an envelope
// already lies there, that one is left alone. It may be c's, by a call whose answer was
// lost; callers that must know open it. Idempotent.
func (s *Store) Seal(ctx context.Context, recipient string, c *Credential) (stored bool, err error) {
	ctx, cancel := bus.Bound(ctx)
	defer cancel()
	plain, err := c.reveal()
	if err != nil {
		return false, err
	}
	box, err := s.keys.seal(recipient, plain)
	if err != nil {
		return false, err
	}
	_, err = s.bus.PublishMsg(ctx, &nats.Msg{Subject: Subject(c.Credential, c.Rotation, recipient), Data: box})
	if bus.IsTaken(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("seal for %s: %w", recipient, err)
	}
	return true, nil
}

// Rotations lists the rotations under which envelopes of the credential lie.
func (s *Store) Rotations(ctx context.Context, credential string) ([]string, error) {
	subjects, err := s.bus.Stored(ctx, bus.StreamSealed, "pawl.sealed."+credential+".>")
	if err != nil {
		return nil, fmt.Errorf("sealed store: %w", err)
	}
	seen := map[string]bool{}
	var rotations []string
	for _, subject := range subjects {
		if rotation := strings.Split(subject, ".")[3]; !seen[rotation] {
			seen[rotation] = true
			rotations = append(rotations, rotation)
		}
	}
	return rotations, nil
}

// Erase deletes every envelope of the rotation. Idempotent.
func (s *Store) Erase(ctx context.Context, credential, rotation string) error {
	ctx, cancel := bus.Bound(ctx)
	defer cancel()
	stream, err := s.bus.Stream(ctx, bus.StreamSealed)
	if err != nil {
		return fmt.Errorf("sealed store: %w", err)
	}
	if err := stream.Purge(ctx, jetstream.WithPurgeSubject("pawl.sealed."+credential+"."+rotation+".*")); err != nil {
		return fmt.Errorf("erase sealed credential: %w", err)
	}
	return nil
}

// Fingerprint tells two logins apart without revealing either: a keyed digest
// (HMAC-SHA-256, 60 bits shown) that only holders of the key can compute.
func (s *Store) Fingerprint(user string, password secret.String) string {
	mac := hmac.New(sha256.New, s.keys.fingerprint)
	fmt.Fprintf(mac, "%d:%s:%s", len(user), user, password.Reveal())
	return strings.ToLower(base32.StdEncoding.EncodeToString(mac.Sum(nil))[:12])
}

func (k *Keys) seal(recipient string, plaintext []byte) ([]byte, error) {
	to, ok := k.recipients[recipient]
	if !ok {
		return nil, fmt.Errorf("no sealing key of %s", recipient)
	}
	var box bytes.Buffer
	w, err := age.Encrypt(&box, to)
	if err == nil {
		_, err = w.Write(plaintext)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return box.Bytes(), nil
}

func (k *Keys) open(box []byte) ([]byte, error) {
	if k.identity == nil {
		return nil, errors.New("this service holds no key that opens anything")
	}
	r, err := age.Decrypt(bytes.NewReader(box), k.identity)
	if err != nil {
		return nil, ErrWrongKey
	}
	return io.ReadAll(r)
}

// SealBytes encrypts something else at rest, such as a sink's backup, to self.
func (s *Store) SealBytes(plaintext []byte) ([]byte, error) { return s.keys.seal(s.self, plaintext) }
