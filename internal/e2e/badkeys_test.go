package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pawl.dev/cmd/pawl/embedded"
	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// TestWrongSealingKeysStopWhatNeedsThemAndLoseNothing puts other keys in place
// of all three services', while a rotation is between stage and publish.
func TestWrongSealingKeysStopWhatNeedsThemAndLoseNothing(t *testing.T) {
	t.Parallel()
	var credentials []site.Credential
	for _, name := range []string{"kept", "lost", "flying"} {
		credentials = append(credentials, site.Credential{Name: name, Strategy: "alternating"})
	}
	h := newHouse(t, credentials)
	for _, c := range credentials {
		h.do(t, c.Name, adopt)
		h.do(t, c.Name, rotate)
	}
	release := hold(t, filepath.Dir(h.site.Env("flying")))
	defer release()
	flying := h.ask(t, "flying", rotate)
	h.await(t, flying, saga.Staged)
	kept := h.look(t, "kept")
	h.stop(t)
	release()

	keys := filepath.Join(h.site.Inventory.KeysDir, "sealing")
	right := keys + ".right"
	if err := os.Rename(keys, right); err != nil {
		t.Fatal(err)
	}
	if _, err := sealed.CreateKeys(h.site.Inventory.KeysDir); err != nil {
		t.Fatal(err)
	}
	t.Run("half a pair", func(t *testing.T) {
		for _, service := range sealed.Recipients {
			private := filepath.Join(keys, service+".agekey")
			other, err := os.ReadFile(private)
			if err != nil {
				t.Fatal(err)
			}
			write(t, private, text(t, filepath.Join(right, service+".agekey")))
			err = embedded.Up(t.Context(), embedded.UpOptions{Inventory: h.site.Inventory, Log: h.log})
			if err == nil || !holdsAll(err.Error(), []string{service + ": sealing keys of " + service + " do not belong together", private, service + ".agepub"}) {
				t.Errorf("pawl up: %v", err)
			}
			write(t, private, string(other))
		}
	})
	h.up(t)
	t.Run("a whole pair", func(t *testing.T) {
		for _, action := range []pawlv1.Action{rotate, plan} {
			answer := h.refused(t, "kept", action)
			for _, service := range sealed.Recipients {
				if !holdsAll(answer.GetReason(), []string{service + ": sealed credential: ", "cannot be opened with this key (is this the " + service + " key it was sealed to?): put the right key back, or run `pawl adopt kept`"}) {
					t.Errorf("%v: %s", action, answer.GetReason())
				}
			}
		}
		if d := kept.diff(h.look(t, "kept")); d != nil {
			t.Errorf("a refused rotation changed %v", d)
		}
	})
	t.Run("a key that is gone for good", func(t *testing.T) {
		h.do(t, "lost", adopt)
		h.do(t, "lost", rotate)
		for what := range h.look(t, "lost") {
			if strings.HasPrefix(what, "sealed ") && !strings.Contains(what, h.newest(t, "lost")) {
				t.Errorf("left: %s", what)
			}
		}
	})
	h.log.await(t, `"credential":"flying"`, "cannot be opened with this key")
	h.stop(t)
	if err := os.RemoveAll(keys); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(right, keys); err != nil {
		t.Fatal(err)
	}
	h.up(t)
	log := h.await(t, flying, saga.Completed, saga.RolledBack)
	if log.Find(saga.Completed) == nil {
		t.Errorf("the rotation that met the wrong keys: %v %s", site.Events(log), failureOf(log))
	}
	h.works(t, "flying")
	if d := kept.diff(h.look(t, "kept")); d != nil {
		t.Errorf("a refused rotation changed %v", d)
	}
	h.do(t, "kept", rotate)
}

// newest rotation of the credential.
func (h *house) newest(t *testing.T, credential string) string {
	t.Helper()
	log, err := h.client.ReadNewest(t.Context(), credential)
	if err != nil {
		t.Fatal(err)
	}
	return log.Rotation
}

func text(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(bytes.TrimSpace(raw)) + "\n"
}
