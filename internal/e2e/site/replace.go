package site

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"syscall"
	"time"

	"pawl.dev/cmd/pawl/natsconf"
)

// Replace has a replica end as whoever supervises it would, and its binary of
// that folder started in its place; it returns once that is ready.
func (f *Fleet) Replace(ctx context.Context, name, binaries string) error {
	f.mu.Lock()
	old := f.processes[name]
	f.programs[name] = filepath.Join(binaries, filepath.Base(f.programs[name]))
	f.mu.Unlock()
	if err := old.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("end %s: %w", name, err)
	}
	return until(ctx, name+" is not ready", func() (bool, error) {
		f.mu.Lock()
		replaced := f.processes[name] != old
		f.mu.Unlock()
		if !replaced {
			return false, nil
		}
		answer, err := http.Get("http://" + f.metrics[name] + "/readyz")
		if err != nil {
			return false, err
		}
		return answer.StatusCode == http.StatusOK, answer.Body.Close()
	})
}

// Reload has a nats-server read its configuration again.
func (s *Site) Reload(ctx context.Context, f *Fleet, n natsconf.Node) error {
	before, err := loaded(n)
	if err != nil {
		return err
	}
	if err := f.Signal(n.Name, syscall.SIGHUP); err != nil {
		return err
	}
	return until(ctx, n.Name+" does not read its configuration", func() (bool, error) {
		now, err := loaded(n)
		return now.After(before), err
	})
}

// loaded is when the server has read its configuration.
func loaded(n natsconf.Node) (time.Time, error) {
	answer, err := http.Get("http://" + n.Monitor + "/varz")
	if err != nil {
		return time.Time{}, err
	}
	defer answer.Body.Close()
	var told struct {
		At time.Time `json:"config_load_time"`
	}
	return told.At, json.NewDecoder(answer.Body).Decode(&told)
}

// until looks until it is so.
func until(ctx context.Context, otherwise string, is func() (bool, error)) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		so, err := is()
		if so {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w (last: %v)", otherwise, ctx.Err(), err)
		case <-tick.C:
		}
	}
}
