package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/metric"
	"golang.org/x/sys/unix"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/condition"
)

// ConditionDisk warns of a disk that will be full soon, and fails when it is.
const ConditionDisk = "disk"

// When the disk is told of.
const (
	fewDays    = 14      // days left at the growth of the last 24 hours
	fewBytes   = 1 << 30 // free
	fewPercent = 10      // of the file system is free
)

const (
	measureEvery = 30 * time.Second
	day          = 24 * time.Hour
)

// disk watches the file system of the store, and keeps a reserve on it.
//
// The reserve is a file of real blocks that Pawl gives back when the file system
// is full. An emergency, the rotations under way and their audit records fit into
// it many times; new rotations do not begin while it is gone. Another program may
// take the space that is given back: the reserve helps against a disk that filled
// up and stands still, not against one that is being filled.
type disk struct {
	store, reserve string
	options        Options
	log            *slog.Logger

	mu     sync.Mutex
	space  space
	bytes  uint64  // of messages in all streams
	days   float64 // until the disk, or a stream, is full at the growth of the last 24 hours; 0: not known
	level  string  // last logged: "", "warning" or "failing"
	unread string  // why the file system could not be looked at, last logged
}

// space is what a file system has, in bytes.
type space struct{ free, total uint64 }

func spaceOf(path string) (space, error) {
	var fs unix.Statfs_t
	err := unix.Statfs(path, &fs)
	if errors.Is(err, unix.ENOENT) { // a store that is still to be made
		err = unix.Statfs(filepath.Dir(path), &fs)
	}
	if err != nil {
		return space{}, fmt.Errorf("file system of %s: %w", path, err)
	}
	return space{fs.Bavail * uint64(fs.Bsize), fs.Blocks * uint64(fs.Bsize)}, nil
}

// reserveSize is that of the reserve: 64 MiB, less on a small disk.
func (s space) reserveSize() uint64 { return min(64<<20, s.total/16) }

func newDisk(o Options) (*disk, error) {
	d := &disk{store: storeDir(o.Inventory), reserve: filepath.Join(o.Inventory.DataDir, "reserve"), options: o, log: o.Log}
	return d, d.observe(o.Meter)
}

