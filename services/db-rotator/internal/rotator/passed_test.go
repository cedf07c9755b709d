package rotator

import (
	"testing"
	"time"

	"pawl.dev/internal/postgres"
)

// TestEmergencyIsWatchedAsLongAsAHandshakeMayLast steps the clock of the database
// server: the watch may neither end early nor stand.
func TestEmergencyIsWatchedAsLongAsAHandshakeMayLast(t *testing.T) {
	for _, by := range []time.Duration{time.Minute, time.Hour, 24 * time.Hour, -time.Minute, -time.Hour, -24 * time.Hour} {
		o := New(nil, nil)
		fence := postgres.Fence{Role: "app", Generation: 2, Phase: phaseRetire, Rotation: "r2", Passed: time.Now(), Age: 2 * time.Second}
		if age := o.passed("main/n1", fence, 3*time.Second); age.Round(time.Second) != 2*time.Second {
			t.Fatalf("passed %v ago", age)
		}
		fence.Age += by // between two looks
		if age := o.passed("main/n1", fence, 3*time.Second); age.Round(time.Second) != 2*time.Second {
			t.Errorf("clock stepped by %v: passed %v ago", by, age)
		}
		if age := New(nil, nil).passed("main/n1", fence, 3*time.Second); age < 0 || age.Round(time.Second) > 3*time.Second { // before the first look
			t.Errorf("clock stepped by %v before: passed %v ago", by, age)
		}
		fence.Passed, fence.Age = fence.Passed.Add(time.Second), 0 // refused again
		if age := o.passed("main/n1", fence, time.Hour); age.Round(time.Second) != 0 {
			t.Errorf("a fence that was just passed was passed %v ago", age)
		}
	}
}
