package inventory

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
	_ "time/tzdata" // the same zones on every machine, containers without zoneinfo among them

	"go.yaml.in/yaml/v3"
)

// Load reads and checks a configuration file and touches nothing else. Its
// error lists every fault, one a line, as "FILE:LINE: FIELD: fault and fix", in
// the order of lines; it never quotes what may be a password.
func Load(path string) (*Inventory, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w: run `pawl init` to write one, or name yours with -c FILE", path, fs.ErrNotExist)
	}
	if err != nil {
		var cause *fs.PathError
		if errors.As(err, &cause) {
			err = cause.Err
		}
		return nil, fmt.Errorf("%s: cannot be read: %w", path, err)
	}
	return parse(path, raw)
}

func parse(path string, raw []byte) (*Inventory, error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	root, err := readYAML(path, raw)
	if err != nil {
		return nil, err
	}
	if root == nil {
		return nil, fmt.Errorf("%s: is empty: run `pawl init` to fill it in", path)
	}
	d := &document{
		name: path, file: absolute, dir: filepath.Dir(absolute),
		published: map[place]value{}, logins: map[string]string{}, accounts: map[string][]OwnAccount{}, resolved: map[string]string{}, groups: map[string]groupPlaces{}, policies: map[string]object{},
	}
	inv := d.inventory(value{doc: d, node: root, line: root.Line})
	if err := d.err(); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(raw)
	inv.digest = hex.EncodeToString(sum[:])[:16]
	inv.Warnings = lines(path, d.warnings)
	return inv, nil
}

// inventory reads the whole file: first what later parts refer to.
func (d *document) inventory(v value) *Inventory {
	o := v.object("nats", "data_dir", "keys_dir", "telemetry", "contacts", "environments", "clusters", "credentials", "reconcile_every", "alerts", "watch_logins", "schedule", "dashboard", "docker", "backup")
	inv := &Inventory{
		File:           d.file,
		NATS:           readNATS(o.at("nats")),
		DataDir:        o.at("data_dir").file(".pawl"),
		KeysDir:        o.at("keys_dir").file("pawl-keys"),
		Telemetry:      readTelemetry(o.at("telemetry")),
		Contacts:       map[string]string{},
		ReconcileEvery: o.at("reconcile_every").duration(30*time.Second, time.Second, time.Hour),
		WatchLogins:    readWatchLogins(o.at("watch_logins")),
		Environments:   map[string]Environment{},
		Clusters:       map[string]*Cluster{},
		Dashboard:      readDashboard(o.at("dashboard")),
		Docker:         readDocker(o.at("docker")),
		Backup:         readBackup(o.at("backup")),
		Credentials:    map[string]*Credential{},
	}
	at := o.at("keys_dir")
	if at.node == nil {
		at.line = o.at("data_dir").line
	}
	if within(d.resolve(inv.KeysDir), d.resolve(inv.DataDir)) {
		at.fault("is inside data_dir: whoever copies the data would hold the keys that open it: name a folder elsewhere")
	}
	for _, e := range o.at("contacts").entries() {
		inv.Contacts[e.key] = e.text()
	}
	for _, e := range o.at("environments").entries() {
		inv.Environments[e.key] = readEnvironment(e)
	}
	clusters := o.at("clusters").entries()
	for _, e := range clusters {
		inv.Clusters[e.key] = readCluster(e, inv.Environments)
		d.readsPasswords(inv.Clusters[e.key])
	}
	d.checkSchemas(clusters, inv)
	for _, e := range o.at("credentials").entries() {
		inv.Credentials[e.key] = d.credential(e, inv)
	}
	for _, e := range clusters {
		d.checkObserver(e, inv)
	}
	d.checkGroups(inv)
	inv.Alerts = readAlerts(o.at("alerts"), inv.Credentials)
	inv.Schedule = d.schedule(o.at("schedule"), inv)
	return inv
}

func readTelemetry(v value) Telemetry {
	o := v.object("otlp", "jaeger", "metrics")
	return Telemetry{
		OTLP:    o.at("otlp").url("http", "https"),
		Jaeger:  o.at("jaeger").url("http", "https"),
		Metrics: o.at("metrics").address("127.0.0.1:9464", 0),
	}
}

func readEnvironment(v value) Environment {
	o := v.object(policyKeys...)
	e := Environment{RotateEvery: o.at("rotate_every").rotateEvery(0), Policy: o.policy(Policy{})}
	e.PasswordLength, e.PasswordAlphabet = o.passwords(0, "")
	return e
}

var yamlError = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// readYAML returns the root node of a file's only document, nil where there is
// nothing in it.
func readYAML(name string, raw []byte) (*yaml.Node, error) {
	var first, second yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(raw))
	if err := decoder.Decode(&first); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, syntaxError(name, err)
	}
	if err := decoder.Decode(&second); err == nil {
		return nil, fmt.Errorf("%s:%d: a second YAML document begins here: keep one, without ---", name, second.Line)
	} else if !errors.Is(err, io.EOF) {
		return nil, syntaxError(name, err)
	}
	root := first.Content[0]
	if root.Kind == yaml.ScalarNode && root.ShortTag() == "!!null" {
		return nil, nil
	}
	return root, nil
}

func syntaxError(name string, err error) error {
	text, where := err.Error(), name
	if m := yamlError.FindStringSubmatch(text); m != nil {
		text = text[len(m[0]):]
		if m[1] != "" {
			where += ":" + m[1]
		}
	}
	// The parser quotes the alias, which may be a password that begins with *.
	if strings.Contains(text, "unknown anchor") {
		text = "a value begins with *, which YAML takes for an alias: quote it, or write the value out"
	}
	return fmt.Errorf("%s: is not YAML: %s", where, text)
}

// resolve follows the symbolic links in as much of path as exists. It remembers:
// thousands of credentials may be published in few folders.
func (d *document) resolve(path string) string {
	if real, ok := d.resolved[path]; ok {
		return real
	}
	real, err := filepath.EvalSymlinks(path)
	if parent := filepath.Dir(path); err != nil && parent != path {
		real = filepath.Join(d.resolve(parent), filepath.Base(path))
	} else if err != nil {
		real = path
	}
	d.resolved[path] = real
	return real
}

// within reports whether path is folder or lies in it.
func within(path, folder string) bool {
	rel, err := filepath.Rel(folder, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}