// guard gives the reserve back if the disk is full, makes it again once there is
// plenty of space, and raises or clears the condition.
func (d *disk) guard() {
	now, err := spaceOf(d.store)
	if err == nil {
		err = d.keepReserve(now)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.space = now
	if err != nil && err.Error() != d.unread {
		d.log.Warn("reserve on the disk", "error", err)
	}
	d.unread = ""
	if err != nil {
		d.unread = err.Error()
	}
	d.tell(now)
}

// giveBack deletes the reserve if the disk is full.
func (d *disk) giveBack(now space) error {
	size := now.reserveSize()
	if !d.held() || now.free >= size/2 {
		return nil
	}
	if err := os.Remove(d.reserve); err != nil {
		return fmt.Errorf("give back: %w", err)
	}
	d.log.Warn("the disk is full: the reserve was given back", "file", d.reserve, "bytes", size)
	return nil
}

// keepReserve holds the reserve while there is space for it.
func (d *disk) keepReserve(now space) error {
	if err := d.giveBack(now); err != nil {
		return err
	}
	if size := now.reserveSize(); !d.held() && now.free >= 3*size {
		if err := allocate(d.reserve, int64(size)); err != nil {
			return errors.Join(fmt.Errorf("allocate %s: %w", d.reserve, err), os.RemoveAll(d.reserve))
		}
	}
	return nil
}

func (d *disk) held() bool {
	info, err := os.Stat(d.reserve)
	return err == nil && info.Mode().IsRegular() && info.Size() > 0
}

// allocate makes a file of real blocks; a file system that cannot reserve blocks
// gets zeros written.
func allocate(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if err = unix.Fallocate(int(f.Fd()), 0, 0, size); errors.Is(err, unix.EOPNOTSUPP) {
		chunk := make([]byte, 1<<20)
		for err = nil; err == nil && size > 0; size -= int64(len(chunk)) {
			_, err = f.Write(chunk[:min(size, int64(len(chunk)))])
		}
	}
	return errors.Join(err, f.Close())
}

// least is the free space with which a restart is worth its while.
const least = 1 << 20

// writable returns an error unless the store's file system takes a synced write.
func (d *disk) writable() error {
	now, err := spaceOf(d.store)
	if err != nil {
		return err
	}
	if now.free < least {
		return fmt.Errorf("%s are free, at least %s are needed", human(now.free), human(least))
	}
	probe, err := os.CreateTemp(filepath.Dir(d.reserve), "probe-")
	if err != nil {
		return fmt.Errorf("a write failed: %w", err)
	}
	_, err = probe.Write(make([]byte, 64<<10))
	if err == nil {
		err = probe.Sync()
	}
	if err = errors.Join(err, probe.Close(), os.Remove(probe.Name())); err != nil {
		return fmt.Errorf("a write failed: %w", err)
	}
	return nil
}

// tell raises or clears the condition, and logs each change of its level.
func (d *disk) tell(now space) {
	c := condition.Condition{Name: ConditionDisk}
	level, where := "warning", fmt.Sprintf("the disk of %s", d.store)
	switch {
	case now.total == 0:
		return // it could not be looked at
	case !d.held():
		level, c.Failing = "failing", true
		c.Text = where + " is full. Pawl gave back its reserve: emergencies and running rotations go on, no rotation begins. Fix: free space, see docs/runbooks/disk.md"
	case d.days > 0 && d.days < fewDays:
		c.Text = fmt.Sprintf("%s is full in %.0f days at the growth of the last 24 hours. Fix: docs/runbooks/disk.md", where, d.days)
	case now.free < fewBytes || now.free*100 < now.total*fewPercent:
		c.Text = fmt.Sprintf("%s has less than 1 GiB or %d %% free (%s of %s). Fix: docs/runbooks/disk.md", where, fewPercent, human(now.free), human(now.total))
	default:
		level = ""
	}
	d.options.Conditions.Update(level != "", c)
	if level == d.level {
		return
	}
	switch d.level = level; level {
	case "failing":
		d.log.Error(c.Text)
	case "warning":
		d.log.Warn(c.Text)
	default:
		d.log.Info(where + " has space again")
	}
}

// measure looks at how fast the store grows, until ctx ends.
func (d *disk) measure(ctx context.Context, server nats.InProcessConnProvider) {
	tick := time.NewTicker(measureEvery)
	defer tick.Stop()
	for said := ""; ; {
		err := d.grow(ctx, server)
		if err != nil && ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			d.log.Warn("growth of the store not measured", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// grow measures once. What was stored when is read from the streams themselves, so
// that a restart forgets nothing; what is younger than 24 hours counts as it is, so
// that a new store alarms nobody.
func (d *disk) grow(ctx context.Context, server nats.InProcessConnProvider) error {
	seed, err := bus.LoadSeed(bus.SeedFile(d.options.Inventory, bus.Provisioner))
	if err != nil {
		return err
	}
	b, err := bus.Connect(bus.ConnectOptions{User: bus.Provisioner, Seed: seed, Server: server, Log: d.log})
	if err != nil {
		return err
	}
	defer b.NATS.Close()
	sizes, err := b.Sizes(ctx)
	if err != nil {
		return err
	}
	var bytes, grown uint64
	days := 0.0
	for _, s := range sizes {
		bytes += s.Bytes
		since, err := b.Grown(ctx, s, time.Now().Add(-day))
		if err != nil {
			return err
		}
		grown += since
		if s.Limit > 0 {
			days = fewest(days, s.Limit-min(s.Limit, s.Bytes), since)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bytes, d.days = bytes, fewest(days, d.space.free, grown)
	return nil
}

// fewest is the smaller of days and of how long room lasts at a growth per day; 0
// stands for a time that is not known.
func fewest(days float64, room, perDay uint64) float64 {
	if perDay == 0 {
		return days
	}
	// Not 0, which would say that nothing is known.
	last := max(float64(room)/float64(perDay), 0.001)
	if days == 0 {
		return last
	}
	return min(days, last)
}

// observe measures what is known of the disk.
func (d *disk) observe(meter metric.Meter) error {
	if meter == nil {
		return nil
	}
	bytes, err := meter.Int64ObservableGauge("pawl_store_bytes", metric.WithDescription("Bytes of messages in all streams of the embedded store"))
	free, err2 := meter.Int64ObservableGauge("pawl_store_free_bytes", metric.WithDescription("Bytes free on the file system of the embedded store, the reserve left out"))
	days, err3 := meter.Float64ObservableGauge("pawl_store_days_left", metric.WithDescription("Days until the file system or a stream is full, at the growth of the last 24 hours; missing while nothing grows"))
	if err := errors.Join(err, err2, err3); err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	_, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		d.mu.Lock()
		defer d.mu.Unlock()
		o.ObserveInt64(bytes, int64(d.bytes))
		o.ObserveInt64(free, int64(d.space.free))
		if d.days > 0 {
			o.ObserveFloat64(days, d.days)
		}
		return nil
	}, bytes, free, days)
	if err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}

// human is a number of bytes as people read it.
func human(bytes uint64) string {
	switch {
	case bytes >= 10<<30:
		return fmt.Sprintf("%d GiB", bytes>>30)
	case bytes >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(bytes)/(1<<30))
	default:
		return fmt.Sprintf("%d MiB", bytes>>20)
	}
}
