package rotator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"pawl.dev/internal/effect"
	"pawl.dev/internal/evidence"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

const (
	// settleFor is how long `contained` waits for what was seen to be kept. By
	// then nobody is logged in any more.
	settleFor = time.Second
	// lookFor bounds the look at one server's catalogue.
	lookFor = 2 * time.Second
	// evidenceFor is how long after an emergency it is still made up for.
	evidenceFor = 24 * time.Hour
	// maxLooks is how often a server that does not answer is asked for it.
	maxLooks = 5
)

// KeepEvidence has emergencies leave evidence with the keeper, and say what
// became of it by note. Call it before the first step; without it there is none.
func (o *Rotator) KeepEvidence(keeper evidence.Keeper, note func(ctx context.Context, n *pawlv1.Note)) {
	o.keeper, o.note = keeper, note
}

// witness is what one containment has seen. It keeps it in the background:
// containing waits for nothing of it.
type witness struct {
	keeper     evidence.Keeper // nil: nothing is kept
	credential string
	rotation   string

	keeping sync.WaitGroup

	mu       sync.Mutex
	known    map[string]bool // sessions, by node, process and begin
	told     map[string]bool // nodes of which something is kept
	failures []string
}

func newWitness(keeper evidence.Keeper, credential, rotation string) *witness {
	return &witness{keeper: keeper, credential: credential, rotation: rotation, known: map[string]bool{}, told: map[string]bool{}}
}

// ended takes over the sessions that were just ended, and returns how many of
// them are new: one that is slow to end is ended again.
func (w *witness) ended(ctx context.Context, node string, sessions []postgres.Ended) (fresh int) {
	t := postgres.Table{Name: "sessions", Columns: postgres.EndedColumns}
	w.mu.Lock()
	for _, s := range sessions {
		if id := fmt.Sprintf("%s/%d/%d", node, s.PID, s.BackendStart.UnixNano()); !w.known[id] {
			w.known[id] = true
			t.Rows = append(t.Rows, s.Cells())
		}
	}
	w.mu.Unlock()
	if len(t.Rows) > 0 {
		w.keep(ctx, node, t)
	}
	return len(t.Rows)
}

// prepared takes over prepared transactions that are about to be rolled back.
func (w *witness) prepared(ctx context.Context, node string, all []postgres.Prepared) {
	t := postgres.Table{Name: "prepared transactions rolled back", Columns: []string{"gid", "owner", "database", "prepared"}}
	for _, p := range all {
		t.Rows = append(t.Rows, []string{p.GID, p.Owner, p.Database, p.At.UTC().Format("2006-01-02 15:04:05.000Z")})
	}
	if len(all) > 0 {
		w.keep(ctx, node, t)
	}
}

// done says of a node that had no sessions just that.
func (w *witness) done(ctx context.Context, node string) {
	w.mu.Lock()
	told := w.told[node]
	w.mu.Unlock()
	if !told {
		w.keep(ctx, node, postgres.Table{Name: "sessions", Columns: postgres.EndedColumns})
	}
}

func (w *witness) keep(ctx context.Context, node string, t postgres.Table) {
	w.mu.Lock()
	w.told[node] = true
	w.mu.Unlock()
	if w.keeper == nil {
		return
	}
	s := evidence.Snapshot{Credential: w.credential, Rotation: w.rotation, Node: node, Kind: evidence.Sessions, At: time.Now(), Tables: []postgres.Table{t}}
	w.keeping.Go(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*settleFor) // whoever waits may leave before
		defer cancel()
		err := effect.Do(ctx, "keep evidence", node, func(ctx context.Context) error { return w.keeper.Keep(ctx, s) })
		if err != nil {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.failures = append(w.failures, node+": "+err.Error())
		}
	})
}

