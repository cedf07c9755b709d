package sink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pawl.dev/internal/docker"
	"pawl.dev/internal/dockertest"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/published"
)

// swarmed is a service without tasks that has secrets for user and password, of
// the login `before`.
type swarmed struct {
	*testing.T
	engine     *docker.Engine
	credential *inventory.Credential
	service    string
	user, word string // what the secrets are called
}

func newSwarmed(t *testing.T, labelled bool) *swarmed {
	t.Helper()
	dockertest.Need(t)
	s := &swarmed{T: t, engine: docker.NewEngine(inventory.Docker{}), service: dockertest.Name("api"), user: dockertest.Name("user"), word: dockertest.Name("password")}
	s.credential = &inventory.Credential{Name: dockertest.Name("credential"), Role: "app", Strategy: inventory.Alternating, Database: "db", Nodes: []inventory.Node{{Host: "db", Port: 5432}},
		Publish: []inventory.Sink{
			{DockerSecret: &inventory.DockerSecret{Name: s.user, Target: "user", Format: inventory.FormatUser, Services: []string{s.service}}},
			{DockerSecret: &inventory.DockerSecret{Name: s.word, Target: "word", Format: inventory.FormatPassword, Services: []string{s.service}}},
		}}
	for name, content := range map[string]string{s.user: "app", s.word: "before"} {
		var labels []string
		if labelled {
			labels = []string{published.LabelCredential + "=" + s.credential.Name, published.LabelSecret + "=" + name, published.LabelFingerprint + "=fingerprint0", published.LabelRotation + "=r0"}
		}
		dockertest.Secret(t, name, content, labels...)
	}
	dockertest.Service(t, s.service, "pawl-swarm-none", "--replicas=0", "--env=KEPT=1",
		"--secret=source="+s.user+",target=user,uid=7,mode=0440", "--secret=source="+s.word+",target=word,gid=8,mode=0400")
	return s
}

func (s *swarmed) sink() *service { return OfSwarm(s.credential, s.engine)[0].(*service) }

// secrets lists those that are the credential's, by name.
func (s *swarmed) secrets() []string {
	s.Helper()
	all := strings.Fields(dockertest.Run(s, "secret", "ls", "--format={{.Name}}", "--filter=label="+published.LabelCredential+"="+s.credential.Name))
	slices.Sort(all)
	return all
}

func (s *swarmed) show(format string) string {
	s.Helper()
	return dockertest.Run(s, "service", "inspect", "--format="+format, s.service)
}

const references = "{{range .Spec.TaskTemplate.ContainerSpec.Secrets}}source={{.SecretName}},target={{.File.Name}}\n{{end}}"

// inSwarm is the stage of the conformance suite.
func inSwarm(t *testing.T) stage {
	s := newSwarmed(t, true)
	return stage{s.sink(), s.byTarget, func() string { return fmt.Sprint(s.show("{{.Version.Index}}"), s.secrets()) }}
}

// byTarget lists the references in the order of the entries; Docker's client makes
// them in any.
func (s *swarmed) byTarget() string {
	s.Helper()
	lines := strings.Fields(s.show(references))
	slices.SortFunc(lines, func(a, b string) int {
		return strings.Compare(a[strings.Index(a, ",target="):], b[strings.Index(b, ",target="):])
	})
	return strings.Join(lines, "\n") + "\n"
}

func write(t *testing.T, s Sink, want Content) {
	t.Helper()
	if _, err := s.Write(t.Context(), want, open); err != nil {
		t.Fatal(err)
	}
}

func TestUpdateKeepsAllElseOfAService(t *testing.T) {
	t.Parallel()
	s := newSwarmed(t, true)
	files := "{{range .Spec.TaskTemplate.ContainerSpec.Secrets}}{{.File.Name}} {{.File.UID}} {{.File.GID}} {{printf \"%o\" .File.Mode}};{{end}}{{.Spec.TaskTemplate.ContainerSpec.Env}}{{.Spec.Name}}"
	was := s.show(files)
	write(t, s.sink(), login(1))
	if now := s.show(files); now != was {
		t.Errorf("was %s\nnow %s", was, now)
	}
	labels := dockertest.Run(t, "secret", "inspect", "--format={{json .Spec.Labels}}", s.word+"_fingerprint1")
	for _, want := range []string{`"dev.pawl.rotation":"r1"`, `"dev.pawl.generation":"1"`, `"dev.pawl.fingerprint":"fingerprint1"`} {
		if !strings.Contains(labels, want) {
			t.Errorf("%s lacks %s", labels, want)
		}
	}
}

