package sink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"

	"pawl.dev/internal/docker"
	"pawl.dev/internal/effect"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/published"
)

// largestSecret is what Docker takes, in bytes.
const largestSecret = 500*1024 - 1

// service is a service of Docker Swarm with all that it reads of a credential:
// one update gives it all of that, and nobody ever sees the half. Secrets cannot
// be changed, so each login is one of its own, and the service's references come
// to mean another behind the same files. Docker rolls the tasks by itself.
//
// What a secret holds cannot be read: a label says by fingerprint which login it
// is.
type service struct {
	engine     *docker.Engine
	credential *inventory.Credential
	name       string
	entries    []*inventory.DockerSecret
}

// OfSwarm returns the Swarm services that read a credential's Docker secrets, in
// the order of the configuration.
func OfSwarm(c *inventory.Credential, e *docker.Engine) []Sink {
	var sinks []Sink
	at := map[string]*service{}
	for _, s := range c.Publish {
		if s.DockerSecret == nil {
			continue
		}
		for _, name := range s.DockerSecret.Services {
			if at[name] == nil {
				at[name] = &service{engine: e, credential: c, name: name}
				sinks = append(sinks, at[name])
			}
			at[name].entries = append(at[name].entries, s.DockerSecret)
		}
	}
	return sinks
}

func (s *service) Name() string { return "docker_secret:" + s.name }

func (s *service) Lookup() bool { return false }

// found is a service as it was at one look, and the secrets of the credential.
type found struct {
	swarm.Service
	references []*swarm.SecretReference // one of each entry
	versions   []swarm.Secret           // all that say whose they are, referenced or not
}

func (s *service) look(ctx context.Context) (f found, err error) {
	f.Service, err = request(ctx, s.engine, "inspect service", s.name, func(ctx context.Context, api *client.Client) (swarm.Service, error) {
		now, _, err := api.ServiceInspectWithRaw(ctx, s.name, swarm.ServiceInspectOptions{})
		return now, err
	})
	if err != nil {
		return f, fmt.Errorf("service %s: %w", s.name, err)
	}
	container := f.Spec.TaskTemplate.ContainerSpec
	if container == nil {
		return f, refuse("service %s runs no containers", s.name)
	}
	for _, e := range s.entries {
		i := slices.IndexFunc(container.Secrets, func(r *swarm.SecretReference) bool { return r.File != nil && r.File.Name == e.Target })
		if i < 0 {
			return f, refuse("service %s has no secret at /run/secrets/%s: give it the one that holds the present login, once: docker service update --secret-add source=SECRET,target=%s %s", s.name, e.Target, e.Target, s.name)
		}
		f.references = append(f.references, container.Secrets[i])
	}
	f.versions, err = request(ctx, s.engine, "list secrets", s.name, func(ctx context.Context, api *client.Client) ([]swarm.Secret, error) {
		return api.SecretList(ctx, swarm.SecretListOptions{Filters: filters.NewArgs(filters.Arg("label", published.LabelCredential+"="+s.credential.Name))})
	})
	return f, err
}

// version returns the secret of that id, if it says whose it is.
func (f found) version(id string) *swarm.Secret {
	i := slices.IndexFunc(f.versions, func(v swarm.Secret) bool { return v.ID == id })
	if i < 0 {
		return nil
	}
	return &f.versions[i]
}

// content is the one login that all references mean.
func (f found) content() (held Content, err error) {
	for _, r := range f.references {
		v := f.version(r.SecretID)
		switch {
		case v == nil:
			return held, fmt.Errorf("secret %s of service %s: nobody can read what it holds, and nothing on it says whose it is: pawl adopt takes it for the login that it adopts", r.SecretName, f.Spec.Name)
		case held.Fingerprint != "" && held.Fingerprint != v.Spec.Labels[published.LabelFingerprint]:
			return held, fmt.Errorf("the secrets %s and %s of service %s are of different logins", f.references[0].SecretName, r.SecretName, f.Spec.Name)
		}
		held.Fingerprint = v.Spec.Labels[published.LabelFingerprint]
	}
	return held, nil
}

