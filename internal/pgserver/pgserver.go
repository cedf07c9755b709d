// Package pgserver runs a throwaway PostgreSQL for tests, the demo and
// benchmarks: found on the machine, initialised once and copied, on a free port
// of 127.0.0.1, gone when its parent is gone; with standbys, base backups, and a
// proxy that breaks connections or fails over.
package pgserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"pawl.dev/internal/secret"
)

// Options of Start; the zero value will do.
type Options struct {
	// Dir holds the data; it is created, and kept by Stop. Default: a temporary
	// directory, which Stop removes. As root, every directory above it must let
	// other users pass.
	Dir string
	// Settings go into postgresql.conf.
	Settings map[string]string
	// HBA lines stand before the default ones, which ask for scram-sha-256.
	HBA []string
	// Binaries is the directory of initdb and postgres. Default: see Find.
	Binaries string
	// NoSync turns fsync off.
	NoSync bool
}

// Server is a running PostgreSQL.
type Server struct {
	Host      string // 127.0.0.1
	Port      uint16
	Superuser string
	Password  secret.String
	Dir       string
	LogFile   string

	settings  map[string]string // as in Options
	hba       []string          // likewise
	binaries  string
	account   *account
	temporary bool
	process   *process

	replication secret.String // of standbyRole, once it is there
}

// pollEvery is how often start-up looks whether the server is ready.
const pollEvery = 5 * time.Millisecond

// Start starts a server and returns once it accepts connections.
func Start(ctx context.Context, o Options) (*Server, error) {
	return startWith(ctx, o, func(s *Server) error {
		template, err := s.template(ctx)
		if err != nil {
			return err
		}
		if err := copyTree(template, s.data()); err != nil {
			return fmt.Errorf("copy template: %w", err)
		}
		return nil
	})
}

// startWith starts a server whose data directory fill has made.
func startWith(ctx context.Context, o Options, fill func(*Server) error) (*Server, error) {
	if o.NoSync {
		o.Settings = merged(map[string]string{"fsync": "off"}, o.Settings)
	}
	s := &Server{Host: "127.0.0.1", Superuser: "postgres", Dir: o.Dir, settings: o.Settings, hba: o.HBA, binaries: o.Binaries}
	var err error
	if s.binaries == "" {
		if s.binaries, err = Find(); err != nil {
			return nil, err
		}
	}
	if s.account, err = unprivileged(); err != nil {
		return nil, err
	}
	if s.temporary = s.Dir == ""; s.temporary {
		if s.Dir, err = os.MkdirTemp("", "pg"); err != nil {
			return nil, err
		}
	}
	if err := s.create(fill); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	for attempt := 1; ; attempt++ {
		if s.Port, err = freePort(s.Host); err == nil {
			err = s.start(ctx)
		}
		if err == nil {
			return s, nil
		}
		if attempt == 5 || ctx.Err() != nil || !s.logHas("could not bind") {
			return nil, errors.Join(err, s.Stop())
		}
	}
}

// Restart stops the server, if it runs, and starts it on the same port.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.halt(syscall.SIGINT); err != nil {
		return err
	}
	return s.start(ctx)
}

// Stop shuts the server down and removes its temporary directory. Idempotent.
func (s *Server) Stop() error {
	err := s.halt(syscall.SIGINT)
	if s.temporary {
		err = errors.Join(err, os.RemoveAll(s.Dir))
	}
	return err
}

// Kill ends the postmaster and all its children by SIGKILL: a crash. Restart
// brings the server back.
func (s *Server) Kill() error { return s.halt(syscall.SIGKILL) }

// create makes the data directory and configures it.
func (s *Server) create(fill func(*Server) error) error {
	data := s.data()
	if err := os.MkdirAll(s.Dir, 0o755); err != nil {
		return err
	}
	if err := fill(s); err != nil {
		return err
	}
	password, err := os.ReadFile(filepath.Join(data, passwordFile))
	if err != nil {
		return err
	}
	s.Password = secret.New(string(password))
	s.LogFile = filepath.Join(s.Dir, "postgres.log")
	if err := os.WriteFile(filepath.Join(data, "postgresql.conf"), []byte(s.configuration()), 0o600); err != nil {
		return err
	}
	hba := append(slices.Clone(s.hba),
		"local all all scram-sha-256",
		"host all all 127.0.0.1/32 scram-sha-256",
		"host all all ::1/128 scram-sha-256",
		"host replication all 127.0.0.1/32 scram-sha-256", "")
	if err := os.WriteFile(filepath.Join(data, "pg_hba.conf"), []byte(strings.Join(hba, "\n")), 0o600); err != nil {
		return err
	}
	return s.account.own(s.Dir)
}