func TestSomebodyElsesUpdateIsSeenAndKept(t *testing.T) {
	t.Parallel()
	s := newSwarmed(t, true)
	looks := 0
	guard := open
	guard.StillDue = func(context.Context) error { // the second is between the look and the update
		if looks++; looks == 2 {
			dockertest.Run(t, "service", "update", "--detach", "--env-add=THEIRS=1", s.service)
		}
		return nil
	}
	if changed, err := s.sink().Write(t.Context(), login(1), guard); err != nil || !changed {
		t.Fatal(changed, err)
	}
	holds(t, s.sink(), login(1))
	if env := s.show("{{.Spec.TaskTemplate.ContainerSpec.Env}}"); !strings.Contains(env, "THEIRS=1") || looks != 4 {
		t.Errorf("after %d looks %s", looks, env)
	}
}

func TestAdoptedSecretComesBackItself(t *testing.T) {
	t.Parallel()
	s := newSwarmed(t, false)
	if err := Holds(t.Context(), s.sink(), before); err == nil || !strings.Contains(err.Error(), "pawl adopt takes it") || IsPassing(err) {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.sink().Take(t.Context(), before, open.StillDue); err != nil {
			t.Fatal(err)
		}
	}
	was := s.show(references)
	write(t, s.sink(), login(1))
	write(t, s.sink(), before)
	if now := s.show(references); now != was {
		t.Errorf("was %s\nnow %s", was, now)
	}
	if err := s.sink().Take(t.Context(), login(5), open.StillDue); err != nil { // adopted anew
		t.Fatal(err)
	}
	holds(t, s.sink(), login(5))
	write(t, s.sink(), login(1))
	if err := s.sink().Take(t.Context(), login(2), open.StillDue); err != nil {
		t.Fatal(err)
	}
	holds(t, s.sink(), login(1)) // Pawl made it: it is what it says
}

func TestSecretThatPawlNeitherMadeNorAdoptedIsNotReplaced(t *testing.T) {
	t.Parallel()
	s := newSwarmed(t, false)
	known := &Known{Credential: s.credential, Logins: []Content{before}}
	guard := open
	guard.Admit = func(held []Content) error { return known.Admit(t.Context(), s.sink(), held) }
	_, written := s.sink().Write(t.Context(), login(1), guard)
	for _, err := range []error{Admit(t.Context(), s.sink(), known), written} {
		if !IsRefusal(err) || !strings.Contains(err.Error(), "docker_secret:"+s.service+" holds a login that Pawl neither wrote nor adopted") {
			t.Error(err)
		}
	}
	if made := s.secrets(); len(made) > 0 {
		t.Errorf("made %v", made)
	}
	if err := s.sink().Take(t.Context(), before, open.StillDue); err != nil {
		t.Fatal(err)
	}
	if changed, err := s.sink().Write(t.Context(), login(1), guard); err != nil || !changed {
		t.Fatal(changed, err)
	}
}

func TestSecretOfAnotherCredentialIsNotTaken(t *testing.T) {
	t.Parallel()
	s := newSwarmed(t, true)
	other := *s.credential
	other.Name += "x"
	if err := (&service{s.engine, &other, s.service, s.sink().entries}).Take(t.Context(), before, open.StillDue); !IsRefusal(err) || !strings.Contains(err.Error(), "that of credential "+s.credential.Name+" already") {
		t.Error(err)
	}
}

func TestOnlyWhatNothingCanComeBackToIsForgotten(t *testing.T) {
	t.Parallel()
	s := newSwarmed(t, true)
	for i := 1; i <= 3; i++ {
		write(t, s.sink(), login(i))
	}
	late := errors.New("another rotation has begun")
	if err := s.sink().Forget(t.Context(), login(3), false, func(context.Context) error { return late }); !errors.Is(err, late) || len(s.secrets()) != 8 {
		t.Fatal(err, s.secrets())
	}
	if err := s.sink().Forget(t.Context(), login(2), false, open.StillDue); err != nil || len(s.secrets()) != 8 { // it does not hold that
		t.Fatal(err, s.secrets())
	}
	kept := func(logins ...int) (names []string) {
		for _, i := range logins {
			names = append(names, fmt.Sprintf("%s_fingerprint%d", s.word, i), fmt.Sprintf("%s_fingerprint%d", s.user, i))
		}
		slices.Sort(names)
		return names
	}
	for range 2 {
		if err := s.sink().Forget(t.Context(), login(3), false, open.StillDue); err != nil || !slices.Equal(s.secrets(), kept(2, 3)) {
			t.Fatal(err, s.secrets())
		}
	}
	dockertest.Run(t, "service", "rollback", "--detach", s.service) // as people do
	holds(t, s.sink(), login(2))
	write(t, s.sink(), login(3))
	if err := s.sink().Forget(t.Context(), login(3), true, open.StillDue); err != nil || !slices.Equal(s.secrets(), kept(3)) {
		t.Fatal(err, s.secrets())
	}
	holds(t, s.sink(), login(3))
	dockertest.Run(t, "service", "rollback", "--detach", s.service)
	holds(t, s.sink(), login(3)) // there is nothing else to go back to
}

