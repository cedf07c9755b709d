// Package command is the command line of pawl. The result of a command, and
// nothing else, goes to stdout; progress and explanations go to stderr.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"pawl.dev/cmd/pawl/internal/client"
	"pawl.dev/cmd/pawl/internal/render"
	"pawl.dev/cmd/pawl/internal/terminal"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
)

// Exit codes.
const (
	exitDone       = 0
	exitFailed     = 1 // or a disagreement
	exitUsage      = 2 // or the configuration
	exitRolledBack = 3
	exitStalled    = 4 // needs a person
	exitRejected   = 5 // or superseded
)

// exit is an error with the code that the process ends with.
type exit struct {
	code int
	error
}

func (e exit) Unwrap() error { return e.error }

func usage(format string, args ...any) error { return exit{exitUsage, fmt.Errorf(format, args...)} }

// Run runs the command line and returns the exit code. It ends early when ctx
// does.
func Run(ctx context.Context, args []string, toStdout, toStderr io.Writer) int {
	stdout, stderr := terminal.New(toStdout), terminal.New(toStderr)
	defer func() { _, _ = stdout.Flush(), stderr.Flush() }() // there is nobody left to tell
	root := &cobra.Command{
		Use: "pawl", Short: "Rotate PostgreSQL credentials without losing one",
		SilenceUsage: true, SilenceErrors: true,
	}
	root.PersistentFlags().StringP("config", "c", "pawl.yaml", "the configuration, a `FILE`")
	root.PersistentFlags().Bool("json", false, "print the result as JSON")
	root.AddCommand(newInit(), newUp(), newAdopt(), newPlan(), newRotate(), newRollback(), newCancel(), newResume(),
		newEmergency(), newLock(), newUnlock(),
		newStatus(), newSchedule(), newWatch(), newHistory(), newTrace(), newDoctor(), newAlerts(), newIncident(), newWatchLogins(), newAudit(),
		newNATSConfig(), newProvision(), newKeys(), newBackup(), newRestore())
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)

	begun := false // what fails before a command begins is usage
	for _, c := range leaves(root) {
		run := c.RunE
		c.RunE = func(cmd *cobra.Command, args []string) error {
			begun = true
			return run(cmd, args)
		}
	}
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	if text := err.Error(); text != "" {
		fmt.Fprintln(stderr, "pawl: "+text)
	}
	var with exit
	switch {
	case errors.As(err, &with):
		return with.code
	case !begun:
		fmt.Fprintf(stderr, "usage: %s; `%s --help` tells more\n", cmd.UseLine(), cmd.CommandPath())
		return exitUsage
	}
	return exitFailed
}

// leaves are the commands that do something, not the groups of them.
func leaves(c *cobra.Command) (all []*cobra.Command) {
	for _, sub := range c.Commands() {
		if sub.RunE != nil {
			all = append(all, sub)
		}
		all = append(all, leaves(sub)...)
	}
	return all
}

// load reads the configuration that -c names.
func load(cmd *cobra.Command) (*inventory.Inventory, error) {
	path, err := cmd.Flags().GetString("config")
	if err != nil {
		return nil, err
	}
	inv, err := inventory.Load(path)
	if err != nil {
		return nil, exit{exitUsage, err}
	}
	return inv, nil
}

// connect reads the configuration and joins the bus; the caller closes it.
func connect(cmd *cobra.Command) (*inventory.Inventory, *client.Client, error) {
	inv, err := load(cmd)
	if err != nil {
		return nil, nil, err
	}
	c, err := join(inv)
	return inv, c, err
}

func join(inv *inventory.Inventory) (*client.Client, error) {
	operator, err := bus.For(inv, bus.Operator)
	if err != nil {
		return nil, exit{exitUsage, err}
	}
	return client.Connect(inv, operator)
}

// chosen returns the credential that args name, or all, by name.
func chosen(inv *inventory.Inventory, args []string) ([]*inventory.Credential, error) {
	names := slices.Sorted(maps.Keys(inv.Credentials))
	if len(args) == 0 {
		if len(names) == 0 {
			return nil, usage("%s has no credentials: add one under credentials", inv.File)
		}
		var all []*inventory.Credential
		for _, name := range names {
			all = append(all, inv.Credentials[name])
		}
		return all, nil
	}
	c, ok := inv.Credentials[args[0]]
	if !ok {
		return nil, usage("unknown credential %q: %s has %s", args[0], inv.File, strings.Join(names, ", "))
	}
	return []*inventory.Credential{c}, nil
}

func checkToken(what, s string) error {
	if !bus.ValidToken(s) {
		return usage("%q is no %s: one has lower-case letters, digits and -, at most 64", s, what)
	}
	return nil
}

func wantsJSON(cmd *cobra.Command) bool {
	json, err := cmd.Flags().GetBool("json")
	return err == nil && json
}

// output writes the result: as JSON where that was asked for.
func output(cmd *cobra.Command, result any, text func(w io.Writer, s render.Style) error) error {
	if wantsJSON(cmd) {
		return render.JSON(cmd.OutOrStdout(), result)
	}
	return text(cmd.OutOrStdout(), style(cmd.OutOrStdout()))
}

// say explains, on stderr.
func say(cmd *cobra.Command, format string, args ...any) {
	fmt.Fprintf(cmd.ErrOrStderr(), format+"\n", args...)
}

// onTerminal returns the terminal that w writes to, if it does.
func onTerminal(w io.Writer) (fd int, ok bool) {
	edge, is := w.(*terminal.Writer)
	if !is {
		return 0, false
	}
	return edge.Terminal()
}

// style has colour on a terminal alone, and no more columns than it has.
func style(w io.Writer) render.Style {
	s := render.Style{Zone: time.Local}
	if fd, ok := onTerminal(w); ok {
		s.Color = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
		if columns, _, err := term.GetSize(fd); err == nil && columns < 100 {
			s.Width = max(80, columns)
		}
	}
	return s
}
