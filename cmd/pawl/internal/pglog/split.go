package pglog

import (
	"bytes"
	"regexp"
)

// maxRecord is the longest record that is read, in bytes. Longer ones hold long
// statements, and are no failed logins.
const maxRecord = 1 << 20

// begin matches, in csvlog, the line break before a record that has a user. It
// cannot stand inside another record, whatever a client had the server log:
// there, each quote is doubled.
var begin = regexp.MustCompile(`^\n\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [^,"\n]{1,40},"[^",\n]`)

const longestBegin = 80

// next returns where the first record of buf ends, behind its line break, 0
// where it goes on after buf. It is torn where a writer died in the middle of
// it, so that another begins before it is over.
func next(format string, buf []byte) (end int, torn bool) {
	quoted := false
	for {
		i := bytes.IndexByte(buf[end:], '\n')
		if i < 0 {
			return 0, false
		}
		if format == JSON {
			return i + 1, false
		}
		if bytes.Count(buf[end:end+i], []byte{'"'})%2 == 1 {
			quoted = !quoted
		}
		end += i + 1
		if !quoted {
			return end, false
		}
		if begin.Match(buf[end-1:]) {
			return end, true
		}
	}
}

// resume returns where, somewhere inside a record, the next one surely begins,
// and otherwise how much of buf cannot hold that.
func resume(format string, buf []byte) (at int, found bool) {
	for {
		i := bytes.IndexByte(buf[at:], '\n')
		if i < 0 {
			return len(buf), false
		}
		at += i
		if format == JSON || begin.Match(buf[at:]) {
			return at + 1, true
		}
		if len(buf)-at < longestBegin {
			return at, false
		}
		at++
	}
}
