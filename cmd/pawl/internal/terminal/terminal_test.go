package terminal

import (
	"bytes"
	"encoding/json"
	"io"
	"testing"
)

func written(t *testing.T, pieces ...string) string {
	t.Helper()
	var out bytes.Buffer
	w := New(&out)
	for _, p := range pieces {
		if n, err := w.Write([]byte(p)); n != len(p) || err != nil {
			t.Fatal(n, err)
		}
	}
	return out.String()
}

// TestTextOfOthersMovesNoCursor: a reason, a name or a server's message is a stranger's.
func TestTextOfOthersMovesNoCursor(t *testing.T) {
	for text, want := range map[string]string{
		"a line\n\tand Käse 日本":  "a line\n\tand Käse 日本",
		"\x1b[2J\x1b]0;title\a":  `\u001b[2J\u001b]0;title\u0007`,
		"done\rnot":              `done\u000dnot`,
		"\u009b31m":              `\u009b31m`, // CSI in one character
		"\u202egnp":              `\u202egnp`,
		"\U000e0041":             `\udb40\udc41`,
		"\x9b31m":                "\ufffd31m", // the same, as a byte
		"\x7f\x00":               `\u007f\u0000`,
		string(mark[:5]) + "31m": `\u0000` + string(mark[1:5]) + "31m",
	} {
		if got := written(t, text, "."); got != want+"." {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestNothingIsLostAtTheEnd(t *testing.T) {
	for text, want := range map[string]string{"a\xe2\x82": "a\ufffd\ufffd", "a\x00": `a\u0000`} {
		var out bytes.Buffer
		w := New(&out)
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil || out.String() != want {
			t.Errorf("%q: %q, %v", text, out.String(), err)
		}
	}
}

// TestDocumentForAnotherProgramIsAsItIs: its bytes may be signed, or read by rules.
func TestDocumentForAnotherProgramIsAsItIs(t *testing.T) {
	const text = "a\r\n\u200d\x00"
	var out bytes.Buffer
	if _, err := New(&out).Document([]byte(text)); err != nil || out.String() != text {
		t.Errorf("%q, %v", out.String(), err)
	}
}

func TestOwnColoursPass(t *testing.T) {
	text := Own("[31m") + "ä" + Own("[0m")
	const want = "\x1b[31mä\x1b[0m"
	if got := written(t, text); got != want {
		t.Errorf("%q", got)
	}
	var bytewise []string
	for i := range len(text) {
		bytewise = append(bytewise, text[i:i+1])
	}
	if got := written(t, bytewise...); got != want {
		t.Errorf("byte by byte: %q", got)
	}
}

func TestJSONStaysWhatItIs(t *testing.T) {
	const hostile = "\u202e\U000e0041\x7f\u009b"
	text, err := json.Marshal(hostile)
	if err != nil {
		t.Fatal(err)
	}
	var back string
	if err := json.Unmarshal([]byte(written(t, string(text))), &back); err != nil || back != hostile {
		t.Errorf("%q, %v", back, err)
	}
}

// TestEndIsNotHeldUpByWhoReadsNoMore: a write of nothing, too, waits for a reader.
func TestEndIsNotHeldUpByWhoReadsNoMore(t *testing.T) {
	_, unread := io.Pipe()
	if err := New(unread).Flush(); err != nil {
		t.Fatal(err)
	}
}
