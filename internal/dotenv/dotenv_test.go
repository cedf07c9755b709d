package dotenv

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func parsed(t testing.TB, text string) *File {
	t.Helper()
	f, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if got := string(f.Bytes()); got != text {
		t.Fatalf("Bytes() = %q, want %q", got, text)
	}
	return f
}

func TestRewriteTouchesNothingButTheValue(t *testing.T) {
	const long = "postgres://u:p@h:5432/db?sslmode=require&x=y"
	for _, c := range []struct{ name, before, key, value, after string }{
		{"plain", "A=1\nK=old\nB=2\n", "K", "new", "A=1\nK=new\nB=2\n"},
		{"comments, blanks and order", "# K=no\n\n B=2\nK=old\n#end", "K", "new", "# K=no\n\n B=2\nK=new\n#end"},
		{"export", "  export  K=old\n", "K", "new", "  export  K=new\n"},
		{"blanks around =", "K = old  \n", "K", "new", "K = new  \n"},
		{"single quotes", "K='old' \n", "K", "new", "K='new' \n"},
		{"double quotes", "K=\"old\"\n", "K", "new", "K=\"new\"\n"},
		{"inline comment", "K=old # why\n", "K", "new", "K=new # why\n"},
		{"inline comment behind quotes", "K='o # d'\t# why\n", "K", "new", "K='new'\t# why\n"},
		{"CRLF", "A=1\r\nK=old\r\nB='x'\r\n", "K", "new", "A=1\r\nK=new\r\nB='x'\r\n"},
		{"CRLF behind quotes", "K='old'\r\n", "K", "new", "K='new'\r\n"},
		{"missing final newline", "A=1\nK=old", "K", "new", "A=1\nK=new"},
		{"BOM", "\ufeffK=old\n", "K", "new", "\ufeffK=new\n"},
		{"empty", "K=\n", "K", "new", "K=new\n"},
		{"empty with a comment", "K= # why\n", "K", "new", "K=new # why\n"},
		{"quotes for a comment behind a tab", "K=old\t# why\n", "K", "new", "K='new'\t# why\n"},
		{"emptied with a comment", "K=old # why\n", "K", "", "K='' # why\n"},
		{"every duplicate", "K=a\nB=1\nK='b'\n", "K", "new", "K=new\nB=1\nK='new'\n"},
		{"a key that another begins with", "KK=1\nK=old\nAK=2\n", "K", "new", "KK=1\nK=new\nAK=2\n"},
		{"multi-line values elsewhere", "A='x\nK=fake\n'\nK=old\n", "K", "new", "A='x\nK=fake\n'\nK=new\n"},
		{"multi-line value itself", "K=\"x\ny\"\nB=1\n", "K", "new", "K=\"new\"\nB=1\n"},
		{"a value that nobody can read", "K=pa$$w#rd\n", "K", "new", "K=new\n"},
		{"escapes in the old value", `K="a\"b"` + "\n", "K", "new", "K=\"new\"\n"},
		{"quotes where sh would cut", "K=old\n", "K", long, "K='" + long + "'\n"},
		{"no quotes where there were none for the same", "K=postgres://a?b&c\n", "K", long, "K=" + long + "\n"},
		{"quotes for a comment sign", "K=old\n", "K", "a #b", "K='a #b'\n"},
		{"quotes for a dollar", "K=\"old\"\n", "K", "a$b", "K='a$b'\n"},
		{"other quotes for a quote", "K='old'\n", "K", "it's", "K=\"it's\"\n"},
		{"list member", "K=a,b,c\n", "K[1]", "new", "K=a,new,c\n"},
		{"list with blanks", "K=\"a, b ,c\"\n", "K[1]", "new", "K=\"a, new ,c\"\n"},
		{"list with blanks, unquoted", "K=a, b, c # why\n", "K[2]", "new", "K=a, b, new # why\n"},
		{"lines that are not understood", "what is this\nK=old\n=x\n", "K", "new", "what is this\nK=new\n=x\n"},
		{"an unclosed quote further down", "K=old\nB='open\nC=1\n", "K", "new", "K=new\nB='open\nC=1\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := parsed(t, c.before)
			for range 2 {
				if err := f.Set(c.key, c.value); err != nil {
					t.Fatal(err)
				}
				if got := string(f.Bytes()); got != c.after {
					t.Fatalf("got  %q\nwant %q", got, c.after)
				}
			}
			if got, err := parsed(t, c.after).Lookup(c.key); err != nil || got != c.value {
				t.Fatalf("Lookup = %q, %v", got, err)
			}
		})
	}
}

