package inventory

import (
	"maps"
	"net"
	"slices"
	"time"

	"pawl.dev/internal/loopback"
)

// Alerts says which alerts become emergencies, and what holds them back.
type Alerts struct {
	Listen    string // of the HTTP receivers; empty: there are none
	TLS       *KeyPair
	Receivers map[string]Receiver // by name: the path is /alerts/NAME, the subject pawl.alert.NAME
	Rules     []AlertRule
	// Cooldown is how long after an emergency of a credential, whoever called it,
	// no alert calls another; default 1h, from 1m.
	Cooldown time.Duration
	Storm    Storm
	// Grace is how long after a rotation failed logins are still held to be its
	// own; default 5m.
	Grace  time.Duration
	DryRun bool // decide and record, and do nothing
}

// KeyPair is a TLS certificate and its key, PEM files with absolute paths.
type KeyPair struct{ CertFile, KeyFile string }

// Kinds of a Receiver.
const (
	Alertmanager = "alertmanager"
	Grafana      = "grafana"
)

// Receiver takes webhooks. Exactly one of TokenFile, PasswordFile and HMACFile
// is set; all are absolute.
type Receiver struct {
	Kind         string
	TokenFile    string // Authorization: Bearer …
	User         string // Basic, with PasswordFile
	PasswordFile string
	HMACFile     string // Grafana's signature over timestamp:body
}

// Sources that no rule has to name.
const (
	LoginWatch   = "logins"    // of the alerts that `pawl watch-logins` raises
	SharedSource = "requester" // of what is published with requester.nk, under whatever name
	operator     = "operator"  // of what is published with operator.nk
)

// reserved are the sources that no receiver may be named as.
var reserved = map[string]string{
	LoginWatch:   "of `pawl watch-logins`",
	SharedSource: "of what is published with requester.nk",
	operator:     "of what is published with operator.nk",
}

