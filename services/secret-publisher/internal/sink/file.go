package sink

import (
	"context"
	"fmt"
	"slices"

	"pawl.dev/internal/published"
)

// file is a local file, replaced by renaming another over it. What stands in it
// is its format's business.
type file struct {
	kind, path   string
	credential   string
	lookup       bool
	format       format
	mode         uint32 // of a file that does not exist yet; 0: 0600
	allowTracked bool
}

// format reads and rewrites the content of a file. Its errors need not name the
// file, and quote nothing of it.
type format interface {
	read(content []byte) ([]Content, error)
	// held is Sink.Held.
	held(content []byte) ([]Content, error)
	// render returns what the file, which holds old (nil: does not exist), must
	// hold instead. Whatever is not the login stays.
	render(old []byte, want Content) ([]byte, error)
}

func (f *file) Name() string { return f.kind + ":" + f.path }

func (f *file) Lookup() bool { return f.lookup }

func (f *file) Read(context.Context) ([]Content, error) {
	content, err := published.ReadFile(f.path)
	if err != nil {
		return nil, err
	}
	logins, err := f.format.read(content)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.path, err)
	}
	return logins, nil
}

func (f *file) Held(context.Context) ([]Content, error) {
	t, err := openTarget(f.path)
	if err != nil {
		return nil, err
	}
	defer t.close()
	content, err := t.read()
	if err != nil {
		return nil, err
	}
	return f.held(content)
}

func (f *file) held(content []byte) ([]Content, error) {
	logins, err := f.format.held(content)
	if err != nil {
		return nil, refuse("%s: %w", f.path, err)
	}
	return slices.DeleteFunc(logins, func(c Content) bool { return c.Password.IsZero() && c.Verifier.IsZero() }), nil
}

// render refuses what the format cannot do, and what would not read back:
// whatever went into the file, readers must get out what was meant.
func (f *file) render(old []byte, want Content) ([]byte, error) {
	next, err := f.format.render(old, want)
	if err != nil {
		return nil, refuse("%s: %w", f.path, err)
	}
	logins, err := f.format.read(next)
	if err != nil {
		return nil, refuse("%s: %w", f.path, err)
	}
	if want.in(logins) != nil {
		return nil, refuse("%s: cannot hold this login so that it reads back", f.path)
	}
	return next, nil
}

func (f *file) Check(ctx context.Context, want Content) (warnings []string, err error) {
	t, err := openTarget(f.path)
	if err != nil {
		return nil, err
	}
	defer t.close()
	old, err := t.read()
	if err != nil {
		return nil, err
	}
	next, err := f.render(old, want)
	if err != nil {
		return nil, err
	}
	if err := t.refusal(len(next)); err != nil {
		return nil, err
	}
	if !f.allowTracked && tracked(ctx, t.path()) {
		warnings = append(warnings, fmt.Sprintf("%s is tracked by git: a commit would keep the password for ever: git rm --cached it (allow_tracked: true silences this)", f.path))
	}
	if f.kind == "pgpass" && t.stat.Mode&0o077 != 0 {
		warnings = append(warnings, fmt.Sprintf("%s may be read by its group or by others: libpq ignores such a file: chmod 600 it", f.path))
	}
	return warnings, nil
}

func (f *file) Write(ctx context.Context, want Content, guard Guard) (changed bool, err error) {
	return writes.write(&part{ctx: ctx, file: f, want: want, guard: guard, done: make(chan struct{})})
}
