package torture

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// calls are the system calls that change a file or have it written to the disk.
const calls = "openat,pwrite64,write,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,ftruncate,fallocate,link,linkat"

// unknown are calls that change files, too, and that a replay does not know.
const unknown = "pwritev,pwritev2,writev,copy_file_range,sendfile,truncate,splice"

// strace is the command that writes a trace of the one after it, whose parent it
// is not.
func strace(to string) []string {
	return []string{"strace", "-D", "-f", "-y", "-xx", "-s", "32000000", "-ttt", "-T", "-e", "trace=" + calls + "," + unknown, "-e", "signal=SIGKILL", "-o", to}
}

// call is one that succeeded.
type call struct {
	name       string
	args       string
	result     string // the descriptor and its path, of openat
	began, end time.Time
}

// described is a descriptor, and what it is open on.
var described = regexp.MustCompile(`^(\d+|AT_FDCWD)<((?:\\x[0-9a-f]{2})*)>`)

// traced waits until the whole trace of a killed process is written.
func traced(path string) error {
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		end := make([]byte, 40)
		_, err = f.Seek(-int64(len(end)), io.SeekEnd)
		if err == nil {
			_, err = io.ReadFull(f, end)
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		if strings.HasSuffix(string(end), "+++ killed by SIGKILL +++\n") {
			return nil
		}
	}
	return fmt.Errorf("%s does not end", path)
}

// readTrace returns the calls in the order in which they ended.
func readTrace(path string) (all []call, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	waiting := map[string]call{} // by process
	lines := bufio.NewReaderSize(f, 1<<20)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return all, nil // the last line may be cut off
		}
		pid, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		when, rest, _ := strings.Cut(strings.TrimLeft(rest, " "), " ")
		c := call{began: stamp(when)}
		if c.name, c.args, _ = strings.Cut(rest, "("); strings.HasPrefix(rest, "<... ") {
			c = waiting[pid]
			_, more, _ := strings.Cut(rest, " resumed>")
			c.args += more
		}
		if args, unfinished := strings.CutSuffix(c.args, " <unfinished ...>"); unfinished {
			c.args = args
			waiting[pid] = c
			continue
		}
		if !c.finish() || strings.HasPrefix(c.result, "-1") || strings.HasPrefix(c.result, "?") {
			continue
		}
		all = append(all, c)
	}
}

// finish reads what strace says after the arguments: " = RESULT <SECONDS>".
func (c *call) finish() bool {
	equals, took := strings.LastIndex(c.args, " = "), strings.LastIndex(c.args, " <")
	if equals < 0 || took < equals {
		return false
	}
	seconds, err := strconv.ParseFloat(strings.TrimSuffix(c.args[took+2:], ">"), 64)
	if err != nil {
		return false
	}
	c.result, c.end = c.args[equals+3:took], c.began.Add(time.Duration(seconds*float64(time.Second)))
	c.args = strings.TrimSuffix(strings.TrimRight(c.args[:equals], " "), ")")
	return true
}

// stamp reads seconds and microseconds, exactly.
func stamp(text string) time.Time {
	seconds, micros, _ := strings.Cut(text, ".")
	s, _ := strconv.ParseInt(seconds, 10, 64)
	u, _ := strconv.ParseInt(micros, 10, 64)
	return time.Unix(s, u*1000)
}

// arguments are what a call was given: paths are whole, and content is decoded.
type arguments struct {
	paths   []string // of descriptors and names
	content []byte
	rest    string
}

func (c call) arguments() (a arguments, err error) {
	at, base := c.args, ""
	for at != "" {
		if m := described.FindStringSubmatch(at); m != nil {
			if base, err = decoded(m[2]); err != nil {
				return a, err
			}
			at = at[len(m[0]):]
			if m[1] != "AT_FDCWD" {
				deleted := strings.HasPrefix(at, "(deleted)")
				at = strings.TrimPrefix(at, "(deleted)")
				if deleted {
					base = ""
				}
			}
			if !strings.HasPrefix(at, `, "`) || c.name == "write" || c.name == "pwrite64" {
				a.paths = append(a.paths, base)
			}
		} else if strings.HasPrefix(at, `"`) {
			encoded, rest, ended := strings.Cut(at[1:], `"`)
			text, err := decoded(encoded)
			if strings.HasPrefix(rest, "...") {
				return a, fmt.Errorf("%s of %d bytes and more: strace has cut it off", c.name, len(text))
			}
			if err != nil || !ended {
				return a, fmt.Errorf("%s: %.200s: %w", c.name, at, err)
			}
			if c.name == "write" || c.name == "pwrite64" {
				a.content = []byte(text)
			} else if filepath.IsAbs(text) || base == "" {
				a.paths = append(a.paths, text)
			} else {
				a.paths = append(a.paths, filepath.Join(base, text))
			}
			at = rest
		} else if i := strings.Index(at, ", "); i >= 0 {
			a.rest += at[:i] + " "
			at = at[i+2:]
			continue
		} else {
			a.rest, at = a.rest+at, ""
		}
		at = strings.TrimPrefix(at, ", ")
	}
	return a, nil
}

func decoded(text string) (string, error) {
	raw, err := hex.DecodeString(strings.ReplaceAll(text, `\x`, ""))
	return string(raw), err
}
