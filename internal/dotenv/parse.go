// Package dotenv rewrites values in .env files by key and leaves every other
// byte as it was.
//
// There is no standard for these files, and their readers (docker compose 1 and
// 2, python-dotenv, node's dotenv, `sh` sourcing them) disagree on escapes, `$`
// and `#`. So a value is read only where they agree on it, and written only as
// all of them read it back; elsewhere the error names the line, never what it
// holds.
package dotenv

import (
	"bytes"
	"errors"
	"regexp"
	"strings"
)

// File is a parsed file. It is not safe for concurrent use.
type File struct {
	segments []segment
	eol      string // of lines that Append adds
}

// segment is one stretch of the file: a blank or comment line, an assignment
// (which may span lines), or something that was not understood.
type segment struct {
	line int // of its first byte, from 1

	// An assignment reads before+value+after; others have only before.
	before, value, after string
	key                  string // empty: no assignment
	quote                byte   // around value, which includes it; 0: none

	fault string // why this is not understood
	rest  bool   // and so nothing after it is: this is the rest of the file
}

func (s segment) text() string { return s.before + s.value + s.after }

const bom = "\ufeff"

var (
	head = regexp.MustCompile(`^[ \t]*(?:export[ \t]+)?([\w.-]+)[ \t]*=`)
	// What may follow a closing quote. `"a"#b` is no comment to sh.
	tail = regexp.MustCompile(`^[ \t]*(?:[ \t]#[^\x00-\x08\x0a-\x1f\x7f]*)?\r?(?:\n|$)`)
	// The comment behind an unquoted value, or the blanks at its end.
	comment = regexp.MustCompile(`[ \t]+(?:#.*)?$`)
	// Control characters that some reader takes for the end of a line or blanks.
	control = regexp.MustCompile(`[\x00-\x08\x0b-\x1f\x7f]`)
)

// Parse reads a file. Lines that it does not understand are kept, and are an
// error only to who asks for a key that they may hold. Bytes gives back exactly
// what Parse was given.
func Parse(content []byte) (*File, error) {
	if bytes.HasPrefix(content, []byte("\xff\xfe")) || bytes.HasPrefix(content, []byte("\xfe\xff")) {
		return nil, errors.New("line 1: the file is UTF-16: convert it to UTF-8")
	}
	f := &File{eol: "\n"}
	if bytes.Contains(content, []byte("\r\n")) {
		f.eol = "\r\n"
	}
	text := string(content)
	if strings.HasPrefix(text, bom) {
		f.segments = append(f.segments, segment{line: 1, before: bom})
		text = text[len(bom):]
	}
	for line := 1; text != ""; {
		s := next(text)
		s.line = line
		f.segments = append(f.segments, s)
		line += strings.Count(s.text(), "\n")
		text = text[len(s.text()):]
	}
	return f, nil
}

// Bytes returns the file as it now reads.
func (f *File) Bytes() []byte {
	var b bytes.Buffer
	for _, s := range f.segments {
		b.WriteString(s.text())
	}
	return b.Bytes()
}

// next cuts the first segment off a text that begins with a line.
func next(text string) segment {
	line, _, found := strings.Cut(text, "\n")
	whole := line
	if found {
		whole += "\n"
	}
	line = strings.TrimSuffix(line, "\r")
	match := head.FindStringSubmatchIndex(line)
	if match == nil {
		s := segment{before: whole}
		if trimmed := strings.Trim(line, " \t"); control.MatchString(line) {
			s.fault = "holds a control character"
		} else if trimmed != "" && trimmed[0] != '#' {
			s.fault = "is no KEY=value"
		}
		return s
	}
	s := segment{key: line[match[2]:match[3]], before: line[:match[1]]}
	blanks := len(line[match[1]:]) - len(strings.TrimLeft(line[match[1]:], " \t"))
	switch value := line[match[1]+blanks:]; {
	case value != "" && (value[0] == '\'' || value[0] == '"'):
		s.before = line[:match[1]+blanks]
		return quoted(s, text, whole)
	case strings.HasPrefix(value, "`"):
		// A quote to node's dotenv alone, and there it may span lines.
		if strings.Count(value, "`") < 2 {
			return segment{before: text, fault: "opens a backtick quote", rest: true}
		}
		return segment{before: whole, fault: "uses backticks, which readers disagree on"}
	case control.MatchString(value):
		return segment{before: whole, fault: "holds a control character"}
	case strings.HasSuffix(value, `\`):
		return segment{before: whole, fault: "ends in a backslash, which to some readers continues the line"}
	}
	return unquoted(s, line[match[1]:], whole)
}

// unquoted completes s with a value that ends with its line.
func unquoted(s segment, value, whole string) segment {
	// A value that is empty stands right behind the `=`, so that blanks stay
	// between it and a comment once it is not.
	if trimmed := strings.TrimLeft(value, " \t"); trimmed != "" && (trimmed[0] != '#' || len(trimmed) == len(value)) {
		s.before += value[:len(value)-len(trimmed)]
		value = trimmed
	}
	s.value = value
	if at := comment.FindStringIndex(value); at != nil {
		s.value = value[:at[0]]
	}
	s.after = whole[len(s.before)+len(s.value):]
	return s
}

// quoted completes s with a value that ends with its quote, maybe lines later.
// text begins with s.before, whole is the first line of it.
func quoted(s segment, text, whole string) segment {
	opened := text[len(s.before):]
	s.quote = opened[0]
	end := closing(opened)
	if end < 0 {
		return segment{before: text, fault: "opens a quote that is never closed", rest: true}
	}
	s.value = opened[:end+1]
	after := tail.FindString(opened[end+1:])
	strays := after == "" && opened[end+1:] != ""
	escaped := s.quote == '\'' && strings.HasSuffix(opened[:end], `\`)
	switch multiline := strings.Contains(s.value, "\n"); {
	case !strays && !escaped:
		s.after = after
		return s
	case multiline:
		return segment{before: text, fault: "opens a quote that readers close at different places", rest: true}
	default:
		return segment{before: whole, fault: "has a quote that readers close at different places"}
	}
}

// closing finds the quote that closes the one a text begins with, or -1. Only
// double quotes know a backslash that hides one.
func closing(text string) int {
	for i := 1; i < len(text); i++ {
		switch {
		case text[i] == text[0]:
			return i
		case text[i] == '\\' && text[0] == '"':
			i++
		}
	}
	return -1
}
