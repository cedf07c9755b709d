package restart

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pawl.dev/internal/inventory"
	"pawl.dev/services/restarter/internal/consumer"
)

func shell(dir, script string, timeout time.Duration) Kind {
	return For(inventory.Restart{Command: &inventory.Command{Argv: []string{"sh", "-c", script}, Dir: dir, Timeout: timeout}})
}

func TestCommandTimeoutKillsGrandchildren(t *testing.T) {
	dir := t.TempDir()
	grandchild := filepath.Join(dir, "grandchild")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error)
	go func() {
		ended <- shell(dir, "sleep 60 & echo $! > new; mv new grandchild; wait", time.Minute).Restart(ctx, cause())
	}()
	consumer.Eventually(t, "the grandchild", func() bool { _, err := os.Stat(grandchild); return err == nil })
	cancel() // a deadline takes the same way
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "killed with its process group") {
		t.Errorf("got %v", err)
	}
	consumer.Eventually(t, "the grandchild to be gone", func() bool {
		_, err := fromPIDFile(inventory.Process{PIDFile: grandchild})
		return errors.Is(err, errNotRunning)
	})

	err := shell(dir, "sleep 60", 100*time.Millisecond).Restart(t.Context(), cause())
	if err == nil || !strings.Contains(err.Error(), "still running after 100ms") {
		t.Errorf("got %v", err)
	}
}

func TestCommandMayLeaveADaemonThatHoldsItsOutput(t *testing.T) {
	dir := t.TempDir()
	if err := shell(dir, "sleep 60 & echo $! > daemon", time.Minute).Restart(t.Context(), cause()); err != nil {
		t.Error(err)
	}
	daemon, err := fromPIDFile(inventory.Process{PIDFile: filepath.Join(dir, "daemon")})
	if err != nil {
		t.Fatalf("the daemon was not left alone: %v", err)
	}
	_ = daemon.handle.Kill()
	daemon.release()
}

func TestCommandOutputIsScrubbed(t *testing.T) {
	script := `echo "stored SCRAM-SHA-256\$4096:c2FsdA==\$` + canary + `:c2VydmVy"
echo "dsn postgres://app:hunter2-short@127.0.0.1/shop" >&2
echo "token ` + canary + `"; echo plain words; exit 3`
	err := shell(t.TempDir(), script, time.Minute).Restart(t.Context(), cause())
	if err == nil {
		t.Fatal("exit 3 is no success")
	}
	for _, leak := range []string{canary, "SCRAM", "hunter2"} {
		if strings.Contains(err.Error(), leak) {
			t.Errorf("%s leaked: %v", leak, err)
		}
	}
	for _, want := range []string{"exit status 3", "plain words", "postgres://app:[secret]@127.0.0.1/shop"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing: %v", want, err)
		}
	}
}

func TestSecretsOfPawlsEnvironmentDoNotReachTheChild(t *testing.T) {
	t.Setenv("PGPASSWORD", "short-canary")
	t.Setenv("PAWL_ANYTHING", "short-canary")
	t.Setenv("LANG", "C.UTF-8")
	dir := t.TempDir()
	if err := shell(dir, "env > env", time.Minute).Restart(t.Context(), cause()); err != nil {
		t.Fatal(err)
	}
	env, err := os.ReadFile(filepath.Join(dir, "env"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(env), "short-canary") {
		t.Errorf("leaked: %s", env)
	}
	for _, want := range []string{"PATH=", "LANG=C.UTF-8", "PAWL_CREDENTIAL=shop", "PAWL_ROTATION=r1", "PAWL_STEP=restart", "PAWL_CONSUMER=api"} {
		if !strings.Contains("\n"+string(env), "\n"+want) {
			t.Errorf("%s is missing in %s", want, env)
		}
	}
}
