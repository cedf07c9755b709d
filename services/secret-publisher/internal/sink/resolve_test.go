package sink

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const nobody = 65534

// folderOf makes a folder of that user, and returns it.
func folderOf(t *testing.T, path string, uid int, mode os.FileMode) string {
	t.Helper()
	if err := errors.Join(os.Mkdir(path, 0o700), os.Chmod(path, mode), os.Chown(path, uid, uid)); err != nil {
		t.Fatalf("%v (these tests run as root)", err)
	}
	return path
}

// TestOwnerOfAFolderHasPawlWriteNowhereElse: an application that was broken into has
// the path of its sink lead to a folder where it may not write itself.
func TestOwnerOfAFolderHasPawlWriteNowhereElse(t *testing.T) {
	base := folderOf(t, filepath.Join(t.TempDir(), "base"), 0, 0o755)
	at := func(names ...string) string { return filepath.Join(append([]string{base}, names...)...) }
	link := func(to, from string) {
		t.Helper()
		if err := os.Symlink(to, from); err != nil {
			t.Fatal(err)
		}
	}
	roots := folderOf(t, at("roots"), 0, 0o755)
	theirs := folderOf(t, at("theirs"), nobody, 0o755)
	folderOf(t, at("theirs", "releases"), nobody, 0o755)
	folderOf(t, at("theirs", "made-by-root"), 0, 0o755)
	others := folderOf(t, at("others"), 1234, 0o755)
	open := folderOf(t, at("open"), 0, 0o777|os.ModeSticky)
	if err := os.Chmod(folderOf(t, at("wild"), 0, 0o755), 0o777); err != nil {
		t.Fatal(err)
	}
	folderOf(t, at("wild", "run"), 0, 0o755)
	link(roots, at("theirs", "root"))
	link(others, at("theirs", "other"))
	link("releases", at("theirs", "current"))
	link(filepath.Join(roots, "file"), at("theirs", "file"))
	link("../roots", at("theirs", "up"))
	link(theirs, at("shop"))
	link("theirs/root", at("twice"))
	link(roots, filepath.Join(open, "planted"))
	if err := os.Lchown(filepath.Join(open, "planted"), nobody, nobody); err != nil {
		t.Fatal(err)
	}
	team := folderOf(t, at("team"), 0, 0o775) // root's, which a group may write
	link(roots, filepath.Join(team, "current"))
	if err := os.Lchown(filepath.Join(team, "current"), nobody, nobody); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(roots, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		at("roots", "env"):                 roots,
		at("theirs", "env"):                theirs,
		at("theirs", "current", "env"):     at("theirs", "releases"), // a release, by its owner
		at("shop", "current", "env"):       at("theirs", "releases"),
		at("theirs", "root", "env"):        "",
		at("theirs", "up", "env"):          "",
		at("theirs", "other", "env"):       "",
		at("theirs", "file"):               "",
		at("twice", "env"):                 "",
		at("theirs", "made-by-root", "x"):  "", // they can rename it, and put a link there
		at("open", "planted", "env"):       "",
		at("team", "current", "env"):       "",
		at("team", "env"):                  team,
		at("wild", "run", "env"):           "everybody",
		at("theirs", "..", "roots", "env"): roots,
	} {
		target, err := openTarget(path)
		switch {
		case err == nil && target.folder != want:
			t.Errorf("%s leads to %s, want %q", path, target.folder, want)
		case err != nil && (want == roots || want == theirs || want == team || strings.HasPrefix(want, theirs)):
			t.Errorf("%s: %v", path, err)
		case err != nil && !errors.As(err, new(Refusal)):
			t.Errorf("%s: no refusal: %v", path, err)
		case err != nil && !strings.Contains(err.Error(), "could have it lead anywhere") && !strings.Contains(err.Error(), "everybody may write"):
			t.Errorf("%s: %v", path, err)
		}
		if err == nil {
			target.close()
		}
	}
}

func TestLinksWithoutEndAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "loop")
	if err := os.Symlink(path, path); err != nil {
		t.Fatal(err)
	}
	if _, err := openTarget(path); !errors.As(err, new(Refusal)) || !strings.Contains(err.Error(), "too many levels of symbolic links") {
		t.Error(err)
	}
}
