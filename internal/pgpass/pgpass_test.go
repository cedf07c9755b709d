package pgpass

import (
	"bytes"
	"slices"
	"testing"
)

var nodes = []string{"127.0.0.1:5432", "[::1]:5433"}

func TestSetTouchesNothingButThePassword(t *testing.T) {
	for _, c := range []struct {
		name, before, password, after string
		lines                         int
	}{
		{"plain", "127.0.0.1:5432:db:app:old\n", "new", "127.0.0.1:5432:db:app:new\n", 1},
		{"every line that fits", "*:*:*:app:a\n::1:5433:db:app:no\n\\:\\:1:5433:db:app:b\n", "new", "*:*:*:app:new\n::1:5433:db:app:no\n\\:\\:1:5433:db:app:new\n", 2},
		{"comments and strangers", "# 127.0.0.1:5432:db:app:no\nother:5432:db:app:no\n127.0.0.1:5432:db:app_b:no\n127.0.0.1:5433:*:app:no\n127.0.0.1:5432:db:app:old\nnonsense\n", "new",
			"# 127.0.0.1:5432:db:app:no\nother:5432:db:app:no\n127.0.0.1:5432:db:app_b:no\n127.0.0.1:5433:*:app:no\n127.0.0.1:5432:db:app:new\nnonsense\n", 1},
		{"escapes", `127.0.0.1:5432:d\:b:app:o\:l\\d` + "\n", `n:e\w`, `127.0.0.1:5432:d\:b:app:n\:e\\w` + "\n", 1},
		{"an escaped star is no wildcard", `\*:5432:db:app:old`, "new", `\*:5432:db:app:old`, 0},
		{"CRLF and no final newline", "127.0.0.1:5432:a:app:old\r\n127.0.0.1:5432:b:app:old", "new", "127.0.0.1:5432:a:app:new\r\n127.0.0.1:5432:b:app:new", 2},
		{"an empty password", "127.0.0.1:5432:db:app:\n", "new", "127.0.0.1:5432:db:app:new\n", 1},
		{"what stands behind it", "127.0.0.1:5432:db:app:old:more\n", "new", "127.0.0.1:5432:db:app:new:more\n", 1},
		{"needless escapes of the same", `127.0.0.1:5432:db:app:\n\e\w`, "new", `127.0.0.1:5432:db:app:\n\e\w`, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := Parse([]byte(c.before))
			for range 2 {
				if n, err := f.Set("app", c.password, nodes); n != c.lines || err != nil || string(f.Bytes()) != c.after {
					t.Fatalf("%d lines, %v, %q", n, err, f.Bytes())
				}
			}
			for _, got := range f.Lookup("app", nodes) {
				if got != c.password {
					t.Errorf("reads back %q", got)
				}
			}
		})
	}
}

func TestCopyStandsRightAfterTheLineOfTheOther(t *testing.T) {
	for _, c := range []struct{ before, after string }{
		{"127.0.0.1:5432:db:app:old\n# end\n", "127.0.0.1:5432:db:app:old\n127.0.0.1:5432:db:app\\:b:n\\:w\n# end\n"},
		{"*:5432:a\\:b:app:x\r\n\\:\\:1:*:*:app:y", "*:5432:a\\:b:app:x\r\n*:5432:a\\:b:app\\:b:n\\:w\r\n\\:\\:1:*:*:app:y\n\\:\\:1:*:*:app\\:b:n\\:w"},
		{"h:5432:db:app:old\n", "h:5432:db:app:old\n"},
	} {
		f := Parse([]byte(c.before))
		n, err := f.Copy("app", "app:b", "n:w", nodes)
		if err != nil || string(f.Bytes()) != c.after || n != len(f.Lookup("app:b", nodes)) {
			t.Errorf("%d, %v, %q", n, err, f.Bytes())
		}
		if got := Parse(f.Bytes()).Lookup("app:b", nodes); !slices.Equal(got, f.Lookup("app:b", nodes)) {
			t.Errorf("reads back %q", got)
		}
	}
}

func TestLineThatLibpqWouldTakeInsteadIsFound(t *testing.T) {
	for text, want := range map[string]int{
		"*:*:*:*:x\n127.0.0.1:5432:db:app:y\n":               1,
		"127.0.0.1:5432:db:app:y\n*:*:*:*:x\n":               0,
		"*:*:other:*:x\n127.0.0.1:5432:db:app:y\n":           0,
		"h:*:*:*:x\n#\n*:*:db:*:x\n127.0.0.1:5432:*:app:y\n": 3,
	} {
		if by := Parse([]byte(text)).Shadow("app", nodes); by != want {
			t.Errorf("%q: by line %d, want %d", text, by, want)
		}
	}
}

func TestPasswordThatNoLineHoldsIsRefused(t *testing.T) {
	for _, bad := range []string{"a\nb", "a\rb", "a\x00b"} {
		f := Parse([]byte("*:*:*:app:old\n"))
		_, set := f.Set("app", bad, nodes)
		_, copied := f.Copy("app", "app_b", bad, nodes)
		if set == nil || copied == nil || string(f.Bytes()) != "*:*:*:app:old\n" {
			t.Errorf("%q: %v, %v, %q", bad, set, copied, f.Bytes())
		}
	}
}

// FuzzSet: whatever the file, what is set reads back, other lines stay as they
// were, and setting it again changes nothing.
func FuzzSet(f *testing.F) {
	f.Add("127.0.0.1:5432:db:app:old\n", `p\:w`)
	f.Add("*:*:*:app:old\\\r\n#x\n\n:::::\\:", "p:")
	f.Add("a:b:c\\", "")
	f.Fuzz(func(t *testing.T, text, password string) {
		file := Parse([]byte(text))
		if got := string(file.Bytes()); got != text {
			t.Fatalf("%q became %q", text, got)
		}
		before := slices.Clone(file.lines)
		n, err := file.Set("app", password, nodes)
		if err != nil {
			if string(file.Bytes()) != text {
				t.Fatal("failed, and changed")
			}
			return
		}
		once := file.Bytes()
		again := Parse(once)
		got := again.Lookup("app", nodes)
		if len(got) != n || slices.ContainsFunc(got, func(p string) bool { return p != password }) {
			t.Fatalf("%q reads back as %q", password, got)
		}
		if len(again.lines) != len(before) {
			t.Fatalf("%d lines, had %d", len(again.lines), len(before))
		}
		ours := file.find("app", nodes)
		for i, l := range again.lines {
			if was := before[i]; slices.Contains(ours, i) && (l.head != was.head || l.tail != was.tail) || !slices.Contains(ours, i) && l.text() != was.text() {
				t.Fatalf("line %d is %q, was %q", i+1, l.text(), was.text())
			}
		}
		if _, err := again.Set("app", password, nodes); err != nil || !bytes.Equal(again.Bytes(), once) {
			t.Fatalf("again: %v, %q", err, again.Bytes())
		}
		if n, err := again.Copy("app", "app_b", password, nodes); err != nil || n != len(Parse(again.Bytes()).Lookup("app_b", nodes))-len(Parse(once).Lookup("app_b", nodes)) {
			t.Fatalf("copied %d, %v: %q", n, err, again.Bytes())
		}
	})
}
