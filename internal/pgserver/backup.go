package pgserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Backup makes a base backup of the running server in dir, which must not exist
// yet: a data directory from which Restore, or a standby, can start.
func (s *Server) Backup(ctx context.Context, dir string) error {
	conn, err := s.session(ctx)
	if err != nil {
		return err
	}
	// PostgreSQL abandons the backup when this session ends before it is stopped.
	defer conn.Close(context.WithoutCancel(ctx))
	row, err := query(ctx, conn, "SHOW server_version_num")
	if err != nil {
		return err
	}
	begin, end := "pg_backup_start('pgserver', true)", "pg_backup_stop(false)"
	if version, _ := strconv.Atoi(row[0]); version < 150000 {
		begin, end = "pg_start_backup('pgserver', true, false)", "pg_stop_backup(false, false)"
	}
	if _, err := query(ctx, conn, "SELECT "+begin); err != nil {
		return fmt.Errorf("begin backup: %w", err)
	}
	if err := copyLive(s.data(), dir, notInBackup); err != nil {
		return fmt.Errorf("copy %s: %w", s.data(), err)
	}
	label, err := query(ctx, conn, "SELECT labelfile FROM "+end)
	if err != nil {
		return fmt.Errorf("end backup: %w", err)
	}
	// All that was written since the beginning, the end of the backup included.
	if err := copyLive(filepath.Join(s.data(), "pg_wal"), filepath.Join(dir, "pg_wal"), nil); err != nil {
		return fmt.Errorf("copy WAL: %w", err)
	}
	return os.WriteFile(filepath.Join(dir, "backup_label"), []byte(label[0]), 0o600)
}

// Restore stops the server, if it runs, and starts it on the same port with what
// it held at the Backup: whatever it has committed since is lost. The timeline
// stays the same.
func (s *Server) Restore(ctx context.Context, dir string) error {
	if err := s.halt(syscall.SIGINT); err != nil {
		return err
	}
	if err := os.RemoveAll(s.data()); err != nil {
		return err
	}
	if err := copyTree(dir, s.data()); err != nil {
		return fmt.Errorf("copy backup: %w", err)
	}
	if err := s.account.own(s.data()); err != nil {
		return err
	}
	return s.start(ctx)
}

// notInBackup is what belongs to the running server alone, and its WAL, which
// comes last. Of most directories the server wants to find an empty one.
func notInBackup(path string) bool {
	dir, _, inside := strings.Cut(path, "/")
	switch dir {
	case "postmaster.pid", "postmaster.opts", "standby.signal", "postgresql.auto.conf.tmp", "pg_wal":
		return true
	case "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans":
		return inside
	}
	return strings.Contains(path, "pgsql_tmp")
}

// copyLive is copyTree where a server may write and remove files meanwhile. Of
// what leave names, nothing is copied.
func copyLive(from, to string, leave func(path string) bool) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		rel, relErr := filepath.Rel(from, path)
		switch {
		case errors.Is(err, fs.ErrNotExist) && rel != ".":
			return nil
		case err != nil || relErr != nil:
			return errors.Join(err, relErr)
		case leave != nil && leave(rel) && d.IsDir():
			return fs.SkipDir
		case leave != nil && leave(rel):
			return nil
		case d.IsDir():
			return os.Mkdir(filepath.Join(to, rel), 0o700)
		}
		if err := copyFile(path, filepath.Join(to, rel)); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}
