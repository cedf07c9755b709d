package trail

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	pawlv1 "pawl.dev/proto/pawl/v1"
)

// export writes the trail into a new folder.
func (a *archive) export() (dir string) {
	a.t.Helper()
	dir = filepath.Join(a.t.TempDir(), "export")
	must(Export(Live(a.t.Context(), a.operator, a.keys), must(os.ReadFile(PublicFile(a.keysDir))), dir))
	return dir
}

func verifyExport(dir string, keys note.Verifiers, kept ...*Checkpoint) (Result, error) {
	return Verify(Exported(dir, keys), keys, kept...)
}

// edit rewrites a file of an export line by line.
func edit(dir, file string, change func(lines []string) []string) {
	path := filepath.Join(dir, file)
	lines := strings.SplitAfter(string(must(os.ReadFile(path))), "\n")
	if err := os.WriteFile(path, []byte(strings.Join(change(lines[:len(lines)-1]), "")), 0o600); err != nil {
		panic(err)
	}
}

// lineWith changes one line of records.jsonl.
func lineWith(text string, change func(*line)) string {
	var l line
	if err := json.Unmarshal([]byte(text), &l); err != nil {
		panic(err)
	}
	change(&l)
	return string(must(json.Marshal(l))) + "\n"
}

// forged is another record, consistently so: body, readable part and, if asked, hash.
func forged(l *line, hash bool) {
	m := changed(message{l.Subject, l.Body})
	r := &pawlv1.AuditRecord{}
	if err := proto.Unmarshal(m.data, r); err != nil {
		panic(err)
	}
	l.Body, l.Record = m.data, must(protojson.Marshal(r))
	if hash {
		l.Hash = (&Record{Body: m.data}).Hash()
	}
}

// renumbered gives each line the index of its place.
func renumbered(lines []string) []string {
	for i, text := range lines {
		lines[i] = lineWith(text, func(l *line) { l.Index = int64(i) })
	}
	return lines
}

