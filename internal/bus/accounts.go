package bus

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
	"text/template"

	"github.com/nats-io/nkeys"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
)

// Account holds the streams. No user belongs to it.
const Account = "PAWL"

// Accounts is the part of a nats-server's configuration that says who may do
// what, for every server that Pawl meets, the embedded one too.
//
// What a user sends is answered by the server itself, on whatever subject the
// user names, with the server's rights. So each user has an account of its own: an
// answer stays in it, whatever it is named. What reaches the streams, and other
// users, is what the account imports, and that is what its user may do.
func Accounts(inv *inventory.Inventory) (string, error) {
	streams := account{Name: Account, Imports: []imported{{Kind: "stream", From: accountOf(Provisioner), Subject: restores, As: restores}}}
	all, keys := []account{streams}, map[string]string{}
	for _, user := range UsersOf(inv) {
		public, err := publicKey(SeedFile(inv, user))
		if err != nil {
			return "", err
		}
		keys[user] = public
		all = append(all, account{User: user, Name: accountOf(user), Public: public, Permissions: PermissionsFor(user), Imports: importsOf(user)})
	}
	exports := map[string][]export{}
	for _, a := range all {
		for _, i := range a.Imports {
			exports[i.From] = allow(exports[i.From], i, a.Name)
		}
	}
	for i, a := range all {
		all[i].Exports = exports[a.Name]
		if a.User == saga.Scheduler {
			all[i].Mappings = map[string]string{asksKey: operatorKey(keys[Operator])}
		}
	}
	var text bytes.Buffer
	err := accounts.Execute(&text, all)
	return text.String(), err
}

// account is that of one user, or of the streams, which has none.
type account struct {
	User, Name, Public string
	Permissions
	Exports  []export
	Imports  []imported
	Mappings map[string]string // of what is published there
}

// export is what an account lets others have.
type export struct {
	Kind, Subject, Waits string
	To                   []string // accounts
}

// imported is what an account takes from another: a service, which its user's messages
// reach, or a stream, of which it hears.
type imported struct {
	Kind    string // "service" or "stream"
	From    string // the other account
	Subject string // there
	As      string // here
	Waits   string // for further answers of a service
}

// accountOf is a user's account; that of the streams has none.
func accountOf(user string) string { return cmp.Or(strings.ToUpper(user), Account) }

// importsOf derives from the table of permissions what a user's account takes from
// others: its user's messages go to the streams, or to the service that answers
// them; what its user listens to comes from whoever publishes it.
func importsOf(user string) (all []imported) {
	p := PermissionsFor(user)
	// Where this one is not imported, nats-server has an account without streams import
	// all of JetStream's subjects, to say on each that there are none.
	for _, subject := range broadest(append(p.Publish, "$JS.API.INFO")) {
		if owner := answeredBy(subject); owner != user && owner != nobody {
			all = append(all, imported{"service", accountOf(owner), arrivesAt(user, subject), subject, waits(subject)})
		}
	}
	if user == saga.Scheduler {
		for _, subject := range asked { // passed on to be stored: nats-server lets no stream export have what came by an import
			all = append(all, imported{"service", Account, subject, subject, waits(subject)})
		}
	}
	for _, other := range Users {
		if other == user {
			continue
		}
		for _, subject := range published()[other] {
			if answeredBy(subject) == "" && slices.ContainsFunc(p.Subscribe, func(heard string) bool { return covers(heard, subject) }) {
				all = append(all, imported{Kind: "stream", From: accountOf(other), Subject: subject, As: subject})
			}
		}
	}
	if user == Backup || user == Provisioner { // what is copied is sent there
		inbox := InboxPrefix(user) + ".>"
		all = append(all, imported{Kind: "stream", From: Account, Subject: inbox, As: inbox})
	}
	return all
}

// asked are the subjects that the scheduler answers on, and that are stored.
var asked = []string{RequestSubject("*"), AskedSubject("*", "*"), EmergencySubject("*")}

// nobody listens in another account than the sender's, by a service.
const nobody = "nobody"

// restores is where a server that restores a stream takes what it holds. As a service
// it could not be imported: the server would add a header, and take that for content.
const restores = "$JS.SNAPSHOT.RESTORE.>"

