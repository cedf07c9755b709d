package bus

import (
	"bytes"
	"fmt"
	"text/template"

	"github.com/nats-io/nkeys"

	"pawl.dev/internal/inventory"
)

// Account holds the streams, and whoever works on them.
const Account = "PAWL"

// Accounts is the part of a nats-server's configuration that says who may do
// what, for every server that Pawl meets, the embedded one too.
//
// What a user sends is answered by the server itself, on whatever subject the
// user names, be it one where it may not publish: an acknowledgement of a request
// would be stored as an emergency. So the requester, whose key is the most
// widely given away, has an account of its own, where nothing is stored: answers
// stay in it.
func Accounts(inv *inventory.Inventory) (string, error) {
	type user struct {
		Name, Public string
		Permissions
	}
	var inside []user
	var outside user
	for _, name := range Users {
		public, err := publicKey(SeedFile(inv, name))
		if err != nil {
			return "", err
		}
		if u := (user{name, public, PermissionsFor(name)}); name == Requester {
			outside = u
		} else {
			inside = append(inside, u)
		}
	}
	var text bytes.Buffer
	err := accounts.Execute(&text, map[string]any{"Account": Account, "Inside": inside, "Outside": outside})
	return text.String(), err
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

// Subjects are ASCII without quotes: see the table.
var accounts = template.Must(template.New("accounts").Parse(`
{{- define "user"}}
      # {{.Name}}
      {nkey: {{.Public}}, permissions: {
        publish: { {{- with .Deny}}
          deny: [{{range .}}
            "{{.}}"{{end}}
          ]{{end}}
          allow: [{{range .Publish}}
            "{{.}}"{{end}}
          ]
        }
        subscribe: {allow: [{{range .Subscribe}}
          "{{.}}"{{end}}
        ]}
      }}
{{- end -}}
accounts {
  {{.Account}} {
    jetstream: enabled
    exports: [{{range .Outside.Publish}}
      {service: "{{.}}", response: stream, accounts: [ASKING]}{{end}}
    ]
    users: [
{{- range .Inside}}{{template "user" .}}{{end}}
    ]
  }
  # Answers of the server to those who ask stay in here, where nothing is stored.
  ASKING {
    imports: [{{range .Outside.Publish}}
      {service: {account: {{$.Account}}, subject: "{{.}}"}}{{end}}
    ]
    users: [
{{- template "user" .Outside}}
    ]
  }
}
`))
