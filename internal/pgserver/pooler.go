package pgserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"pawl.dev/internal/secret"
)

// PoolerVariable names the program pgbouncer.
const PoolerVariable = "PAWL_PGBOUNCER"

// PoolerOptions of StartPooler; the zero value will do.
type PoolerOptions struct {
	// Users may log in: verifiers or passwords by name, as in userlist.txt. The
	// server must hold the identical verifier.
	Users map[string]secret.String
	// Settings go into the section [pgbouncer]; pool_mode is transaction.
	Settings map[string]string
}

// Pooler is a running pgbouncer in front of one server.
type Pooler struct {
	Host     string // 127.0.0.1
	Port     uint16
	Admin    string // may use the admin console, database "pgbouncer"
	Password secret.String
	Userlist string // path of userlist.txt
	LogFile  string

	dir     string
	process *process
}

// FindPooler returns the path of pgbouncer: PoolerVariable, else PATH's, else
// Debian's.
func FindPooler() (string, error) {
	for _, name := range []string{os.Getenv(PoolerVariable), "pgbouncer", "/usr/sbin/pgbouncer"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no pgbouncer found: run deploy/pgbouncer-for-tests.sh, or name the program in %s", PoolerVariable)
}

// StartPooler starts a pooler in front of the server at target (host:port) and
// returns once it accepts connections.
func StartPooler(ctx context.Context, target string, o PoolerOptions) (*Pooler, error) {
	program, err := FindPooler()
	if err != nil {
		return nil, err
	}
	account, err := unprivileged() // it refuses to run as root
	if err != nil {
		return nil, err
	}
	p := &Pooler{Host: "127.0.0.1", Admin: "pgbouncer_admin"}
	if p.Password, err = secret.Generate(secret.DefaultLength); err != nil {
		return nil, err
	}
	if p.dir, err = os.MkdirTemp("", "pgbouncer"); err != nil {
		return nil, err
	}
	p.Userlist, p.LogFile = filepath.Join(p.dir, "userlist.txt"), filepath.Join(p.dir, "pgbouncer.log")
	if err = p.configure(target, o); err == nil {
		err = account.own(p.dir)
	}
	if err == nil {
		cmd := exec.Command(program, p.file())
		cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
		cmd.SysProcAttr = account.attributes(syscall.SIGKILL)
		err = p.start(ctx, cmd)
	}
	if err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	return p, nil
}

// Stop ends the pooler and removes its files. Idempotent.
func (p *Pooler) Stop() error {
	if p.process != nil {
		if err := p.process.signal(syscall.SIGKILL); err != nil {
			return err
		}
		<-p.process.ended
	}
	return os.RemoveAll(p.dir)
}

func (p *Pooler) file() string { return filepath.Join(p.dir, "pgbouncer.ini") }

func (p *Pooler) configure(target string, o PoolerOptions) error {
	var users strings.Builder
	for name, password := range merged(o.Users, map[string]secret.String{p.Admin: p.Password}) {
		fmt.Fprintf(&users, "%s %s\n", userlistQuoted(name), userlistQuoted(password.Reveal()))
	}
	if err := os.WriteFile(p.Userlist, []byte(users.String()), 0o600); err != nil {
		return err
	}
	var err error
	if p.Port, err = freePort(p.Host); err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		return err
	}
	ini := fmt.Sprintf("[databases]\n* = host=%s port=%s\n[pgbouncer]\n", host, port)
	for name, value := range merged(map[string]string{
		"listen_addr": p.Host, "listen_port": strconv.Itoa(int(p.Port)), "unix_socket_dir": "",
		"auth_type": "scram-sha-256", "auth_file": p.Userlist, "admin_users": p.Admin,
		"pool_mode": "transaction", "logfile": p.LogFile,
	}, o.Settings) {
		ini += name + " = " + value + "\n"
	}
	return os.WriteFile(p.file(), []byte(ini), 0o600)
}

func userlistQuoted(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

func (p *Pooler) start(ctx context.Context, cmd *exec.Cmd) (err error) {
	if p.process, err = startProcess(cmd); err != nil {
		p.process = nil
		return fmt.Errorf("start pgbouncer: %w", err)
	}
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		conn, err := net.Dial("tcp", net.JoinHostPort(p.Host, strconv.Itoa(int(p.Port))))
		if err == nil {
			return conn.Close()
		}
		select {
		case <-p.process.ended:
			log, _ := os.ReadFile(p.LogFile) // it may have had nothing to say
			return fmt.Errorf("pgbouncer ended at start: %s", log)
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
