//go:build !faults

// Package fault marks the points at which the crash tests kill a service. In
// a normal build every point is nothing.
package fault

// Point does nothing.
func Point(credential, name string) {}
