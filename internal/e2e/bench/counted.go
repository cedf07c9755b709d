package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// counted is what one rotation of some made, on average, by row of the report.
type counted map[string]float64

// Rows that the streams tell; askedRows are those that the tap does.
const (
	storedRow     = "**JetStream messages stored (each synced)**"
	deliveriesRow = "deliveries to durable consumers"
)

// count does the rotations of a credential whose node is behind the tap.
func (in *installation) count(ctx context.Context, t *tap, credential string, rotations int) counted {
	before := in.counts(ctx, t)
	for range rotations {
		must(in.rotate(ctx, credential))
	}
	c := in.counts(ctx, t)
	for row := range c {
		c[row] = (c[row] - before[row]) / float64(rotations)
	}
	return c
}

// counts are from the start on, of what is over.
func (in *installation) counts(ctx context.Context, t *tap) counted {
	c := counted{deliveriesRow: float64(must(in.streams.settle(ctx)))}
	for stream, n := range must(in.streams.stored(ctx)) {
		c["in "+stream] = float64(n)
		c[storedRow] += float64(n)
	}
	for row, n := range t.asked() {
		c[row] = float64(n)
	}
	return c
}

// countRows has a column for each strategy.
func (r *report) countRows() (rows []string) {
	var streams []string
	for row := range r.counted[0] {
		if strings.HasPrefix(row, "in ") {
			streams = append(streams, row)
		}
	}
	slices.Sort(streams)
	for _, row := range slices.Concat(askedRows, []string{storedRow}, streams, []string{deliveriesRow}) {
		line := "| " + row + " |"
		for _, c := range r.counted {
			line += fmt.Sprintf(" %.4g |", c[row])
		}
		rows = append(rows, line)
	}
	return rows
}