// settle waits until what was seen is kept, but not for long, and warns of what
// is not.
func (w *witness) settle(ctx context.Context) {
	kept := make(chan struct{})
	go func() { w.keeping.Wait(); close(kept) }()
	timeout := time.NewTimer(settleFor)
	defer timeout.Stop()
	select {
	case <-kept:
	case <-timeout.C:
		effect.Warn(ctx, "the sessions that were ended are not yet kept as evidence: it goes on")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, failure := range w.failures {
		effect.Warn(ctx, "the sessions that were ended are not kept as evidence: %s", failure)
	}
}

// gather looks, of every server that was contained and that nobody has looked
// at, at what the logins have and may have left there. It does so in the
// background, once, whoever asks for it and how often.
func (o *Rotator) gather(c *inventory.Credential, rotation string, contained *pawlv1.Contained) {
	if o.keeper == nil || len(contained.GetAt()) == 0 {
		return
	}
	// A server that is reached later is looked at though those before it are still waited for.
	servers := strings.Join(slices.Sorted(maps.Keys(contained.GetAt())), " ")
	o.background("evidence "+c.Name+"/"+rotation+" of "+servers, func(ctx context.Context) {
		again := time.NewTimer(0)
		defer again.Stop()
		for tries := 1; ctx.Err() == nil; tries++ {
			select {
			case <-ctx.Done():
				return
			case <-again.C:
			}
			if o.gatherOnce(ctx, c, rotation, contained, tries >= maxLooks) {
				return
			}
			again.Reset(min(time.Duration(tries)*time.Second, 10*time.Second))
		}
	})
}

// gatherOnce reports whether everything is kept. A server that does not answer
// is asked again, unless this is the last time: then that is what is kept.
func (o *Rotator) gatherOnce(ctx context.Context, c *inventory.Credential, rotation string, contained *pawlv1.Contained, last bool) bool {
	kept, err := o.keeper.Catalogued(ctx, c.Name, rotation)
	if err != nil {
		return false
	}
	var mu sync.Mutex
	var took, failed []string
	var all sync.WaitGroup
	for _, node := range c.Members() {
		if contained.GetAt()[node.Name] == nil || slices.Contains(kept, node.Name) {
			continue
		}
		all.Go(func() {
			err := o.catalogue(ctx, o.keeper, c, rotation, node, contained.GetLogins(), last)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = append(failed, node.Name+" ("+err.Error()+")")
				return
			}
			took = append(took, node.Name)
		})
	}
	all.Wait()
	slices.Sort(took)
	slices.Sort(failed)
	note := &pawlv1.Note{Kind: "evidence", Credential: c.Name, Rotation: rotation}
	switch {
	case len(failed) > 0 && last:
		note.Text = "not kept of " + strings.Join(failed, ", ")
	case len(took) > 0:
		note.Text = fmt.Sprintf("kept, sealed, of %s: `pawl incident %s %s` shows it", strings.Join(took, ", "), rotation, c.Name)
	}
	if note.Text != "" && ctx.Err() == nil {
		o.note(ctx, note)
	}
	return len(failed) == 0
}

// catalogue looks at one server's.
func (o *Rotator) catalogue(ctx context.Context, keeper evidence.Keeper, c *inventory.Credential, rotation string, node inventory.Node, logins []string, anyhow bool) error {
	admin, err := o.admin(c, node)
	if err != nil {
		return err
	}
	s := evidence.Snapshot{Credential: c.Name, Rotation: rotation, Node: node.Name, Kind: evidence.Catalogue, At: time.Now()}
	if s.Tables, err = o.jointlyOn(admin, c.Cluster).evidence.ask(ctx, looked{logins, c.LoginDatabase()}); err != nil {
		return err
	}
	if !anyhow && !slices.ContainsFunc(s.Tables, func(t postgres.Table) bool { return t.Unread == "" }) {
		return errors.New(s.Tables[0].Unread)
	}
	return keeper.Keep(ctx, s)
}

// Gather is gather of somebody who waits for it: where the glass is broken.
func (o *Rotator) Gather(ctx context.Context, keeper evidence.Keeper, c *inventory.Credential, contained *pawlv1.Contained) error {
	var mu sync.Mutex
	var errs []error
	var all sync.WaitGroup
	at := slices.Sorted(maps.Keys(contained.GetAt()))
	for _, node := range c.Members() {
		if !slices.Contains(at, node.Name) {
			continue
		}
		all.Go(func() {
			if err := o.catalogue(ctx, keeper, c, "", node, contained.GetLogins(), true); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("%s: %w", node.Name, err))
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}
