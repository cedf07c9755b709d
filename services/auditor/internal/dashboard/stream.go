package dashboard

import (
	"fmt"
	"net/http"
	"time"

	"pawl.dev/internal/bus"
)

// Times of an event stream.
const (
	settle    = 150 * time.Millisecond // what changes within it is told at once
	slowly    = 15 * time.Second       // ages grow, and a proxy must not think that nobody is there
	quickly   = time.Second            // while something runs
	longest   = 10 * time.Minute       // then the browser comes again, and shows again who it is
	lastWrite = 5 * time.Second
)

// events tells the page to look again: at once when something has changed that
// it shows, and now and then since time passes. It tells nothing else.
func (b *Dashboard) events(w http.ResponseWriter, r *http.Request) {
	credential := r.URL.Query().Get("of")
	if credential != "" && !bus.ValidToken(credential) {
		b.fail(w, r, http.StatusBadRequest, "That is no credential's name.")
		return
	}
	select {
	case b.streams <- struct{}{}:
		defer func() { <-b.streams }()
	default:
		w.Header().Set("Retry-After", "10")
		b.fail(w, r, http.StatusServiceUnavailable, "Too many watch already: the page reloads itself instead.")
		return
	}
	out := http.NewResponseController(w)
	tell := func(text string) bool {
		_ = out.SetWriteDeadline(time.Now().Add(lastWrite)) // not on a recorder in tests
		_, err := fmt.Fprint(w, text)
		return err == nil && out.Flush() == nil
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	heard, stop := b.posture.Watch(credential)
	defer stop()
	_ = out.SetReadDeadline(time.Time{}) // a client that leaves is noticed
	end := time.After(longest)
	for ok := tell("retry: 2000\n\nevent: look\ndata: \n\n"); ok; {
		next := slowly
		if b.running(credential) {
			next = quickly
		}
		select {
		case <-r.Context().Done():
			return
		case <-end:
			return
		case <-heard:
			select {
			case <-r.Context().Done():
				return
			case <-time.After(settle):
			}
		case <-time.After(next):
		}
		ok = tell("event: look\ndata: \n\n")
	}
}

// running reports whether a rotation of the credential, or any, is under way.
func (b *Dashboard) running(credential string) bool {
	now := time.Now()
	if credential == "" {
		return false // its numbers do not change while time passes
	}
	s, ok := b.posture.One(credential, now)
	return ok && s.Open()
}
