package inventory

import (
	"testing"
	"time"
)

func TestEachFaultOfWatchLoginsNamesTheFieldAndTheFix(t *testing.T) {
	for _, c := range []struct{ name, with, want string }{
		{"that is no mapping", "watch_logins: 10", "2: watch_logins: must be a mapping, that is, lines of key: value"},
		{"with an unknown key", "watch_logins: {failure: 3}", `2: watch_logins.failure: unknown key "failure": the nearest known key is "failures" (known here: failures, within, quiet, repeat, ignore)`},
		{"of no failure", "watch_logins: {failures: 0}", `2: watch_logins.failures: "0" must be a whole number from 1 to 100`},
		{"of too many failures", "watch_logins: {failures: 101}", `2: watch_logins.failures: "101" must be a whole number from 1 to 100`},
		{"within no time", "watch_logins: {within: 0}", `2: watch_logins.within: "0" is too short: at least 1s`},
		{"within a day", "watch_logins: {within: 1d}", `2: watch_logins.within: "1d" is too long: at most 1h0m0s`},
		{"quiet too soon", "watch_logins: {quiet: 30s}", "2: watch_logins.quiet: quiet (30s) must be at least within (1m0s): an alert would be over while the failures that raised it still count"},
		{"within longer than quiet", "watch_logins: {within: 20m}", "2: watch_logins.within: quiet (10m0s) must be at least within (20m0s): an alert would be over while the failures that raised it still count"},
		{"repeated all the time", "watch_logins: {repeat: 5s}", `2: watch_logins.repeat: "5s" is too short: at least 1m0s`},
		{"ignoring one that is no list", "watch_logins: {ignore: 10.0.0.7}", "2: watch_logins.ignore: must be a list, that is, [a, b] or lines that begin with -"},
		{"ignoring a name", "watch_logins: {ignore: [probe.example.org]}", `2: watch_logins.ignore[0]: "probe.example.org" is no address: write 10.0.0.7, 10.0.0.0/24, 2001:db8::/32, or local for Unix sockets`},
		{"ignoring a zone", `watch_logins: {ignore: ["fe80::1%eth0"]}`, `2: watch_logins.ignore[0]: "fe80::1%eth0" is no address: write 10.0.0.7, 10.0.0.0/24, 2001:db8::/32, or local for Unix sockets`},
		{"ignoring half a network", "watch_logins: {ignore: [local, 10.0.0.7/8]}", `2: watch_logins.ignore[1]: "10.0.0.7/8" has bits beyond its length: write 10.0.0.0/8 for the network, or the address alone`},
		{"ignoring everybody", "watch_logins: {ignore: [0.0.0.0/0]}", `2: watch_logins.ignore[0]: "0.0.0.0/0" is everybody: nothing would ever be alerted`},
		{"ignoring IPv4 in disguise", `watch_logins: {ignore: ["::ffff:10.0.0.7"]}`, `2: watch_logins.ignore[0]: "::ffff:10.0.0.7" is an IPv4 address within IPv6: write it as IPv4`},
	} {
		t.Run(c.name, func(t *testing.T) { one(t, "keys_dir: keys", c.with, c.want) })
	}
}

func TestWatchLoginsHasDefaults(t *testing.T) {
	inv, err := load(t, valid)
	if err != nil {
		t.Fatal(err)
	}
	w := inv.WatchLogins
	if w.Failures != 10 || w.Within != time.Minute || w.Quiet != 10*time.Minute || w.Repeat != time.Hour || w.Ignore.Local || w.Ignore.Networks != nil {
		t.Errorf("got %+v", w)
	}
}

func TestIgnoredAddressesAreThoseThatAreMeant(t *testing.T) {
	inv, err := load(t, change(t, "keys_dir: keys", `watch_logins: {ignore: ["10.0.0.7", 10.1.0.0/16, "2001:db8::/32", local]}`))
	if err != nil {
		t.Fatal(err)
	}
	for address, want := range map[string]bool{
		"10.0.0.7": true, "10.0.0.8": false, "10.1.255.1": true, "::ffff:10.0.0.7": true, "2001:db8::1": true, "2001:db9::1": false,
		"[local]": true, "local": false, "": false, "10.0.0.7.example.org": false, "2001:db8::1%eth0": true,
	} {
		if got := inv.WatchLogins.Ignore.Contains(address); got != want {
			t.Errorf("%q: ignored %v, want %v", address, got, want)
		}
	}
}
