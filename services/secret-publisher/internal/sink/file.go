package sink

import (
	"context"
	"fmt"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/published"
)

// file is a local file, of any format: the dotenv and file sinks.
type file struct {
	credential *inventory.Credential
	entries    []inventory.Sink // all of this file
}

func (f *file) path() string { return published.Path(f.entries[0]) }

func (f *file) Name() string {
	if f.entries[0].Dotenv != nil {
		return "dotenv:" + f.path()
	}
	return "file:" + f.path()
}

func (f *file) Read(context.Context) (published.Login, error) { return published.Read(f.entries...) }

func (f *file) Check(ctx context.Context, want Content) (warnings []string, err error) {
	t, err := openTarget(f.path())
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
	if !f.allowTracked() && tracked(ctx, t.path()) {
		warnings = append(warnings, fmt.Sprintf("%s is tracked by git: a commit would keep the password for ever: git rm --cached it (allow_tracked: true silences this)", f.path()))
	}
	return warnings, nil
}

func (f *file) allowTracked() bool {
	for _, e := range f.entries {
		if e.Dotenv != nil && e.Dotenv.AllowTracked {
			return true
		}
	}
	return false
}

func (f *file) Write(ctx context.Context, want Content, guard Guard) (changed bool, err error) {
	t, err := openTarget(f.path())
	if err != nil {
		return false, err
	}
	defer t.close()
	if err := t.lock(ctx); err != nil {
		return false, err
	}
	if err := t.clean(); err != nil {
		return false, err
	}
	old, err := t.read()
	if err != nil {
		return false, err
	}
	if login, err := published.Parse(old, f.entries...); err == nil && login.Carries(want.Login) {
		// Maybe by a predecessor that died before this.
		return false, t.dir.Sync()
	}
	next, err := f.render(old, want)
	if err != nil {
		return false, err
	}
	if err := t.refusal(len(next)); err != nil {
		return false, err
	}
	if err := guard.Backup(ctx, old); err != nil {
		return false, err
	}
	return true, t.replace(next, f.mode(), func() error { return guard.StillDue(ctx) })
}

// mode of a file that does not exist yet.
func (f *file) mode() uint32 {
	if e := f.entries[0].File; e != nil && e.Mode != 0 {
		return e.Mode
	}
	return 0o600
}
