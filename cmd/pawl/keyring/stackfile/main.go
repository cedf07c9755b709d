// Command stackfile writes deploy/stack/stack.yml: each service of a Docker Swarm
// with its own keys as secrets, and no other's.
package main

import (
	_ "embed"
	"fmt"
	"os"
	"path"
	"strings"
	"text/template"

	"pawl.dev/cmd/pawl/keyring"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
)

//go:embed stack.yml.tmpl
var text string

// secret is a file, of the folder that deploy.sh makes, in a container.
type secret struct{ Source, File, Target string }

// container is one that is given secrets.
type container struct {
	Name    string
	Docker  bool   // asks Docker for something
	Volume  string // of its data_dir
	Secrets []secret
}

type stack struct {
	Services, Servers    []container
	Provisioner, Secrets []secret
}

// secrets of pawl.yaml that are no keys: whom Pawl logs in as. The db-rotator looks
// into an application's database as the observer.
var passwords = map[string][]string{saga.DBRotator: {"secrets/pawl_admin", "secrets/pawl_observer"}, saga.Verifier: {"secrets/pawl_observer"}}

func main() {
	if err := template.Must(template.New("stack.yml").Parse(text)).Execute(os.Stdout, describe()); err != nil {
		fmt.Fprintln(os.Stderr, "stackfile:", err)
		os.Exit(1)
	}
}

func describe() (s stack) {
	of := func(user string) (all []secret) {
		for _, file := range keyring.Files(user) {
			all = append(all, s.add("keys", user, file, "/run/pawl/"+file))
		}
		return all
	}
	for _, service := range saga.Services {
		c := container{Name: service, Secrets: of(service), Docker: service == saga.SecretPublisher || service == saga.Restarter}
		if service == saga.SecretPublisher {
			c.Volume = "backups"
		}
		for _, file := range passwords[service] {
			c.Secrets = append(c.Secrets, s.add("keys", service, file, "/run/pawl/"+file))
		}
		s.Services = append(s.Services, c)
	}
	s.Provisioner = of(bus.Provisioner)
	for i := range 3 {
		c := container{Name: fmt.Sprintf("nats-%d", i+1)}
		for _, file := range []string{"nats.conf", "ca.pem", "server.pem", "server.key"} {
			c.Secrets = append(c.Secrets, s.add("nats", c.Name, file, "/etc/nats/"+file))
		}
		s.Servers = append(s.Servers, c)
	}
	return s
}

func (s *stack) add(folder, owner, file, target string) secret {
	one := secret{Source: owner + "." + strings.ReplaceAll(file, "/", "."), File: path.Join(folder, owner, file), Target: target}
	s.Secrets = append(s.Secrets, one)
	return one
}
