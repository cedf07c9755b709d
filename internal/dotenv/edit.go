package dotenv

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// ErrNoKey is wrapped where a file has no line for a key.
var ErrNoKey = errors.New("no such key")

// Get is Lookup without the reason.
func (f *File) Get(key string) (value string, ok bool) {
	value, err := f.Lookup(key)
	return value, err == nil
}

// Lookup returns the value of a key or, for KEY[n], the n-th member, from 0, of
// its comma-separated list. Of a key that occurs more than once the last
// occurrence counts, as it does to every reader. It fails with ErrNoKey, or
// where readers would disagree on the value.
func (f *File) Lookup(key string) (string, error) {
	if name, n, ok := member(key); ok {
		list, err := f.Lookup(name)
		if err != nil {
			return "", err
		}
		members := strings.Split(list, ",")
		if n >= len(members) {
			return "", fmt.Errorf("%s: the list has %d members, counted from 0", key, len(members))
		}
		return strings.Trim(members[n], " \t"), nil
	}
	at, err := f.find(key)
	if err != nil {
		return "", err
	}
	s := f.segments[at[len(at)-1]]
	value, fault := s.read()
	if fault != "" {
		return "", fmt.Errorf("line %d: %s %s: put the value in single quotes, or change it", s.line, key, fault)
	}
	return value, nil
}

// Set gives a key, or the member KEY[n] of a list, another value. Quotes stay
// as they are unless the value needs others. Every occurrence of the key is
// rewritten: an earlier one is dead to its readers, but would keep a credential
// that is thought replaced, and would come back with the deletion of the later.
// Set fails, changing nothing, with ErrNoKey, where it cannot tell what the
// value's place is, or where no quoting gives every reader the same value.
// Idempotent: a value that is there already is left untouched.
func (f *File) Set(key, value string) error {
	if name, n, ok := member(key); ok {
		list, err := f.setMember(key, name, n, value)
		if err != nil {
			return err
		}
		return f.Set(name, list)
	}
	at, err := f.find(key)
	if err != nil {
		return err
	}
	if err := writable(key, value); err != nil {
		return err
	}
	changed := slices.Clone(f.segments)
	for _, i := range at {
		if changed[i], err = changed[i].with(value); err != nil {
			return err
		}
	}
	f.segments = changed
	return nil
}

// Append adds a line for a key that the file does not have.
func (f *File) Append(key, value string) error {
	if _, err := f.find(key); err == nil {
		return fmt.Errorf("%s: the file has it", key)
	} else if !errors.Is(err, ErrNoKey) {
		return err
	}
	if err := writable(key, value); err != nil {
		return err
	}
	s := segment{line: 1, before: key + "=", key: key, after: f.eol}
	if m := head.FindString(s.before); m != s.before {
		return fmt.Errorf("%s: is no name of a variable", key)
	}
	if n := len(f.segments); n > 0 {
		last := f.segments[n-1]
		if last.rest {
			return fmt.Errorf("line %d: %s: %s cannot be appended", last.line, last.fault, key)
		}
		s.line = last.line + strings.Count(last.text(), "\n")
		if text := last.text(); text != bom && !strings.HasSuffix(text, "\n") {
			s.line++
			s.before, s.after = f.eol+s.before, ""
		}
	}
	s, err := s.with(value)
	if err != nil {
		return err
	}
	f.segments = append(f.segments, s)
	return nil
}

// find returns where the key is assigned, in order.
func (f *File) find(key string) (at []int, err error) {
	for i, s := range f.segments {
		if s.fault != "" && s.mayAssign(key) {
			return nil, fmt.Errorf("line %d: %s: the value of %s cannot be told: mend the line", s.line, s.fault, key)
		}
		if s.key == key && s.fault == "" {
			at = append(at, i)
		}
	}
	if len(at) == 0 {
		return nil, fmt.Errorf("%s: %w", key, ErrNoKey)
	}
	return at, nil
}

var (
	lineEnds = regexp.MustCompile(`[\r\n]`)
	attempt  = regexp.MustCompile(`^[ \t]*(?:export[ \t]+)?['"]?([\w.-]+)['"]?[ \t]*(?:[=:+]|$)`)
	list     = regexp.MustCompile(`^(.+)\[(\d{1,6})\]$`)
)

