package dashboard

import (
	"fmt"
	"net/http"
	"sync"
	"time"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/schedule"
	"pawl.dev/services/auditor/internal/posture"
)

// horizon of the schedule that is shown, and its longest list.
const (
	horizon     = 90 * 24 * time.Hour
	scheduled   = 500
	defaultDays = 90
)

func (b *Dashboard) schedule(w http.ResponseWriter, r *http.Request) {
	type day struct {
		Date string
		Dues []schedule.Due
	}
	page := struct {
		head
		Overdue, Blocked []schedule.Due
		Days             []day
		Count, Unlisted  int
		Horizon          int
		AsOf             time.Time
	}{head: b.head("Schedule", "schedule"), Horizon: defaultDays}
	page.Live = "/events"
	dues, asOf := b.forecast.at(page.Now, b.posture, b.d.Inventory)
	page.AsOf = asOf
	for _, due := range dues {
		page.Count++
		switch date := due.At.UTC().Format("Monday 2 January 2006"); {
		case page.Count > scheduled:
			page.Unlisted++
		case due.Blocked != "":
			page.Blocked = append(page.Blocked, due)
		case due.Overdue(page.Now):
			page.Overdue = append(page.Overdue, due)
		case len(page.Days) > 0 && page.Days[len(page.Days)-1].Date == date:
			last := &page.Days[len(page.Days)-1]
			last.Dues = append(last.Dues, due)
		default:
			page.Days = append(page.Days, day{date, []schedule.Due{due}})
		}
	}
	page.Summary = fmt.Sprintf("%d due within %d days", page.Count, defaultDays)
	b.pages.write(w, http.StatusOK, "schedule", page)
}

// forecast is worked out for all who look, since with thousands of credentials it
// takes seconds: anew when something has happened, and each minute.
type forecast struct {
	mu     sync.Mutex
	dues   []schedule.Due
	from   time.Time
	took   time.Duration
	events uint64 // that it is made from
}

const (
	forecastLasts = time.Minute
	// cheap is how long it may take to be made anew for each event; one that takes
	// longer is shown, with its time, for ten times as long as it took.
	cheap = 200 * time.Millisecond
)

func (f *forecast) at(now time.Time, p *posture.Posture, inv *inventory.Inventory) (dues []schedule.Due, from time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if age := now.Sub(f.from); age < forecastLasts && (p.Events() == f.events || f.took > cheap && age < 10*f.took) {
		return f.dues, f.from
	}
	past, events := p.Turned()
	began := time.Now()
	f.dues = schedule.Forecast(inv, past, now, now.Add(horizon))
	f.from, f.took, f.events = now, time.Since(began), events
	return f.dues, f.from
}
