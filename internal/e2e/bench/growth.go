package main

import (
	"context"

	"pawl.dev/internal/e2e/site"
)

// A year, as the report extrapolates it.
const (
	yearCredentials = 1000
	yearDays        = 30 // between two rotations of a credential
)

// grown is what one rotation leaves in a stream, or in all of them.
type grown struct{ Messages, Bytes float64 }

// Year is how many bytes a year of rotations leaves.
func (g grown) Year() float64 { return g.Bytes * yearCredentials * 365 / yearDays }

// growth is that of the streams.
type growth struct {
	Rotations int
	Streams   []string                    // and "all" of them
	By        map[string]map[string]grown // by stream and strategy
}

func measureGrowth(p *part) {
	var credentials []site.Credential
	for _, strategy := range strategies {
		credentials = append(credentials, site.Credential{Name: "grows-" + strategy, Strategy: strategy})
	}
	in := p.install(p.site(p.dir, primary(p.server), credentials), 2)
	g := &growth{Rotations: p.options.counted, By: map[string]map[string]grown{}}
	for _, strategy := range strategies {
		progress("growth: %d rotations, %s", g.Rotations, strategy)
		_, before := in.sizes(p)
		for range g.Rotations {
			must(in.rotate(p, "grows-"+strategy))
		}
		streams, after := in.sizes(p)
		for _, stream := range streams {
			if g.By[stream] == nil {
				g.By[stream] = map[string]grown{}
			}
			g.By[stream][strategy] = grown{(after[stream].Messages - before[stream].Messages) / float64(g.Rotations), (after[stream].Bytes - before[stream].Bytes) / float64(g.Rotations)}
		}
		g.Streams = streams
	}
	p.growth = g
}

// sizes are those of the streams, once nothing is left to do.
func (in *installation) sizes(ctx context.Context) (streams []string, of map[string]grown) {
	must(in.streams.settle(ctx))
	streams, of = []string{"all"}, map[string]grown{}
	for _, s := range must(in.streams.Sizes(ctx)) {
		streams = append(streams, s.Stream)
		of[s.Stream] = grown{float64(s.Messages), float64(s.Bytes)}
		of["all"] = grown{of["all"].Messages + float64(s.Messages), of["all"].Bytes + float64(s.Bytes)}
	}
	return streams, of
}
