package bus

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// When Roam leaves a server.
const (
	look       = 5 * time.Second // between questions
	answerIn   = 2 * time.Second
	leaderless = 2 // times in a row
)

// Roam moves to another server of the cluster when this one has lost the leader of
// the log: cut off from the other servers it keeps its clients, who would wait for
// ever. It asks every 5 s and leaves when there was none twice in a row; where
// there is no other server it does nothing. It returns when ctx ends.
func (b *Bus) Roam(ctx context.Context, log *slog.Logger) {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for failed := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if len(b.NATS.Servers()) < 2 || !b.NATS.IsConnected() || b.led(ctx) {
			failed = 0
			continue
		}
		if failed++; failed < leaderless || ctx.Err() != nil {
			continue
		}
		failed = 0
		log.Warn("NATS: this server does not reach the log's leader; trying another", "server", b.NATS.ConnectedServerName())
		if err := b.NATS.ForceReconnect(); err != nil {
			log.Warn("NATS", "error", err)
		}
	}
}

// led reports whether the log has a leader, as far as this server knows.
func (b *Bus) led(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, answerIn)
	defer cancel()
	stream, err := b.JetStream.Stream(ctx, StreamLog)
	if err != nil {
		return errors.Is(err, jetstream.ErrStreamNotFound)
	}
	cluster := stream.CachedInfo().Cluster // nil: the server is alone
	return cluster == nil || cluster.Leader != ""
}
