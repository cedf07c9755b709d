// Package store knows what nats-server 2.15 keeps on disk. It reads a store without
// the server, because a server that starts deletes what it cannot read.
package store

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// Names of files and folders, as nats-server has them.
const (
	metaFile      = "meta.inf"
	sumFile       = "meta.sum"
	keyFile       = "meta.key"
	messages      = "msgs"
	newMessages   = "__new_msgs__" // a purge that has happened, but for a rename
	consumers     = "obs"
	consumerState = "o.dat"
	batches       = "batches"
)

// streamsIn is the folder of an account's streams.
func streamsIn(dir, account string) string {
	return filepath.Join(dir, "jetstream", account, "streams")
}

// block is a file of records.
type block struct {
	path  string
	index int
}

// blocksOf lists the blocks of a stream, oldest first.
func blocksOf(stream string) (all []block, err error) {
	for _, folder := range []string{newMessages, messages} {
		paths, err := filepath.Glob(filepath.Join(escape(stream), folder, "*.blk"))
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			b := block{path: path}
			if n, err := fmt.Sscanf(filepath.Base(path), "%d.blk", &b.index); err == nil && n == 1 {
				all = append(all, b)
			}
		}
		if len(all) > 0 {
			break // the server takes these in place of the others
		}
	}
	slices.SortFunc(all, func(a, b block) int { return a.index - b.index })
	return all, nil
}

// escape makes a path a pattern of filepath.Glob that stands for it alone.
func escape(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}
