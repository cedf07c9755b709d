package published

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pawl.dev/internal/inventory"
)

func file(format string) inventory.Sink {
	return inventory.Sink{File: &inventory.File{Format: format}}
}

func env(user, password, dsn string) inventory.Sink {
	return inventory.Sink{Dotenv: &inventory.Dotenv{User: user, Password: password, DSN: dsn}}
}

func at(t *testing.T, s inventory.Sink, content string) inventory.Sink {
	path := filepath.Join(t.TempDir(), "sink")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if s.Dotenv != nil {
		s.Dotenv.Path = path
	} else {
		s.File.Path = path
	}
	return s
}

func TestEveryFormatIsReadBack(t *testing.T) {
	for _, c := range []struct {
		sink                    inventory.Sink
		content, user, password string
	}{
		{env("U", "P", ""), "U=app\nP='s3cret'\n", "app", "s3cret"},
		{env("", "P[1]", ""), "P=a,b,c\n", "", "b"},
		{env("", "", "D"), "D=\"postgresql://app_b:p%40ss+w@h1:1,h2:2/db?x=y\"\n", "app_b", "p@ss+w"},
		{env("U", "P", "D"), "U=a\nP=b\nD=postgres://a:b@h/db\n", "a", "b"},
		{file(inventory.FormatDSN), "postgresql+asyncpg://a:b@[::1]:5432/db\n", "a", "b"},
		{file(inventory.FormatJSON), `{"password":"b","user":"a","x":1}`, "a", "b"},
		{file(inventory.FormatPassword), "b\r\n", "", "b"},
	} {
		got, err := Read(at(t, c.sink, c.content))
		if err != nil || got.User != c.user || got.Password.Reveal() != c.password {
			t.Errorf("%q: %q, %v", c.content, got.User, err)
		}
	}
}

func TestWhatCannotBeReadIsNamedAndNeverQuoted(t *testing.T) {
	for _, c := range []struct {
		sink          inventory.Sink
		content, says string
	}{
		{env("U", "P", ""), "U=app\n", "P: no such key"},
		{env("U", "P", ""), "U=app\nP=hush$x\n", "line 2: P"},
		{env("U", "P", ""), "U=app\nP=\n", "empty"},
		{env("U", "", "D"), "U=a\nD=postgres://b:hush@h/db\n", "U and D hold different users"},
		{env("", "P", "D"), "P=x\nD=postgres://b:hush@h/db\n", "P and D hold different passwords"},
		{env("", "", "D"), "D=host=h password=hush\n", "D: not a postgres:// URL"},
		{file(inventory.FormatDSN), "postgres://a:hu@sh@h/db", "two @"},
		{file(inventory.FormatDSN), "postgres://a:hu/sh@h/db", "no user and password"},
		{file(inventory.FormatDSN), "postgres://a:%zzhush@h/db", "percent-encoded"},
		{file(inventory.FormatDSN), "postgres://hush@h/db", "no password"},
		{file(inventory.FormatDSN), "postgres://a:b@h/db?sslmode=x&password=hush", "among its parameters"},
		{file(inventory.FormatJSON), `{"user":"a","password":hush}`, "not a JSON object"},
		{file(inventory.FormatJSON), `{"user":"hush"}`, "not a JSON object"},
		{file(inventory.FormatPassword), "hush\nhush", "more than one line"},
		{file(inventory.FormatPassword), strings.Repeat("hush", MaxSize/4+1), "larger than"},
		{inventory.Sink{Dotenv: &inventory.Dotenv{}}, "", "holds no password"},
	} {
		sink := at(t, c.sink, c.content)
		_, err := Read(sink)
		if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), Path(sink)) || strings.Contains(err.Error(), "hush") {
			t.Errorf("%.40q: %v", c.content, err)
		}
	}
	sink := inventory.Sink{File: &inventory.File{Path: filepath.Join(t.TempDir(), "none")}}
	if _, err := Read(sink); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	sink.File.Path = t.TempDir()
	if _, err := Read(sink); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("directory: %v", err)
	}
}

func TestEntriesOfOneFileAreOneLogin(t *testing.T) {
	user, password := at(t, env("U", "", ""), "U=app\nP=x\nU2=other\n"), env("", "P", "")
	password.Dotenv.Path = user.Dotenv.Path
	link := env("U2", "", "")
	link.Dotenv.Path = filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(user.Dotenv.Path, link.Dotenv.Path); err != nil {
		t.Fatal(err)
	}
	elsewhere := at(t, file(inventory.FormatPassword), "x")
	groups := Group([]inventory.Sink{user, elsewhere, password, link})
	if len(groups) != 2 || len(groups[0]) != 3 || len(groups[1]) != 1 {
		t.Fatalf("groups: %v", groups)
	}
	if got, err := Read(user, password); err != nil || got.User != "app" || got.Password.Reveal() != "x" {
		t.Errorf("%q, %v", got.User, err)
	}
	if _, err := Read(groups[0]...); err == nil || !strings.Contains(err.Error(), "U2 and U hold different users") {
		t.Errorf("entries that disagree: %v", err)
	}
}

func TestAnotherLoginLeavesTheRestOfTheURL(t *testing.T) {
	dsn, err := ParseDSN("postgresql://old:old@h1:1,h2:2/my%20db?sslmode=require#x")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range []inventory.Login{{User: "new", Password: dsn.Password}, {User: `O'Neil @/:?#%$&+"\ é`, Password: dsn.Password}} {
		text := dsn.With(l)
		if !strings.HasSuffix(text, ":old@h1:1,h2:2/my%20db?sslmode=require#x") {
			t.Errorf("%q", text)
		}
		if again, err := ParseDSN(text); err != nil || !again.Carries(l) || !l.Carries(again.Login) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if got := NewDSN("::1", 5432, "a/b").With(dsn.Login); got != "postgres://old:old@[::1]:5432/a%2Fb" {
		t.Error(got)
	}
	if s := fmt.Sprintf("%+v %#v", dsn, dsn); strings.Contains(s, "old:") || strings.Count(s, "[secret]") != 2 {
		t.Error(s)
	}
}