func TestAmbiguityIsAnErrorThatNamesTheLineAndNothingElse(t *testing.T) {
	for name, text := range map[string]string{
		"interpolation":                 "A=1\nK=hush$x\n",
		"interpolation in quotes":       "A=1\nK=\"hush$x\"\n",
		"python interpolates in single": "A=1\nK='hush${x}'\n",
		"escape":                        "A=1\nK=\"hush\\n\"\n",
		"hash without a blank":          "A=1\nK=hush#x\n",
		"quote inside":                  "A=1\nK=hu'sh'\n",
		"comment for a value":           "A=1\nK= #hush\n",
		"tab before the comment":        "A=1\nK=hush\t# x\n",
		"text behind the quote":         "A=1\nK='hush'x\n",
		"comment close to the quote":    "A=1\nK='hush'#x\n",
		"hidden single quote":           "A=1\nK='hu\\'sh'\n",
		"unclosed":                      "A=1\nK=\"hush\nB=2\n",
		"after an unclosed quote":       "A=1\nB='\nK=hush\n",
		"within what closes oddly":      "A=1\nB=\"x\nK=hush\nC=\"y\"\n",
		"backticks":                     "A=1\nK=`hush`\n",
		"colon":                         "A=1\nK: hush\n",
		"no value":                      "A=1\nexport K\n",
		"carriage return":               "A=1\nB=1\rK=hush\n",
		"continued line":                "A=1\nK=hush\\\nB=1\n",
		"exotic blank":                  "A=1\nK=hush\u00a0\n",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parsed(t, text).Lookup("K")
			if err == nil || errors.Is(err, ErrNoKey) || !strings.HasPrefix(err.Error(), "line 2: ") || strings.Contains(err.Error(), "hush") {
				t.Fatalf("Lookup: %v", err)
			}
		})
	}
}

func TestSetRefusesAndChangesNothing(t *testing.T) {
	for name, c := range map[string]struct{ text, key, value string }{
		"missing key":          {"A=1\n", "K", "x"},
		"line break":           {"K=1\n", "K", "x\ny"},
		"carriage return":      {"K=1\n", "K", "x\ry"},
		"NUL":                  {"K=1\n", "K", "x\x00"},
		"not UTF-8":            {"K=1\n", "K", "x\xff"},
		"no quoting will do":   {"K=1\n", "K", `it's $"`},
		"one of two cannot":    {"K=1\nK='a'b\n", "K", "x"},
		"comma in a member":    {"K=a,b\n", "K[0]", "x,y"},
		"member beyond":        {"K=a,b\n", "K[2]", "x"},
		"in an unclosed quote": {"B='\nK=a\n", "K", "x"},
	} {
		t.Run(name, func(t *testing.T) {
			f := parsed(t, c.text)
			if err := f.Set(c.key, c.value); err == nil {
				t.Fatal("accepted")
			}
			if got := string(f.Bytes()); got != c.text {
				t.Fatalf("changed to %q", got)
			}
		})
	}
	if _, err := Parse([]byte("\xff\xfeK\x00=\x001\x00")); err == nil {
		t.Fatal("UTF-16 accepted")
	}
}

func TestLastDuplicateCounts(t *testing.T) {
	if got, ok := parsed(t, "K=a\nK=b\n").Get("K"); !ok || got != "b" {
		t.Fatalf("Get = %q, %v", got, ok)
	}
}

