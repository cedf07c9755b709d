package embedded

import (
	"runtime"
	"testing"
)

// TestBurstLeavesMemoryThatIsSeenToBeUnneeded, and what is alive is not taken for it.
func TestBurstLeavesMemoryThatIsSeenToBeUnneeded(t *testing.T) {
	const size = 128 << 20
	runtime.GC()
	before := unneeded()
	burst := make([]byte, size)
	for i := range burst {
		burst[i] = 1
	}
	runtime.GC()
	if alive := unneeded(); alive >= before+size/2 {
		t.Errorf("%d MB are unneeded while they are alive", alive>>20)
	}
	runtime.KeepAlive(burst)
	burst = nil
	runtime.GC()
	if left := unneeded(); left < size/2 {
		t.Errorf("%d MB are unneeded after a burst of %d MB", left>>20, size>>20)
	}
}
