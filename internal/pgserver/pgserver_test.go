package pgserver

import (
	"context"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

func start(t *testing.T, o Options) *Server {
	t.Helper()
	began := time.Now()
	s, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("ready after %v", time.Since(began))
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func accepts(s *Server) bool {
	c, err := net.Dial("tcp", net.JoinHostPort(s.Host, strconv.Itoa(int(s.Port))))
	if err == nil {
		c.Close()
	}
	return err == nil
}

func TestServerComesBackAfterKillOnTheSamePort(t *testing.T) {
	s := start(t, Options{})
	port, pid := s.Port, s.process.pid
	children := childrenOf(pid)
	if len(children) == 0 {
		t.Fatal("no children found: Kill would leave them")
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if accepts(s) {
		t.Error("a killed server accepts connections")
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.Port != port || !accepts(s) {
		t.Errorf("port %d, accepts %v; want %d, true", s.Port, accepts(s), port)
	}
}

func TestStopRemovesTheTemporaryDirectory(t *testing.T) {
	s, err := Start(t.Context(), Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(); err != nil {
		t.Errorf("second Stop: %v", err)
	}
	if _, err := os.Stat(s.Dir); !os.IsNotExist(err) {
		t.Errorf("%s is still there", s.Dir)
	}
}

func TestBadSettingIsNamedFromTheLog(t *testing.T) {
	_, err := Start(t.Context(), Options{Settings: map[string]string{"no_such_setting": "1"}})
	if err == nil || !strings.Contains(err.Error(), "no_such_setting") {
		t.Errorf("error %v; want one that names the setting", err)
	}
}

// TestServerDiesWithItsParent runs this test binary as the parent that is killed.
func TestServerDiesWithItsParent(t *testing.T) {
	if os.Getenv("PGSERVER_PARENT") != "" {
		s, err := Start(context.Background(), Options{NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(os.Getenv("PGSERVER_PARENT"), []byte(s.Dir+"\n"+strconv.Itoa(int(s.Port))), 0o600); err != nil {
			t.Fatal(err)
		}
		select {} // until killed
	}
	file := t.TempDir() + "/server"
	parent := exec.Command(os.Args[0], "-test.run=^TestServerDiesWithItsParent$")
	parent.Env = append(os.Environ(), "PGSERVER_PARENT="+file)
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	var orphan Server
	poll(t, func() bool {
		raw, _ := os.ReadFile(file)
		dir, number, ok := strings.Cut(string(raw), "\n")
		port, _ := strconv.ParseUint(number, 10, 16)
		orphan = Server{Host: "127.0.0.1", Port: uint16(port), Dir: dir}
		return ok && accepts(&orphan)
	})
	defer os.RemoveAll(orphan.Dir)
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait() // "signal: killed"
	poll(t, func() bool { return !accepts(&orphan) })
}

func poll(t *testing.T, until func() bool) {
	t.Helper()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for !until() {
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal("the test ended first")
		}
	}
}
