package command

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"pawl.dev/cmd/pawl/embedded"
	"pawl.dev/cmd/pawl/internal/render"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
)

func newInit() *cobra.Command {
	var adminSQL bool
	var cluster string
	c := &cobra.Command{
		Use: "init", Short: "Write pawl.yaml and the keys; what exists is never overwritten", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if adminSQL {
				return printAdminSQL(cmd, cluster)
			}
			return initialise(cmd)
		},
	}
	c.Flags().BoolVar(&adminSQL, "admin-sql", false, "print the rights that the admin and observer roles need, and write nothing")
	c.Flags().StringVar(&cluster, "cluster", "", "of this cluster alone, with --admin-sql")
	return c
}

func initialise(cmd *cobra.Command) error {
	path, err := cmd.Flags().GetString("config")
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return err
	}
	created, err := writeConfiguration(cmd, path)
	if err != nil {
		return exit{exitUsage, err}
	}
	inv, err := load(cmd)
	if err != nil {
		return err
	}
	// The folders first: making a file would make its folder for it.
	for _, dir := range []string{inv.DataDir, inv.KeysDir} {
		if err := privateFolder(cmd, dir); err != nil {
			return err
		}
	}
	keys, err := embedded.CreateKeys(inv)
	created = append(created, keys...)
	if printed := output(cmd, append([]string{}, created...), func(w io.Writer, _ render.Style) error {
		for _, path := range created {
			fmt.Fprintln(w, path)
		}
		return nil
	}); err == nil {
		err = printed
	}
	if err != nil {
		return err
	}
	if len(created) == 0 {
		say(cmd, "nothing was missing")
	}
	nextSteps(cmd, inv)
	return nil
}

// writeConfiguration writes pawl.yaml, or appends the keys that it lacks, and
// returns its path if it did either.
func writeConfiguration(cmd *cobra.Command, path string) (written []string, err error) {
	existing, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return nil, err
		}
		return []string{path}, writeAll(f, []byte(inventory.Template()))
	}
	if err != nil {
		return nil, err
	}
	if len(bytes.TrimSpace(existing)) > 0 {
		if _, err := inventory.Load(path); err != nil {
			return nil, err // before anything is touched
		}
	}
	whole, added, err := inventory.AddMissing(existing)
	if err != nil || len(added) == 0 {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)                // what stands there stays, byte for byte
	if errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.EROFS) { // in a container, say
		say(cmd, "%s cannot be written and lacks %s, whose defaults hold", path, strings.Join(added, ", "))
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	say(cmd, "%s: added %s", path, strings.Join(added, ", "))
	return []string{path}, writeAll(f, whole[len(existing):])
}

func writeAll(f *os.File, text []byte) error {
	_, err := f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	return err
}

// privateFolder makes a folder that nobody else may enter. One that exists is
// its owner's business; that others may enter it is said.
func privateFolder(cmd *cobra.Command, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		say(cmd, "warning: others may enter %s: chmod 700 it", dir)
	}
	return err
}

func nextSteps(cmd *cobra.Command, inv *inventory.Inventory) {
	for _, dir := range []string{inv.DataDir, inv.KeysDir} {
		if root, line := unignored(dir); line != "" {
			say(cmd, "warning: %s lies in a git work tree: echo '%s' >> %s", dir, line, filepath.Join(root, ".gitignore"))
		}
	}
	if len(inv.Credentials) == 0 {
		say(cmd, "next: name your clusters and credentials in %s, then `pawl init --admin-sql` prints the rights that Pawl needs", inv.File)
		return
	}
	say(cmd, "next: `pawl up` (again, if it runs already), then `pawl adopt CREDENTIAL`; back up %s and %s, apart from each other", inv.DataDir, inv.KeysDir)
}

// unignored returns the git work tree that dir lies in, and the line that its
// .gitignore lacks.
func unignored(dir string) (root, line string) {
	for root = filepath.Dir(dir); ; root = filepath.Dir(root) {
		if _, err := os.Lstat(filepath.Join(root, ".git")); err == nil {
			break
		}
		if root == filepath.Dir(root) {
			return "", ""
		}
	}
	rel, err := filepath.Rel(root, dir)
	if err != nil {
		return "", ""
	}
	ignored, err := os.Open(filepath.Join(root, ".gitignore"))
	if err != nil {
		return root, "/" + rel + "/"
	}
	defer ignored.Close()
	for lines := bufio.NewScanner(ignored); lines.Scan(); {
		if strings.Trim(strings.TrimSpace(lines.Text()), "/") == rel {
			return "", ""
		}
	}
	return root, "/" + rel + "/"
}

// clusterSQL is what a superuser runs on every node of one cluster.
type clusterSQL struct {
	Cluster string `json:"cluster"`
	SQL     string `json:"sql"`
}

func printAdminSQL(cmd *cobra.Command, only string) error {
	inv, err := load(cmd)
	if err != nil {
		return err
	}
	names := slices.Sorted(maps.Keys(inv.Clusters))
	switch {
	case len(names) == 0:
		return usage("%s has no clusters: name the PostgreSQL servers under clusters", inv.File)
	case only != "" && !slices.Contains(names, only):
		return usage("unknown cluster %q: %s has %s", only, inv.File, strings.Join(names, ", "))
	case only != "":
		names = []string{only}
	}
	var all []clusterSQL
	for _, name := range names {
		c := inv.Clusters[name]
		sayUnobserved(cmd, inv, c)
		roles, inPlace := rolesOf(inv, c)
		all = append(all, clusterSQL{name, postgres.AdminSQL(c.Admin, c.Observer, roles, inPlace...)})
	}
	return output(cmd, all, func(w io.Writer, _ render.Style) error {
		for _, c := range all {
			fmt.Fprintf(w, "-- Cluster %s\n%s\n", c.Cluster, c.SQL)
		}
		return nil
	})
}

// sayUnobserved warns of a cluster whose script makes no observer, although its
// credentials will not be adopted without.
func sayUnobserved(cmd *cobra.Command, inv *inventory.Inventory, cluster *inventory.Cluster) {
	for _, name := range slices.Sorted(maps.Keys(inv.Credentials)) {
		if c := inv.Credentials[name]; c.Cluster == cluster && c.Unobserved() != "" {
			say(cmd, "warning: %s. Without, %s is not adopted", c.Unobserved(), name)
			return
		}
	}
}

// rolesOf lists the logins that Pawl turns on a cluster, and which of them are a
// credential that is rotated in place.
func rolesOf(inv *inventory.Inventory, cluster *inventory.Cluster) (roles, inPlace []string) {
	for _, c := range inv.Credentials {
		if c.Cluster != cluster {
			continue
		}
		roles = append(roles, c.Logins()...)
		if c.Strategy == inventory.InPlace {
			inPlace = append(inPlace, c.Role)
		}
	}
	slices.Sort(roles)
	slices.Sort(inPlace)
	return slices.Compact(roles), slices.Compact(inPlace)
}
