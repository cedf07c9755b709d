package store

import (
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/chacha20"
	"golang.org/x/crypto/chacha20poly1305"
)

// decryption reads what nats-server has encrypted with ChaCha20-Poly1305. Each
// stream, consumer and block has a key of its own, in a file that is encrypted with
// one that derives from the server's key and the thing's name.
type decryption struct {
	key, account string
}

// seed opens a key file; nonce is what the file begins with.
func (d decryption) seed(path, name string) (seed, nonce []byte, err error) {
	sealed, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	mac := hmac.New(sha256.New, []byte(d.key))
	mac.Write([]byte(d.account + name))
	seed, err = open(mac.Sum(nil), sealed)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return seed, sealed[:chacha20poly1305.NonceSizeX], nil
}

var errNotWhole = errors.New("cannot be decrypted: it is damaged, or the store key is another one")

func open(key, sealed []byte) ([]byte, error) {
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, err
	}
	if len(sealed) < aead.NonceSize() {
		return nil, errNotWhole
	}
	plain, err := aead.Open(nil, sealed[:aead.NonceSize()], sealed[aead.NonceSize():], nil)
	if err != nil {
		return nil, errNotWhole
	}
	return plain, nil
}

// stream writes a decrypted copy of a stream's folder: its description, its blocks
// and its consumers. Indexes are left out: the server makes them from the blocks.
func (d decryption) stream(from, to, name string) error {
	if err := os.MkdirAll(filepath.Join(to, messages), 0o700); err != nil {
		return err
	}
	if err := d.described(from, to, name, name); err != nil {
		return err
	}
	blocks, err := blocksOf(from)
	if err != nil {
		return err
	}
	for _, b := range blocks {
		if err := d.block(b, filepath.Join(to, messages, filepath.Base(b.path)), name); err != nil {
			return err
		}
	}
	return d.consumers(from, to, name)
}

// described copies a description, and what goes with it under the same key.
func (d decryption) described(from, to, name, hashed string, also ...string) error {
	seed, _, err := d.seed(filepath.Join(from, keyFile), name)
	if err != nil {
		return err
	}
	for _, file := range append([]string{metaFile}, also...) {
		sealed, err := os.ReadFile(filepath.Join(from, file))
		if errors.Is(err, fs.ErrNotExist) && file != metaFile {
			continue
		}
		if err != nil {
			return err
		}
		plain, err := open(seed, sealed)
		if err != nil {
			return fmt.Errorf("%s: %w", filepath.Join(from, file), err)
		}
		if err := write(filepath.Join(to, file), plain); err != nil {
			return err
		}
		if file == metaFile {
			if err := write(filepath.Join(to, sumFile), []byte(sumOf(hashed, plain))); err != nil {
				return err
			}
		}
	}
	return nil
}

// block copies a block. One that was just begun is empty, and may have no key.
func (d decryption) block(b block, to, stream string) error {
	content, err := os.ReadFile(b.path)
	if err != nil || len(content) == 0 {
		return err
	}
	seed, nonce, err := d.seed(strings.TrimSuffix(b.path, ".blk")+".key", fmt.Sprintf("%s:%d", stream, b.index))
	if err != nil {
		return err
	}
	var plain cipher.Stream
	if plain, err = chacha20.NewUnauthenticatedCipher(seed, nonce); err != nil {
		return err
	}
	plain.XORKeyStream(content, content)
	return write(to, content)
}

// consumers copies the consumers of a stream. One without a description was just
// being made.
func (d decryption) consumers(from, to, stream string) error {
	folders, err := os.ReadDir(filepath.Join(from, consumers))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, folder := range folders {
		from, to := filepath.Join(from, consumers, folder.Name()), filepath.Join(to, consumers, folder.Name())
		if _, err := os.Stat(filepath.Join(from, metaFile)); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := os.MkdirAll(to, 0o700); err != nil {
			return err
		}
		if err := d.described(from, to, stream+"."+folder.Name(), stream+"/"+folder.Name(), consumerState); err != nil {
			return err
		}
	}
	return nil
}

// write writes a new file and its content to the disk.
func write(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Sync(), f.Close())
}
