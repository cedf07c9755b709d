package webhook

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/secret"
)

// Headers of Grafana's signature. The second one's name is the user's choice in
// Grafana, and this is what docs/runbooks/alerts.md says to choose; without it
// Grafana signs the body alone, which could be sent again for ever.
const (
	signatureHeader = "X-Grafana-Alerting-Signature"
	timestampHeader = "X-Grafana-Alerting-Timestamp"
)

const (
	replayWindow = 5 * time.Minute // how far a signature's time may be from ours
	leastSecret  = 16              // bytes
)

// known checks what the headers say of the sender, against the receiver's
// secret, which is read anew each time; nothing, where the body is signed.
func known(r inventory.Receiver, q *http.Request) error {
	switch {
	case r.TokenFile != "":
		right, err := readSecret(r.TokenFile)
		if err != nil {
			return err
		}
		token, bearer := strings.CutPrefix(q.Header.Get("Authorization"), "Bearer ")
		return unless(bearer && same(token, right), "the bearer token is not the one in "+r.TokenFile)
	case r.PasswordFile != "":
		right, err := readSecret(r.PasswordFile)
		if err != nil {
			return err
		}
		user, password, _ := q.BasicAuth()
		rightUser := same(user, secret.New(r.User)) // both are compared, whatever the first says
		return unless(same(password, right) && rightUser, "user or password are not the receiver's")
	}
	return nil
}

// signed checks Grafana's signature, where the receiver wants one: HMAC-SHA256
// over timestamp:body, in hexadecimal; the timestamp in seconds since 1970.
func (s *Server) signed(r inventory.Receiver, header http.Header, body []byte) error {
	if r.HMACFile == "" {
		return nil
	}
	key, err := readSecret(r.HMACFile)
	if err != nil {
		return err
	}
	timestamp := header.Get(timestampHeader)
	if timestamp == "" {
		return refusal{unauthorized, fmt.Errorf("it has no %s, without which it could be sent again for ever: in Grafana, set the timestamp header of the HMAC signature to that name", timestampHeader)}
	}
	mac := hmac.New(sha256.New, []byte(key.Reveal()))
	mac.Write([]byte(timestamp + ":"))
	mac.Write(body)
	given, err := hex.DecodeString(header.Get(signatureHeader))
	if err != nil || !hmac.Equal(given, mac.Sum(nil)) {
		return refusal{unauthorized, errors.New("the signature is not the receiver's")}
	}
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil {
		return refusal{unauthorized, fmt.Errorf("%s must be seconds since 1970", timestampHeader)}
	}
	if away := s.now().Sub(time.Unix(seconds, 0)); away.Abs() > replayWindow {
		return refusal{replayed, fmt.Errorf("it was signed %v away from now: it is sent again, or the clocks differ", away.Round(time.Second))}
	}
	return nil
}

func unless(right bool, fault string) error {
	if right {
		return nil
	}
	return refusal{unauthorized, errors.New(fault)}
}

// same compares in a time that tells nothing of either, their lengths included.
func same(given string, right secret.String) bool {
	a, b := sha256.Sum256([]byte(given)), sha256.Sum256([]byte(right.Reveal()))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// readSecret returns what stands in the file, without a final line break. A
// missing or feeble one lets nobody in, and is no fault of the sender's.
func readSecret(path string) (secret.String, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return secret.String{}, refusal{unavailable, fmt.Errorf("the receiver's secret: %w", err)}
	}
	raw = bytes.TrimRight(raw, "\r\n")
	if len(raw) < leastSecret {
		return secret.String{}, refusal{unavailable, fmt.Errorf("the receiver's secret: %s holds %d bytes: at least %d are needed, such as `openssl rand -hex 32` makes", path, len(raw), leastSecret)}
	}
	return secret.New(string(raw)), nil
}