func (s *Server) configuration() string {
	settings := map[string]string{
		"listen_addresses":    s.Host,
		"password_encryption": "scram-sha-256",
		"shared_buffers":      "16MB",
		"max_connections":     "100",
		"wal_keep_size":       "128MB", // for standbys that come late, and backups
		// A long path does not fit a socket's address (107 bytes).
		"unix_socket_directories": s.Dir,
	}
	if len(s.Dir) > 80 {
		settings["unix_socket_directories"] = ""
	}
	for name, value := range s.settings {
		settings[name] = value
	}
	var conf strings.Builder
	for name, value := range settings {
		fmt.Fprintf(&conf, "%s = '%s'\n", name, strings.ReplaceAll(value, "'", "''"))
	}
	return conf.String()
}

func freePort(host string) (uint16, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return 0, err
	}
	return uint16(l.Addr().(*net.TCPAddr).Port), l.Close()
}

// Address is host:port.
func (s *Server) Address() string { return net.JoinHostPort(s.Host, strconv.Itoa(int(s.Port))) }

func (s *Server) start(ctx context.Context) error {
	log, err := os.OpenFile(s.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	if err := s.account.own(s.LogFile); err != nil {
		return err
	}
	cmd := s.command("postgres", "-D", s.data(), "-p", fmt.Sprint(s.Port))
	cmd.Stdout, cmd.Stderr = log, log
	if s.process, err = startProcess(cmd); err != nil {
		return fmt.Errorf("start postgres: %w", err)
	}
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for !s.ready() {
		select {
		case <-s.process.ended:
			return fmt.Errorf("postgres ended at start: %s", s.logTail())
		case <-ctx.Done():
			return errors.Join(ctx.Err(), s.halt(syscall.SIGKILL))
		case <-tick.C:
		}
	}
	return nil
}

// ready reads the postmaster's own word: line 1 of postmaster.pid is its pid,
// line 8 its state.
func (s *Server) ready() bool {
	raw, err := os.ReadFile(filepath.Join(s.data(), "postmaster.pid"))
	lines := strings.Split(string(raw), "\n")
	return err == nil && len(lines) > 7 && lines[0] == fmt.Sprint(s.process.pid) && strings.TrimSpace(lines[7]) == "ready"
}

func (s *Server) halt(signal syscall.Signal) error {
	if s.process == nil {
		return nil
	}
	var children []int // a shutdown waits for them itself
	if signal == syscall.SIGKILL {
		if err := s.process.signal(syscall.SIGSTOP); err != nil { // so that no more are born
			return err
		}
		children = childrenOf(s.process.pid)
	}
	if err := s.process.signal(signal); err != nil {
		return err
	}
	for _, pid := range children {
		_ = syscall.Kill(pid, signal) // gone already: fine
	}
	late := time.After(20 * time.Second)
	select {
	case <-s.process.ended:
	case <-late:
		return errors.Join(fmt.Errorf("postgres (pid %d) does not end", s.process.pid), s.process.signal(syscall.SIGKILL))
	}
	s.process = nil
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for !gone(children) { // one that is left keeps the server from starting again
		select {
		case <-tick.C:
		case <-late:
			return fmt.Errorf("of PostgreSQL's processes %v some do not end", children)
		}
	}
	return nil
}

func (s *Server) data() string { return filepath.Join(s.Dir, "data") }

// command prepares a program of PostgreSQL's, to run as the unprivileged account.
func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.binaries, name), args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "LD_LIBRARY_PATH=" + filepath.Join(filepath.Dir(s.binaries), "lib")}
	cmd.SysProcAttr = s.account.attributes()
	return cmd
}

func (s *Server) logHas(text string) bool { return strings.Contains(s.logTail(), text) }

// logTail returns the last 2 kB of the log.
func (s *Server) logTail() string {
	f, err := os.Open(s.LogFile)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if size, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, size-2048), io.SeekStart)
	}
	tail, _ := io.ReadAll(f)
	return string(tail)
}
