// Package secret holds passwords and verifiers in memory in a type that cannot
// print itself, and makes new ones.
package secret

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"math/big"
)

const redacted = "[secret]"

// String is a secret. Every way of printing, formatting, logging or marshalling
// it yields "[secret]"; only Reveal gives the value. The zero String is empty.
type String struct{ value string }

// New wraps a secret.
func New(value string) String { return String{value} }

// Reveal returns the value. Call it only where the secret leaves for its one
// rightful place: a database handshake, a sink, a sealed envelope.
func (s String) Reveal() string { return s.value }

// IsZero reports whether there is no secret.
func (s String) IsZero() bool { return s.value == "" }

// Equal compares in constant time.
func (s String) Equal(other String) bool {
	return subtle.ConstantTimeCompare([]byte(s.value), []byte(other.value)) == 1
}

func (String) String() string               { return redacted }
func (String) GoString() string             { return redacted }
func (String) Format(f fmt.State, _ rune)   { fmt.Fprint(f, redacted) }
func (String) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (String) MarshalText() ([]byte, error) { return []byte(redacted), nil }
func (String) MarshalJSON() ([]byte, error) { return json.Marshal(redacted) }

// Alphabets of generated passwords. All are plain ASCII: drivers disagree on
// SASLprep beyond it (RFC 4013), and these characters survive dotenv files,
// URLs, shells and .pgpass unquoted.
const (
	Base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	// DefaultLength of Base62 characters holds 256 bits.
	DefaultLength = 43
)

// Alphabets by the name that a policy gives them.
var Alphabets = map[string]string{
	"alphanumeric": Base62,
	"url-safe":     Base62 + "-_",
	"lowercase":    "0123456789abcdefghijklmnopqrstuvwxyz",
	"hex":          "0123456789abcdef",
}

// LeastLength is how many characters of an alphabet the policy may ask for at
// least: 32, and as many as hold what 32 of Base62 do.
func LeastLength(alphabet string) int {
	return max(32, int(math.Ceil(32*math.Log2(float64(len(Base62)))/math.Log2(float64(len(alphabet))))))
}

// FullLength is how many characters of an alphabet hold 256 bits.
func FullLength(alphabet string) int {
	return int(math.Ceil(256 / math.Log2(float64(len(alphabet)))))
}

// Generate is GenerateFrom Base62 (43 hold 256 bits).
func Generate(length int) (String, error) { return GenerateFrom(Base62, length) }

// GenerateFrom returns length characters drawn uniformly from the alphabet, one
// of Alphabets or empty for Base62, by the system's CSPRNG. Fewer than
// LeastLength are refused: the policy may lengthen a password, never weaken it.
func GenerateFrom(alphabet string, length int) (String, error) {
	if alphabet == "" {
		alphabet = Base62
	}
	if least := LeastLength(alphabet); length < least {
		return String{}, fmt.Errorf("password length: %d is the least with %d characters to choose from", least, len(alphabet))
	}
	out := make([]byte, length)
	size := big.NewInt(int64(len(alphabet)))
	for i := range out {
		n, err := rand.Int(rand.Reader, size)
		if err != nil {
			return String{}, fmt.Errorf("system random source: %w", err)
		}
		out[i] = alphabet[n.Int64()]
	}
	return String{string(out)}, nil
}
