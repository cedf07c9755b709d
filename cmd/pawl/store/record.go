package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash"

	"github.com/minio/highwayhash"

	"crypto/sha256"
)

// The layout of a record, as filestore.go of nats-server has it: length (4 bytes,
// the top bit: it has headers), sequence (8), time (8), length of the subject (2),
// subject, with headers their length (4) and they, message, checksum (8).
const (
	headerSize   = 22
	checksumSize = 8

	withHeaders = 1 << 31
	erased      = uint64(1) << 63 // of a sequence: the message was overwritten
	tombstone   = uint64(1) << 62 // of a sequence: it was removed
)

// recordLimit is what nats-server takes for a broken length.
const recordLimit = 32 << 20

// newHash returns the checksum that nats-server keys with a name.
func newHash(name string) hash.Hash64 {
	key := sha256.Sum256([]byte(name))
	h, err := highwayhash.New64(key[:])
	if err != nil {
		panic(err) // the key has another length than it was given
	}
	return h
}

// blockHash returns the checksum of a block's records.
func blockHash(stream string, index int) hash.Hash64 {
	return newHash(fmt.Sprintf("%s-%d", stream, index))
}

// record is one record of a block, without its content.
type record struct {
	sequence uint64
	removed  bool // a tombstone, or erased
	time     int64
	size     int
}

// readRecord reads the record that buf begins with. It is not ok if the record is
// cut off, or its checksum is wrong.
func readRecord(buf []byte, h hash.Hash64) (r record, ok bool) {
	subject, headers, size, ok := bounds(buf)
	if !ok {
		return record{}, false
	}
	body := headerSize + subject
	h.Reset()
	h.Write(buf[4:20])
	h.Write(buf[headerSize:body])
	h.Write(buf[body+headers : size-checksumSize])
	var sum [checksumSize]byte
	if !bytes.Equal(h.Sum(sum[:0]), buf[size-checksumSize:size]) {
		return record{}, false
	}
	sequence := binary.LittleEndian.Uint64(buf[4:])
	return record{sequence: sequence &^ (erased | tombstone), removed: sequence&(erased|tombstone) != 0,
		time: int64(binary.LittleEndian.Uint64(buf[12:])), size: size}, true
}

// bounds reads the lengths of the record that buf begins with: of its subject, of
// the length of its headers (0 or 4), and of the whole.
func bounds(buf []byte) (subject, headers, size int, ok bool) {
	if len(buf) < headerSize+checksumSize {
		return 0, 0, 0, false
	}
	length := binary.LittleEndian.Uint32(buf)
	if length&withHeaders != 0 {
		headers = 4
	}
	size, subject = int(length&^withHeaders), int(binary.LittleEndian.Uint16(buf[20:]))
	ok = size <= len(buf) && size <= recordLimit && headerSize+subject+headers+checksumSize <= size
	return subject, headers, size, ok
}

// scan calls each for the records of a block, and returns how many bytes whole
// records fill from the block's beginning. Where that is less than the block, the
// server would cut the block off there.
func scan(block []byte, h hash.Hash64, each func(record)) (whole int) {
	for whole < len(block) {
		r, ok := readRecord(block[whole:], h)
		if !ok {
			return whole
		}
		each(r)
		whole += r.size
	}
	return whole
}

// findRecord looks for a whole record anywhere in what follows a bad one. After a
// write that was cut off there is none: every write is synced before the next.
func findRecord(rest []byte, h hash.Hash64, after uint64) (found record, at int, ok bool) {
	// A sequence this far away would need more bytes than a block has.
	most := after + uint64(len(rest))/(headerSize+checksumSize) + 1<<20
	for at := 1; at+headerSize+checksumSize <= len(rest); at++ {
		sequence := binary.LittleEndian.Uint64(rest[at+4:]) &^ (erased | tombstone)
		if sequence == 0 || sequence > most {
			continue
		}
		if r, ok := readRecord(rest[at:], h); ok {
			return r, at, true
		}
	}
	return record{}, 0, false
}
