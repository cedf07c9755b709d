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

func TestNoCellOfATableIsAFormula(t *testing.T) {
	for cell, want := range map[string]string{"": "", "app": "app", "a=1": "a=1", "=1+1": "'=1+1", "+1": "'+1", "-1": "'-1", "@x": "'@x", " =1": "' =1", "\t=1": "'\t=1", "\r\n@x": "'\r\n@x", "＝1": "'＝1"} {
		if got := Cell(cell); got != want {
			t.Errorf("%q is written as %q", cell, got)
		}
	}
}
