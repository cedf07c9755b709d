// Package pooltest runs a real pgbouncer for tests. Only tests import it.
package pooltest

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgbouncer"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/secret"
)

// The console's user, and its password, which no output may show.
const (
	Boss     = "boss"
	Password = "c4nary-Passw0rd-of-the-pgbouncer-console"
)

// Pooler is a running pgbouncer.
type Pooler struct {
	Console  inventory.Console
	Userlist string // path of its auth_file
	pid      int
	ended    chan struct{}
}

// Start runs a pgbouncer for every database of the server at port, until the
// test ends. The userlist gets a line for the console's
// user, where it has none.
func Start(t *testing.T, port uint16, userlist string, settings map[string]string) *Pooler {
	t.Helper()
	dir, err := os.MkdirTemp("", "pgbouncer")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &Pooler{Userlist: filepath.Join(dir, "userlist.txt"), ended: make(chan struct{})}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	own := uint16(listener.Addr().(*net.TCPAddr).Port)
	listener.Close()
	p.Console = inventory.Console{Host: "127.0.0.1", Port: own, Account: inventory.Account{
		User: Boss, Database: "pgbouncer", SSLMode: "disable", PasswordFile: filepath.Join(dir, "boss"),
	}}
	all := map[string]string{
		"listen_addr": p.Console.Host, "listen_port": strconv.Itoa(int(own)), "unix_socket_dir": "", "auth_type": "scram-sha-256",
		"auth_file": p.Userlist, "admin_users": Boss, "logfile": filepath.Join(dir, "log"), "server_login_retry": "1",
	}
	maps.Copy(all, settings)
	ini := fmt.Sprintf("[databases]\n%s* = host=127.0.0.1 port=%d\n[pgbouncer]\n", all["databases"], port)
	delete(all, "databases")
	for name, value := range all {
		ini += name + " = " + value + "\n"
	}
	boss := Line(Boss, Password)
	if strings.Contains(userlist, `"`+Boss+`"`) {
		boss = ""
	}
	for path, content := range map[string]string{
		p.Userlist: userlist + boss, p.Console.PasswordFile: Password + "\n", filepath.Join(dir, "ini"): ini,
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p.run(t, dir)
	t.Cleanup(p.Stop)
	p.await(t, filepath.Join(dir, "log"))
	return p
}

// run starts it as the user postgres where we are root, which it refuses to be,
// from a thread that lives as long: Pdeathsig is sent when the thread ends.
func (p *Pooler) run(t *testing.T, dir string) {
	t.Helper()
	binary, err := exec.LookPath("pgbouncer")
	if err != nil {
		binary = "/usr/sbin/pgbouncer"
	}
	cmd := exec.Command(binary, filepath.Join(dir, "ini"))
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = postgresUser(t, dir)
	}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			p.pid = cmd.Process.Pid
		}
		started <- err
		if err == nil {
			_ = cmd.Wait() // killed
			close(p.ended)
		}
	}()
	if err := <-started; err != nil {
		t.Fatalf("start pgbouncer (Debian: apt install pgbouncer): %v", err)
	}
}

// postgresUser gives the directory to the user postgres.
func postgresUser(t *testing.T, dir string) *syscall.Credential {
	t.Helper()
	u, err := user.Lookup("postgres")
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, path := range append(files, dir) {
		if err := os.Chown(path, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// await looks until it listens.
func (p *Pooler) await(t *testing.T, log string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := net.Dial("tcp", p.Console.Address())
		if err == nil {
			conn.Close()
			return
		}
		select {
		case <-p.ended:
		case <-deadline:
		case <-tick.C:
			continue
		}
		said, _ := os.ReadFile(log)
		t.Fatalf("pgbouncer does not start: %v: %s", err, said)
	}
}

// Stop ends it. Idempotent.
func (p *Pooler) Stop() {
	select {
	case <-p.ended:
	default:
		_ = syscall.Kill(p.pid, syscall.SIGKILL) // gone already: fine
		<-p.ended
	}
}

// Rewrite replaces the lines of the userlist, but for the console's user, and
// has it read.
func (p *Pooler) Rewrite(t *testing.T, userlist string) {
	t.Helper()
	// Renamed: pgbouncer does not see that a file of the same size was written
	// again within the second.
	next := p.Userlist + ".next"
	if err := os.WriteFile(next, []byte(userlist+Line(Boss, Password)), 0o600); err != nil {
		t.Fatal(err)
	}
	was, err := os.Stat(p.Userlist)
	if err == nil {
		owner := was.Sys().(*syscall.Stat_t)
		err = errors.Join(os.Chown(next, int(owner.Uid), int(owner.Gid)), os.Rename(next, p.Userlist))
	}
	if err != nil {
		t.Fatal(err)
	}
	console, err := pgbouncer.Open(t.Context(), p.Console)
	if err == nil {
		defer console.Close()
		err = console.Reload(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Open returns a session on the console, closed with the test.
func (p *Pooler) Open(t *testing.T) *pgbouncer.Console {
	t.Helper()
	console, err := pgbouncer.Open(t.Context(), p.Console)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(console.Close)
	return console
}

// Target is a login through the pooler.
func (p *Pooler) Target(user, password, database string) postgres.Target {
	return postgres.Target{Host: p.Console.Host, Port: p.Console.Port, Database: database, User: user, Password: secret.New(password), SSLMode: "disable"}
}

// Line is one of a userlist.
func Line(user, secret string) string {
	return `"` + strings.ReplaceAll(user, `"`, `""`) + `" "` + strings.ReplaceAll(secret, `"`, `""`) + "\"\n"
}
