package inventory

import (
	"net/netip"
	"time"
)

// WatchLogins says when failed logins become an alert.
type WatchLogins struct {
	Failures int           // default 10, from 1 to 100: this many of one role from one address …
	Within   time.Duration // … within this time; default 1m, from 1s to 1h
	Quiet    time.Duration // default 10m, up to 1d: the alert is over after this long without a failure
	Repeat   time.Duration // default 1h, from 1m to 7d: an alert that goes on is sent again this often
	Ignore   Addresses     // whose failures are counted in metrics alone
}

// Addresses is a set of client addresses.
type Addresses struct {
	Networks []netip.Prefix // masked
	Local    bool           // Unix sockets, which have no address
}

// Contains reports whether address, as PostgreSQL's log tells it, is in the
// set. Host names (log_hostname) never are: whoever owns an address gives it
// its name.
func (a Addresses) Contains(address string) bool {
	if address == "[local]" {
		return a.Local
	}
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return false
	}
	ip = ip.Unmap().WithZone("")
	for _, n := range a.Networks {
		if n.Contains(ip) {
			return true
		}
	}
	return false
}

func readWatchLogins(v value) WatchLogins {
	o := v.object("failures", "within", "quiet", "repeat", "ignore")
	w := WatchLogins{
		Failures: o.at("failures").integer(10, 1, 100),
		Within:   o.at("within").duration(time.Minute, time.Second, time.Hour),
		Quiet:    o.at("quiet").duration(10*time.Minute, time.Second, day),
		Repeat:   o.at("repeat").duration(time.Hour, time.Minute, 7*day),
	}
	if w.Quiet < w.Within {
		at := o.at("quiet")
		if at.node == nil {
			at = o.at("within")
		}
		at.fault("quiet (%s) must be at least within (%s): an alert would be over while the failures that raised it still count", FormatDuration(w.Quiet), FormatDuration(w.Within))
	}
	for _, item := range o.at("ignore").list() {
		w.Ignore.add(item)
	}
	return w
}

func (a *Addresses) add(v value) {
	text := v.text()
	if text == "" {
		return
	}
	if text == "local" {
		a.Local = true
		return
	}
	network, err := netip.ParsePrefix(text)
	if ip, plain := netip.ParseAddr(text); plain == nil && ip.Zone() == "" {
		network, err = ip.Prefix(ip.BitLen())
	}
	switch {
	case err != nil:
		v.fault("%.60q is no address: write 10.0.0.7, 10.0.0.0/24, 2001:db8::/32, or local for Unix sockets", text)
	case network.Addr().Is4In6():
		v.fault("%.60q is an IPv4 address within IPv6: write it as IPv4", text)
	case network != network.Masked():
		v.fault("%.60q has bits beyond its length: write %s for the network, or the address alone", text, network.Masked())
	case network.Bits() == 0:
		v.fault("%.60q is everybody: nothing would ever be alerted", text)
	default:
		a.Networks = append(a.Networks, network)
	}
}
