package backup

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

// A backup is a tar, compressed (zstd) and sealed (age). First comes `backup.json`,
// so that a file of another version is refused before anything else is read; then
// each part in pieces, PART/000000 and so on, since the length of a stream is not
// known before its end; and last `manifest.json`, which lists the parts with their
// digests. Nothing is ever written unsealed, and a file that ends early, or was
// changed, is refused by age or by the manifest.

// Format is the version of the files. A file of another one is refused.
const Format = 1

// chunkSize is how much of a part is one piece.
const chunkSize = 256 << 10

const (
	headFile     = "backup.json"
	manifestFile = "manifest.json"
)

// KeysPart is the part that --with-keys adds.
const KeysPart = "keys"

// Head describes a backup.
type Head struct {
	Format  int       `json:"format"`
	At      time.Time `json:"at"`
	Version string    `json:"version"` // of Pawl
	Config  string    `json:"config"`  // the digest of pawl.yaml
}

// Manifest lists what a backup holds.
type Manifest struct {
	Head
	Streams []Stream `json:"streams"`
	Keys    *Part    `json:"keys,omitempty"`
}

// Stream is the snapshot of one stream.
type Stream struct {
	Part
	Described
	Messages uint64 `json:"messages"`
	Last     uint64 `json:"last"`
	Packed   bool   `json:"packed"` // by s2, which was undone so that it compresses better
}

// Part is what was written in pieces.
type Part struct {
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// archiver writes an archive.
type archiver struct {
	sealed   io.WriteCloser
	packed   *zstd.Encoder
	tar      *tar.Writer
	manifest Manifest
}

func newArchiver(to io.Writer, head Head, recipients []age.Recipient) (*archiver, error) {
	a := &archiver{manifest: Manifest{Head: head}}
	var err error
	if a.sealed, err = age.Encrypt(to, recipients...); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	if a.packed, err = zstd.NewWriter(a.sealed, zstd.WithEncoderConcurrency(1)); err != nil {
		return nil, err
	}
	a.tar = tar.NewWriter(a.packed)
	return a, a.file(headFile, head)
}

func (a *archiver) file(name string, content any) error {
	text, err := json.Marshal(content)
	if err != nil {
		return err
	}
	return a.piece(name, text)
}

func (a *archiver) piece(name string, content []byte) error {
	if err := a.tar.WriteHeader(&tar.Header{Name: name, Size: int64(len(content)), Mode: 0o600, ModTime: a.manifest.At}); err != nil {
		return err
	}
	_, err := a.tar.Write(content)
	return err
}

// part copies all of a reader as one part.
func (a *archiver) part(name string, from io.Reader) (Part, error) {
	p, sum, chunk := Part{Name: name}, sha256.New(), make([]byte, chunkSize)
	for n := 0; ; n++ {
		read, err := io.ReadFull(from, chunk)
		if read > 0 {
			sum.Write(chunk[:read])
			p.Bytes += int64(read)
			if err := a.piece(fmt.Sprintf("%s/%06d", name, n), chunk[:read]); err != nil {
				return p, err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			p.SHA256 = hex.EncodeToString(sum.Sum(nil))
			return p, nil
		}
		if err != nil {
			return p, err
		}
	}
}

// close writes the manifest and ends the archive.
func (a *archiver) close() error {
	err := a.file(manifestFile, a.manifest)
	for _, c := range []io.Closer{a.tar, a.packed, a.sealed} {
		if closed := c.Close(); err == nil {
			err = closed
		}
	}
	return err
}

// unpacked undoes the s2 in which the server packs a snapshot: what is packed
// already would not be compressed any further.
func unpacked(packed io.Reader) (io.Reader, bool, error) {
	const magic = "\xff\x06\x00\x00S2sTwO"
	start := make([]byte, len(magic))
	n, err := io.ReadFull(packed, start)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, false, err
	}
	whole := io.MultiReader(strings.NewReader(string(start[:n])), packed)
	if string(start[:n]) != magic {
		return whole, false, nil
	}
	return s2.NewReader(whole), true, nil
}

// repacked is the inverse.
func repacked(plain io.Reader) io.ReadCloser {
	out, in := io.Pipe()
	go func() {
		w := s2.NewWriter(in, s2.WriterConcurrency(1))
		_, err := io.Copy(w, plain)
		if closed := w.Close(); err == nil {
			err = closed
		}
		in.CloseWithError(err) // nil is the end
	}()
	return out
}

// Reader reads a backup, part by part.
type Reader struct {
	Head
	tar  *tar.Reader
	next *tar.Header // of the piece that comes, nil at the end
	seen map[string]Part
}

// errNotWhole is wrapped for a file that is not what `pawl backup` has written.
var errNotWhole = errors.New("the file is damaged or was cut short")

// Open reads the head of a backup.
func Open(from io.Reader, identities []age.Identity) (*Reader, error) {
	plain, err := age.Decrypt(from, identities...)
	if refused := new(age.NoIdentityMatchError); errors.As(err, &refused) {
		return nil, errors.New("it is sealed to another key: name the identity that belongs to its recipient with --identity FILE")
	}
	if err != nil {
		return nil, fmt.Errorf("it is no sealed backup: %w", err)
	}
	unpacked, err := zstd.NewReader(plain, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotWhole, err)
	}
	r := &Reader{tar: tar.NewReader(unpacked), seen: map[string]Part{}}
	if err := r.advance(); err != nil {
		return nil, err
	}
	if r.next == nil || r.next.Name != headFile {
		return nil, errors.New("it is sealed, but no backup of Pawl")
	}
	if err := json.NewDecoder(r.tar).Decode(&r.Head); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", errNotWhole, headFile, err)
	}
	if r.Format != Format {
		return nil, fmt.Errorf("it has format %d, written by Pawl %s; this Pawl reads format %d: use that version", r.Format, r.Version, Format)
	}
	return r, r.advance()
}

