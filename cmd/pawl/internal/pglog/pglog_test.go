package pglog

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// record is how a server logs a failed login, in log_timezone Europe/Berlin.
func record(format, session, user, detail string) string {
	_, pid, _ := strings.Cut(session, ".")
	if format == JSON {
		return fmt.Sprintf(`{"timestamp":"2026-11-25 04:55:47.488 CET","user":%s,"dbname":"postgres","pid":"%s","remote_host":"127.0.0.1","remote_port":35230,"session_id":"%s","line_num":2,"ps":"authentication","session_start":"2026-11-25 04:55:47 CET","vxid":"1/1","txid":0,"error_severity":"FATAL","state_code":"28P01","message":"password authentication failed","detail":%s,"backend_type":"client backend","query_id":0}`, quoteJSON(user), pid, session, quoteJSON(detail)) + "\n"
	}
	return fmt.Sprintf(`2026-11-25 04:55:47.488 CET,%s,"postgres",%s,"127.0.0.1:35230",%s,2,"authentication",2026-11-25 04:55:47 CET,1/1,0,FATAL,28P01,"password authentication failed",%s,,,,,,,,"","client backend",,0`, quoteCSV(user), pid, session, quoteCSV(detail)) + "\n"
}

func quoteJSON(s string) string {
	raw, _ := json.Marshal(s)
	return string(raw)
}