// updating reports whether Docker is at work on the service. An update that cuts
// another short may leave two tasks in the place of one, which the next one mends.
func (f found) updating() bool {
	return f.UpdateStatus != nil && (f.UpdateStatus.State == swarm.UpdateStateUpdating || f.UpdateStatus.State == swarm.UpdateStateRollbackStarted)
}

func (f found) holds(want Content) bool {
	held, err := f.content()
	return err == nil && want.in([]Content{held}) == nil
}

func (s *service) Read(ctx context.Context) ([]Content, error) {
	now, err := s.look(ctx)
	if err != nil {
		return nil, err
	}
	held, err := now.content()
	return []Content{held}, err
}

// Held returns what each reference means, and an unknown login for a secret that
// does not say whose it is.
func (s *service) Held(ctx context.Context) ([]Content, error) {
	now, err := s.look(ctx)
	return now.held(), err
}

func (f found) held() (held []Content) {
	for _, r := range f.references {
		c := Content{}
		if v := f.version(r.SecretID); v != nil {
			c.Fingerprint = v.Spec.Labels[published.LabelFingerprint]
		}
		held = append(held, c)
	}
	return held
}

func (s *service) Check(ctx context.Context, want Content) (warnings []string, err error) {
	for _, e := range s.entries {
		if _, err := s.render(e, want); err != nil {
			return nil, err
		}
	}
	now, err := s.look(ctx)
	if err != nil {
		return nil, err
	}
	if now.updating() {
		warnings = append(warnings, fmt.Sprintf("service %s is being updated (%s): the next update would end that", s.name, now.UpdateStatus.State))
	}
	if mode := now.Spec.Mode.Replicated; mode != nil && mode.Replicas != nil && *mode.Replicas == 1 && (now.Spec.UpdateConfig == nil || now.Spec.UpdateConfig.Order != swarm.UpdateOrderStartFirst) {
		warnings = append(warnings, fmt.Sprintf("the one task of service %s is stopped before its successor starts, and away meanwhile: docker service update --update-order start-first %s", s.name, s.name))
	}
	return warnings, nil
}

// attempts is how often an update is tried anew where others update the service,
// too.
const attempts = 5

// Write looks, and updates what it saw or nothing: Docker refuses the update of a
// service that is not at the version that was looked at.
func (s *service) Write(ctx context.Context, want Content, guard Guard) (changed bool, err error) {
	for range attempts {
		now, err := s.look(ctx)
		if err != nil || now.holds(want) {
			return false, err
		}
		if err := guard.Admit(now.held()); err != nil {
			return false, err
		}
		if err := guard.Backup(ctx, now.describe()); err != nil {
			return false, err
		}
		if err := guard.StillDue(ctx); err != nil {
			return false, err
		}
		var next []*swarm.SecretReference
		for i, e := range s.entries {
			r, err := s.reference(ctx, now, e, want)
			if err != nil {
				return false, err
			}
			next = append(next, &swarm.SecretReference{File: now.references[i].File, SecretID: r.SecretID, SecretName: r.SecretName})
		}
		if err := guard.StillDue(ctx); err != nil {
			return false, err
		}
		err = s.update(ctx, now, next)
		if !outOfSequence(err) {
			return err == nil, err
		}
	}
	return false, fmt.Errorf("service %s: somebody else was first with an update, %d times", s.name, attempts)
}

// describe is what a person needs to put the references back by hand.
func (f found) describe() []byte {
	var text strings.Builder
	for _, r := range f.references {
		fmt.Fprintf(&text, "source=%s,target=%s\n", r.SecretName, r.File.Name)
	}
	return []byte(text.String())
}