func TestEveryTamperingWithAnExportIsNamed(t *testing.T) {
	a := filled(t)
	whole := a.export()
	if result, err := verifyExport(whole, a.keys); err != nil || result.Records != 12 || result.Checkpoints != 3 || result.Unsigned != 0 {
		t.Fatalf("as it was: %+v, %v", result, err)
	}
	records := func(change func(lines []string) []string) func(string) {
		return func(dir string) { edit(dir, recordsFile, change) }
	}
	one := func(i int, change func(*line)) func(string) {
		return records(func(lines []string) []string { lines[i] = lineWith(lines[i], change); return lines })
	}
	for _, c := range []struct {
		name  string
		forge func(dir string)
		index int64
		says  string
	}{
		{"readable part changed", one(5, func(l *line) { l.Record = bytes.Replace(l.Record, []byte("=anna"), []byte("=otto"), 1) }), 5, "readable part is not what was hashed"},
		{"body changed", one(5, func(l *line) { body := l.Body; forged(l, false); l.Record = recordJSON(body) }), 5, "readable part is not what was hashed"},
		{"record changed", one(5, func(l *line) { forged(l, false) }), 5, "pawl.audit.note.6): is not the one that was hashed"},
		{"record changed, and its hash", one(5, func(l *line) { forged(l, true) }), 3, "up to 6"},
		{"hash changed", one(5, func(l *line) { l.Hash[0]++ }), 7, "not the hashes of the records beside it"},
		{"removed", records(func(lines []string) []string { return slices.Delete(lines, 4, 5) }), 4, "the line in its place says that it is record 5 (pawl.audit.note.6)"},
		{"removed, the rest numbered anew", records(func(lines []string) []string { return renumbered(slices.Delete(lines, 4, 5)) }), 3, "up to 6"},
		{"moved", records(func(lines []string) []string { lines[8], lines[9] = lines[9], lines[8]; return renumbered(lines) }), 7, "up to 11"},
		{"put in", records(func(lines []string) []string {
			return renumbered(slices.Insert(lines, 4, lineWith(lines[4], func(l *line) { forged(l, true) })))
		}), 3, "up to 6"},
		{"cut off", records(func(lines []string) []string { return lines[:10] }), 10, "is gone: the checkpoint covers 12 records, and only 10 are there"},
		{"added", records(func(lines []string) []string { return renumbered(append(lines, lines[0])) }), 12, "is covered by no checkpoint"},
		{"subject changed", one(4, func(l *line) { l.Subject = "pawl.audit.note.99" }), 4, "holds the record that belongs to pawl.audit.note.5"},
		{"not JSON", records(func(lines []string) []string { lines[2] = "{\n"; return lines }), 2, "its line is not a record"},
		{"another field", records(func(lines []string) []string { lines[2] = strings.Replace(lines[2], "{", `{"x":1,`, 1); return lines }), 2, "its line is not a record"},
		{"checkpoint removed", func(dir string) { edit(dir, checkpointsFile, func(lines []string) []string { return lines[:2] }) }, -1, "is not the last one in"},
		{"older checkpoint put back", func(dir string) {
			edit(dir, checkpointsFile, func(lines []string) []string {
				var older signed
				if err := json.Unmarshal([]byte(lines[1]), &older); err != nil {
					panic(err)
				}
				if err := os.WriteFile(filepath.Join(dir, checkpointFile), []byte(older.Note), 0o600); err != nil {
					panic(err)
				}
				return lines[:2]
			})
		}, 7, "is covered by no checkpoint"},
		{"checkpoints in another order", func(dir string) {
			edit(dir, checkpointsFile, func(lines []string) []string { return []string{lines[1], lines[0], lines[2]} })
		}, 3, "an older one was put back"},
		{"size of a checkpoint", func(dir string) {
			edit(dir, checkpointsFile, func(lines []string) []string {
				lines[0] = strings.ReplaceAll(strings.ReplaceAll(lines[0], `"size":3`, `"size":2`), `\n3\n`, `\n2\n`)
				return lines
			})
		}, 2, "does not bear the signature of its text"},
		{"not complete", func(dir string) {
			if err := os.Remove(filepath.Join(dir, checkpointFile)); err != nil {
				panic(err)
			}
		}, -1, "a whole export?"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "copy")
			if err := os.CopyFS(dir, os.DirFS(whole)); err != nil {
				t.Fatal(err)
			}
			c.forge(dir)
			_, err := verifyExport(dir, a.keys)
			if c.index >= 0 {
				wants(t, err, c.index, c.says)
			} else if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want …%s…", err, c.says)
			}
		})
	}
}

func recordJSON(body []byte) []byte {
	r := &pawlv1.AuditRecord{}
	if err := proto.Unmarshal(body, r); err != nil {
		panic(err)
	}
	return must(protojson.Marshal(r))
}

// TestForgedPairIsRefused: an export whose records, checkpoints and key are all
// of one forger agrees with itself.
func TestForgedPairIsRefused(t *testing.T) {
	genuine, forger := newArchive(t), filled(t)
	dir := forger.export()
	if _, err := verifyExport(dir, must(ExportedKeys(dir))); err != nil {
		t.Fatal(err)
	}
	_, err := verifyExport(dir, genuine.keys)
	wants(t, err, 3, "which is no key that is trusted here")
}

