package natsconf

import (
	"crypto/x509/pkix"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
)

// contents is every file below the directories.
func contents(t *testing.T, dirs ...string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, dir := range dirs {
		if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			raw, err := os.ReadFile(path)
			all[path] = string(raw)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func TestRunAgainNothingChanges(t *testing.T) {
	i := install(t)
	before := contents(t, i.opts.Out, i.inv.KeysDir)
	if written := i.write(); len(written) != 0 {
		t.Errorf("written again: %v", written)
	}
	for path, text := range contents(t, i.opts.Out, i.inv.KeysDir) {
		if before[path] != text {
			t.Errorf("%s has changed", path)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		secret := strings.HasSuffix(path, ".key") || strings.HasSuffix(path, ".nk")
		if secret && info.Mode().Perm() != 0o600 {
			t.Errorf("%s is of mode %o", path, info.Mode().Perm())
		}
	}
}

func TestConfigurationFollowsUsersAndHoldsNoSecret(t *testing.T) {
	i := install(t)
	conf := filepath.Join(i.opts.Out, i.node.Name, "nats.conf")
	raw, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	for path, text := range contents(t, i.inv.KeysDir, filepath.Join(i.opts.Out, i.node.Name)) {
		if strings.HasSuffix(path, ".nk") && strings.Contains(string(raw), strings.TrimSpace(text)) {
			t.Errorf("the configuration holds %s", path)
		}
	}
	if err := os.Remove(bus.SeedFile(i.inv, saga.Verifier)); err != nil {
		t.Fatal(err)
	}
	if _, err := bus.CreateSeeds(i.inv); err != nil {
		t.Fatal(err)
	}
	if written := i.write(); !slices.Equal(written, []string{conf}) {
		t.Errorf("with another key of the verifier, written: %v", written)
	}
}

// TestServerNeverRunsOutOfSpaceByCounting: it counts the limit of a stream again
// whenever the stream has caught up after a partition.
func TestServerNeverRunsOutOfSpaceByCounting(t *testing.T) {
	var all int64
	for _, stream := range bus.Streams(bus.Settings{Replicas: 1}) {
		all += max(0, stream.MaxBytes)
	}
	const partitions = 1000
	if has := install(t).serve().JetStreamConfig().MaxStore; has/partitions < all {
		t.Errorf("the server's limit of %d bytes is reached after %d partitions", has, has/all)
	}
}

func TestCertificatesAreMadeAgainWithTheSameKey(t *testing.T) {
	i := install(t)
	w := &writer{}
	a, err := openAuthority(w, DefaultCAKey(i.inv), filepath.Join(i.inv.TLSDir(), "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(i.inv.TLSDir(), saga.Verifier)
	key, err := readKey(base + ".key")
	if err != nil {
		t.Fatal(err)
	}
	soon := valid(renewedBefore - time.Hour)
	soon.Subject = pkix.Name{CommonName: "pawl verifier"}
	if err := a.sign(w, base+".pem", soon, a.certificate, key, nil); err != nil {
		t.Fatal(err)
	}
	if written := i.write(); !slices.Equal(written, []string{base + ".pem"}) {
		t.Errorf("about to end, written: %v", written)
	}
	renewed, err := readCertificate(base + ".pem")
	if err != nil || time.Until(renewed.NotAfter) < certificateFor-time.Hour || !sameKey(renewed, key) {
		t.Errorf("%v, %v", renewed.NotAfter, err)
	}
	i.opts.Nodes[0].Host = "nats.example.org"
	server := filepath.Join(i.opts.Out, i.node.Name, "server.pem")
	if written := i.write(); !slices.Equal(written, []string{server}) {
		t.Errorf("under another host name, written: %v", written)
	}
}

// TestWithoutTheAuthoritysKey: it is elsewhere, or the authority is one's own.
func TestWithoutTheAuthoritysKey(t *testing.T) {
	i := install(t)
	key := DefaultCAKey(i.inv)
	away := filepath.Join(t.TempDir(), "ca.key")
	if err := os.Rename(key, away); err != nil {
		t.Fatal(err)
	}
	if written := i.write(); len(written) != 0 {
		t.Errorf("where all is there, written: %v", written)
	}
	certificate := filepath.Join(i.inv.TLSDir(), "verifier.pem")
	if err := os.Remove(certificate); err != nil {
		t.Fatal(err)
	}
	if _, err := Write(i.inv, i.opts); err == nil || !strings.Contains(err.Error(), certificate) || !strings.Contains(err.Error(), "put the authority's key back in "+key+", or name it with --ca-key") {
		t.Errorf("%v", err)
	}
	if err := os.WriteFile(away+".other", []byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	i.opts.CAKey = away + ".other"
	if _, err := Write(i.inv, i.opts); err == nil || !strings.Contains(err.Error(), "holds no private key") {
		t.Errorf("%v", err)
	}
	i.opts.CAKey = filepath.Join(install(t).inv.KeysDir, "ca", "ca.key")
	if _, err := Write(i.inv, i.opts); err == nil || !strings.Contains(err.Error(), "is not the key of") {
		t.Errorf("%v", err)
	}
	i.opts.CAKey = away
	if written := i.write(); !slices.Equal(written, []string{certificate}) {
		t.Errorf("written: %v", written)
	}
}

func TestNodesThatAreNone(t *testing.T) {
	for names, want := range map[string]string{
		"a,b": "even number", "a,a,b": "twice", "10.0.0.1": "is an address", "A": "no host name", "": "no host name", "a,b,c": "", "nats": "", "nats-1.example.org": "",
	} {
		_, err := ParseNodes(strings.Split(names, ","))
		if want == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", names, err)
		}
	}
}

// A server that was alone deletes its streams when it starts as one of a cluster.
func TestServerThatIsAloneIsMadeNoPartOfACluster(t *testing.T) {
	i := install(t)
	before := contents(t, i.opts.Out)
	alone := i.opts.Nodes
	i.opts.Nodes = []Node{i.node, {Name: "b"}, {Name: "c"}}
	if written, err := Write(i.inv, i.opts); err == nil || !strings.Contains(err.Error(), "From one server to three") || len(written) > 0 {
		t.Errorf("wrote %v: %v", written, err)
	}
	for path, text := range contents(t, i.opts.Out) {
		if before[path] != text {
			t.Errorf("%s has changed", path)
		}
	}
	if err := os.Remove(filepath.Join(i.opts.Out, i.node.Name, "nats.conf")); err != nil { // it was moved
		t.Fatal(err)
	}
	i.write()
	i.opts.Nodes = alone
	if _, err := Write(i.inv, i.opts); err == nil || !strings.Contains(err.Error(), "name all of its servers") {
		t.Errorf("one of a cluster became alone: %v", err)
	}
}
