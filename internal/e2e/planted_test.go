package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/secret"
	"pawl.dev/internal/telemetry"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// TestScanFindsAPlantedSecretInEachPlace proves that the scan can fail.
func TestScanFindsAPlantedSecretInEachPlace(t *testing.T) {
	w := newWorld(t, 1, func(apps *site.Apps, _ *pgserver.Server) []site.Credential {
		return []site.Credential{kinds[0].credential("app", apps)}
	})
	if found, _, err := w.leaks(t.Context()); err != nil || len(found) > 0 {
		t.Fatalf("before anything was planted: %v %v", found, err)
	}
	var planted []string
	plant := func(place string, put func(ctx context.Context, canary string) error) {
		canary, err := secret.Generate(secret.DefaultLength)
		if err != nil {
			t.Fatal(err)
		}
		w.seen.add(canary.Reveal())
		t.Cleanup(func() { w.seen.forget(canary.Reveal()) }) // before the scan that follows every test
		if err := put(t.Context(), canary.Reveal()); err != nil {
			t.Fatal(err)
		}
		planted = append(planted, place)
	}
	plant("file of PostgreSQL", func(ctx context.Context, canary string) error { return w.superuser(ctx, "SELECT 1 AS \""+canary+"\"") })
	plant("pg_stat_statements", func(ctx context.Context, canary string) error { return w.superuser(ctx, "CREATE ROLE \""+canary+"\"") })
	plant("messages of PAWL_NOTE", func(ctx context.Context, canary string) error {
		b, err := w.site.Connect(saga.Verifier)
		if err != nil {
			return err
		}
		defer b.NATS.Close()
		return b.Publish(ctx, bus.NoteSubject(saga.Verifier), &pawlv1.Note{Kind: "test", Text: canary}, nil)
	})
	plant("file of the installation", func(_ context.Context, canary string) error {
		return os.WriteFile(filepath.Join(w.fleet.Logs, "planted"), []byte("pw="+canary), 0o600)
	})
	plant("spans", func(ctx context.Context, canary string) error {
		provider, err := telemetry.NewTracing(ctx, "planted", "", w.spans.server.URL)
		if err != nil {
			return err
		}
		_, span := provider.Tracer("t").Start(ctx, "s", trace.WithAttributes(attribute.String("leak", canary)))
		span.End()
		return provider.Shutdown(ctx)
	})
	for what, command := range map[string]func(string) *exec.Cmd{
		"/cmdline": func(canary string) *exec.Cmd { return exec.Command("sh", "-c", "read x; : "+canary) },
		"/environ": func(canary string) *exec.Cmd {
			c := exec.Command("sh", "-c", "read x")
			c.Env = []string{"PGPASSWORD=" + canary}
			return c
		},
	} {
		plant(what, func(_ context.Context, canary string) error {
			c := command(canary)
			in, err := c.StdinPipe()
			if err != nil {
				return err
			}
			t.Cleanup(func() { _, _ = in.Close(), c.Wait() }) // it ends with its input
			return c.Start()
		})
	}
	found, _, err := w.leaks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, place := range planted {
		if !slices.ContainsFunc(found, func(s string) bool { return strings.Contains(s, place) }) {
			t.Errorf("planted in %s, found in %v", place, found)
		}
	}
}

func (w *world) superuser(ctx context.Context, sql string) error {
	conn, err := w.site.Superuser(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, "CREATE EXTENSION IF NOT EXISTS pg_stat_statements"); err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, sql); err != nil {
		return fmt.Errorf("planting: %w", err)
	}
	return nil
}

func (s *sightings) forget(secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.secrets, secret)
}
