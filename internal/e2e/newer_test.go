package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// What the Pawl after this one has: a flow with an event that this one does not
// know, and alternating credentials begin by it.
const (
	newerFlow              = saga.Alternating + "-2"
	rehearsed   saga.Event = "rehearsed"
	rehearseRow            = `{Name: "rehearse", Owner: Verifier, Emits: "rehearsed", Fails: "rehearse-failed", Deadline: 1 * time.Minute, Does: "try it once more"},`
	rehearse               = `"rehearse": func(context.Context, *service.Rotation) (*pawlv1.Event, error) { return &pawlv1.Event{Summary: "it would work"}, nil }`
)

// buildNewer compiles the services and the command line of it: this one's, where
// edits lie over two of the files.
func buildNewer(t *testing.T) (binaries string) {
	t.Helper()
	dir := t.TempDir()
	over := map[string]string{}
	for file, edit := range map[string]func(string) (string, error){
		"../saga/flow.go":                    addFlow,
		"../../services/verifier/app/app.go": addStep,
	} {
		path, err := filepath.Abs(file)
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		edited, err := edit(string(text))
		if err != nil {
			t.Fatalf("%s no longer reads as the newer version is made from it: %v", path, err)
		}
		over[path] = filepath.Join(dir, filepath.Base(filepath.Dir(path))+".go")
		write(t, over[path], edited)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": over})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "overlay.json"), string(overlay))
	binaries = t.TempDir()
	if err := site.Build(t.Context(), binaries, []string{"-overlay", filepath.Join(dir, "overlay.json")}, "pawl.dev/cmd/pawl"); err != nil {
		t.Fatal(err)
	}
	return binaries
}

// addFlow changes the alternating flow as a developer is to: a copy of it, under
// its own name, has the further step.
func addFlow(text string) (string, error) {
	const begins, next, retire = "\t{\n\t\tName: Alternating,", "\t{\n\t\tName: InPlace,", `{Name: "retire", `
	before, after, found := strings.Cut(text, next)
	_, flow, begun := strings.Cut(before, begins)
	if !found || !begun || strings.Count(flow, retire) != 1 {
		return "", errors.New("the alternating flow is not found")
	}
	flow = strings.Replace(flow, retire, rehearseRow+"\n"+retire, 1)
	return before + "{\nName: \"" + newerFlow + "\"," + flow + next + after, nil
}

func addStep(text string) (string, error) {
	const confirm = `"confirm": a.confirm`
	if strings.Count(text, confirm) != 1 {
		return "", errors.New("the step confirm is not found")
	}
	return strings.Replace(text, confirm, confirm+", "+rehearse, 1), nil
}

// unrehearsed is the log of a rotation by the newer flow as this version knows it.
func unrehearsed(log bus.Log) bus.Log {
	if len(log.Records) == 0 || log.Records[0].Body.GetRequested().GetFlow() != newerFlow {
		return log
	}
	log.Records = slices.DeleteFunc(slices.Clone(log.Records), func(r bus.Record) bool { return r.Event == rehearsed })
	first := &log.Records[0]
	first.Body = proto.Clone(first.Body).(*pawlv1.Event)
	first.Body.GetRequested().Flow = saga.Alternating
	return log
}