func (r *Reader) advance() error {
	var err error
	if r.next, err = r.tar.Next(); errors.Is(err, io.EOF) {
		r.next = nil
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errNotWhole, err)
	}
	return nil
}

// Parts visits every part in stored order, and returns the manifest once each has
// the digest that it lists.
func (r *Reader) Parts(visit func(name string, content io.Reader) error) (*Manifest, error) {
	for r.next != nil && r.next.Name != manifestFile {
		p := &pieces{r: r, name: path.Dir(r.next.Name), sum: sha256.New()}
		err := visit(p.name, p)
		if err == nil {
			_, err = io.Copy(io.Discard, p)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
		r.seen[p.name] = Part{p.name, p.bytes, hex.EncodeToString(p.sum.Sum(nil))}
	}
	if r.next == nil {
		return nil, fmt.Errorf("%w: it has no manifest", errNotWhole)
	}
	m := &Manifest{}
	if err := json.NewDecoder(r.tar).Decode(m); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", errNotWhole, manifestFile, err)
	}
	if err := r.advance(); err != nil { // age proves the end only when it is read
		return nil, err
	}
	listed := map[string]Part{}
	for _, s := range m.Streams {
		listed[s.Name] = s.Part
	}
	if m.Keys != nil {
		listed[m.Keys.Name] = *m.Keys
	}
	for name, want := range listed {
		if have := r.seen[name]; have != want {
			return nil, fmt.Errorf("%w: %s is not what the manifest says", errNotWhole, name)
		}
	}
	return m, nil
}

// pieces joins the pieces of one part.
type pieces struct {
	r     *Reader
	name  string
	sum   hash.Hash
	bytes int64
}

func (p *pieces) Read(b []byte) (int, error) {
	for p.r.next != nil && path.Dir(p.r.next.Name) == p.name {
		n, err := p.r.tar.Read(b)
		p.sum.Write(b[:n])
		p.bytes += int64(n)
		if n > 0 {
			return n, nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("%w: %w", errNotWhole, err)
		}
		if errors.Is(err, io.EOF) {
			if err := p.r.advance(); err != nil {
				return 0, err
			}
		}
	}
	return 0, io.EOF
}
