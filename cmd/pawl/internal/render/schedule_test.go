package render

import (
	"strings"
	"testing"
	"time"

	"pawl.dev/internal/schedule"
)

func TestScheduleTableMarksWhatIsLate(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	all := NewSchedule([]schedule.Due{
		{Credential: "overdue", Deadline: now.Add(-time.Hour), At: now.Add(time.Minute), Why: "missed"},
		{Credential: "missing", Deadline: now.Add(time.Hour), At: now.Add(48 * time.Hour), Why: "in the first window there is, after the deadline"},
		{Credential: "waiting", Deadline: now.Add(time.Hour), Blocked: "staging\nwas not turned yet"},
		{Credential: "new", Blocked: "new is not adopted"},
	}, now)
	var out strings.Builder
	if err := ScheduleTable(&out, all, Style{}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 5 {
		t.Fatalf("%d lines:\n%s", len(lines), &out)
	}
	for i, want := range []string{"", "OVERDUE", "(will be missed)", "blocked", "blocked"} {
		if !strings.Contains(lines[i], want) || strings.Count(out.String(), "OVERDUE") != 1 || strings.Count(out.String(), "(will be missed)") != 1 {
			t.Errorf("no %q in %q", want, lines[i])
		}
	}
}
