// Package call sends HTTP requests whose answers may be repeated in reports.
package call

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"pawl.dev/services/restarter/internal/scrub"
)

// bodyLimit is how many bytes of an answer are read.
const bodyLimit = 4 << 10

// client opens a connection for each request: a connection from before a
// restart says nothing about the process after it. It follows no redirects: they
// would carry the token elsewhere, or turn a POST into a GET.
var client = &http.Client{
	Transport: func() http.RoundTripper {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.DisableKeepAlives = true
		return t
	}(),
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// Answer is the error for an answer other than 2xx.
type Answer struct {
	Status int
	what   string
}

func (a *Answer) Error() string { return a.what }

// Send returns nil where the answer is 2xx, an *Answer where it is another, and
// any other error where there was none. The texts are scrubbed and name the
// request. The time limit is that of the request's context.
func Send(req *http.Request) error {
	what := req.Method + " " + req.URL.Redacted()
	res, err := client.Do(req)
	if err != nil {
		if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
			err = wrapped.Err // without the URL, which `what` has already
		}
		return scrub.Error(fmt.Errorf("%s: %w", what, err))
	}
	defer res.Body.Close()
	if res.StatusCode/100 == 2 {
		return nil
	}
	what += " answered " + res.Status
	if to, err := res.Location(); err == nil {
		what += ", a redirect to " + to.Redacted() + ", which is not followed: configure that URL"
	}
	// A longer answer is left out whole: cut, it could end in half a secret.
	if body, err := io.ReadAll(io.LimitReader(res.Body, bodyLimit+1)); err == nil && 0 < len(body) && len(body) <= bodyLimit {
		what += ": " + string(body)
	}
	return &Answer{Status: res.StatusCode, what: scrub.Text(what)}
}
