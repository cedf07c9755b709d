//go:build !faults

// Package fault marks the points at which the crash tests kill a service. In
// a normal build every point is nothing.
package fault

import "time"

// Point does nothing.
func Point(credential, name string) {}

// Deadline returns d.
func Deadline(d time.Duration) time.Duration { return d }
