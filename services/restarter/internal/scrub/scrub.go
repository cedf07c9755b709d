// Package scrub takes out of foreign output whatever looks like a credential.
// The restarter holds no key, so it cannot know the password it must not
// repeat: it goes by shape, and rather takes too much than too little.
package scrub

import (
	"bytes"
	"errors"
	"regexp"
	"strings"
	"unicode"
)

const secret = "[secret]"

// Order matters: what carries its own mark goes before the bare tokens.
var shapes = []struct {
	pattern *regexp.Regexp
	instead string
}{
	{regexp.MustCompile(`(?i)SCRAM-SHA-\d+\$[^\s"'` + "`" + `]+`), secret},
	// To the last @ of the word: a password may itself hold one.
	{regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://[^\s:/@]*):\S*@`), "${1}:" + secret + "@"},
	{regexp.MustCompile(`(?i)(bearer|basic)\s+[A-Za-z0-9+/=._~-]{8,}`), "${1} " + secret},
	{regexp.MustCompile(`(?i)((?:password|passwd|pwd|secret|token)\w*(?:\[\d+\])?["']?\s*[=:]\s*)('(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.)*"|[^\s&]+)`), "${1}" + secret},
	{regexp.MustCompile(`(?i)(\bpassword\s+)('(?:[^']|'')*'|"[^"]*")`), "${1}" + secret}, // ALTER ROLE … PASSWORD '…'
	// 32 bytes in base64, or 32 and more characters of base62 or hexadecimal.
	{regexp.MustCompile(`[A-Za-z0-9+/]{43}=|[A-Za-z0-9]{32,}`), secret},
}

var escapes = regexp.MustCompile(`\x1b\[[0-9;?]*[ -/]*[@-~]`)

// Text returns s as printable, valid UTF-8 (what cannot be marshalled could not
// be reported either) without anything that looks like a SCRAM verifier, the
// password of a DSN, an assignment to a password, or a random token.
func Text(s string) string {
	// First: a colour in the middle of a secret would hide its shape.
	s = escapes.ReplaceAllString(strings.ToValidUTF8(s, ""), "")
	s = strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return -1
	}, s)
	for _, shape := range shapes {
		s = shape.pattern.ReplaceAllString(s, shape.instead)
	}
	return strings.TrimSpace(s)
}

// TailSize is how many bytes a Tail keeps.
const TailSize = 4 << 10

// Tail is a writer that keeps the last TailSize bytes.
type Tail struct {
	kept bytes.Buffer
	cut  bool
}

func (t *Tail) Write(p []byte) (int, error) {
	n := len(p)
	if n > TailSize {
		p, t.cut = p[n-TailSize:], true
	}
	if over := t.kept.Len() + len(p) - TailSize; over > 0 {
		t.kept.Next(over)
		t.cut = true
	}
	t.kept.Write(p)
	return n, nil
}

// String returns what was kept, scrubbed. A line that lost its beginning is
// left out: half a secret has no shape to know it by.
func (t *Tail) String() string {
	kept := t.kept.String()
	if t.cut {
		_, rest, _ := strings.Cut(kept, "\n")
		kept = "…\n" + rest
	}
	return Text(kept)
}

// Error returns err's text scrubbed, as a new error that wraps nothing.
func Error(err error) error { return errors.New(Text(err.Error())) }
