package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// programAt builds `pawl` as of a revision, from a work tree of its own in dir.
func programAt(ctx context.Context, revision, dir string) (b program, err error) {
	progress("building pawl of %s", revision)
	root, err := command(ctx, "", "git", "rev-parse", "--show-toplevel")
	if err != nil {
		return b, err
	}
	tree := filepath.Join(dir, "tree")
	if _, err := command(ctx, root, "git", "worktree", "add", "--detach", tree, revision); err != nil {
		return b, err
	}
	b.path = filepath.Join(dir, "pawl")
	_, err = command(ctx, tree, "go", "build", "-o", b.path, "pawl.dev/cmd/pawl")
	_, removing := command(ctx, root, "git", "worktree", "remove", "--force", tree)
	return b, errors.Join(err, removing)
}

// command returns what a command prints, without the last line break.
func command(ctx context.Context, dir, name string, args ...string) (string, error) {
	c := exec.CommandContext(ctx, name, args...)
	c.Dir = dir
	out, err := c.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, args[0], err, out)
	}
	return strings.TrimRight(string(out), "\n"), nil
}
