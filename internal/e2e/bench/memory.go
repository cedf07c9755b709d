package main

import (
	"context"
	"fmt"
	"time"

	"pawl.dev/internal/e2e/site"
)

const (
	rotatedInMemory = 50              // how many credentials are adopted and rotated once
	idle            = 3 * time.Second // after which the process counts as idle
)

// memory is that of `pawl up` with many credentials.
type memory struct {
	Credentials         int
	FirstStart, Restart time.Duration // until it is up: on an empty store, on the one it left
	Started, Rotated    resident
	Restarted           resident
}

func measureMemory(p *part) {
	progress("memory: setting up %d credentials", p.credentials)
	_, all := credentialsOf("many", p.credentials)
	m, s := &memory{Credentials: p.credentials}, p.site(p.dir, primary(p.server), all)
	p.within(func() {
		up := p.pawlUp(s)
		m.FirstStart, m.Started = up.took, up.after(p, idle)
		q := p.join(s)
		progress("memory: adopting and rotating %d of them", rotatedInMemory)
		some, _ := credentialsOf("many", rotatedInMemory)
		check(each(p, some, 8, q.adopt))
		check(each(p, some, 8, func(ctx context.Context, credential string) error { _, err := q.rotate(ctx, credential); return err }))
		m.Rotated = up.after(p, idle)
	})
	progress("memory: starting again")
	up := p.pawlUp(s)
	m.Restart, m.Restarted = up.took, up.after(p, idle)
	p.memory = m
}

// after reads the process's memory after a while without work.
func (up *process) after(ctx context.Context, rest time.Duration) resident {
	check(waitUntil(ctx, time.Now().Add(rest)))
	return must(residentOf(up.cmd.Process.Pid))
}

// credentialsOf are so many that alternate, and their names.
func credentialsOf(prefix string, n int) (names []string, all []site.Credential) {
	for i := range n {
		names = append(names, fmt.Sprintf("%s-%04d", prefix, i+1))
		all = append(all, site.Credential{Name: names[i], Strategy: strategies[0]})
	}
	return names, all
}
