package inventory

import (
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// raw returns the text of a single value, "" where there is none.
func (v value) raw() string {
	switch {
	case v.node == nil:
		return ""
	case v.node.Kind != yaml.ScalarNode:
		v.fault("must be a single value")
	case strings.ContainsRune(v.node.Value, 0):
		v.fault("holds a NUL byte: delete it")
	default:
		return v.node.Value
	}
	return ""
}

// text is raw, on one line and not blank.
func (v value) text() string {
	text := v.raw()
	switch {
	case v.node == nil || v.node.Kind != yaml.ScalarNode:
	case strings.TrimSpace(text) == "":
		v.fault("is empty: fill it in, or delete the line")
	case strings.ContainsFunc(text, unicode.IsControl):
		v.fault("holds a line break or control character: delete it")
	default:
		return text
	}
	return ""
}

// required is text that must be there.
func (v value) required(fix string) string {
	if v.node == nil {
		v.missing(fix)
	}
	return v.text()
}

var nameForm = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)

func (v value) checkName(name string) {
	if !nameForm.MatchString(name) {
		v.fault("the name %.80q does not fit: 1 to 64 of a-z, 0-9 and -", name)
	}
}

// choice is one of a few words.
func (v value) choice(fallback string, words ...string) string {
	if v.node == nil {
		if fallback == "" {
			v.missing("one of " + strings.Join(words, ", "))
		}
		return fallback
	}
	text := v.text()
	if text != "" && !slices.Contains(words, text) {
		v.fault("%.60q is not known; the nearest is %q (known here: %s)", text, nearest(text, words), strings.Join(words, ", "))
	}
	return text
}

// optional is choice where nothing is a choice, too.
func (v value) optional(fallback string, words ...string) string {
	if v.node == nil {
		return fallback
	}
	return v.choice("", words...)
}

// reference is the name of something defined elsewhere in the file.
func (v value) reference(what string, names []string) {
	text := v.text()
	switch {
	case text == "" || slices.Contains(names, text):
	case len(names) == 0:
		v.fault("there is no %s %.80q, nor any other: define it", what, text)
	default:
		slices.Sort(names)
		v.fault("there is no %s %.80q; the nearest is %q", what, text, nearest(text, names))
	}
}

func (v value) integer(fallback, least, most int) int {
	if v.node == nil {
		return fallback
	}
	n, err := strconv.Atoi(v.raw())
	if v.node.Kind == yaml.ScalarNode && (err != nil || n < least || n > most) {
		v.fault("%.60q must be a whole number from %d to %d", v.node.Value, least, most)
	}
	return n
}

func (v value) boolean() bool {
	text := v.raw()
	if text != "" && text != "true" && text != "false" {
		v.fault("%.60q must be true or false", text)
	}
	return text == "true"
}

const day = 24 * time.Hour

// duration is a length of time from least to most.
func (v value) duration(fallback, least, most time.Duration) time.Duration {
	if v.node == nil {
		return fallback
	}
	text := v.text()
	if text == "" {
		return fallback
	}
	length, err := ParseDuration(text)
	switch {
	case err != nil:
		v.fault("%v", err)
		return fallback
	case length < least:
		v.fault("%.60q is too short: at least %s", text, FormatDuration(least))
		return fallback
	case length > most:
		v.fault("%.60q is too long: at most %s", text, FormatDuration(most))
		return fallback
	}
	return length
}

func (v value) rotateEvery(fallback time.Duration) time.Duration {
	return v.duration(fallback, time.Minute, 3650*day)
}

// file is an absolute path; a relative one is relative to the configuration.
func (v value) file(fallback string) string {
	text := v.text()
	if text == "" {
		text = fallback
	}
	switch {
	case text == "":
		return ""
	case strings.HasPrefix(text, "~"):
		v.fault("~ is not expanded: write the whole path")
	case !filepath.IsAbs(text):
		return filepath.Join(v.doc.dir, text)
	}
	return filepath.Clean(text)
}

// url is an http URL or the like. It is never quoted in a fault: it may hold a
// password.
func (v value) url(schemes ...string) string {
	text := v.text()
	if text != "" {
		v.checkURL(text, schemes)
	}
	return text
}

func (v value) checkURL(text string, schemes []string) {
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || !slices.Contains(schemes, u.Scheme) {
		v.fault("must be a URL such as %s://127.0.0.1:8080 (%s)", schemes[0], strings.Join(schemes, ", "))
		return
	}
	if u.User != nil {
		v.fault("passwords never stand in this file: take what stands before the @ out of the URL")
	}
	if u.Port() != "" {
		v.checkPort(u.Port(), 1)
	}
}

func (v value) checkPort(port string, least uint64) {
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n < least {
		v.fault("the port must be a number from %d to 65535", least)
	}
}

// address is a host:port to listen on.
func (v value) address(fallback string, leastPort uint64) string {
	text := v.text()
	if text == "" {
		return fallback
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil || !isHost(host) {
		v.fault("must be host:port, such as %q", fallback)
		return fallback
	}
	v.checkPort(port, leastPort)
	return text
}

var hostName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9._-]{0,252})$`)

func isHost(text string) bool {
	_, err := netip.ParseAddr(text)
	return err == nil || hostName.MatchString(text)
}

// argv is a program and its arguments.
func (v value) argv() []string {
	if v.node != nil && v.node.Kind == yaml.ScalarNode {
		v.fault("no shell reads this: write a list, such as [systemctl, reload, api]")
		return nil
	}
	var out []string
	for _, item := range v.list() {
		out = append(out, item.raw())
	}
	switch {
	case v.node == nil || v.node.Kind != yaml.SequenceNode:
	case len(out) == 0 || strings.TrimSpace(out[0]) == "":
		v.fault("names no program: write a list, such as [systemctl, reload, api]")
	}
	return out
}
