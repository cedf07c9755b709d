package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

const inNamespace = "PAWL_TEST_MOUNTED"

// inItsOwnNamespace runs the test in another process, for the disk must be seen by it alone.
func inItsOwnNamespace(t *testing.T) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}

// appSite is a site of one credential, "app".
func appSite(t *testing.T) *site.Site {
	t.Helper()
	// An emergency waits until no handshake from before can still be open.
	server, err := pgserver.Start(t.Context(), pgserver.Options{NoSync: true, Settings: map[string]string{"authentication_timeout": "2s"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	s, err := site.New(t.Context(), t.TempDir(), server, "", []site.Credential{{Name: "app", Strategy: inventory.Alternating}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// ready waits until /readyz answers so.
func (h *house) ready(t *testing.T, status int) {
	t.Helper()
	eventually(t, fmt.Sprintf("/readyz answers %d", status), func(context.Context) bool {
		answer, err := http.Get("http://" + h.site.Inventory.Telemetry.Metrics + "/readyz")
		if err != nil {
			return false
		}
		_ = answer.Body.Close() // its status is all that matters
		return answer.StatusCode == status
	})
}

// TestPawlStaysDeafAfterAFullDisk fills the disk of `pawl up`, and frees it again.
func TestPawlStaysDeafAfterAFullDisk(t *testing.T) {
	if os.Getenv(inNamespace) == "" {
		inItsOwnNamespace(t)
		return
	}
	s := appSite(t)
	disk := mountDisk(t, s.Inventory.DataDir, 64)
	s.Inventory.Telemetry.Metrics = bustest.FreeAddress(t)
	h := openHouse(t, s)
	ready := func(status int) { t.Helper(); h.ready(t, status) }
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if _, err := h.client.Do(ctx, "app", adopt); err != nil {
		t.Fatal(err)
	}
	ready(http.StatusOK)

	filler := filepath.Join(disk, "filler")
	fillDisk(t, filler)
	ready(http.StatusServiceUnavailable)
	answer, err := h.client.Ask(ctx, "app", pawlv1.Action_ACTION_ROTATE)
	if err != nil || answer.GetOutcome() != rejected || !strings.Contains(answer.GetReason(), "is full") {
		t.Errorf("a rotation on a full disk: %v, %v", answer, err)
	}
	asked := time.Now()
	answer, err = h.client.Ask(ctx, "app", pawlv1.Action_ACTION_CONTAIN)
	if err != nil || answer.GetOutcome() != accepted {
		t.Fatalf("an emergency on a full disk: %v, %v", answer, err)
	}
	t.Logf("the emergency was accepted after %v", time.Since(asked).Round(time.Millisecond))
	if _, err := h.client.Await(ctx, "app", answer.GetRotation(), saga.Completed); err != nil {
		t.Fatal(err)
	}

	// Now the reserve, too, until a write fails.
	eventually(t, "the store fails", func(context.Context) bool {
		fillDisk(t, filler)
		_ = h.client.Publish(ctx, "pawl.note.operator", &pawlv1.Note{Kind: "test", Text: strings.Repeat("x", 60<<10)}, nil) // it is to fail
		return strings.Contains(h.log.String(), "critical write error")
	})
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	freed := time.Now()
	if _, err := h.client.Do(ctx, "app", pawlv1.Action_ACTION_ROTATE); err != nil {
		t.Fatalf("once there is space: %v\n%s", err, h.log.warnings())
	}
	t.Logf("a rotation has completed %v after there was space", time.Since(freed).Round(time.Millisecond))
	ready(http.StatusOK)
}

// mountDisk makes a file system of so many megabytes.
func mountDisk(t *testing.T, dir string, megabytes int) string {
	t.Helper()
	for _, err := range []error{
		os.MkdirAll(dir, 0o700),
		unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	held, err := filepath.Glob(filepath.Join(dir, "*")) // keys of clients
	if err != nil {
		t.Fatal(err)
	}
	aside := t.TempDir()
	if len(held) > 0 {
		if out, err := exec.Command("cp", append(append([]string{"-a"}, held...), aside)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if err := unix.Mount("none", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", megabytes)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }) // the namespace ends with this process
	if out, err := exec.Command("cp", "-a", aside+"/.", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return dir
}

// fill writes until the disk is full.
func fillDisk(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for chunk := make([]byte, 1<<20); len(chunk) > 0; {
		if _, err := f.Write(chunk); err != nil {
			chunk = chunk[:len(chunk)/2]
		}
	}
}

// TestEmergencyIsLostOnAFullDisk asks for one on the command line: right when the disk
// became full, when only the reserve has room for it; and while another program takes
// that, too. Either it is contained, or the command says at once what works.
func TestEmergencyIsLostOnAFullDisk(t *testing.T) {
	if os.Getenv(inNamespace) == "" {
		inItsOwnNamespace(t)
		return
	}
	s := appSite(t)
	disk := mountDisk(t, s.Inventory.DataDir, 64)
	s.Inventory.Telemetry.Metrics = bustest.FreeAddress(t)
	h := openHouse(t, s)
	p := pawl{buildPawl(t), s.Dir}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if _, err := h.client.Do(ctx, "app", adopt); err != nil {
		t.Fatal(err)
	}
	stolen := h.password(t, "app")

	filler := filepath.Join(disk, "filler")
	fillDisk(t, filler)
	began := time.Now()
	out, err := p.command(ctx, "emergency", "app", "--reason", "the disk is full").CombinedOutput()
	t.Logf("on the reserve, after %v: %s", time.Since(began).Round(time.Millisecond), out)
	if err != nil || !strings.Contains(string(out), "contained: ") {
		t.Fatalf("on the reserve: %v\n%s\n%s", err, out, h.log.warnings())
	}
	eventually(t, "the application is back on another login", func(context.Context) bool { return h.password(t, "app") != stolen })
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	h.ready(t, http.StatusOK)
	eventually(t, "the emergency has ended", func(context.Context) bool { // else the next one is refused
		log, err := h.client.ReadNewest(ctx, "app")
		return err == nil && log.Find(saga.Erased) != nil
	})

	// Now another program takes each byte that is given back.
	stolen = h.password(t, "app")
	filling, stop := context.WithCancel(ctx)
	var all sync.WaitGroup
	all.Go(func() {
		for filling.Err() == nil {
			fillDisk(t, filler)
			time.Sleep(5 * time.Millisecond) // what another program writes meanwhile
		}
	})
	defer all.Wait()
	defer stop()
	h.ready(t, http.StatusServiceUnavailable)
	eventually(t, "the store fails", func(context.Context) bool {
		_ = h.client.Publish(ctx, "pawl.note.operator", &pawlv1.Note{Kind: "test", Text: strings.Repeat("x", 60<<10)}, nil) // it is to fail
		return strings.Contains(h.log.String(), "refuses writes")
	})
	cmd := p.command(ctx, "emergency", "app", "--reason", "the disk stays full")
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(said)
	line, err := lines.ReadString('\n')
	if err == nil && strings.HasPrefix(line, "asking Pawl ") { // which it says at once
		line, err = lines.ReadString('\n')
	}
	t.Logf("on a disk that stays full, after %v: %s", time.Since(began).Round(time.Millisecond), line)
	if err != nil || !strings.Contains(line, "`pawl emergency app --break-glass`") && !strings.Contains(line, "contained: ") {
		t.Errorf("it says %q, %v", line, err)
	}
	_ = cmd.Cancel() // it has said what is asked of it
	_ = cmd.Wait()
	if out, err := p.command(ctx, "emergency", "app", "--break-glass").CombinedOutput(); !strings.Contains(string(out), " refused\n") {
		t.Errorf("breaking the glass on a full disk: %v\n%s", err, out)
	}
	if h.logsIn(t, "app") == nil {
		t.Error("what was stolen logs in")
	}
	stop()
	all.Wait()
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	h.ready(t, http.StatusOK)
	// The request that was interrupted may have been stored: then it goes on by itself.
	if out, err := p.command(ctx, "emergency", "app", "--reason", "there is space").CombinedOutput(); err != nil && !strings.Contains(string(out), "is under way already") {
		t.Fatalf("once there is space: %v\n%s", err, out)
	}
	eventually(t, "the application is back", func(context.Context) bool { return h.password(t, "app") != stolen && h.logsIn(t, "app") == nil })
}
