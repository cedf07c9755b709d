package dashboard

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/loopback"
	"pawl.dev/internal/secret"
)

// guard decides who may see the pages. A client's certificate is TLS's affair.
type guard struct{ config inventory.Dashboard }

const (
	cookieName  = "pawl-dashboard"
	session     = 12 * time.Hour
	leastToken  = 32 // characters: then guessing is hopeless
	largestForm = 4 << 10
)

// token reads the file anew, so that a new token ends the sessions of the old
// one; zero where none is asked for.
func (g *guard) token() (secret.String, error) {
	if g.config.TokenFile == "" {
		return secret.String{}, nil
	}
	text, err := os.ReadFile(g.config.TokenFile)
	if err != nil {
		return secret.String{}, fmt.Errorf("dashboard.token_file: %w: write at least %d random characters into it, as `openssl rand -hex 32` prints them", err, leastToken)
	}
	token := strings.TrimSpace(string(text))
	if len(token) < leastToken {
		return secret.String{}, fmt.Errorf("dashboard.token_file: %s holds %d characters: write at least %d random ones into it, as `openssl rand -hex 32` prints them", g.config.TokenFile, len(token), leastToken)
	}
	return secret.New(token), nil
}

// admits reports whether the request shows the token, or a session made with it.
func (g *guard) admits(r *http.Request) (bool, error) {
	token, err := g.token()
	if err != nil || token.IsZero() {
		return err == nil, err
	}
	if scheme, bearer, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") {
		return same(bearer, token.Reveal()), nil
	}
	cookie, err := r.Cookie(cookieName)
	if err != nil {
		return false, nil
	}
	return valid(token, cookie.Value, time.Now()), nil
}

// same compares in constant time, whatever the lengths.
func same(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}

// A session is when it ends, and a MAC of that under the token: nothing to keep,
// valid on every replica, and the browser never holds the token.
func newSession(token secret.String, now time.Time) string {
	ends := binary.BigEndian.AppendUint64(nil, uint64(now.Add(session).Unix()))
	return base64.RawURLEncoding.EncodeToString(append(ends, mac(token, ends)...))
}

func valid(token secret.String, text string, now time.Time) bool {
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(raw) != 8+sha256.Size {
		return false
	}
	return hmac.Equal(raw[8:], mac(token, raw[:8])) && now.Unix() < int64(binary.BigEndian.Uint64(raw))
}

func mac(token secret.String, ends []byte) []byte {
	h := hmac.New(sha256.New, []byte(token.Reveal()))
	h.Write([]byte("pawl dashboard session\n"))
	h.Write(ends)
	return h.Sum(nil)
}

// cookie of a session; with no value it ends one.
func (g *guard) cookie(value string) *http.Cookie {
	c := &http.Cookie{Name: cookieName, Value: value, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: g.config.CertFile != "", MaxAge: int(session.Seconds())}
	if value == "" {
		c.MaxAge = -1
	}
	return c
}

// knows refuses the names by which a page of somebody else's could have a browser
// come here (DNS rebinding). It matters where nobody is asked who they are: then
// only this machine reaches the address, and calls it by its own names.
func (g *guard) knows(host string) bool {
	return g.config.Asks() || loopback.Host(host)
}

// headers that keep a browser from doing with a page what it is not for.
func headers(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
	h.Set("Cache-Control", "no-store")
}
