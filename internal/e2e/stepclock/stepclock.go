// Package stepclock gives a test the wall clock of another process. It builds a
// Go program whose time.Now adds an offset that the test changes while the program
// runs. The monotonic clock stays as it is: so the program sees what it would see
// if a person or NTP set the clock, or if the machine had slept.
package stepclock

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// variable names the file of the offset to the program.
const variable = "PAWL_STEPPED_CLOCK"

// now is where the standard library reads the wall clock, and what it becomes.
const (
	now     = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	stepped = now + "\tsec += wallOffset()\n"
)

// reader is added to package time. It maps the file, so that a step needs neither a
// signal nor a system call, and is seen by every goroutine at once.
const reader = `package time

import (
	"sync/atomic"
	"syscall"
	"unsafe"
)

var offsetSeconds = mapOffset()

func mapOffset() *int64 {
	name, ok := syscall.Getenv("` + variable + `")
	if !ok {
		return new(int64)
	}
	file, err := syscall.Open(name, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		panic("stepped clock " + name + ": " + err.Error())
	}
	memory, err := syscall.Mmap(file, 0, 8, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		panic("stepped clock " + name + ": " + err.Error())
	}
	return (*int64)(unsafe.Pointer(&memory[0]))
}

func wallOffset() int64 { return atomic.LoadInt64(offsetSeconds) }
`

// Build compiles a package of this workspace, with a clock that can be stepped, to
// the file out. Nothing of Go's source is kept: the changed file is written beside
// out each time, from the Go installation that compiles.
func Build(ctx context.Context, out, of string, flags ...string) error {
	root, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("find Go: %w", err)
	}
	library := filepath.Join(strings.TrimSpace(string(root)), "src", "time")
	source, err := os.ReadFile(filepath.Join(library, "time.go"))
	if err != nil {
		return err
	}
	if strings.Count(string(source), now) != 1 {
		return fmt.Errorf("%s/time.go reads the clock otherwise than this package expects: adapt the constant now", library)
	}
	changed, added, overlay := out+".time.go", out+".offset.go", out+".overlay.json"
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{
		filepath.Join(library, "time.go"): changed, filepath.Join(library, "zoffset.go"): added}})
	if err != nil {
		return err
	}
	for file, text := range map[string]string{changed: strings.Replace(string(source), now, stepped, 1), added: reader, overlay: string(replace)} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return err
		}
	}
	build := exec.CommandContext(ctx, "go", slices.Concat([]string{"build", "-overlay", overlay, "-o", out}, flags, []string{of})...)
	if said, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s with a stepped clock: %w\n%s", of, err, said)
	}
	return nil
}

// Clock is the wall clock of the processes that are given Env.
type Clock struct {
	file   *os.File
	offset time.Duration
}

// New makes a clock that is right.
func New(dir string) (*Clock, error) {
	file, err := os.CreateTemp(dir, "clock")
	if err != nil {
		return nil, err
	}
	c := &Clock{file: file}
	return c, c.Set(0)
}

// Env is what a process needs in its environment to live by the clock.
func (c *Clock) Env() string { return variable + "=" + c.file.Name() }

// Set makes the clock wrong by so much, whole seconds, from now on.
func (c *Clock) Set(offset time.Duration) error {
	c.offset = offset
	_, err := c.file.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(offset/time.Second)), 0)
	return err
}

// Step moves the clock.
func (c *Clock) Step(by time.Duration) error { return c.Set(c.offset + by) }