// reference finds the secret that holds the login, by its labels, or makes it.
func (s *service) reference(ctx context.Context, now found, e *inventory.DockerSecret, want Content) (r swarm.SecretReference, err error) {
	i := slices.IndexFunc(now.versions, func(v swarm.Secret) bool {
		return v.Spec.Labels[published.LabelSecret] == e.Name && v.Spec.Labels[published.LabelFingerprint] == want.Fingerprint
	})
	if i >= 0 {
		return swarm.SecretReference{SecretID: now.versions[i].ID, SecretName: now.versions[i].Spec.Name}, nil
	}
	data, err := s.render(e, want)
	if err != nil {
		return r, err
	}
	spec := swarm.SecretSpec{Data: data, Annotations: swarm.Annotations{Name: e.Name + "_" + want.Fingerprint, Labels: s.labels(e, want)}}
	spec.Labels[published.LabelRotation] = want.Rotation
	made, err := request(ctx, s.engine, "create secret", e.Name, func(ctx context.Context, api *client.Client) (swarm.SecretCreateResponse, error) {
		return api.SecretCreate(ctx, spec)
	})
	if cerrdefs.IsConflict(err) || cerrdefs.IsAlreadyExists(err) {
		// By another replica, just now; the next attempt finds it by its labels.
		err = fmt.Errorf("%w: unless the next attempt finds it to be Pawl's, rename or remove it", err)
	}
	return swarm.SecretReference{SecretID: made.ID, SecretName: spec.Name}, err
}

func (s *service) labels(e *inventory.DockerSecret, want Content) map[string]string {
	return map[string]string{
		published.LabelCredential:  s.credential.Name,
		published.LabelSecret:      e.Name,
		published.LabelFingerprint: want.Fingerprint,
		published.LabelGeneration:  strconv.FormatUint(want.Generation, 10),
	}
}

func (s *service) render(e *inventory.DockerSecret, want Content) (data []byte, err error) {
	switch {
	case e.Format == inventory.FormatUser:
		data = []byte(want.User)
	case e.URL != "":
		data = []byte(published.ServerDSN(e.URL).With(want.Login))
	default:
		data, err = whole{credential: s.credential}.renderFile(nil, &inventory.File{Format: e.Format}, want)
	}
	if err != nil {
		return nil, refuse("docker_secret %s: %w", e.Name, err)
	}
	if len(data) > largestSecret {
		return nil, refuse("docker_secret %s: would have %d bytes, and Docker takes %d", e.Name, len(data), largestSecret)
	}
	return data, nil
}

// update has the service mean other secrets. All else it was stays, and so does
// how its image is fetched from a registry.
func (s *service) update(ctx context.Context, now found, next []*swarm.SecretReference) error {
	spec := now.Spec
	container := *spec.TaskTemplate.ContainerSpec
	container.Secrets = slices.Clone(container.Secrets)
	for i, r := range container.Secrets {
		if at := slices.Index(now.references, r); at >= 0 {
			container.Secrets[i] = next[at]
		}
	}
	spec.TaskTemplate.ContainerSpec = &container
	answer, err := request(ctx, s.engine, "update service", s.name, func(ctx context.Context, api *client.Client) (swarm.ServiceUpdateResponse, error) {
		return api.ServiceUpdate(ctx, now.ID, now.Version, spec, swarm.ServiceUpdateOptions{RegistryAuthFrom: swarm.RegistryAuthFromSpec})
	})
	for _, w := range answer.Warnings {
		effect.Warn(ctx, "service %s: %s", s.name, w)
	}
	return err
}

