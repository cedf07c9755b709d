package postgres

import (
	"regexp"
	"strings"
	"unicode/utf8"
)

// maxQuery is how much of a query is looked at, in bytes, and maxCell how much
// of any value is kept, in characters.
const (
	maxQuery = 4096
	maxCell  = 500
)

// shown are the statements whose text is kept, blanked: those that change or
// read data. Every other one is a utility statement, of which PostgreSQL keeps
// the constants, passwords among them.
var shown = map[string]bool{"SELECT": true, "INSERT": true, "UPDATE": true, "DELETE": true, "MERGE": true, "VALUES": true, "WITH": true, "TABLE": true,
	"BEGIN": true, "START": true, "COMMIT": true, "ROLLBACK": true, "END": true, "FETCH": true, "SHOW": true, "COPY": true, "LISTEN": true, "NOTIFY": true}

// command are the words by which the others are named.
var command = map[string]bool{"ALTER": true, "CREATE": true, "DROP": true, "GRANT": true, "REVOKE": true, "REASSIGN": true, "SET": true, "RESET": true, "DO": true, "CALL": true,
	"EXPLAIN": true, "ANALYZE": true, "VACUUM": true, "EXECUTE": true, "PREPARE": true, "DECLARE": true, "TRUNCATE": true, "LOCK": true, "REFRESH": true, "COMMENT": true, "SECURITY": true, "IMPORT": true,
	"ROLE": true, "USER": true, "GROUP": true, "DATABASE": true, "SERVER": true, "SUBSCRIPTION": true, "PUBLICATION": true, "EXTENSION": true, "FUNCTION": true, "PROCEDURE": true,
	"SCHEMA": true, "TABLE": true, "VIEW": true, "INDEX": true, "SYSTEM": true, "FOREIGN": true, "EVENT": true, "TRIGGER": true, "POLICY": true, "OR": true, "REPLACE": true, "OWNED": true, "TRANSACTION": true, "MAPPING": true, "FOR": true}

var word = regexp.MustCompile(`^[\s(]*([A-Za-z]+)(?:[\s;(]|$)`)

// Screen returns what of a statement's text may be kept as evidence. Texts may
// hold passwords wherever a constant stands, so that no constant in quotes and
// no comment is kept, whatever it is, and of a utility statement nothing but
// its kind: ALTER ROLE, CREATE SUBSCRIPTION.
func Screen(query string) string {
	if len(query) > maxQuery {
		query = query[:maxQuery]
	}
	text := blank(strings.ToValidUTF8(query, "\uFFFD"))
	for i, statement := range strings.Split(text, ";") {
		if strings.TrimSpace(statement) == "" {
			continue
		}
		first := word.FindStringSubmatch(statement)
		if first == nil || !shown[strings.ToUpper(first[1])] {
			if i > 0 {
				return "several statements, one of them: " + kind(statement)
			}
			return kind(statement)
		}
	}
	return short(strings.TrimSpace(text))
}

// kind names a statement by those of its first words that are SQL's own.
func kind(statement string) string {
	var words []string
	for _, w := range strings.Fields(statement) {
		if w = strings.ToUpper(w); !command[w] || len(words) == 5 {
			break
		}
		words = append(words, w)
	}
	return strings.TrimSpace(strings.Join(words, " ") + " [withheld: may hold a password]")
}

// constant is what PostgreSQL, too, writes for one that it left out.
const constant = "$?"

var dollarTag = regexp.MustCompile(`^\$(?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*)?\$`)

// blank takes constants in quotes and comments out of a text. Where it cannot
// tell where one ends (cut off, or a backslash in it, which may or may not
// escape), it takes the rest.
func blank(query string) string {
	var out strings.Builder
	for i := 0; i < len(query); {
		rest := query[i:]
		tag := ""
		if i == 0 || !isName(query[i-1]) {
			tag = dollarTag.FindString(rest)
		}
		switch {
		case rest[0] == '\'':
			end := closing(rest[1:])
			out.WriteString(constant)
			if end < 0 {
				return out.String()
			}
			i += 1 + end
		case tag != "":
			end := strings.Index(rest[len(tag):], tag)
			out.WriteString(constant)
			if end < 0 {
				return out.String()
			}
			i += len(tag) + end + len(tag)
		case rest[0] == '"':
			end := strings.IndexByte(rest[1:], '"')
			if end < 0 {
				return out.String()
			}
			out.WriteString(rest[:end+2])
			i += end + 2
		case strings.HasPrefix(rest, "--"):
			out.WriteByte(' ')
			end := strings.IndexAny(rest, "\r\n")
			if end < 0 {
				return out.String()
			}
			i += end
		case strings.HasPrefix(rest, "/*"):
			out.WriteByte(' ')
			end := commentEnd(rest)
			if end < 0 {
				return out.String()
			}
			i += end
		default:
			out.WriteByte(rest[0])
			i++
		}
	}
	return out.String()
}

// closing returns where the text after a constant in quotes begins, -1 where
// that cannot be told.
func closing(s string) int {
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\':
			return -1
		case s[i] == '\'' && i+1 < len(s) && s[i+1] == '\'':
			i++
		case s[i] == '\'':
			return i + 1
		}
	}
	return -1
}

// commentEnd returns where the text after a comment begins; they nest.
func commentEnd(s string) int {
	depth := 0
	for i := 0; i+1 < len(s); i++ {
		switch s[i : i+2] {
		case "/*":
			depth++
			i++
		case "*/":
			depth--
			i++
			if depth == 0 {
				return i + 1
			}
		}
	}
	return -1
}

func isName(b byte) bool {
	return b == '_' || b == '$' || b >= 0x80 || '0' <= b && b <= '9' || 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z'
}

// short keeps the first maxCell characters.
func short(s string) string {
	if utf8.RuneCountInString(s) <= maxCell {
		return s
	}
	return string([]rune(s)[:maxCell]) + "…"
}
