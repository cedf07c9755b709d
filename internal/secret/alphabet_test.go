package secret

import (
	"math"
	"strings"
	"testing"
)

func TestNoAlphabetWeakensAPassword(t *testing.T) {
	for name, alphabet := range Alphabets {
		least, full := LeastLength(alphabet), FullLength(alphabet)
		bits := math.Log2(float64(len(alphabet)))
		if least < 32 || float64(least)*bits < 190 || float64(full)*bits < 256 || full < least {
			t.Errorf("%s: from %d, by default %d characters of %.2f bits", name, least, full, bits)
		}
		if _, err := GenerateFrom(alphabet, least-1); err == nil {
			t.Errorf("%s: %d characters were made", name, least-1)
		}
		p, err := GenerateFrom(alphabet, 128)
		if err != nil || len(p.Reveal()) != 128 || strings.Trim(p.Reveal(), alphabet) != "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if p, err := GenerateFrom("", 43); err != nil || strings.Trim(p.Reveal(), Base62) != "" {
		t.Errorf("no alphabet: %v", err)
	}
}
