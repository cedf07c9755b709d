package main

import (
	"context"
	"errors"
	"fmt"

	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/pgserver"
)

// A year, as the report extrapolates it.
const (
	yearCredentials = 1000
	yearDays        = 30 // between two rotations of a credential
)

// growth is what rotations leave in the streams.
type growth struct {
	Rotations int
	Rows      []grown // one per stream, and the sum
}

// grown is what rotations leave in one stream.
type grown struct {
	Stream   string
	Messages map[string]float64 // a rotation, by strategy
	Bytes    map[string]float64
}

// Year is how many bytes a year of alternating rotations leaves.
func (g grown) Year(strategy string) float64 {
	return g.Bytes[strategy] * yearCredentials * 365 / yearDays
}

func measureGrowth(ctx context.Context, b program, server *pgserver.Server, dir string, rotations int) (g *growth, err error) {
	var credentials []site.Credential
	for _, strategy := range strategies {
		credentials = append(credentials, site.Credential{Name: "grows-" + strategy, Strategy: strategy})
	}
	s, err := newSite(ctx, dir, server, credentials)
	if err != nil {
		return nil, err
	}
	p, err := b.start(ctx, s.File)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	request, err := newRequester(ctx, s)
	if err != nil {
		return nil, err
	}
	defer request.NATS.Close()
	streams, err := newStreams(s)
	if err != nil {
		return nil, err
	}
	defer streams.NATS.Close()
	g = &growth{Rotations: rotations}
	if err := (lab{request: request, streams: streams}).warmUp(ctx, credentials); err != nil {
		return nil, err
	}
	for _, strategy := range strategies {
		progress("growth: %d rotations, %s", rotations, strategy)
		if err := g.add(ctx, request, streams, strategy); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// add does the rotations of one strategy.
func (g *growth) add(ctx context.Context, q *requester, s streams, strategy string) error {
	sizes := func() ([]grown, error) {
		if _, err := s.settle(ctx); err != nil {
			return nil, err
		}
		all, err := s.Sizes(ctx)
		now := []grown{{Stream: "all"}}
		now[0].Messages, now[0].Bytes = map[string]float64{}, map[string]float64{}
		for _, size := range all {
			messages, bytes := float64(size.Messages), float64(size.Bytes)
			now = append(now, grown{size.Stream, map[string]float64{strategy: messages}, map[string]float64{strategy: bytes}})
			now[0].Messages[strategy] += messages
			now[0].Bytes[strategy] += bytes
		}
		return now, err
	}
	before, err := sizes()
	if err != nil {
		return err
	}
	for range g.Rotations {
		if _, err := q.rotate(ctx, "grows-"+strategy); err != nil {
			return fmt.Errorf("growth: %w", err)
		}
	}
	after, err := sizes()
	if err != nil {
		return err
	}
	if g.Rows == nil {
		g.Rows = make([]grown, len(after))
		for i, row := range after {
			g.Rows[i] = grown{row.Stream, map[string]float64{}, map[string]float64{}}
		}
	}
	for i := range after {
		g.Rows[i].Messages[strategy] = (after[i].Messages[strategy] - before[i].Messages[strategy]) / float64(g.Rotations)
		g.Rows[i].Bytes[strategy] = (after[i].Bytes[strategy] - before[i].Bytes[strategy]) / float64(g.Rotations)
	}
	return nil
}
