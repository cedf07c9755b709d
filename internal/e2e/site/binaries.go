package site

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"

	"pawl.dev/internal/saga"
)

// Binaries returns the folder of what a fleet runs, with the crash points compiled
// in. The first call of a test run builds it; Run removes it.
var Binaries = sync.OnceValues(func() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "pawl-e2e-bin-"); err != nil {
		return "", err
	}
	built = dir
	return dir, Build(context.Background(), dir, nil, "pawl.dev/internal/e2e/natsd", "github.com/nats-io/nats-server/v2")
})

var built string // where Binaries put them

// Run is what a TestMain of tests with a fleet does; it returns the exit code.
func Run(m *testing.M) (code int) {
	flag.Parse()
	code = m.Run()
	if built != "" {
		_ = os.RemoveAll(built) // a leftover in the temporary directory
	}
	return code
}

// Build compiles the services, with the crash points, and further packages into a
// folder.
func Build(ctx context.Context, into string, flags []string, further ...string) error {
	arguments := slices.Concat([]string{"build", "-tags", "faults", "-o", into + "/"}, flags, further)
	for _, s := range saga.Services {
		arguments = append(arguments, "pawl.dev/services/"+s)
	}
	if out, err := exec.CommandContext(ctx, "go", arguments...).CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	return nil
}
