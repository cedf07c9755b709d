package inventory

import (
	"fmt"
	"os"
	"strings"

	"pawl.dev/internal/secret"
)

func (a Account) readPassword() (secret.String, error) {
	if a.PasswordEnv != "" {
		value, ok := os.LookupEnv(a.PasswordEnv)
		if !ok || value == "" {
			return secret.String{}, fmt.Errorf("password of %q: environment variable %s is not set", a.User, a.PasswordEnv)
		}
		return secret.New(value), nil
	}
	raw, err := os.ReadFile(a.PasswordFile)
	if err != nil {
		return secret.String{}, fmt.Errorf("password of %q: %w", a.User, err)
	}
	value := strings.TrimRight(string(raw), "\r\n")
	if value == "" {
		return secret.String{}, fmt.Errorf("password of %q: %s is empty", a.User, a.PasswordFile)
	}
	return secret.New(value), nil
}

// PasswordSource names where the password is read from.
func (a Account) PasswordSource() string {
	if a.PasswordEnv != "" {
		return "environment variable " + a.PasswordEnv
	}
	return a.PasswordFile
}