func quoteCSV(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

func session(n int) string { return fmt.Sprintf("6b065c43.%x", n) }

// reader follows a directory and counts what it reads, by session.
type reader struct {
	*Follower
	seen    map[string]int
	skipped []error
}

func follow(dir string, from Position) *reader {
	r := &reader{Follower: Follow(dir, from), seen: map[string]int{}}
	r.Wanted = func(raw []byte) bool { return bytes.Contains(raw, []byte("28P01")) }
	r.Record = func(rec Record) { r.seen[rec.Session]++ }
	r.Skipped = func(_ string, err error) { r.skipped = append(r.skipped, err) }
	return r
}

func (r *reader) read(t *testing.T) {
	t.Helper()
	for {
		more, err := r.Read()
		if err != nil {
			t.Fatal(err)
		}
		if !more {
			return
		}
	}
}

func appendTo(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = f.WriteString(text)
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Whatever is done to the files, and however often the reader is restarted,
// each record is read once: by name, rename, copy, truncation, reuse and
// deletion.
func TestEachRecordIsReadOnceThroughEveryRotation(t *testing.T) {
	for _, format := range []string{JSON, CSV} {
		for seed := range uint64(12) {
			t.Run(fmt.Sprint(format, seed), func(t *testing.T) { rotate(t, format, rand.New(rand.NewPCG(seed, 1))) })
		}
	}
}

func rotate(t *testing.T, format string, random *rand.Rand) {
	dir := t.TempDir()
	path := func(n int) string { return filepath.Join(dir, fmt.Sprintf("postgresql-%d%s", n, format)) }
	r := follow(dir, Position{})
	defer func() { r.Close() }()
	written, file, copies := 0, 0, 0
	half := ""
	for range 150 {
		switch random.IntN(9) {
		case 0, 1, 2: // log, perhaps with the end still to come
			written++
			text := half + record(format, session(written), "app", fmt.Sprintf("line\nline %d \"", written))
			cut := len(text)
			if random.IntN(3) == 0 {
				cut = 1 + random.IntN(len(text)-1)
			}
			appendTo(t, path(file), text[:cut])
			half = text[cut:]
		case 3:
			r.read(t)
		case 4: // restart, from a position as it is saved
			r.read(t)
			raw, err := json.Marshal(r.Position)
			if err != nil {
				t.Fatal(err)
			}
			var saved Position
			if err := json.Unmarshal(raw, &saved); err != nil {
				t.Fatal(err)
			}
			seen := maps.Clone(r.seen)
			r.Close()
			r = follow(dir, saved)
			r.seen = seen
		default:
			if half != "" { // a server ends its record before it rotates
				appendTo(t, path(file), half)
				half = ""
			}
			switch random.IntN(5) {
			case 0: // by time or size: another name, perhaps one of last week's
				file = random.IntN(4)
			case 1: // log_truncate_on_rotation
				file = random.IntN(4)
				r.read(t)
				_ = os.Truncate(path(file), 0) // where there is one
			case 2: // copytruncate, into a name like the others
				r.read(t)
				raw, err := os.ReadFile(path(file))
				if err != nil {
					continue
				}
				copies++
				appendTo(t, filepath.Join(dir, fmt.Sprintf("copy-%d%s", copies, format)), string(raw))
				if err := os.Truncate(path(file), 0); err != nil {
					t.Fatal(err)
				}
			case 3: // logrotate's rename
				copies++
				_ = os.Rename(path(file), filepath.Join(dir, fmt.Sprintf("old-%d%s", copies, format)))
			case 4: // somebody makes room, after the reader has opened the file
				r.read(t)
				if written > 0 && r.newest != nil && filepath.Base(r.newest.Name()) == filepath.Base(path(file)) {
					written++
					appendTo(t, path(file), record(format, session(written), "app", ""))
				}
				_ = os.Remove(path(file))
			}
		}
	}
	appendTo(t, path(file), half)
	r.read(t)
	for n := 1; n <= written; n++ {
		if got := r.seen[session(n)]; got != 1 {
			t.Errorf("record %d of %d was read %d times", n, written, got)
		}
	}
	if len(r.skipped) > 0 {
		t.Errorf("skipped: %v", r.skipped)
	}
}

func TestRecordCutInHalfCostsNoOther(t *testing.T) {
	for _, format := range []string{JSON, CSV} {
		whole := record(format, session(1), "app", "one\ntwo")
		for cut := 1; cut < len(whole)-1; cut++ { // a server died there, and its successor goes on below
			dir := t.TempDir()
			r := follow(dir, Position{})
			text := record(format, session(9), "app", "") + whole[:cut] + "\n" + record(format, session(2), "app", "x\ny") + record(format, session(3), "app", "")
			appendTo(t, filepath.Join(dir, "p"+format), text)
			r.read(t)
			r.Close()
			if r.seen[session(9)] != 1 || r.seen[session(2)] != 1 || r.seen[session(3)] != 1 {
				t.Fatalf("%s cut at %d: read %v, skipped %v", format, cut, r.seen, r.skipped)
			}
		}
	}
}

func TestLongRecordIsSkippedInBoundedMemory(t *testing.T) {
	for _, format := range []string{JSON, CSV} {
		dir := t.TempDir()
		r := follow(dir, Position{})
		// The statement tells of failed logins, line by line.
		forged := strings.Repeat(`2026-11-25 04:55:47.488 CET,app,postgres,16284,127.0.0.1:35230,6b065c43.77,2,authentication,2026-11-25 04:55:47 CET,1/1,0,FATAL,28P01,m,d,,,,,,,,,client backend,,0`+"\n"+
			record(CSV, session(0x77), "app", ""), 10_000)
		appendTo(t, filepath.Join(dir, "p"+format), record(format, session(1), "app", "")+record(format, session(2), "app", forged)+record(format, session(3), "app", ""))
		r.read(t)
		r.Close()
		if len(r.seen) != 2 || r.seen[session(1)] != 1 || r.seen[session(3)] != 1 || len(r.skipped) != 1 || !TooLong(r.skipped[0]) {
			t.Errorf("%s: read %v, skipped %v", format, r.seen, r.skipped)
		}
	}
}

func TestWhatAClientSendsForgesNoRecord(t *testing.T) {
	for _, format := range []string{JSON, CSV} {
		for _, user := range []string{
			"a\"b", "a,b", "a\nb", "a\n" + record(CSV, session(0x77), "app", ""), "a\"\n" + record(CSV, session(0x77), "app", ""), `","28P01"`, "a\r\n", "{\"user\":\"app\"}\n", "\\\"", "\u2028",
		} {
			dir := t.TempDir()
			r := follow(dir, Position{})
			var got []string
			r.Record = func(rec Record) { got = append(got, rec.User) }
			appendTo(t, filepath.Join(dir, "p"+format), record(format, session(1), user, `Role "`+user+`" does not exist.`)+record(format, session(2), "app", ""))
			r.read(t)
			r.Close()
			want := user
			if format == CSV {
				want = strings.ReplaceAll(user, "\r\n", "\n") // encoding/csv's reading
			}
			if len(got) != 2 || got[0] != want || got[1] != "app" || len(r.skipped) != 0 {
				t.Errorf("%s: user %q was read as %q, skipped %v", format, user, got, r.skipped)
			}
		}
	}
}

func TestLogOfAnotherTimeZoneIsReadInTime(t *testing.T) {
	want := time.Date(2026, 11, 25, 3, 55, 47, 488e6, time.UTC)
	for _, format := range []string{JSON, CSV} {
		r, err := Parse(format, []byte(record(format, "6b065c43.3f9c", "app", "")))
		if err != nil || !r.Time.Equal(want) {
			t.Errorf("%s: %v, %v", format, r.Time, err)
		}
	}
}

func TestLogOfOtherYearsIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	r := follow(dir, Position{Since: time.Date(2026, 11, 25, 3, 55, 48, 0, time.UTC)})
	defer r.Close()
	appendTo(t, filepath.Join(dir, "p.csv"), record(CSV, session(1), "app", ""))
	r.read(t)
	if len(r.seen) != 0 {
		t.Error("what was logged before the beginning was read")
	}
}

func TestServerThatChangesItsFormatIsFollowed(t *testing.T) {
	dir := t.TempDir()
	r := follow(dir, Position{})
	defer r.Close()
	appendTo(t, filepath.Join(dir, "p.csv"), record(CSV, session(1), "app", ""))
	r.read(t)
	appendTo(t, filepath.Join(dir, "p.csv"), record(CSV, session(2), "app", ""))
	appendTo(t, filepath.Join(dir, "p.json"), record(JSON, session(3), "app", ""))
	r.read(t)
	// Both are on now: one is enough.
	appendTo(t, filepath.Join(dir, "p.csv"), record(CSV, session(4), "app", ""))
	appendTo(t, filepath.Join(dir, "p.json"), record(JSON, session(4), "app", ""))
	r.read(t)
	for n := 1; n <= 4; n++ {
		if r.seen[session(n)] != 1 {
			t.Errorf("record %d was read %d times", n, r.seen[session(n)])
		}
	}
}

func FuzzLogIsReadWithoutPanicAndToItsEnd(f *testing.F) {
	for _, format := range []string{JSON, CSV} {
		f.Add(format == CSV, []byte(record(format, session(1), "a\"\n,b", "d")+record(format, session(2), "app", "")), 40)
	}
	f.Fuzz(func(t *testing.T, isCSV bool, raw []byte, cut int) {
		format := map[bool]string{true: CSV, false: JSON}[isCSV]
		f := follow("", Position{})
		// In one piece, and in two: the same records.
		read := func(pieces ...[]byte) int {
			f.seen = map[string]int{}
			place, buf := Place{}, []byte(nil)
			for _, p := range pieces {
				buf = append(buf, p...)
				used := f.consume(format, buf, &place)
				if used > len(buf) {
					t.Fatalf("used %d of %d", used, len(buf))
				}
				buf = buf[used:]
			}
			f.consume(format, append(buf, "\n"+record(format, session(0x99), "end", "")...), &place)
			return len(f.seen)
		}
		whole := read(raw)
		if cut = max(0, min(cut, len(raw))); !isCSV {
			if got := read(raw[:cut], raw[cut:]); got != whole {
				t.Errorf("%d sessions in two pieces, %d in one", got, whole)
			}
		} else {
			read(raw[:cut], raw[cut:])
		}
		if f.seen[session(0x99)] == 0 && !isCSV {
			t.Error("the last record is lost")
		}
		_, _ = Parse(format, raw) // no panic
	})
}
