package words

import (
	"testing"
	"time"
)

func TestDurationIsWrittenInTwoUnits(t *testing.T) {
	ms := func(n float64) time.Duration { return time.Duration(n * float64(time.Millisecond)) }
	for d, want := range map[time.Duration]string{0: "0s", 900: "0µs", ms(0.25): "250µs", ms(45): "45ms", ms(2314): "2.31s", ms(43210): "43.2s",
		134 * time.Second: "2m14s", 192 * time.Minute: "3h12m", time.Hour: "1h", 292 * time.Hour: "12d4h", -ms(45): "-45ms"} {
		if got := Duration(d); got != want {
			t.Errorf("Duration(%d) = %q, want %q", d, got, want)
		}
	}
}
