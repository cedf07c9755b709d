package trail

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"pawl.dev/internal/newfile"
)

// Files in keys_dir: the auditor's signing key, which nobody else needs, and the
// keys that verify its signatures, the newest last, one a line.
func signingFile(dir string) string { return filepath.Join(dir, "audit", "auditor.key") }

// PublicFile holds the keys that verify.
func PublicFile(dir string) string { return filepath.Join(dir, "audit", "auditor.pub") }

// CreateKeys makes the signing key if it is missing, adds the one that verifies
// it to those there are, and returns the files written. It never overwrites: a
// key that is put aside is replaced, and its signatures stay good.
func CreateKeys(dir string) (created []string, err error) {
	if _, err := os.Stat(signingFile(dir)); err == nil {
		return nil, nil
	}
	if err := os.MkdirAll(filepath.Dir(signingFile(dir)), 0o700); err != nil {
		return nil, fmt.Errorf("audit key: %w", err)
	}
	origin := "pawl/" + strings.ToLower(rand.Text()[:10]) // one installation, whatever its keys
	earlier, err := os.ReadFile(PublicFile(dir))
	if err == nil {
		origin, _, _ = strings.Cut(string(earlier), "+")
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("audit key: %w", err)
	}
	private, public, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return nil, fmt.Errorf("audit key: %w: does %s begin with a key?", err, PublicFile(dir))
	}
	// The public part first: a signature that nobody can verify must not come about.
	if err := addLine(PublicFile(dir), public); err != nil {
		return nil, fmt.Errorf("write key: %w", err)
	}
	if err := newfile.Write(signingFile(dir), []byte(private+"\n")); err != nil {
		return nil, fmt.Errorf("write key: %w", err)
	}
	return []string{signingFile(dir), PublicFile(dir)}, nil
}

func addLine(path, line string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line + "\n")
	return errors.Join(err, f.Sync(), f.Close())
}

// LoadSigner reads the signing key. It must be one of those that verify.
func LoadSigner(dir string) (note.Signer, error) {
	raw, err := os.ReadFile(signingFile(dir))
	if err != nil {
		return nil, fmt.Errorf("audit key: %w (`pawl init` makes it)", err)
	}
	signer, err := note.NewSigner(strings.TrimSpace(string(raw)))
	if err != nil {
		return nil, fmt.Errorf("audit key %s: not a signing key of a note", signingFile(dir)) // the error could quote it
	}
	keys, err := LoadKeys(PublicFile(dir))
	if err != nil {
		return nil, err
	}
	if _, err := keys.Verifier(signer.Name(), signer.KeyHash()); err != nil {
		return nil, fmt.Errorf("audit keys do not belong together: %s and %s: put the right ones back", signingFile(dir), PublicFile(dir))
	}
	return signer, nil
}

// LoadKeys reads a file of keys that verify.
func LoadKeys(path string) (note.Verifiers, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("audit key: %w (`pawl init` makes it)", err)
	}
	keys, err := ParseKeys(string(raw))
	if err != nil {
		return nil, fmt.Errorf("audit key %s: %w", path, err)
	}
	return keys, nil
}

// ParseKeys reads keys that verify, one a line.
func ParseKeys(text string) (note.Verifiers, error) {
	var all []note.Verifier
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		v, err := note.NewVerifier(line)
		if err != nil {
			return nil, errors.New("not a key that verifies a note, which reads NAME+HASH+KEY")
		}
		all = append(all, v)
	}
	if len(all) == 0 {
		return nil, errors.New("is empty")
	}
	return note.VerifierList(all...), nil
}
