package inventory

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"pawl.dev/internal/secret"
)

func (a Account) readLogin() (Login, error) {
	if a.PasswordEnv != "" {
		value, ok := os.LookupEnv(a.PasswordEnv)
		if !ok || value == "" {
			return Login{}, fmt.Errorf("password of %q: environment variable %s is not set", a.User, a.PasswordEnv)
		}
		return Login{a.User, secret.New(value)}, nil
	}
	raw, err := os.ReadFile(a.PasswordFile)
	if err != nil {
		return Login{}, fmt.Errorf("password of %q: %w", a.User, err)
	}
	if login, ok := parseLogin(raw); ok {
		if a.Credential != "" && !slices.Contains(a.Logins(), login.User) {
			return Login{}, fmt.Errorf("password of %q: %s is of another user", a.User, a.PasswordFile)
		}
		return login, nil
	}
	value := strings.TrimRight(string(raw), "\r\n")
	if value == "" {
		return Login{}, fmt.Errorf("password of %q: %s is empty", a.User, a.PasswordFile)
	}
	return Login{a.User, secret.New(value)}, nil
}

// parseLogin reads what a file sink of format json writes.
func parseLogin(raw []byte) (Login, bool) {
	var fields map[string]any
	_ = json.Unmarshal(raw, &fields) // what is no JSON is a password
	user, _ := fields["user"].(string)
	password, _ := fields["password"].(string)
	return Login{user, secret.New(password)}, user != "" && password != ""
}

// PasswordSource names where the password is read from.
func (a Account) PasswordSource() string {
	if a.PasswordEnv != "" {
		return "environment variable " + a.PasswordEnv
	}
	return a.PasswordFile
}