// answeredBy returns the service that hears what is published on a subject; "" for
// the streams.
func answeredBy(subject string) string {
	parts := strings.Split(subject, ".")
	switch {
	case slices.Contains([]string{answers, restores, RefusedSubject("*"), operatorKey("*")}, subject):
		return nobody
	case slices.Contains(asked, subject):
		return saga.Scheduler
	case len(parts) > 2 && parts[0] == "pawl" && slices.Contains([]string{"check", "examine", "health"}, parts[1]):
		return parts[2]
	}
	return ""
}

// arrivesAt is where the streams' account has what a user publishes: the requester's
// requests under its own name, and alerts under that of whoever may raise them under
// any. The scheduler raises those of the receivers.
func arrivesAt(user, subject string) string {
	switch {
	case user == Requester && subject == RequestSubject("*"):
		return AskedSubject(user, "*")
	case user != saga.Scheduler && subject == AlertSubject("*"):
		return AlertedSubject(user, "*")
	}
	return subject
}

// waits is how long the server remembers where the answers to what is published on a
// subject go, beyond the first one; "" where that is the only one.
func waits(subject string) string {
	switch read, ok := strings.CutPrefix(subject, directGet); {
	case ok && !strings.Contains(read, "."):
		return "10s" // a batch of messages
	case strings.HasPrefix(subject, "$JS.API.CONSUMER.MSG.NEXT."), subject == "$JS.API.>", // until what is asked for is there
		slices.Contains(asked, subject): // it is stored, then answered
		return "2m"
	}
	return ""
}

// published is what each user may publish.
var published = sync.OnceValue(func() map[string][]string {
	all := map[string][]string{}
	for _, user := range Users {
		all[user] = broadest(PermissionsFor(user).Publish)
	}
	return all
})

// broadest leaves away what another of the subjects covers: by two imports a message
// would arrive twice.
func broadest(subjects []string) (all []string) {
	subjects = slices.Compact(slices.Sorted(slices.Values(subjects)))
	for _, s := range subjects {
		if !slices.ContainsFunc(subjects, func(other string) bool { return other != s && covers(other, s) }) {
			all = append(all, s)
		}
	}
	return all
}

// covers reports whether a pattern takes in all of a subject, which may be one, too.
func covers(pattern, subject string) bool {
	want, have := strings.Split(pattern, "."), strings.Split(subject, ".")
	for i, token := range want {
		switch {
		case token == ">":
			return len(have) > i
		case i >= len(have) || have[i] == ">" || token != "*" && token != have[i]:
			return false
		}
	}
	return len(want) == len(have)
}

// allow lets an account have what it imports.
func allow(all []export, i imported, to string) []export {
	at, there := slices.BinarySearchFunc(all, i, func(e export, i imported) int {
		return cmp.Or(cmp.Compare(e.Kind, i.Kind), cmp.Compare(e.Subject, i.Subject))
	})
	if !there {
		all = slices.Insert(all, at, export{i.Kind, i.Subject, i.Waits, nil})
	}
	all[at].To = append(all[at].To, to)
	return all
}

func publicKey(seedFile string) (string, error) {
	seed, err := LoadSeed(seedFile)
	if err != nil {
		return "", err
	}
	pair, err := nkeys.FromSeed(seed)
	if err != nil {
		return "", fmt.Errorf("NATS key %s: %w", seedFile, err)
	}
	return pair.PublicKey()
}

// Subjects and names are ASCII without quotes: see the table.
var accounts = template.Must(template.New("accounts").Funcs(template.FuncMap{"join": strings.Join}).Parse(`
accounts {
{{- range .}}
  {{.Name}} {
{{- if not .User}} # the streams; nobody logs in here
    jetstream: enabled
{{- end}}
    exports: [{{range .Exports}}
      { {{- .Kind}}: "{{.Subject}}", accounts: [{{join .To ", "}}]{{with .Waits}}, response: stream, threshold: "{{.}}"{{end}}}{{end}}
    ]
    imports: [{{range .Imports}}
      { {{- .Kind}}: {account: {{.From}}, subject: "{{.Subject}}"}{{if ne .As .Subject}}, to: "{{.As}}"{{end}}}{{end}}
    ]
{{- range $from, $to := .Mappings}}
    mappings: {"{{$from}}": "{{$to}}"}
{{- end}}
{{- if .User}}
    users: [
      # {{.User}}
      {nkey: {{.Public}}, permissions: {
        publish: {allow: [{{range .Publish}}
          "{{.}}"{{end}}
        ]}
        subscribe: {allow: [{{range .Subscribe}}
          "{{.}}"{{end}}
        ]}
      }}
    ]
{{- end}}
  }
{{- end}}
}
`))
