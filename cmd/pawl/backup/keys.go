package backup

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/newfile"
)

// IdentityFile opens the backups that are sealed to RecipientFile. It should lie
// where Pawl does not run.
func IdentityFile(inv *inventory.Inventory) string { return filepath.Join(inv.KeysDir, "backup.key") }

// RecipientFile is what backups are sealed to if pawl.yaml names no recipients.
func RecipientFile(inv *inventory.Inventory) string { return filepath.Join(inv.KeysDir, "backup.pub") }

// CreateKey makes the pair if its public half is missing; created is the private
// half's path then. It never overwrites.
func CreateKey(inv *inventory.Inventory) (created []string, err error) {
	if _, err := os.Stat(RecipientFile(inv)); err == nil {
		return nil, nil // the private half may lie elsewhere
	}
	identity, err := readOrMake(IdentityFile(inv), &created)
	if err == nil {
		err = writeNew(RecipientFile(inv), identity.Recipient().String()+"\n")
	}
	if err != nil {
		return created, fmt.Errorf("backup key: %w", err)
	}
	return created, nil
}

// readOrMake returns the identity in the file: a crash may have left that alone.
func readOrMake(file string, created *[]string) (*age.X25519Identity, error) {
	raw, err := os.ReadFile(file)
	if err == nil {
		return age.ParseX25519Identity(strings.TrimSpace(string(raw)))
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	identity, err := age.GenerateX25519Identity()
	if err == nil {
		err = writeNew(file, identity.String()+"\n")
	}
	if err == nil {
		*created = append(*created, file)
	}
	return identity, err
}

func writeNew(file, text string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return newfile.Write(file, []byte(text))
}

// recipients are those of pawl.yaml, or the one that `pawl init` has made. The keys
// of the installation are not sealed to a key that lies beside them: on the day
// when the machine is lost nobody could open the file, and until then anybody who
// copies keys_dir can.
func recipients(inv *inventory.Inventory, withKeys bool) (all []age.Recipient, err error) {
	for i, text := range inv.Backup.Recipients {
		one, err := parseRecipient(text)
		if err != nil {
			return nil, fmt.Errorf("backup.recipients[%d]: %w", i, err)
		}
		all = append(all, one)
	}
	if len(all) > 0 {
		return all, nil
	}
	raw, err := os.ReadFile(RecipientFile(inv))
	if err != nil {
		return nil, fmt.Errorf("nobody could open a backup: %w (`pawl init` makes that key, or name backup.recipients in %s)", err, inv.File)
	}
	one, err := parseRecipient(strings.TrimSpace(string(raw)))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", RecipientFile(inv), err)
	}
	if _, err := os.Stat(IdentityFile(inv)); withKeys && err == nil {
		return nil, fmt.Errorf("--with-keys: the key that opens the backup lies beside the keys in it: move %s to another machine, or name backup.recipients in %s", IdentityFile(inv), inv.File)
	}
	return []age.Recipient{one}, nil
}

func parseRecipient(text string) (age.Recipient, error) {
	if strings.HasPrefix(text, "ssh-") {
		return agessh.ParseRecipient(text)
	}
	all, err := age.ParseRecipients(strings.NewReader(text))
	if err != nil {
		return nil, errors.New("no public key of age")
	}
	return all[0], nil
}

// LoadIdentities reads a file of age identities, or an SSH private key without a
// passphrase.
func LoadIdentities(file string) ([]age.Identity, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("identity: %w (name the private half of the backup's recipient with --identity FILE)", err)
	}
	if bytes.HasPrefix(raw, []byte("-----BEGIN")) {
		one, err := agessh.ParseIdentity(raw)
		if err != nil {
			return nil, fmt.Errorf("identity %s: %w", file, err)
		}
		return []age.Identity{one}, nil
	}
	all, err := age.ParseIdentities(bytes.NewReader(raw))
	if err != nil { // the error may quote a line
		return nil, fmt.Errorf("identity %s: holds no private key of age", file)
	}
	return all, nil
}

// keyFile is one file of the keys, and its name in the backup.
type keyFile struct{ path, name string }

// Folders of the keys in a backup.
const (
	inKeysDir = "keys_dir/"
	inClients = "data_dir/clients/"
)

// keyFiles lists what --with-keys takes: everything in keys_dir but the key that
// opens backups, and the clients' seeds in data_dir.
func keyFiles(o Options) (all []keyFile, err error) {
	if !o.WithKeys {
		return nil, nil
	}
	for prefix, dir := range map[string]string{inKeysDir: o.Inventory.KeysDir, inClients: filepath.Join(o.Inventory.DataDir, "clients")} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || path == IdentityFile(o.Inventory) {
				return err
			}
			rel, err := filepath.Rel(dir, path)
			all = append(all, keyFile{path, prefix + filepath.ToSlash(rel)})
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("keys: %w", err)
		}
	}
	return all, nil
}

// keys writes the files as one part, a tar in the tar.
func (a *archiver) keys(files []keyFile) (Part, error) {
	var inner bytes.Buffer
	w := tar.NewWriter(&inner)
	for _, f := range files {
		raw, err := os.ReadFile(f.path)
		if err == nil {
			err = w.WriteHeader(&tar.Header{Name: f.name, Size: int64(len(raw)), Mode: 0o600})
		}
		if err == nil {
			_, err = w.Write(raw)
		}
		if err != nil {
			return Part{}, err
		}
	}
	if err := w.Close(); err != nil {
		return Part{}, err
	}
	return a.part(KeysPart, &inner)
}

// RestoreKeys writes the keys that are missing, and returns their paths. One that
// is there stays, and has to be the same.
func RestoreKeys(inv *inventory.Inventory, from io.Reader) (written []string, err error) {
	inner := tar.NewReader(from)
	for {
		h, err := inner.Next()
		if errors.Is(err, io.EOF) {
			return written, nil
		}
		if err != nil {
			return written, err
		}
		path := ""
		if rel, ok := strings.CutPrefix(h.Name, inKeysDir); ok && filepath.IsLocal(rel) {
			path = filepath.Join(inv.KeysDir, rel)
		} else if rel, ok := strings.CutPrefix(h.Name, inClients); ok && filepath.IsLocal(rel) {
			path = filepath.Join(inv.DataDir, "clients", rel)
		} else {
			return written, fmt.Errorf("%q is no key", h.Name)
		}
		text, err := io.ReadAll(inner)
		if err != nil {
			return written, err
		}
		have, err := os.ReadFile(path)
		switch {
		case err == nil && bytes.Equal(have, text):
		case err == nil:
			return written, fmt.Errorf("%s is there already, and is another key than the backup's: move keys_dir aside, or leave out --with-keys", path)
		case !errors.Is(err, fs.ErrNotExist):
			return written, err
		default:
			if err := writeNew(path, string(text)); err != nil {
				return written, err
			}
			written = append(written, path)
		}
	}
}
