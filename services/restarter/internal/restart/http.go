package restart

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/secret"
	"pawl.dev/services/restarter/internal/call"
	"pawl.dev/services/restarter/internal/health"
)

const retryInterval = 250 * time.Millisecond

// request asks the consumer, or who manages it, by HTTP.
type request struct{ inventory.HTTPCall }

// Restart sends the request until it is answered 2xx or refused, for at most
// the timeout. Its Idempotency-Key is the same at each attempt, so that a server
// which knows the header restarts once. The step and the credential are part of
// it: a compensation taken for the restart that it undoes would be ignored, and
// so would another member's of a group.
func (r request) Restart(ctx context.Context, cause Cause) error {
	ctx, cancel := context.WithTimeoutCause(ctx, r.Timeout, fmt.Errorf("no success within %s", r.Timeout))
	defer cancel()
	req, err := r.prepare(ctx, cause)
	if err != nil {
		return err
	}
	var refused error
	err = health.Await(ctx, retryInterval, func(context.Context) error {
		err := call.Send(req)
		if answer := (*call.Answer)(nil); errors.As(err, &answer) && !transient(answer.Status) {
			refused = err
			return nil
		}
		return err
	})
	return errors.Join(refused, err)
}

func (r request) prepare(ctx context.Context, cause Cause) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, r.Method, r.URL, nil)
	if err != nil {
		return nil, errURL // the parser's error repeats the URL, passwords and all
	}
	if r.TokenFile != "" {
		token, err := r.token()
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", "Bearer "+token.Reveal())
	}
	req.Header.Set("Idempotency-Key", strings.Join([]string{cause.Rotation, cause.Step, cause.Credential, cause.Consumer}, "/"))
	return req, nil
}

var errURL = errors.New("url: not an http or https URL with a host")

// token reads the file anew each time: tokens are rotated too.
func (r request) token() (secret.String, error) {
	content, err := os.ReadFile(r.TokenFile)
	if err != nil {
		return secret.String{}, fmt.Errorf("token_file: %w", err)
	}
	token := strings.TrimSpace(string(content))
	if token == "" || strings.ContainsFunc(token, func(c rune) bool { return c <= ' ' || c >= 0x7f }) {
		return secret.String{}, fmt.Errorf("token_file %s: must hold one token of printable ASCII", r.TokenFile)
	}
	return secret.New(token), nil
}

// transient reports whether the same request may yet succeed: a server's fault,
// or being asked to wait.
func transient(status int) bool {
	return status >= 500 || status == http.StatusRequestTimeout || status == http.StatusTooManyRequests
}

func (r request) Check(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	u, err := url.Parse(r.URL)
	if err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https" {
		return "", errURL
	}
	if r.TokenFile != "" {
		if _, err := r.token(); err != nil {
			return "", err
		}
	}
	port := u.Port()
	if port == "" {
		port = u.Scheme // net knows both by name
	}
	address := net.JoinHostPort(u.Hostname(), port)
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return "", fmt.Errorf("url: %w", err)
	}
	_ = conn.Close()
	return address + " accepts connections", nil
}
