package telemetry

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"
)

// healthyWithin is how long a process that lives may take to say so.
const healthyWithin = 3 * time.Second

// Healthy asks the /healthz that Serve answers on address, from the same machine
// or container: images without a shell check themselves so. An error means that
// nothing lives there.
func Healthy(ctx context.Context, address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("telemetry.metrics: %w", err)
	}
	// What listens everywhere is reached here; an address alone says nothing.
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "localhost"
	}
	ctx, cancel := context.WithTimeout(ctx, healthyWithin)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/healthz", nil)
	if err != nil {
		return fmt.Errorf("telemetry.metrics: %w", err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("not healthy: %w", err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("not healthy: /healthz answers %s", answer.Status)
	}
	return nil
}