// TestTrailThatWasRewrittenOrRolledBackIsSeenByWhoKeptACheckpoint: the key and the
// store together can be used to rewrite the trail, or to have less of it; a
// checkpoint that lies elsewhere tells.
func TestTrailThatWasRewrittenOrRolledBackIsSeenByWhoKeptACheckpoint(t *testing.T) {
	a := filled(t)
	whole := a.messages("PAWL_AUDIT")
	var kept []*Checkpoint
	for _, i := range []int{firstSigned, secondSigned, thirdSigned} {
		kept = append(kept, must(OpenCheckpoint(checkpointOf(whole[i]).GetNote(), a.keys)))
	}
	for i, k := range kept {
		if _, err := a.verify(k); err != nil {
			t.Errorf("%d: %v", i, err)
		}
		if _, err := verifyExport(a.export(), a.keys, k); err != nil {
			t.Errorf("%d: %v", i, err)
		}
	}
	a.rewrite("PAWL_AUDIT", slices.Clone(whole[:secondSigned+1])) // rolled back: consistent, and signed
	if _, err := a.verify(kept[1]); err == nil || !strings.Contains(err.Error(), "no record, and the auditor has been past it") {
		t.Errorf("records of messages that are there are gone, and got %v", err)
	}
	if _, err := verifyExport(a.export(), a.keys, kept[1]); err != nil {
		t.Errorf("the same, as exported: %v", err)
	}
	_, err := verifyExport(a.export(), a.keys, kept[2])
	wants(t, err, 7, "a checkpoint of 12 records was kept, and the trail's newest covers 7")

	a.rewrite("PAWL_AUDIT", append([]message{whole[at(1)], whole[at(0)]}, whole[at(2)])) // and signed anew, with the key
	a.sign()
	dir := a.export()
	if _, err := verifyExport(dir, a.keys); err != nil {
		t.Fatal(err)
	}
	_, err = verifyExport(dir, a.keys, kept[0])
	wants(t, err, 3, "the one that was kept has another root: the trail was rewritten since")
}

// TestMessageWithoutARecordIsFound: the auditor has acknowledged what it did not
// record.
func TestMessageWithoutARecordIsFound(t *testing.T) {
	a := filled(t)
	a.note("not yet recorded")
	if result, err := a.verify(); err != nil || result.Unrecorded != 1 {
		t.Fatalf("%+v, %v", result, err)
	}
	m := must(must(a.auditor.JetStream.Consumer(t.Context(), "PAWL_NOTE", "auditor")).Next())
	if err := m.DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := a.verify(); err == nil || !strings.Contains(err.Error(), "message 14 of PAWL_NOTE (pawl.note.scheduler) has no record") {
		t.Errorf("got %v", err)
	}
}

// TestMessageThatWasChangedAfterwardsIsFound: the record is genuine, and what it
// is of is not what it was.
func TestMessageThatWasChangedAfterwardsIsFound(t *testing.T) {
	a := filled(t)
	notes := a.messages("PAWL_NOTE")
	notes[0].data = append(notes[0].data, "\x1a\x00"...)
	a.rewrite("PAWL_NOTE", notes)
	_, err := a.verify()
	wants(t, err, 0, "pawl.audit.note.1): is not of the message that is now at 1 in PAWL_NOTE: the body differs")
}

func TestSpreadsheetTakesNoCellForAFormula(t *testing.T) {
	a := filled(t)
	rows := must(csv.NewReader(must(os.Open(filepath.Join(a.export(), tableFile)))).ReadAll())
	if len(rows) != 13 || !slices.Contains(rows[1], "'=anna") {
		t.Errorf("%d rows, the first %q", len(rows), rows[1])
	}
	for _, row := range rows {
		for _, cell := range row {
			if cell != "" && strings.ContainsAny(cell[:1], "=+-@\t\r\n") {
				t.Errorf("cell %q", cell)
			}
		}
	}
}

func TestExportOverwritesNothingAndNeedsACheckpoint(t *testing.T) {
	a := newArchive(t)
	a.note("one")
	a.record(1)
	empty := filepath.Join(t.TempDir(), "empty")
	if _, err := Export(Live(t.Context(), a.operator, a.keys), nil, empty); err == nil || !strings.Contains(err.Error(), "signed nothing yet") {
		t.Errorf("got %v", err)
	}
	if left := must(os.ReadDir(empty)); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	a.sign()
	dir := a.export()
	if _, err := Export(Live(t.Context(), a.operator, a.keys), nil, dir); err == nil || !strings.Contains(err.Error(), "holds an export already: name another folder") {
		t.Errorf("got %v", err)
	}
	if _, err := verifyExport(dir, a.keys); err != nil {
		t.Error(err)
	}
}
