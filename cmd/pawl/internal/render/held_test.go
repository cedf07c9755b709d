package render

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"pawl.dev/internal/chronicle"
)

// TestHeldCredentialLooksIdle: a person and a script both see what doctor says.
func TestHeldCredentialLooksIdle(t *testing.T) {
	kept := time.Now().Add(time.Hour)
	s := chronicle.Status{Credential: "app", State: chronicle.Idle, KeptUntil: &kept, Now: time.Now()}.HeldFor("the database is ahead of the log. Fix: `pawl adopt app`")
	var text strings.Builder
	if err := StatusTable(&text, []chronicle.Status{s}, Style{Zone: time.UTC}); err != nil {
		t.Fatal(err)
	}
	script, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	for where, have := range map[string]string{"the table": text.String(), "the JSON": string(script)} {
		if !strings.Contains(have, "held") || !strings.Contains(have, "pawl adopt app") || strings.Contains(have, "idle") || strings.Contains(have, "kept_until") {
			t.Errorf("%s says:\n%s", where, have)
		}
	}
}
