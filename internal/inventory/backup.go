package inventory

import (
	"strconv"
	"strings"
	"time"
)

// Backup says when `pawl up` backs up the streams, and for whom.
type Backup struct {
	Every time.Duration // 0: only when `pawl backup` is run
	To    string        // absolute; the folder of the files. Default pawl-backups
	// How many of them are kept, or how long; one of the two is set. Default 7 days.
	KeepCount int
	KeepFor   time.Duration
	// Recipients can open the files: age or SSH public keys, one or more. Empty: the
	// key pair that `pawl init` makes.
	Recipients []string
}

func readBackup(v value) Backup {
	o := v.object("every", "to", "keep", "recipients")
	b := Backup{Every: o.at("every").duration(0, 0, 365*day), To: o.at("to").file("pawl-backups"), KeepFor: 7 * day}
	if every := o.at("every"); b.Every > 0 && b.Every < time.Minute {
		every.fault("must be at least 1m")
	}
	if keep := o.at("keep"); keep.node != nil {
		b.KeepCount, b.KeepFor = keep.countOrDuration()
	}
	for _, r := range o.at("recipients").list() {
		b.Recipients = append(b.Recipients, r.recipient())
	}
	return b
}

// countOrDuration reads a number of files, such as 48, or how long, such as 7d.
func (v value) countOrDuration() (count int, length time.Duration) {
	if n, err := strconv.Atoi(v.text()); err == nil {
		if n < 1 {
			v.fault("must be at least 1: the newest backup is always kept")
		}
		return n, 0
	}
	return 0, v.duration(0, time.Hour, 100*365*day)
}

// recipient reads a public key of age or of SSH; whether it is a whole one is seen
// when it is used.
func (v value) recipient() string {
	text := strings.TrimSpace(v.text())
	switch {
	case strings.HasPrefix(text, "AGE-SECRET-KEY-"), strings.HasPrefix(text, "-----BEGIN"):
		v.fault("is a private key: name its public key, and keep this one where Pawl does not run")
	case !strings.HasPrefix(text, "age1") && !strings.HasPrefix(text, "ssh-"):
		v.fault("is no public key of age (age1…) or SSH (ssh-ed25519 …): `age-keygen` makes one")
	}
	return text
}
