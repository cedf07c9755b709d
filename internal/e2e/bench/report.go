package main

import (
	"context"
	_ "embed"
	"fmt"
	"io"
	"runtime"
	"text/template"
	"time"

	"golang.org/x/sys/unix"
)

// report is all that was measured.
type report struct {
	options     options
	environment environment
	cells       map[string][]cell    // by subject: one each round
	where       map[string]breakdown // by subject, of the last round; nil: left out, like the others
	counted     []counted            // by strategy
	many        *many
	stacks      *stacks
	mass        *mass
	schedule    *schedules
	growth      *growth
	memory      *memory
	warnings    int64
	auditBehind uint64
}

// environment is what the figures depend on.
type environment struct {
	Date               time.Time
	Cores              int
	Memory             float64 // GiB
	Postgres, Go       string
	Commit, FileSystem string
}

func (p *part) describe() {
	e := environment{Date: time.Now(), Cores: runtime.NumCPU(), Go: runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH, Commit: commit(p)}
	admin := must(logIn(p, p.server, p.server.Superuser, p.server.Password, "bench"))
	defer admin.Close(p)
	check(admin.QueryRow(p, `SELECT current_setting('server_version') || ', fsync ' || current_setting('fsync') || ', synchronous_commit ' || current_setting('synchronous_commit')`).
		Scan(&e.Postgres))
	var system unix.Sysinfo_t
	check(unix.Sysinfo(&system))
	e.Memory = float64(system.Totalram) * float64(system.Unit) / (1 << 30)
	var disk unix.Statfs_t
	check(unix.Statfs(p.server.Dir, &disk))
	if e.FileSystem = "on disk"; disk.Type == unix.TMPFS_MAGIC {
		e.FileSystem = "**in memory (tmpfs), where a sync costs nothing: set TMPDIR to a disk**"
	}
	p.environment = e
}

// commit is the working tree's; unknown outside a repository.
func commit(ctx context.Context) string {
	head, err := command(ctx, "", "git", "rev-parse", "--short=12", "HEAD")
	if err != nil {
		return "unknown"
	}
	if changed, err := command(ctx, "", "git", "status", "--porcelain"); err != nil || changed != "" {
		head += ", with changes that are not committed"
	}
	return head
}

// rows returns a table's rows, none if its first subject was not measured.
func (r *report) rows(subject string, rows func() []string) []string {
	if r.cells[subject] == nil {
		return nil
	}
	return rows()
}

func (r *report) write(w io.Writer) error {
	values := map[string]any{
		"E": r.environment, "Rounds": r.options.rounds, "Cell": r.options.cell, "Warnings": r.warnings, "AuditBehind": r.auditBehind,
		"Nodes": r.rows(onNodesName(onNodes[0], 0), r.nodeRows), "Far": r.rows(onNodesName(onNodes[0], 0), r.farRows), "Many": r.many, "ManyNodes": manyNodes, "IdleLook": idleLook,
		"Buses": r.rows(onServersName(onServers[0]), r.busRows), "K": r.stacks,
		"Stolen": r.rows(containedName(strategies[0]), r.emergencyRows), "Live": liveSessions, "ContainedNodes": containedNodes, "Containments": containments,
		"Mass": r.mass, "MassNodes": massNodes, "MassSessions": massSessions, "MassAtOnce": massAtOnce,
		"Sched": r.schedule, "Probes": probes, "Lasts": stormLasts, "Hold": stormHold, "Days": forecastDays,
		"G": r.growth, "Credentials": yearCredentials, "Every": yearDays, "M": r.memory, "Rotated": rotatedInMemory, "Idle": idle,
		"Strategies": strategies, "CountedRotations": r.options.counted,
	}
	if r.where != nil {
		where := map[string][]string{}
		for _, strategy := range strategies {
			where[strategy] = r.whereRows(strategy)
		}
		values["Speed"], values["Aim"], values["Counted"], values["Where"] = r.speedRows(), r.aim(), r.countRows(), where
	}
	return document.Execute(w, values)
}

//go:embed report.md.tmpl
var reportText string

var document = template.Must(template.New("report").Funcs(template.FuncMap{
	"mb":   func(bytes int64) string { return fmt.Sprintf("%.0f", float64(bytes)/1e6) },
	"mega": func(bytes float64) float64 { return bytes / 1e6 },
	"sec":  func(ms float64) string { return fmt.Sprintf("%.2f", ms/1000) },
	"ms":   func(d time.Duration) string { return fmt.Sprintf("%.0f", milliseconds(d)) },
}).Parse(reportText))