// Take labels what the service refers to as the adopted login. Nobody can read
// whether it is: what speaks for it is that the application is at work with it,
// and that a rotation which fails puts back the same secret, whatever it holds.
func (s *service) Take(ctx context.Context, want Content, stillDue func(context.Context) error) error {
	now, err := s.look(ctx)
	if err != nil {
		return err
	}
	for i, r := range now.references {
		e := s.entries[i]
		if v := now.version(r.SecretID); v != nil && (v.Spec.Labels[published.LabelRotation] != "" || v.Spec.Labels[published.LabelFingerprint] == want.Fingerprint) {
			continue // what Pawl made is what its label says, and not to be taken for another
		}
		secret, err := request(ctx, s.engine, "inspect secret", e.Name, func(ctx context.Context, api *client.Client) (swarm.Secret, error) {
			v, _, err := api.SecretInspectWithRaw(ctx, r.SecretID)
			return v, err
		})
		if err != nil {
			return err
		}
		if other := secret.Spec.Labels[published.LabelCredential]; other != "" && other != s.credential.Name {
			return refuse("secret %s of service %s is that of credential %s already: give each credential its own", r.SecretName, s.name, other)
		}
		spec := secret.Spec
		spec.Data, spec.Labels = nil, s.labels(e, want)
		for key, value := range secret.Spec.Labels {
			if _, ours := spec.Labels[key]; !ours {
				spec.Labels[key] = value
			}
		}
		if err := stillDue(ctx); err != nil {
			return err
		}
		_, err = request(ctx, s.engine, "label secret", e.Name, func(ctx context.Context, api *client.Client) (struct{}, error) {
			return struct{}{}, api.SecretUpdate(ctx, secret.ID, secret.Version, spec)
		})
		if err != nil {
			return err
		}
		effect.Warn(ctx, "nobody can read Docker secret %s: it is taken for the adopted login", r.SecretName)
	}
	return nil
}

// Forget removes the secrets of other logins that no service names, nor would
// name after a rollback to its previous spec. Where they are compromised, it first
// sees to it that a rollback of this service has nowhere to go back to; otherwise
// it leaves those that somebody else made.
func (s *service) Forget(ctx context.Context, want Content, compromised bool, stillDue func(context.Context) error) error {
	now, err := s.look(ctx)
	if err != nil {
		return err
	}
	old := slices.DeleteFunc(slices.Clone(now.versions), func(v swarm.Secret) bool {
		ours := slices.ContainsFunc(s.entries, func(e *inventory.DockerSecret) bool { return e.Name == v.Spec.Labels[published.LabelSecret] })
		return !ours || v.Spec.Labels[published.LabelFingerprint] == want.Fingerprint || v.Spec.Labels[published.LabelRotation] == "" && !compromised
	})
	if len(old) == 0 || !now.holds(want) || now.updating() {
		return nil
	}
	if compromised && slices.ContainsFunc(old, func(v swarm.Secret) bool { return names(now.PreviousSpec, v.ID) }) {
		if err := stillDue(ctx); err != nil {
			return err
		}
		if err := s.update(ctx, now, now.references); err != nil { // the previous spec is then this one
			return err
		}
	}
	services, err := request(ctx, s.engine, "list services", s.name, func(ctx context.Context, api *client.Client) ([]swarm.Service, error) {
		return api.ServiceList(ctx, swarm.ServiceListOptions{})
	})
	if err != nil {
		return err
	}
	// After the lists, before the first removal: what a rotation makes that has
	// begun meanwhile is not on them.
	if err := stillDue(ctx); err != nil {
		return err
	}
	var failed []error
	for _, v := range old {
		by := slices.IndexFunc(services, func(o swarm.Service) bool { return names(&o.Spec, v.ID) || names(o.PreviousSpec, v.ID) })
		if by >= 0 {
			if compromised {
				effect.Warn(ctx, "Docker secret %s holds a compromised login, and is kept: service %s names it, or would after a rollback", v.Spec.Name, services[by].Spec.Name)
			}
			continue
		}
		_, err := request(ctx, s.engine, "remove secret", v.Spec.Labels[published.LabelSecret], func(ctx context.Context, api *client.Client) (struct{}, error) {
			return struct{}{}, api.SecretRemove(ctx, v.ID)
		})
		if err != nil && !cerrdefs.IsNotFound(err) {
			failed = append(failed, fmt.Errorf("secret %s: %w", v.Spec.Name, err))
		}
	}
	return errors.Join(failed...)
}

// names reports whether a service's spec refers to a secret.
func names(spec *swarm.ServiceSpec, secret string) bool {
	return spec != nil && spec.TaskTemplate.ContainerSpec != nil &&
		slices.ContainsFunc(spec.TaskTemplate.ContainerSpec.Secrets, func(r *swarm.SecretReference) bool { return r.SecretID == secret })
}
