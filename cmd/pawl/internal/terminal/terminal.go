// Package terminal is the edge that everything passes which pawl prints. Text that
// others wrote, such as reasons, names and servers' messages, moves no cursor, hides
// nothing and turns no line round: control characters are shown, never sent.
package terminal

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"sync"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/term"
)

// mark begins a sequence of Pawl's own, which ends with a NUL. It is made anew for
// each process, so nobody can have written it into a text before.
var mark = []byte("\x00" + rand.Text())

// Own marks what follows an ESC as Pawl's own: a colour, or the erasure of a line.
// Only a Writer turns it into an escape sequence.
func Own(sequence string) string { return string(mark) + sequence + "\x00" }

// Writer passes text on, without the control characters that are not Pawl's own. A
// line break and a tab pass; any other is written as in JSON, \u001b, so that JSON
// stays what it is. Bytes that are no UTF-8 become U+FFFD. It is safe for use by
// several goroutines.
type Writer struct {
	mu   sync.Mutex
	to   io.Writer
	rest []byte // of a rune, or of a sequence, that is not yet whole
}

// New returns a Writer to w.
func New(w io.Writer) *Writer { return &Writer{to: w} }

// Terminal returns the terminal that is written to, if it is one.
func (w *Writer) Terminal() (fd int, ok bool) {
	f, isFile := w.to.(*os.File)
	if !isFile || !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	return int(f.Fd()), true
}

// Write implements io.Writer. It returns len(p) or an error.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := append(w.rest, p...)
	var out bytes.Buffer
	for len(text) > 0 {
		if n, whole := own(&out, text); !whole {
			break
		} else if n > 0 {
			text = text[n:]
			continue
		}
		if !utf8.FullRune(text) {
			break
		}
		r, n := utf8.DecodeRune(text)
		show(&out, r)
		text = text[n:]
	}
	w.rest = bytes.Clone(text)
	if _, err := w.to.Write(out.Bytes()); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Flush writes what was kept back because it was not whole. It is for the end.
func (w *Writer) Flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out bytes.Buffer
	for text := w.rest; len(text) > 0; {
		r, n := utf8.DecodeRune(text)
		show(&out, r)
		text = text[n:]
	}
	w.rest = nil
	if out.Len() == 0 {
		return nil // a pipe that nobody reads any more would hold up even that
	}
	_, err := w.to.Write(out.Bytes())
	return err
}

// Document writes a document, which is for a file or another program: as it is, unless
// to a terminal.
func (w *Writer) Document(text []byte) (int, error) {
	if _, ok := w.Terminal(); ok {
		return w.Write(text)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.to.Write(text)
}

// own writes the sequence of Pawl's own that text begins with, and returns its length:
// 0 for none. It is not whole where more has to come to tell.
func own(out *bytes.Buffer, text []byte) (n int, whole bool) {
	head := text[:min(len(text), len(mark))]
	if !bytes.HasPrefix(mark, head) {
		return 0, true
	}
	if len(head) < len(mark) {
		return 0, false
	}
	sequence, _, ended := bytes.Cut(text[len(mark):], []byte{0})
	if !ended {
		return 0, false
	}
	out.WriteByte('\x1b')
	out.Write(sequence)
	return len(mark) + len(sequence) + 1, true
}

func show(out *bytes.Buffer, r rune) {
	switch {
	case r == '\n' || r == '\t' || !unicode.IsControl(r) && !unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Co):
		out.WriteRune(r)
	case r > 0xffff:
		high, low := utf16.EncodeRune(r)
		fmt.Fprintf(out, `\u%04x\u%04x`, high, low)
	default:
		fmt.Fprintf(out, `\u%04x`, r)
	}
}
