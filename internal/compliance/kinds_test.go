package compliance

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pawl.dev/internal/bus"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// composed are the kinds of notes that no literal of the source has as they are:
// by file, where the kind is put together or passed on.
var composed = map[string][]string{
	"cmd/pawl/internal/glass/tell.go":                   {"glass broken"},
	"internal/restored/restored.go":                     {"agrees after restore", "undone after restore", "held after restore"},
	"services/db-rotator/internal/rotator/reconcile.go": {"drift", "drift over"},
	"services/scheduler/internal/admission/answer.go":   outcomes(),
	"services/scheduler/internal/agenda/agenda.go":      {"due soon", "overdue", "schedule blocked"},
	"services/secret-publisher/app/reconcile.go":        {"drift", "drift over"},
}

func outcomes() (kinds []string) {
	for _, name := range pawlv1.Outcome_name {
		if kind := "request " + strings.ToLower(strings.TrimPrefix(name, "OUTCOME_")); kind != "request rejected" { // which is noted as refused
			kinds = append(kinds, kind)
		}
	}
	return kinds
}

// A note that somebody comes to write must be told by reports, or left out on
// purpose.
func TestEveryKindOfNoteIsToldOrLeftOutOnPurpose(t *testing.T) {
	root := filepath.Join("..", "..")
	found := map[string]string{}
	for _, folder := range []string{"services", "internal", "cmd"} {
		err := filepath.WalkDir(filepath.Join(root, folder), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				return err
			}
			name, _ := filepath.Rel(root, path)
			for _, kind := range kindsIn(file) {
				if kind != "" {
					found[kind] = name
					continue
				}
				if len(composed[name]) == 0 {
					t.Errorf("%s makes a note whose kind is not a literal: name its kinds in composed", name)
				}
				for _, kind := range composed[name] {
					found[kind] = name
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(found) < 25 {
		t.Fatalf("found but %d kinds: %v", len(found), found)
	}
	for kind, file := range found {
		if _, listed := noted[kind]; listed == slices.Contains(elsewhere, kind) {
			t.Errorf("notes of kind %q (%s): name the kind in noted, or in elsewhere where it is no exception", kind, file)
		}
	}
	for _, kind := range elsewhere {
		if found[kind] == "" {
			t.Errorf("%q is in elsewhere, and nobody notes it", kind)
		}
	}
	for kind := range noted {
		if found[kind] == "" {
			t.Errorf("%q is in noted, and nobody notes it", kind)
		}
	}
}

// kindsIn returns the kinds of the notes that a file makes; empty for one that is
// not a literal.
func kindsIn(file *ast.File) (kinds []string) {
	literal := func(e ast.Expr) string {
		if l, ok := e.(*ast.BasicLit); ok {
			text, _ := strconv.Unquote(l.Value)
			return text
		}
		return ""
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CompositeLit:
			if of, ok := n.Type.(*ast.SelectorExpr); !ok || of.Sel.Name != "Note" {
				break
			} else if from, ok := of.X.(*ast.Ident); !ok || from.Name != "pawlv1" {
				break
			}
			for _, element := range n.Elts {
				if field, ok := element.(*ast.KeyValueExpr); ok && field.Key.(*ast.Ident).Name == "Kind" {
					kinds = append(kinds, literal(field.Value))
				}
			}
		case *ast.AssignStmt: // note.Kind = "…", or of several
			for i, to := range n.Lhs {
				if field, ok := to.(*ast.SelectorExpr); ok && field.Sel.Name == "Kind" && i < len(n.Rhs) {
					if kind := literal(n.Rhs[i]); kind != "" {
						kinds = append(kinds, kind)
					}
				}
			}
		}
		return true
	})
	return kinds
}

// A kind of a later version is told, not passed over.
func TestUnknownKindOfNoteIsAnException(t *testing.T) {
	note := func(stream, kind string) Record {
		return Record{AuditRecord: &pawlv1.AuditRecord{Stream: stream, Event: kind, Service: "scheduler", Summary: "it was so"}}
	}
	got := fromNotes([]Record{note(bus.StreamNote, "of next year"), note(bus.StreamNote, "waiting"), note(bus.StreamNote, "overdue"), note(bus.StreamDead, "")})
	if len(got) != 3 || !strings.HasSuffix(got[0].What, ": of next year") || got[1].What != noted["overdue"] || got[2].What != "could not be decoded" {
		t.Errorf("%+v", got)
	}
}
