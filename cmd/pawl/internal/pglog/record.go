// Package pglog reads what PostgreSQL writes into its jsonlog or csvlog, record
// by record, through every kind of rotation.
package pglog

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// Record is one record of the log: the fields that tell of a login. Statements,
// their context and parameters are not among them: they may hold passwords.
// User and Database are what a client sent, unchecked; they may be anything.
type Record struct {
	Time     time.Time
	User     string
	Database string
	Address  string // of the client; "[local]" on a Unix socket; a name under log_hostname
	Session  string // unique among the server's sessions
	Backend  string // "client backend", …
	// Phase is what the process was at, as ps shows it: "authentication", then
	// "startup", then the command. No client can forge it.
	Phase    string
	SQLState string // empty or 00000: no error
	Message  string // this and Detail are in the language of lc_messages
	Detail   string
}

// Formats of a log file, by the end of its name.
const (
	JSON = ".json" // log_destination jsonlog, PostgreSQL 15 and later
	CSV  = ".csv"  // csvlog
)

// Parse reads one record, without what separates it from the next. Its errors
// never quote the record.
func Parse(format string, raw []byte) (Record, error) {
	if format == JSON {
		return parseJSON(raw)
	}
	return parseCSV(raw)
}

func parseJSON(raw []byte) (Record, error) {
	var in struct {
		Timestamp    string `json:"timestamp"`
		User         string `json:"user"`
		Database     string `json:"dbname"`
		RemoteHost   string `json:"remote_host"`
		SessionID    string `json:"session_id"`
		SessionStart string `json:"session_start"`
		Phase        string `json:"ps"`
		Backend      string `json:"backend_type"`
		SQLState     string `json:"state_code"`
		Message      string `json:"message"`
		Detail       string `json:"detail"`
	}
	if err := json.Unmarshal(raw, &in); err != nil {
		return Record{}, errors.New("is no JSON object of jsonlog's") // err quotes
	}
	at, err := clock(in.Timestamp, in.SessionStart, in.SessionID)
	return Record{Time: at, User: in.User, Database: in.Database, Address: in.RemoteHost, Session: in.SessionID, Backend: in.Backend,
		Phase: in.Phase, SQLState: in.SQLState, Message: in.Message, Detail: in.Detail}, err
}

// Columns of csvlog. 13 has 24 of them, 14 and later 26; new ones come at the end.
const (
	columnTime, columnUser, columnDatabase, columnAddress, columnSession = 0, 1, 2, 4, 5
	columnPhase, columnSessionStart, columnSQLState                      = 7, 8, 12
	columnMessage, columnDetail, columnBackend, leastColumns             = 13, 14, 23, 24
)

func parseCSV(raw []byte) (Record, error) {
	r := csv.NewReader(bytes.NewReader(raw))
	r.FieldsPerRecord = -1
	c, err := r.Read()
	if err != nil {
		return Record{}, errors.New("is no record of csvlog's")
	}
	if _, err := r.Read(); !errors.Is(err, io.EOF) || len(c) < leastColumns {
		return Record{}, fmt.Errorf("has %d columns on its first lines, csvlog has at least %d", len(c), leastColumns)
	}
	address := c[columnAddress]
	if at := strings.LastIndexByte(address, ':'); at >= 0 {
		address = address[:at] // the port
	}
	at, err := clock(c[columnTime], c[columnSessionStart], c[columnSession])
	return Record{Time: at, User: c[columnUser], Database: c[columnDatabase], Address: address, Session: c[columnSession], Backend: c[columnBackend],
		Phase: c[columnPhase], SQLState: c[columnSQLState], Message: c[columnMessage], Detail: c[columnDetail]}, err
}

// clock returns when a record was logged. It is written in log_timezone, whose
// abbreviation does not say how far that is from UTC; but the session's start
// stands there too, and a session's id is that start in seconds since 1970, in
// hexadecimal, and the process's id.
func clock(logged, start, session string) (time.Time, error) {
	at, err1 := local(logged)
	began, err2 := local(start)
	hex, _, found := strings.Cut(session, ".")
	epoch, err3 := strconv.ParseInt(hex, 16, 64)
	if err := errors.Join(err1, err2, err3); err != nil || !found {
		return time.Time{}, errors.New("has no time and session")
	}
	offset := began.Unix() - epoch
	if offset < -86400 || offset > 86400 {
		return time.Time{}, errors.New("has a session that began at two times")
	}
	return at.Add(-time.Duration(offset) * time.Second), nil
}

// local reads the wall clock of a time such as "2026-11-25 04:33:58.563 CET".
func local(text string) (time.Time, error) {
	date, rest, _ := strings.Cut(text, " ")
	clock, _, _ := strings.Cut(rest, " ")
	return time.Parse("2006-01-02 15:04:05", date+" "+clock)
}
