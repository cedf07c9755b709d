package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"text/template"
	"time"

	"golang.org/x/sys/unix"

	"pawl.dev/internal/pgserver"
)

// report is all that was measured.
type report struct {
	options     options
	environment environment
	rounds      map[int][]round              // by number at once
	where       map[int]map[string]breakdown // by number at once and strategy
	counted     []counted
	clusters    *clusters // nil: left out, like the others
	buses       *buses
	stacks      *stacks
	emergency   *emergency
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

func describe(ctx context.Context, server *pgserver.Server) (e environment, err error) {
	e = environment{Date: time.Now(), Cores: runtime.NumCPU(), Go: runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH}
	admin, err := logIn(ctx, server, server.Superuser, server.Password)
	if err != nil {
		return e, err
	}
	defer admin.Close(ctx)
	if err := admin.QueryRow(ctx, `SELECT current_setting('server_version') || ', fsync ' || current_setting('fsync') || ', synchronous_commit ' || current_setting('synchronous_commit')`).
		Scan(&e.Postgres); err != nil {
		return e, err
	}
	var system unix.Sysinfo_t
	if err := unix.Sysinfo(&system); err != nil {
		return e, err
	}
	e.Memory = float64(system.Totalram) * float64(system.Unit) / (1 << 30)
	var disk unix.Statfs_t
	if err := unix.Statfs(server.Dir, &disk); err != nil {
		return e, err
	}
	if e.FileSystem = "on disk"; disk.Type == unix.TMPFS_MAGIC {
		e.FileSystem = "**in memory (tmpfs), where a sync costs nothing: set TMPDIR to a disk**"
	}
	e.Commit = commit(ctx)
	return e, nil
}

// commit is the working tree's; unknown outside a repository.
func commit(ctx context.Context) string {
	head, err := exec.CommandContext(ctx, "git", "rev-parse", "--short=12", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	commit := strings.TrimSpace(string(head))
	if changed, err := exec.CommandContext(ctx, "git", "status", "--porcelain").Output(); err != nil || len(changed) > 0 {
		commit += ", with changes that are not committed"
	}
	return commit
}

func (r *report) write(w io.Writer) error {
	return document.Execute(w, map[string]any{
		"E": r.environment, "Rounds": r.options.rounds, "Cell": r.options.cell, "Warnings": r.warnings, "AuditBehind": r.auditBehind,
		"Speed": r.speedRows(), "Aim": r.aim(), "Counted": r.countRows(), "CountedRotations": r.options.counted, "Strategies": strategies,
		"Where": r.whereTables(), "C": r.clusters, "B": r.buses, "K": r.stacks, "Stolen": r.emergency, "Live": liveSessions, "ContainedNodes": containedNodes, "Containments": containments, "Mass": r.mass, "MassNodes": massNodes, "MassSessions": massSessions, "MassAtOnce": massAtOnce, "ManyNodes": manyNodes, "IdleLook": idleLook, "Sched": r.schedule, "Probes": probes, "Lasts": stormLasts, "Hold": stormHold, "Days": forecastDays, "G": r.growth, "Credentials": yearCredentials, "Every": yearDays, "M": r.memory, "Rotated": rotatedInMemory, "Idle": idle,
	})
}

// speedRows are those of the main table.
func (r *report) speedRows() (rows []string) {
	if r.rounds == nil {
		return nil
	}
	for _, k := range atOnce {
		rounds := r.rounds[k]
		floors := func(figure func(cell) float64) float64 {
			return medianOf(rounds, func(one round) float64 { return figure(one.floor) })
		}
		rows = append(rows, fmt.Sprintf("| %d | floor | %.1f | %.1f | %.1f | | | %s |", k, floors(perSecond), floors(p50), floors(p99), cpuCells(floors)))
		for _, strategy := range strategies {
			of := func(figure func(cell) float64) float64 {
				return medianOf(rounds, func(one round) float64 { return figure(one.pawl[strategy]) })
			}
			rows = append(rows, fmt.Sprintf("| %d | Pawl, %s | %.1f | %.1f | %.1f | %.1f | %+.1f | %s |", k, strategy,
				of(perSecond), of(p50), of(p99), r.slower(k, strategy), r.later(k, strategy), cpuCells(of)))
		}
	}
	return rows
}

func cpuCells(of func(func(cell) float64) float64) string {
	return fmt.Sprintf("%.1f | %.1f | %.1f", of(func(c cell) float64 { return c.each(c.cpu.postgres) }),
		of(func(c cell) float64 { return c.each(c.cpu.pawl) }), of(func(c cell) float64 { return c.each(c.cpu.bench) }))
}

func perSecond(c cell) float64 { return c.perSecond }
func p50(c cell) float64       { return c.quantile(.5) }
func p99(c cell) float64       { return c.quantile(.99) }

// slower is the floor's throughput as a multiple of Pawl's, in the same round.
func (r *report) slower(k int, strategy string) float64 {
	return medianOf(r.rounds[k], func(one round) float64 { return one.floor.perSecond / one.pawl[strategy].perSecond })
}

// later is by how many milliseconds Pawl's p50 exceeds the floor's, in the same round.
func (r *report) later(k int, strategy string) float64 {
	return medianOf(r.rounds[k], func(one round) float64 { return p50(one.pawl[strategy]) - p50(one.floor) })
}

// aim says, for each strategy, whether it is within the aims.
func (r *report) aim() (lines []string) {
	if r.rounds == nil {
		return nil
	}
	most := atOnce[len(atOnce)-1]
	for _, strategy := range strategies {
		lines = append(lines, fmt.Sprintf("%s: floor ÷ Pawl at %d is %.1f (aim: at most 2: %s); p50 at 1 is %+.1f ms from the floor's (aim: at most +25: %s).",
			strategy, most, r.slower(most, strategy), met(r.slower(most, strategy) <= 2), r.later(1, strategy), met(r.later(1, strategy) <= 25)))
	}
	return lines
}

func met(is bool) string {
	if is {
		return "met"
	}
	return "**not met**"
}

// countRows has a column for each strategy.
func (r *report) countRows() (rows []string) {
	if len(r.counted) == 0 {
		return nil
	}
	row := func(what string, figure func(counted) float64) {
		line := "| " + what + " |"
		for _, c := range r.counted {
			line += fmt.Sprintf(" %.4g |", figure(c))
		}
		rows = append(rows, line)
	}
	row("ALTER ROLE … PASSWORD with a verifier", func(c counted) float64 { return c.per(c.asked.passwords) })
	row("other ALTER ROLE", func(c counted) float64 { return c.per(c.asked.otherAlters) })
	row("CREATE ROLE", func(c counted) float64 { return c.per(c.asked.creates) })
	row("logins as the credential", func(c counted) float64 { return c.per(c.asked.logins) })
	row("sessions opened as admin or observer", func(c counted) float64 { return c.per(c.asked.sessions) })
	row("explicit transactions committed", func(c counted) float64 { return c.per(c.asked.commits) })
	row("SQL statements", func(c counted) float64 { return c.per(c.asked.statements) })
	row("round trips to PostgreSQL, logins' own left out", func(c counted) float64 { return c.per(c.asked.roundTrips) })
	row("**JetStream messages stored (each synced)**", func(c counted) float64 { return c.per(int(c.messages())) })
	for _, stream := range slices.Sorted(maps.Keys(r.counted[0].stored)) {
		row("in "+stream, func(c counted) float64 { return c.per(int(c.stored[stream])) })
	}
	row("deliveries to durable consumers", func(c counted) float64 { return c.per(int(c.deliveries)) })
	return rows
}

// whereTables returns the rows of each strategy's table.
func (r *report) whereTables() map[string][]string {
	tables := map[string][]string{}
	if r.where == nil {
		return tables
	}
	low, high := atOnce[0], atOnce[len(atOnce)-1]
	for _, strategy := range strategies {
		one, many := r.where[low][strategy], r.where[high][strategy]
		step, rows := "", []string(nil)
		for _, p := range one.parts {
			if p.ofStep {
				step = p.name
				q := many.find(step, "")
				rows = append(rows, fmt.Sprintf("| **%s** | | %.1f | %.1f | %.1f | %.1f |", p.name, one.mean(p.waited), one.mean(p.took), many.mean(q.waited), many.mean(q.took)))
				continue
			}
			q := many.find(step, p.name)
			rows = append(rows, fmt.Sprintf("| · %s | %.3g | | %.1f | | %.1f |", p.name, float64(p.times)/float64(one.rotations), one.mean(p.took), many.mean(q.took)))
		}
		tables[strategy] = append(rows, fmt.Sprintf("| completed is heard of | | %.1f | | %.1f | |", one.mean(one.heard), many.mean(many.heard)))
	}
	return tables
}

var document = template.Must(template.New("report").Funcs(template.FuncMap{
	"mb":   func(bytes int64) string { return fmt.Sprintf("%.0f", float64(bytes)/1e6) },
	"mega": func(bytes float64) float64 { return bytes / 1e6 },
	"sec":  func(ms float64) string { return fmt.Sprintf("%.2f", ms/1000) },
	"ms":   func(d time.Duration) string { return fmt.Sprintf("%.0f", milliseconds(d)) },
}).Parse(`# Rotations beside the floor

| | |
|---|---|
| date | {{.E.Date.Format "2006-01-02 15:04 MST"}} |
| machine | {{.E.Cores}} cores, {{printf "%.1f" .E.Memory}} GiB; everything on it: PostgreSQL, ` + "`pawl up`" + `, this client |
| PostgreSQL | {{.E.Postgres}}, {{.E.FileSystem}} |
| NATS | embedded, file storage, every write synced, encrypted |
| Go | {{.E.Go}} |
| commit | {{.E.Commit}} |
| figures | medians of {{.Rounds}} rounds, {{.Cell}} a cell; in a round the floor's cell and Pawl's follow one another |
{{if .Speed}}
The floor is a committed ALTER ROLE with a ready verifier over an open session, plus one SCRAM login.
A rotation is asked for by an event and has all steps: a dotenv sink, no consumer, ` + "`drain: 0s`, `keep: 0s`" + `.
p50 and p99 are from sending the request to hearing of completed. The predecessor is erased right after
that, and the next request of the same credential waits for it: per second includes the erasing.

| at once | | per second | p50 ms | p99 ms | floor ÷ Pawl, per second | p50 beyond the floor's, ms | CPU ms each: PostgreSQL | pawl | this client |
|---|---|---|---|---|---|---|---|---|---|
{{range .Speed}}{{.}}
{{end}}
{{range .Aim}}- {{.}}
{{end}}- Pawl logged {{.Warnings}} warnings. The audit trail, written beside the rotations, was at most {{.AuditBehind}} messages behind at the end of a cell.

## What one rotation makes

Counted between Pawl and PostgreSQL, and in the streams, over {{.CountedRotations}} rotations one after the other. Both logins were there before.

| per rotation |{{range .Strategies}} {{.}} |{{end}}
|---|{{range .Strategies}}---|{{end}}
{{range .Counted}}{{.}}
{{end}}
## Where the time goes

Means per rotation in ms, by the events of the last round. "before" is from the event before to the start of the
step: delivery, and reading and folding the log. "in it" ends with the event stored. For requested it begins with
sending the request.
{{range $strategy, $rows := .Where}}
### {{$strategy}}

| step, operation | times | 1 at once: before | in it | 16 at once: before | in it |
|---|---|---|---|---|---|
{{range $rows}}{{.}}
{{end}}{{end}}{{end}}{{with .C}}
## Credentials on several nodes

One alternating credential at a time, each node a server of its own on this machine, so that all nodes share its cores.
The floor is the same on as many nodes at once: an ALTER ROLE and a login on each, by clients that do nothing else. Where it
grows with the nodes, it is for the want of cores: so compare how much more Pawl grows.

| nodes | p50 ms | p99 ms | p50 ÷ that on one node | the floor's p50 ms | ÷ that on one node | CPU ms each: PostgreSQL | the floor's | pawl |
|---|---|---|---|---|---|---|---|---|
{{range .Rows}}{{.}}
{{end}}
The same with a relay before each node, which makes a round trip take as long as to another machine: then a rotation waits for
its nodes, all at once, rather than for the cores that they share here.

| round trip | nodes | p50 ms | p99 ms | p50 ÷ that on one node |
|---|---|---|---|---|
{{range .FarRows}}{{.}}
{{end}}{{with .Many}}{{if .Credentials}}
{{.Credentials}} credentials on {{$.ManyNodes}} nodes each, 8 at a time: all rotated once in {{printf "%.0f" .Took.Seconds}} s, {{printf "%.1f" .PerSecond}} per second;
p50 {{printf "%.0f" .P50}} ms, p99 {{printf "%.0f" .P99}} ms. Afterwards ` + "`pawl up`" + ` holds {{mb .Rested.Now}} MB, and for {{$.IdleLook}} took {{printf "%.1f" .IdlePercent}} % of one core to
compare all of them with their nodes.
{{end}}{{end}}{{end}}{{with .B}}
## A bus of one server, and of three

Stock nats-servers with what ` + "`pawl nats-config`" + ` writes: TLS both ways, every write synced and encrypted, and with three servers a majority of them has it. One alternating credential at a time; all servers share this machine's cores and its disk.

| nats-servers | p50 ms | p99 ms | p50 ÷ that on one |
|---|---|---|---|
{{range .Rows}}{{.}}
{{end}}{{end}}{{with .K}}
## In containers

docker-compose.yml as it is, but with nothing to wait for in pawl.yaml (` + "`drain: 0s`, `keep: 0s`" + `): the six services, a cluster of four servers of PostgreSQL, an application that is told to read its .env anew, Jaeger, Prometheus, Alertmanager. With three nats-servers there are two of each service. {{.Rotations}} rotations one after the other, from sending the request to hearing of completed. Started: from ` + "`up`" + ` on empty volumes, with the images there, to the credential adopted.

| nats-servers | started s | p50 ms | p99 ms | p50 ÷ that on one | memory of the largest service MB |
|---|---|---|---|---|---|
{{range .Rows}}{{.}}
{{end}}
Images:{{range $i, $x := .Images}}{{if $i}},{{end}} {{.Name}} {{mb .Size}} MB{{end}}. Memory is what ` + "`docker stats`" + ` shows after the rotations.
{{end}}{{with .Stolen}}
## Emergencies

{{$.Live}} sessions of the stolen login on {{$.ContainedNodes}} nodes, {{$.Containments}} emergencies of each strategy, one after the other. Bare: NOLOGIN and pg_terminate_backend until nobody is left, by superusers who are logged in. Contained: from sending the request to hearing that nobody is logged in, or can be. Verified: until every consumer is back.

| strategy | bare p50 ms | contained p50 ms | p99 ms | verified p50 ms | p99 ms | contained ÷ bare |
|---|---|---|---|---|---|---|
{{range .Rows}}{{.}}
{{end}}{{end}}{{with .Mass}}
## An emergency of {{.Credentials}} credentials

One order contains a whole cluster: {{.Credentials}} credentials, each on {{$.MassNodes}} nodes, and {{$.MassSessions}} sessions of theirs. Bare: for each node one client, logged in as superuser, NOLOGIN for each login, then pg_terminate_backend until nobody is left; every statement committed, or all of a node's in one transaction. Contained: from sending the request to hearing that nobody is logged in, or can be. Back: until a new password is verified.

| bare s | bare, one transaction a node s | contained p50 s | p100 s | back p50 s | p100 s |{{if .Ordinary}} {{.Credentials}} ordinary rotations of {{.Against}}, {{$.MassAtOnce}} at a time s |{{end}}
|---|---|---|---|---|---|{{if .Ordinary}}---|{{end}}
| {{printf "%.2f" .Bare.Seconds}} | {{printf "%.2f" .BareAtOne.Seconds}} | {{sec (.ContainedAt 0.5)}} | {{sec (.ContainedAt 1.0)}} | {{sec (.BackAt 0.5)}} | {{sec (.BackAt 1.0)}} |{{if .Ordinary}} {{printf "%.1f" .Ordinary.Seconds}} |{{end}}

{{range .Aims}}- {{.}}
{{end}}{{end}}{{with .Sched}}
## Schedules

The scheduler as a process of its own, on an embedded NATS; the other services are played. {{$.Probes}} credentials come due, each at a time of its own, while the others rest. CPU is the scheduler's, messages are all that are stored: from one timer to the next, with the rotation in between.

| credentials | from due to begun p50 ms | at most ms | the scheduler's CPU ms each | messages stored, each |
|---|---|---|---|---|
{{range .Dues}}| {{.Credentials}} | {{printf "%.1f" .P50}} | {{printf "%.1f" .Max}} | {{printf "%.1f" .CPU}} | {{printf "%.1f" .Stored}} |
{{end}}| most ÷ fewest | {{printf "%.1f" .RatioP50}} | | {{printf "%.1f" .RatioCPU}} | |
{{with .Storm}}
Started with {{.Overdue}} of {{.Credentials}} overdue, each rotation taking {{$.Hold}}, within the first {{$.Lasts}}:

| | | budget |
|---|---|---|
| begun | {{.Begun}} | at most {{.Most}} |
| most at once | {{.AtOnce}} | {{.InAll}} |
| most at once in a cluster | {{.InCluster}} | {{.PerCluster}} |
| scheduler's peak memory, resident | {{mb .Memory.Peak}} MB | |
| scheduler's CPU | {{printf "%.1f" .CPU.Seconds}} s | |
| warnings | {{.Warnings}} | |
{{end}}
A forecast of {{$.Days}} days for as many, {{.Forecast.Turns}} turns: {{ms .Forecast.Took}} ms.
{{end}}{{with .G}}
## What stays in the store

{{.Rotations}} rotations one after the other, a dotenv sink, no consumer, the predecessor erased. A year is {{$.Credentials}} credentials, each rotated every {{$.Every}} days.

| stream |{{range $.Strategies}} {{.}}: messages | bytes | a year MB |{{end}}
|---|{{range $.Strategies}}---|---|---|{{end}}
{{range $row := .Rows}}| {{.Stream}} |{{range $.Strategies}} {{printf "%.1f" (index $row.Messages .)}} | {{printf "%.0f" (index $row.Bytes .)}} | {{printf "%.0f" (mega ($row.Year .))}} |{{end}}
{{end}}{{end}}{{with .M}}
## Memory and start of ` + "`pawl up`" + ` with {{.Credentials}} credentials

| | resident MB | of it anonymous | peak |
|---|---|---|---|
| {{$.Idle}} after the start on an empty store | {{mb .Started.Now}} | {{mb .Started.Anonymous}} | {{mb .Started.Peak}} |
| {{$.Idle}} after {{$.Rotated}} adoptions and {{$.Rotated}} rotations | {{mb .Rotated.Now}} | {{mb .Rotated.Anonymous}} | {{mb .Rotated.Peak}} |
| {{$.Idle}} after a new start | {{mb .Restarted.Now}} | {{mb .Restarted.Anonymous}} | {{mb .Restarted.Peak}} |

Up after {{ms .FirstStart}} ms on an empty store, {{ms .Restart}} ms on the one it left.
{{end}}`))
