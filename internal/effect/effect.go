// Package effect wraps every change that a step makes to the world, and every
// look at it that takes time: Do gives each one a span, a line in the event
// that the step will emit, and two points at which the crash tests kill the
// service. What is not wrapped here is neither seen nor tested.
package effect

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/fault"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Recorder collects the effects of one attempt at one step. It is safe for
// concurrent use.
type Recorder struct {
	Credential string
	Step       string

	mu         sync.Mutex
	operations []*pawlv1.Operation
	warnings   []string
}

type key struct{}

// With returns a context whose effects are recorded in r.
func With(ctx context.Context, r *Recorder) context.Context { return context.WithValue(ctx, key{}, r) }

func from(ctx context.Context) *Recorder {
	if r, ok := ctx.Value(key{}).(*Recorder); ok {
		return r
	}
	return &Recorder{}
}

// Do runs one effect. name is what is done ("alter role", low cardinality),
// target is to what ("coordinator", "dotenv:/srv/.env"). Neither may hold a
// secret; nor may the error, whose text goes into the span and the event.
func Do(ctx context.Context, name, target string, run func(context.Context) error) error {
	r := from(ctx)
	// The provider of the span above: in one process with the others, each
	// service still traces under its own name.
	tracer := trace.SpanFromContext(ctx).TracerProvider().Tracer("pawl.dev/internal/effect")
	ctx, span := tracer.Start(ctx, name, trace.WithAttributes(attribute.String("pawl.target", target)))
	defer span.End()

	fault.Point(r.Credential, fmt.Sprintf("%s.%s(%s).before", r.Step, name, target))
	began := time.Now()
	err := run(ctx)
	took := time.Since(began)
	fault.Point(r.Credential, fmt.Sprintf("%s.%s(%s).after", r.Step, name, target))

	op := &pawlv1.Operation{Name: name, Target: target, StartedAt: timestamppb.New(began), Duration: durationpb.New(took)}
	if err != nil {
		op.Error = err.Error()
		span.SetStatus(codes.Error, err.Error())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.operations = append(r.operations, op)
	return err
}

// Warn records something that a person should read and that does not stop the
// step.
func Warn(ctx context.Context, format string, args ...any) {
	r := from(ctx)
	text := fmt.Sprintf(format, args...)
	trace.SpanFromContext(ctx).AddEvent(text)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.warnings = append(r.warnings, text)
}

// Operations returns what was done so far, in order of ending.
func (r *Recorder) Operations() []*pawlv1.Operation {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.operations
}

// Warnings returns what was warned of so far.
func (r *Recorder) Warnings() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.warnings
}