func TestWhatSomebodyElseMadeIsLeftUnlessCompromised(t *testing.T) {
	t.Parallel()
	s := newSwarmed(t, false)
	if err := s.sink().Take(t.Context(), before, open.StillDue); err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= 2; i++ {
		write(t, s.sink(), login(i))
	}
	if err := s.sink().Forget(t.Context(), login(2), false, open.StillDue); err != nil || !slices.Contains(s.secrets(), s.word) {
		t.Fatal(err, s.secrets())
	}
	if err := s.sink().Forget(t.Context(), login(2), true, open.StillDue); err != nil || len(s.secrets()) != 2 {
		t.Fatal(err, s.secrets())
	}
}

func TestServiceThatCannotTakeItIsRefusedWithTheFix(t *testing.T) {
	t.Parallel()
	s := newSwarmed(t, true)
	entries := s.sink().entries
	elsewhere := *entries[1]
	elsewhere.Target = "elsewhere"
	for want, broken := range map[string]*service{
		"docker service update --secret-add source=SECRET,target=elsewhere " + s.service: {s.engine, s.credential, s.service, []*inventory.DockerSecret{entries[0], &elsewhere}},
		"service nobody: ": {s.engine, s.credential, "nobody", entries},
		"Cannot connect":   {docker.NewEngine(inventory.Docker{Host: "unix:///nowhere.sock"}), s.credential, s.service, entries},
		"/no-such-key.pem": {docker.NewEngine(inventory.Docker{Host: "tcp://127.0.0.1:1", CAFile: "/no-such-ca.pem", CertFile: "/no-such-cert.pem", KeyFile: "/no-such-key.pem"}), s.credential, s.service, entries},
	} {
		if strings.HasPrefix(want, "/") {
			want = "/no-such-"
		}
		_, err := broken.Check(t.Context(), login(1))
		if err == nil || !strings.Contains(err.Error(), want) || IsRefusal(err) == strings.HasPrefix(want, "Cannot") || IsPassing(err) != strings.HasPrefix(want, "Cannot") {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	huge := login(1)
	huge.User = strings.Repeat("u", largestSecret+1)
	if _, err := s.sink().Check(t.Context(), huge); !IsRefusal(err) || !strings.Contains(err.Error(), "would have 512000 bytes, and Docker takes 511999") {
		t.Error(err)
	}
}

func TestEachFormatOfASecretHoldsTheLogin(t *testing.T) {
	s := &service{credential: &inventory.Credential{Role: "app", Database: "db", Nodes: []inventory.Node{{Host: "h", Port: 1}}}}
	for want, e := range map[string]inventory.DockerSecret{
		"app_1":                             {Format: inventory.FormatUser},
		"password1":                         {Format: inventory.FormatPassword},
		"postgres://app_1:password1@h:1/db": {Format: inventory.FormatDSN},
		"postgresql://app_1:password1@a:1,b:2/x?sslmode=verify-full": {Format: inventory.FormatDSN, URL: "postgresql://a:1,b:2/x?sslmode=verify-full"},
	} {
		if got, err := s.render(&e, login(1)); err != nil || string(got) != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	if got, err := s.render(&inventory.DockerSecret{Format: inventory.FormatJSON}, login(1)); err != nil || !strings.Contains(string(got), `"generation": 1`) {
		t.Errorf("%s %v", got, err)
	}
}

func TestDockerIsAskedForWhatIsDocumentedAlone(t *testing.T) {
	t.Parallel()
	s := newSwarmed(t, false)
	host, compare := dockertest.Proxy(t, "secret-publisher")
	s.engine = docker.NewEngine(inventory.Docker{Host: host})
	if _, err := s.sink().Check(t.Context(), login(1)); err != nil {
		t.Fatal(err)
	}
	if err := s.sink().Take(t.Context(), before, open.StillDue); err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= 3; i++ {
		write(t, s.sink(), login(i))
	}
	if err := s.sink().Forget(t.Context(), login(3), true, open.StillDue); err != nil {
		t.Fatal(err)
	}
	compare()
}
