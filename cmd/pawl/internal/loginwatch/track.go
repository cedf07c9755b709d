package loginwatch

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/inventory"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// At most so many are kept in memory, and in the file of the position; beyond,
// those go whose last failure is the oldest.
const (
	maxWindows  = 4096
	maxEpisodes = 1024
)

// key is what failures are counted by. Role is a login of a credential; empty:
// one that does not exist.
type key struct{ Alert, Role, Address string }

// failure is one failed login.
type failure struct {
	key
	At         time.Time
	SQLState   string
	Credential string // whose login it is; empty: nobody's
	Database   string // the credential's own, or empty: names that a client makes up are not repeated
}

// window is the newest failures of a key that has no alert, at most as many as
// make one, in order.
type window []time.Time

// episode is an alert under way.
type episode struct {
	First, Last time.Time
	Count       int64
	Sent        time.Time // of the failure at which the alert was last sent
	SQLState    string
	Credential  string
	Database    string
}

// announcement is an alert to publish.
type announcement struct {
	state string // firing, repeated, resolved
	alert *pawlv1.Alert
}

// tracker turns failures into alerts. It reads no clock: the same failures make
// the same alerts.
type tracker struct {
	cluster, node string
	settings      inventory.WatchLogins
	windows       *simplelru.LRU[key, window]
	episodes      *simplelru.LRU[key, *episode]
	out           []announcement
	evicted       int64
}

func newTracker(cluster, node string, settings inventory.WatchLogins) *tracker {
	t := &tracker{cluster: cluster, node: node, settings: settings}
	var err1, err2 error
	t.windows, err1 = simplelru.NewLRU[key, window](maxWindows, nil)
	t.episodes, err2 = simplelru.NewLRU[key, *episode](maxEpisodes, nil)
	if err1 != nil || err2 != nil {
		panic("of a size below 1")
	}
	return t
}

// threshold is how many failures raise an alert. A right password is enough.
func (t *tracker) threshold(k key) int {
	if k.Alert == RetiredCredentialUsed {
		return 1
	}
	return t.settings.Failures
}

// failed counts a failure.
func (t *tracker) failed(f failure) {
	if e, ok := t.episodes.Get(f.key); ok {
		if f.At.Sub(e.Last) <= t.settings.Quiet {
			t.goesOn(f, e)
			return
		}
		t.over(f.key, e)
	}
	w, _ := t.windows.Get(f.key)
	w = append(w, f.At)
	for i := len(w) - 1; i > 0 && w[i].Before(w[i-1]); i-- { // servers' processes log a little out of order
		w[i], w[i-1] = w[i-1], w[i]
	}
	w = w[max(0, len(w)-t.threshold(f.key)):]
	for f.At.Sub(w[0]) > t.settings.Within {
		w = w[1:]
	}
	if len(w) < t.threshold(f.key) {
		if t.windows.Add(f.key, w) {
			t.evicted++
		}
		return
	}
	t.windows.Remove(f.key)
	if t.episodes.Len() == maxEpisodes {
		k, e, _ := t.episodes.GetOldest()
		t.over(k, e)
		t.evicted++
	}
	last := w[len(w)-1]
	e := &episode{First: w[0], Last: last, Count: int64(len(w)), Sent: last, SQLState: f.SQLState, Credential: f.Credential, Database: f.Database}
	t.episodes.Add(f.key, e)
	t.announce(f.key, e, "firing")
}

func (t *tracker) goesOn(f failure, e *episode) {
	e.Count++
	if f.At.After(e.Last) {
		e.Last = f.At
	}
	if f.At.Sub(e.Sent) >= t.settings.Repeat {
		e.Sent = f.At
		t.announce(f.key, e, "repeated")
	}
}

// tick ends what has been quiet until now.
func (t *tracker) tick(now time.Time) {
	for { // the one that failed last is the newest
		k, e, ok := t.episodes.GetOldest()
		if !ok || now.Sub(e.Last) <= t.settings.Quiet {
			break
		}
		t.over(k, e)
	}
	for {
		k, w, ok := t.windows.GetOldest()
		if !ok || now.Sub(w[len(w)-1]) <= t.settings.Within {
			return
		}
		t.windows.Remove(k)
	}
}

func (t *tracker) over(k key, e *episode) {
	t.episodes.Remove(k)
	t.announce(k, e, "resolved")
}

func (t *tracker) announce(k key, e *episode, state string) {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q %q %q", k.Alert, t.cluster, t.node, k.Role, k.Address))
	fingerprint := hex.EncodeToString(sum[:16])
	labels := map[string]string{"alertname": k.Alert, "cluster": t.cluster, "node": t.node, "address": k.Address, "sqlstate": e.SQLState}
	annotations := map[string]string{
		"count": strconv.FormatInt(e.Count, 10),
		"first": e.First.UTC().Format(time.RFC3339Nano),
		"last":  e.Last.UTC().Format(time.RFC3339Nano),
	}
	for name, value := range map[string]string{"pg_role": k.Role, "credential": e.Credential} {
		if value != "" {
			labels[name] = value
		}
	}
	if e.Database != "" {
		annotations["database"] = e.Database
	}
	t.out = append(t.out, announcement{
		state: state,
		alert: &pawlv1.Alert{Fingerprint: fingerprint, StartsAt: timestamppb.New(e.First), Resolved: state == "resolved", Labels: labels, Annotations: annotations},
	})
}
