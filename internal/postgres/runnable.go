package postgres

import (
	"fmt"
	"strings"
	"unicode"
)

// runnable writes a statement so that a report shows it as it is: a character in a
// quoted name or literal that would not be seen, such as a line break, or that turns
// the direction of writing, is written by PostgreSQL's own escapes. It means the same.
func runnable(statement string) string {
	var out strings.Builder
	for rest := statement; rest != ""; {
		begin := strings.IndexAny(rest, `"'`)
		if begin < 0 {
			out.WriteString(rest)
			break
		}
		end := quotedEnd(rest, begin)
		escaped := rest[begin] == '\'' && begin > 0 && rest[begin-1] == 'E' // as format('%L') writes a backslash
		out.WriteString(rest[:begin])
		out.WriteString(visible(rest[begin:end], escaped))
		rest = rest[end:]
	}
	return out.String()
}

// quotedEnd is where the token ends that is quoted from begin on. A doubled quote is part of it.
func quotedEnd(text string, begin int) int {
	for i := begin + 1; i < len(text); i++ {
		if text[i] != text[begin] {
			continue
		}
		if i+1 < len(text) && text[i+1] == text[begin] {
			i++
			continue
		}
		return i + 1
	}
	return len(text)
}

func visible(token string, escaped bool) string {
	if !strings.ContainsFunc(token, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return token
	}
	var out strings.Builder
	if !escaped {
		out.WriteString("U&")
	}
	for _, r := range token {
		switch {
		case !unicode.IsPrint(r) && escaped:
			fmt.Fprintf(&out, `\U%08X`, r)
		case !unicode.IsPrint(r):
			fmt.Fprintf(&out, `\+%06X`, r)
		case r == '\\' && !escaped:
			out.WriteString(`\\`)
		default:
			out.WriteRune(r)
		}
	}
	return out.String()
}
