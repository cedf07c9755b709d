package store

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
)

// writeStream makes a stream of blocks of so many records each.
func writeStream(tb testing.TB, dir, name string, blocks, records, size int) {
	tb.Helper()
	writeStreamOf(tb, dir, server.StreamConfig{Name: name, Storage: server.FileStorage, DenyDelete: true, DenyPurge: true}, blocks, records, size)
}

func writeStreamOf(tb testing.TB, dir string, config server.StreamConfig, blocks, records, size int) {
	tb.Helper()
	name := config.Name
	path := filepath.Join(streamsIn(dir, "A"), name)
	if err := os.MkdirAll(filepath.Join(path, messages), 0o700); err != nil {
		tb.Fatal(err)
	}
	meta, err := json.Marshal(server.FileStreamInfo{StreamConfig: config})
	if err != nil {
		tb.Fatal(err)
	}
	var sequence uint64
	files := map[string][]byte{metaFile: meta, sumFile: []byte(sumOf(name, meta))}
	for b := 1; b <= blocks; b++ {
		var block bytes.Buffer
		for range records {
			sequence++
			block.Write(newRecord(name, b, sequence, size))
		}
		files[filepath.Join(messages, fmt.Sprintf("%d.blk", b))] = block.Bytes()
	}
	for file, content := range files {
		if err := os.WriteFile(filepath.Join(path, file), content, 0o600); err != nil {
			tb.Fatal(err)
		}
	}
}

func newRecord(stream string, block int, sequence uint64, size int) []byte {
	subject := "a.subject"
	r := make([]byte, headerSize, headerSize+len(subject)+size+checksumSize)
	binary.LittleEndian.PutUint32(r, uint32(cap(r)))
	binary.LittleEndian.PutUint64(r[4:], sequence)
	binary.LittleEndian.PutUint16(r[20:], uint16(len(subject)))
	body := append([]byte(subject), bytes.Repeat([]byte{byte(sequence)}, size)...)
	h := blockHash(stream, block)
	h.Write(r[4:20])
	h.Write(body)
	return h.Sum(append(r, body...))
}

// TestEveryByteThatIsWrongIsFound changes each byte of a block once.
func TestEveryByteThatIsWrongIsFound(t *testing.T) {
	dir := t.TempDir()
	writeStream(t, dir, "S", 1, 4, 20)
	path := filepath.Join(streamsIn(dir, "A"), "S", messages, "1.blk")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	known := Manifest{{"S", 4, 4, true}}
	record := len(whole) / 4
	for i := range whole {
		if i%record == 20 || i%record == 21 {
			continue // where the subject ends is in no checksum of nats-server's
		}
		wrong := bytes.Clone(whole)
		wrong[i] ^= 0x10
		if err := os.WriteFile(path, wrong, 0o600); err != nil {
			t.Fatal(err)
		}
		if r, err := Examine(dir, "A", known); err != nil || len(r.Damage) == 0 {
			t.Errorf("byte %d: %+v, %v", i, r, err)
		}
	}
	for n := range whole { // every length: what was acknowledged is known
		if err := os.WriteFile(path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if r, err := Examine(dir, "A", known); err != nil || len(r.Damage) == 0 {
			t.Errorf("cut off at %d: %+v, %v", n, r, err)
		}
		if r, err := Examine(dir, "A", nil); err != nil || len(r.Damage) > 0 {
			t.Errorf("a write that was cut off at %d: %+v, %v", n, r, err)
		}
	}
}

// TestBlockThatTheServerWasDeletingIsNoDamage: it empties the file first, and its end
// may come in between.
func TestBlockThatTheServerWasDeletingIsNoDamage(t *testing.T) {
	for _, keeps := range []bool{false, true} {
		dir := t.TempDir()
		writeStreamOf(t, dir, server.StreamConfig{Name: "S", Storage: server.FileStorage, DenyDelete: keeps, DenyPurge: keeps}, 3, 4, 20)
		if err := os.Truncate(filepath.Join(streamsIn(dir, "A"), "S", messages, "2.blk"), 0); err != nil {
			t.Fatal(err)
		}
		if r, err := Examine(dir, "A", nil); err != nil || (len(r.Damage) > 0) != keeps {
			t.Errorf("where messages are never deleted = %v: %+v, %v", keeps, r, err)
		}
	}
}

func BenchmarkExamine(b *testing.B) {
	for _, size := range []int{300, 4000} {
		b.Run(fmt.Sprintf("messages of %d bytes", size), func(b *testing.B) {
			dir := b.TempDir()
			writeStream(b, dir, "S", 16, 8<<20/size, size)
			for b.Loop() {
				r, err := Examine(dir, "A", nil)
				if err != nil || len(r.Damage) > 0 {
					b.Fatal(r, err)
				}
				b.SetBytes(r.Bytes)
			}
		})
	}
}
