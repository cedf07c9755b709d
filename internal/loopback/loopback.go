// Package loopback tells what only this machine reaches.
package loopback

import (
	"net"
	"net/netip"
	"strings"
)

// Address reports whether who listens on host:port is reached by this machine alone.
// It is false for an empty host, which is every address.
func Address(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	return err == nil && Name(host)
}

// Host reports whether an HTTP request's Host, with or without a port, is one by
// which this machine calls itself. A browser that a page of somebody else's has led
// here (DNS rebinding) gives that page's name.
func Host(header string) bool {
	if host, _, err := net.SplitHostPort(header); err == nil {
		header = host
	}
	return Name(strings.Trim(header, "[]"))
}

// Name reports whether a host is this machine's loopback.
func Name(host string) bool {
	ip, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && ip.IsLoopback()
}
