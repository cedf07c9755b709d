package postgres

import (
	"crypto/hmac"
	"crypto/md5"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"regexp"
	"strconv"

	"pawl.dev/internal/secret"
)

// iterations is PostgreSQL's own default. Every client pays them at each login;
// 256 random bits need no more.
const iterations = 4096

// The two shapes that PostgreSQL stores as they are.
var (
	scramShape = regexp.MustCompile(`^SCRAM-SHA-256\$(\d{1,8}):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)$`)
	md5Shape   = regexp.MustCompile(`^md5[0-9a-f]{32}$`)
)

// Verifier returns what PostgreSQL stores of the password (RFC 5802, RFC 7677),
// with a new salt each time. The password must be ASCII: drivers disagree on
// SASLprep beyond it.
func Verifier(password secret.String) (secret.String, error) {
	if password.IsZero() {
		return secret.String{}, fmt.Errorf("verifier of an empty password: PostgreSQL would clear the password")
	}
	salt := make([]byte, 16)
	if _, err := rand.Read(salt); err != nil {
		return secret.String{}, fmt.Errorf("system random source: %w", err)
	}
	return scram(password, salt, iterations)
}

func scram(password secret.String, salt []byte, iterations int) (secret.String, error) {
	salted, err := pbkdf2.Key(sha256.New, password.Reveal(), salt, iterations, sha256.Size)
	if err != nil {
		return secret.String{}, fmt.Errorf("pbkdf2: %w", err)
	}
	sign := func(text string) []byte {
		mac := hmac.New(sha256.New, salted)
		mac.Write([]byte(text))
		return mac.Sum(nil)
	}
	stored := sha256.Sum256(sign("Client Key"))
	encode := base64.StdEncoding.EncodeToString
	return secret.New(fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", iterations, encode(salt), encode(stored[:]), encode(sign("Server Key")))), nil
}

// Matches reports whether the stored verifier is one of the password: it is
// computed anew from the verifier's own salt and iterations, so no login is
// needed. user is part of an md5 hash.
func Matches(user string, password, verifier secret.String) bool {
	if password.IsZero() {
		return false
	}
	if md5Shape.MatchString(verifier.Reveal()) {
		sum := md5.Sum([]byte(password.Reveal() + user))
		return verifier.Equal(secret.New("md5" + hex.EncodeToString(sum[:])))
	}
	parts := scramShape.FindStringSubmatch(verifier.Reveal())
	if parts == nil {
		return false
	}
	rounds, err := strconv.Atoi(parts[1])
	if err != nil || rounds < 1 || rounds > 10_000_000 {
		return false
	}
	salt, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil {
		return false
	}
	computed, err := scram(password, salt, rounds)
	return err == nil && verifier.Equal(computed)
}

// storable reports whether PostgreSQL would store the verifier byte for byte,
// and whether it can stand in a literal: anything else would be taken as a
// plaintext password.
func storable(verifier secret.String) bool {
	return scramShape.MatchString(verifier.Reveal()) || md5Shape.MatchString(verifier.Reveal())
}