func TestAppendKeepsLineEndsAndTheMissingFinalNewline(t *testing.T) {
	for before, after := range map[string]string{
		"":               "K=v\n",
		"\ufeff":         "\ufeffK=v\n",
		"A=1\n":          "A=1\nK=v\n",
		"A=1":            "A=1\nK=v",
		"A=1\r\nB=2":     "A=1\r\nB=2\r\nK=v",
		"A=1 # x\r\n":    "A=1 # x\r\nK=v\r\n",
		"not understood": "not understood\nK=v",
	} {
		f := parsed(t, before)
		if err := f.Append("K", "v"); err != nil {
			t.Fatalf("%q: %v", before, err)
		}
		if got := string(f.Bytes()); got != after {
			t.Errorf("%q: got %q, want %q", before, got, after)
		}
		if err := f.Append("K", "w"); err == nil {
			t.Errorf("%q: appended twice", before)
		}
	}
	if err := parsed(t, "A='x\n").Append("K", "v"); err == nil {
		t.Error("appended into an open quote")
	}
}

// What Set writes must mean the same to a shell that sources the file.
func TestShellReadsWhatWasWritten(t *testing.T) {
	values := []string{"plain62", "a b", "a#b", "a #b", "$HOME", "a$b", "it's", `say "x"`, "a\\b", "a&b;c|d", "~", "*", "p@ss:w/rd%20?x=1&y", "(x)", "!!", "a=b", "-n", "`id`"}
	for _, line := range []string{"export K=old", "K='old'", "K=\"old\" # why", "K=old\r\n#"} {
		for _, value := range values {
			f := parsed(t, "A=1\n"+line+"\nexport B=2\n")
			if err := f.Set("K", value); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "env")
			if err := os.WriteFile(path, bytes.ReplaceAll(f.Bytes(), []byte("\r\n"), []byte("\n")), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command("sh", "-c", `. "$1"; printf '%s|%s' "$K" "$B"`, "sh", path).CombinedOutput()
			if err != nil || string(out) != value+"|2" {
				t.Errorf("%q with %q: sh reads %q, %v", line, value, out, err)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{
		"A=1\nK=old\n", "\ufeffexport K = 'x y' # c\r\nK=\"a\nb\"\n", "K=a, b ,c", "K= # c\nB=`x\nK=1", "K='a'b\nC: d\rK=2\n", "K=a&b\nX=\"\\\"\\\\\"\n",
	} {
		f.Add(text, "new")
		f.Add(text, "it's &#\"")
	}
	f.Fuzz(func(t *testing.T, text, value string) {
		file, err := Parse([]byte(text))
		if err != nil {
			return
		}
		if got := string(file.Bytes()); got != text {
			t.Fatalf("Bytes() = %q, want %q", got, text)
		}
		const key = "K"
		before := parsed(t, text).segments
		if err := file.Set(key, value); err != nil {
			if got := string(file.Bytes()); got != text {
				t.Fatalf("failed, and changed to %q", got)
			}
			return
		}
		again := parsed(t, string(file.Bytes()))
		if got, err := again.Lookup(key); err != nil || got != value {
			t.Fatalf("reads %q (%v), want %q", got, err, value)
		}
		if len(again.segments) != len(before) {
			t.Fatalf("%d segments, had %d", len(again.segments), len(before))
		}
		for i, now := range again.segments {
			was := before[i]
			if was.key == key {
				was.value, was.quote = now.value, now.quote
			}
			was.line, now.line = 0, 0 // a multi-line value may have become one line
			if now != was {
				t.Fatalf("segment %d is %+v, was %+v", i, now, was)
			}
		}
		once := again.Bytes()
		if err := again.Set(key, value); err != nil || !bytes.Equal(again.Bytes(), once) {
			t.Fatalf("setting it again: %v, %q", err, again.Bytes())
		}
	})
}
