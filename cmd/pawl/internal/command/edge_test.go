package command

import (
	"bytes"
	"strings"
	"testing"
)

// TestNothingOfOthersReachesTheTerminalAsItIs: everything that is printed passes the
// edge, what ends the program, too.
func TestNothingOfOthersReachesTheTerminalAsItIs(t *testing.T) {
	var stdout, stderr bytes.Buffer
	Run(t.Context(), []string{"-c", "no\x1b[2Jsuch\u202e.yaml", "status"}, &stdout, &stderr)
	if got := stderr.String(); !strings.Contains(got, `no\u001b[2Jsuch\u202e.yaml`) || strings.ContainsAny(got+stdout.String(), "\x1b\u202e") {
		t.Errorf("%q", got)
	}
}