// mayAssign reports whether some reader could find the key in what was not
// understood.
func (s segment) mayAssign(key string) bool {
	for _, line := range lineEnds.Split(s.text(), -1) {
		if m := attempt.FindStringSubmatch(line); m != nil && m[1] == key {
			return true
		}
	}
	return false
}

// read returns the value, or why readers disagree on it.
func (s segment) read() (value, fault string) {
	value = s.value
	ambiguous := "$`\\\r"
	switch s.quote {
	case 0:
		ambiguous += `"'#`
		blanks, _, commented := strings.Cut(s.after, "#")
		if commented && (value == "" || !strings.HasSuffix(blanks, " ")) {
			return "", "has a comment behind it that to some readers belongs to the value"
		}
		if strings.ContainsFunc(value, func(r rune) bool { return unicode.IsSpace(r) && r != ' ' && r != '\t' }) {
			return "", "holds an exotic blank outside quotes"
		}
	case '"':
		value = value[1 : len(value)-1]
	case '\'':
		value = value[1 : len(value)-1]
		for _, odd := range []string{"${", `\\`, "\r"} {
			if strings.Contains(value, odd) {
				return "", "holds, in single quotes, a ${, a double backslash or a carriage return, which readers disagree on"
			}
		}
		return value, ""
	}
	if strings.ContainsAny(value, ambiguous) {
		return "", "holds a character that readers disagree on ($, #, a backslash, a backtick or a quote)"
	}
	return value, ""
}

// with returns s holding value, in the first way of quoting that every reader
// takes: as it is now, unquoted if it is so now, then quotes.
func (s segment) with(value string) (segment, error) {
	if now, fault := s.read(); fault == "" && now == value {
		return s, nil
	}
	for _, quote := range []byte{s.quote, '\'', '"'} {
		try := s
		try.quote, try.value = quote, value
		if quote != 0 {
			try.value = string(quote) + value + string(quote)
		} else if !plain(value, s.value) {
			continue
		}
		if quote == '\'' && strings.HasSuffix(value, `\`) || quote != 0 && strings.Contains(value, string(quote)) {
			continue
		}
		if got, fault := try.read(); fault == "" && got == value {
			return try, nil
		}
	}
	return s, fmt.Errorf("line %d: no quoting gives every reader the new value of %s: percent-encode it, or leave out quotes, $ and backslashes", s.line, s.key)
}

// plain reports whether value may stand unquoted where old stood. Some
// characters end a word to sh alone: they stay unquoted only where they already
// were, since some readers (`docker run --env-file`) do not strip quotes.
func plain(value, old string) bool {
	if strings.Trim(value, " \t") != value {
		return false
	}
	for _, r := range value {
		safe := r < utf8.RuneSelf && (unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("_./:@%+,=-", r))
		if !safe && !strings.ContainsRune(old, r) {
			return false
		}
	}
	return true
}

// writable refuses what no .env file can hold.
func writable(key, value string) error {
	if !utf8.ValidString(value) || strings.ContainsFunc(value, func(r rune) bool { return unicode.IsControl(r) && r != '\t' }) {
		return fmt.Errorf("%s: the new value holds a line break, another control character or bytes that are not UTF-8", key)
	}
	return nil
}

// member splits KEY[n].
func member(key string) (name string, n int, ok bool) {
	m := list.FindStringSubmatch(key)
	if m == nil {
		return "", 0, false
	}
	n, err := strconv.Atoi(m[2])
	return m[1], n, err == nil
}

// setMember returns the list of a key with its n-th member replaced; blanks
// around members stay.
func (f *File) setMember(key, name string, n int, value string) (string, error) {
	now, err := f.Lookup(key)
	if err != nil {
		return "", err
	}
	if strings.Contains(value, ",") || strings.Trim(value, " \t") != value {
		return "", fmt.Errorf("%s: a member of a list holds no comma, and no blanks around it", key)
	}
	whole, err := f.Lookup(name)
	if err != nil {
		return "", err
	}
	members := strings.Split(whole, ",")
	blanks := len(members[n]) - len(strings.TrimLeft(members[n], " \t"))
	members[n] = members[n][:blanks] + value + members[n][blanks+len(now):]
	return strings.Join(members, ","), nil
}