// Sources lists who raises alerts with a key of the bus of its own: the sources that
// rules name, and LoginWatch. What a receiver takes, the scheduler publishes.
func (a *Alerts) Sources() []string {
	all := []string{LoginWatch}
	for _, r := range a.Rules {
		if _, received := a.Receivers[r.Source]; r.Source != "" && r.Source != SharedSource && r.Source != operator && !received {
			all = append(all, r.Source)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// AlertRule maps alerts to a credential.
type AlertRule struct {
	Source     string            // who has to tell it: a receiver, or whose key it is; empty: anybody who may raise alerts
	Labels     map[string]string // all must be equal; not cluster and pg_role
	Credential *Credential
	// Hold is whether a rotation can cause such alerts, so that they are held back
	// during one and for Alerts.Grace afterwards; nil: those of LoginWatch are.
	Hold *bool
}

// Storm is the most that alerts do by themselves: so many credentials within so
// long. What is more is a person's.
type Storm struct {
	Credentials int           // default 3
	Within      time.Duration // default 10m
}

// Labels by which a rule names the credential's own cluster and login.
const (
	LabelAlert   = "alertname"
	LabelCluster = "cluster"
	LabelRole    = "pg_role"
)

// RuleFor returns the rule of which an alert is, nil where no rule names it. The
// label pg_role may be either login of the credential.
func (a *Alerts) RuleFor(source string, labels map[string]string) *AlertRule {
	i := slices.IndexFunc(a.Rules, func(r AlertRule) bool {
		for name, value := range r.Labels {
			if labels[name] != value {
				return false
			}
		}
		return (r.Source == "" || r.Source == source) && labels[LabelCluster] == r.Credential.Cluster.Name &&
			slices.Contains(r.Credential.Logins(), labels[LabelRole])
	})
	if i < 0 {
		return nil
	}
	return &a.Rules[i]
}

// SourceFor returns the source of the first rule that names the labels, whoever tells
// of them; empty where none does.
func (a *Alerts) SourceFor(labels map[string]string) string {
	for _, r := range a.Rules {
		if a.RuleFor(r.Source, labels) != nil {
			return r.Source
		}
	}
	return ""
}

// Holds reports whether an alert of the source is held back around rotations.
func (r *AlertRule) Holds(source string) bool {
	if r.Hold != nil {
		return *r.Hold
	}
	return source == LoginWatch
}

func readAlerts(v value, credentials map[string]*Credential) Alerts {
	o := v.object("listen", "tls", "receivers", "rules", "cooldown", "storm", "grace", "dry_run")
	storm := o.at("storm").object("credentials", "within")
	a := Alerts{
		Receivers: map[string]Receiver{},
		Cooldown:  o.at("cooldown").duration(time.Hour, time.Minute, 30*day),
		Storm:     Storm{storm.at("credentials").integer(3, 1, 1000), storm.at("within").duration(10*time.Minute, time.Minute, day)},
		Grace:     o.at("grace").duration(5*time.Minute, 0, day),
		DryRun:    o.at("dry_run").boolean(),
	}
	for _, e := range o.at("receivers").entries() {
		a.Receivers[e.key] = readReceiver(e)
	}
	listen, tls := o.at("listen"), o.at("tls")
	if listen.node != nil {
		a.Listen = listen.address("127.0.0.1:9465", 0)
	}
	if tls.node != nil {
		pair := tls.object("cert_file", "key_file")
		pair.at("cert_file").required("the certificate, a PEM file")
		pair.at("key_file").required("the certificate's key, a PEM file")
		a.TLS = &KeyPair{pair.at("cert_file").file(""), pair.at("key_file").file("")}
	}
	switch {
	case listen.node == nil && !listen.broken && len(a.Receivers) > 0:
		listen.missing(`the receivers are paths of it: write an address, such as "127.0.0.1:9465"`)
	case a.Listen != "" && len(a.Receivers) == 0 && !o.at("receivers").broken:
		o.at("receivers").missing("nobody could send an alert to listen: name one, such as alertmanager: {kind: alertmanager, token_file: secrets/alertmanager}")
	case a.Listen != "" && a.TLS == nil && !tls.broken && !isLoopback(a.Listen):
		tls.missing("the address is not loopback's, and whoever listens on the way could send alerts: add {cert_file: …, key_file: …}, or listen on 127.0.0.1")
	}
	readRules(o.at("rules"), &a, credentials)
	return a
}

// isLoopback reports whether only this machine reaches the address, which was
// checked before.
func isLoopback(address string) bool {
	_, _, wrong := net.SplitHostPort(address) // said of listen
	return wrong != nil || loopback.Address(address)
}

func readReceiver(v value) Receiver {
	v.checkName(v.key)
	if of, taken := reserved[v.key]; taken {
		v.fault("is the source %s: choose another name", of)
	}
	o := v.object("kind", "token_file", "user", "password_file", "hmac_file")
	r := Receiver{
		Kind:         o.at("kind").choice("", Alertmanager, Grafana),
		TokenFile:    o.at("token_file").file(""),
		User:         o.at("user").text(),
		PasswordFile: o.at("password_file").file(""),
		HMACFile:     o.at("hmac_file").file(""),
	}
	ways := 0
	for _, key := range []string{"token_file", "password_file", "hmac_file"} {
		if at := o.at(key); at.node != nil || at.broken {
			ways++
		}
	}
	switch {
	case ways == 0 && o.readable():
		o.missing("how a sender proves who it is: add token_file, user and password_file, or hmac_file")
	case ways > 1:
		o.fault("has several proofs of who sends: keep one of token_file, password_file and hmac_file")
	case r.HMACFile != "" && r.Kind == Alertmanager:
		o.at("hmac_file").fault("Alertmanager signs nothing: use token_file, or user and password_file")
	case r.PasswordFile != "" && o.at("user").node == nil && !o.at("user").broken:
		o.at("user").missing("the user name of Basic authentication")
	case r.PasswordFile == "" && r.User != "":
		o.at("user").fault("is of password_file alone: delete it, or add password_file")
	}
	return r
}

func readRules(v value, a *Alerts, credentials map[string]*Credential) {
	for _, item := range v.list() {
		o := item.object("match", "credential", "source", "during_rotation")
		if !o.readable() {
			continue
		}
		r := AlertRule{Source: o.at("source").text()}
		if r.Source != "" {
			o.at("source").checkName(r.Source)
		}
		if at := o.at("during_rotation"); at.node != nil {
			hold := at.choice("", "hold", "fire") == "hold"
			r.Hold = &hold
		}
		name := o.at("credential").required("the credential that is cut off")
		o.at("credential").reference("credential", slices.Collect(maps.Keys(credentials)))
		r.Credential = credentials[name]
		if readMatch(o.at("match"), &r) && r.Credential != nil && r.Credential.Cluster != nil {
			item.checkOverlap(r, a.Rules)
			a.Rules = append(a.Rules, r)
		}
	}
}

// readMatch reports whether the match can be used. The cluster and the role are
// written out, although the credential has them, so that a rule that was meant
// for another credential is noticed.
func readMatch(v value, r *AlertRule) bool {
	at, all := map[string]value{}, map[string]string{}
	for _, e := range v.entries() {
		at[e.key], all[e.key] = e, e.text()
	}
	if v.node != nil && !v.isMapping() || v.broken {
		return false
	}
	for _, needed := range []struct{ name, fix string }{
		{LabelAlert, "any alert about the login would cut it off: name the alert"},
		{LabelCluster, "name the credential's own"},
		{LabelRole, "name the credential's own"},
	} {
		if _, there := at[needed.name]; !there {
			v.fault("does not say which %s: %s", needed.name, needed.fix)
			return false
		}
	}
	c := r.Credential
	switch {
	case c == nil || c.Cluster == nil:
		return false // said of credential
	case all[LabelCluster] == "" || all[LabelRole] == "":
		return false // said of the label
	case all[LabelCluster] != c.Cluster.Name:
		at[LabelCluster].fault("is not the cluster of %s, which is %s: name that one, or another credential", c.Name, c.Cluster.Name)
		return false
	case !slices.Contains(c.Logins(), all[LabelRole]):
		at[LabelRole].fault("is no login of %s, whose role is %.63q: name that one, or another credential", c.Name, c.Role)
		return false
	}
	delete(all, LabelCluster)
	delete(all, LabelRole)
	r.Labels = all
	return true
}

// checkOverlap refuses a rule that shares alerts with one of another credential:
// which of the two would be cut off?
func (v value) checkOverlap(r AlertRule, before []AlertRule) {
	for i, other := range before {
		if other.Credential == r.Credential || other.Credential.Cluster != r.Credential.Cluster || r.Source != "" && other.Source != "" && r.Source != other.Source {
			continue
		}
		share := slices.ContainsFunc(r.Credential.Logins(), func(l string) bool { return slices.Contains(other.Credential.Logins(), l) })
		for name, value := range r.Labels {
			if theirs, named := other.Labels[name]; named && theirs != value {
				share = false
			}
		}
		if share {
			v.fault("matches alerts that rules[%d] gives to %s: add to both a label that tells the credentials apart, such as node", i, other.Credential.Name)
			return
		}
	}
}
