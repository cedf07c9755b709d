package sealed

import (
	"strings"
	"testing"

	"pawl.dev/internal/secret"
)

// An envelope from before settings were recorded must not read as "there are none".
func TestUnrecordedSettingsAreTakenForNone(t *testing.T) {
	plain, err := (&Credential{Credential: "app", Settings: map[string][]Setting{"n1": {{"shop", "work_mem", secret.New("7MB")}}, "n2": {}}}).reveal()
	if err != nil {
		t.Fatal(err)
	}
	c, err := parse(plain)
	if err != nil {
		t.Fatal(err)
	}
	if s := c.Settings["n1"]; len(s) != 1 || s[0].Database != "shop" || s[0].Name != "work_mem" || s[0].Value.Reveal() != "7MB" {
		t.Errorf("read back: %v", s)
	}
	if _, known := c.Settings["n2"]; !known {
		t.Error("that a node has none is forgotten")
	}
	before, err := (&Credential{Credential: "app"}).reveal()
	if err != nil || strings.Contains(string(before), "Settings") {
		t.Fatalf("%s, %v: an older version would not read it", before, err)
	}
	if c, err = parse(before); err != nil || len(c.Settings) > 0 {
		t.Errorf("from before: %v, %v", c.Settings, err)
	}
}
