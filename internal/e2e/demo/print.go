package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

// Colours, by their ANSI codes.
const (
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
)

var colourful = term.IsTerminal(int(os.Stdout.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"

func paint(colour, text string) string {
	if !colourful || colour == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

func say(format string, args ...any) { fmt.Printf(format, args...) }

// show prints a command's output, indented.
func show(output []byte) {
	for text := range strings.Lines(string(output)) {
		say("  %s", text)
	}
}

func (l line) show() {
	colour, what, took := "", l.Event, ""
	switch {
	case l.Failed:
		colour = red
	case l.Note != "":
		colour, what = yellow, "("+l.Note+")"
	}
	if l.Event != "" && l.Seconds > 0 {
		took = fmt.Sprintf("%.0f ms", 1000*l.Seconds)
	}
	say("  %s  %s\n", paint(dim, l.At.Local().Format(time.TimeOnly+".000")),
		paint(colour, strings.TrimRight(fmt.Sprintf("%-13s %-16s %7s  %s", what, l.Service, took, cut(l.Text, 72)), " ")))
}

// cut keeps a line on one line of most terminals.
func cut(text string, width int) string {
	if r := []rune(text); len(r) > width {
		return string(r[:width-1]) + "…"
	}
	return text
}
