package embedded

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// A thousand emergencies at once leave behind a heap of many times what is alive, and the
// runtime returns it within minutes. The machine may be a small one, so it is returned
// once it lies idle.
const (
	lookAtMemory = 5 * time.Second
	idleMemory   = 32 << 20 // bytes that are worth the collection of garbage that it takes
	collectAgain = 20 * time.Second
)

// Of the process, in bytes.
const (
	heapFree   = "/memory/classes/heap/free:bytes" // kept for the next allocation
	heapUnused = "/memory/classes/heap/unused:bytes"
	heapInUse  = "/memory/classes/heap/objects:bytes" // garbage among it
	heapLive   = "/gc/heap/live:bytes"                // when garbage was last collected
)

// returnMemory gives memory to the system that nobody needs any more, until ctx ends.
func returnMemory(ctx context.Context) {
	look := time.NewTicker(lookAtMemory)
	defer look.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
		if time.Since(last) >= collectAgain && unneeded() >= idleMemory {
			debug.FreeOSMemory()
			last = time.Now()
		}
	}
}

// unneeded is how much memory the heap holds beyond what was alive at the last collection.
func unneeded() (bytes uint64) {
	all := []metrics.Sample{{Name: heapFree}, {Name: heapUnused}, {Name: heapInUse}, {Name: heapLive}}
	metrics.Read(all)
	var by [4]uint64
	for i, s := range all {
		if s.Value.Kind() == metrics.KindUint64 {
			by[i] = s.Value.Uint64()
		}
	}
	return by[0] + by[1] + by[2] - min(by[2], by[3])
}
