package bus

import (
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	pawlv1 "pawl.dev/proto/pawl/v1"
)

// A protobuf message may begin with the bytes of a line feed and a brace.
func TestProtobufThatLooksLikeJSONIsDecodedAsProtobuf(t *testing.T) {
	for n := range 300 {
		want := &pawlv1.Findings{Checks: []*pawlv1.Check{{Finding: strings.Repeat("x", n)}}}
		body, err := Encode(want)
		if err != nil {
			t.Fatal(err)
		}
		got := &pawlv1.Findings{}
		if err := Decode(nil, body, got); err != nil || len(got.GetChecks()) != 1 || len(got.GetChecks()[0].GetFinding()) != n {
			t.Fatalf("%d bytes: %v %v", n, got, err)
		}
	}
}

func TestMalformedRequestNamesTheFault(t *testing.T) {
	for name, c := range map[string]struct {
		header     nats.Header
		body, want string
	}{
		"unknown field":  {nil, `{"acton":"ACTION_ROTATE"}`, `unknown field "acton"`},
		"unknown action": {nil, `{"action":"EXPLODE"}`, `EXPLODE`},
		"cut off":        {nil, `{"action":`, `not a Request`},
		"no protobuf":    {nil, `hello`, `neither protobuf nor JSON`},
		"too long":       {nil, `{"reason":"` + strings.Repeat("x", 2000) + `"}`, `reason`},
		"oversized":      {nil, strings.Repeat(" ", MaxEvent+1), `at most 65536`},
		"JSON declared":  {nats.Header{"Content-Type": {"application/json"}}, "\x0a\x01x", `not a Request`},
	} {
		err := Decode(c.header, []byte(c.body), &pawlv1.Request{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestEmptyBodyIsAnEmptyRequest(t *testing.T) {
	if err := Decode(nil, nil, &pawlv1.Request{}); err != nil {
		t.Error(err)
	}
}

func TestActionMayBeNamedShortly(t *testing.T) {
	for body, want := range map[string]pawlv1.Action{
		`{"action":"rotate"}`: pawlv1.Action_ACTION_ROTATE,
		`{"reason":"the \"action\": \"x\"", "action" : "rollback"}`: pawlv1.Action_ACTION_ROLLBACK,
		`{"action":"ACTION_ADOPT"}`:                                 pawlv1.Action_ACTION_ADOPT,
		`{"reason":"r"}`:                                            pawlv1.Action_ACTION_UNSPECIFIED,
	} {
		request := &pawlv1.Request{}
		if err := DecodeRequest(nil, []byte(body), request); err != nil || request.GetAction() != want {
			t.Errorf("%s: %v %v", body, request.GetAction(), err)
		}
	}
	if err := DecodeRequest(nil, []byte(`{"action":"explode"}`), &pawlv1.Request{}); err == nil || !strings.Contains(err.Error(), "ACTION_EXPLODE") {
		t.Errorf("unknown action: %v", err)
	}
}

func FuzzDecodeEvent(f *testing.F) {
	body, err := Encode(&pawlv1.Event{Summary: "s", Detail: &pawlv1.Event_Requested{Requested: &pawlv1.Requested{Action: pawlv1.Action_ACTION_ROTATE, Flow: "in-place", Generation: 1, Role: "r"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Add([]byte(`{"summary":"s"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		event := &pawlv1.Event{}
		if Decode(nil, body, event) != nil {
			return
		}
		if _, err := Encode(event); err != nil {
			t.Errorf("accepted, but cannot be sent again: %v", err)
		}
	})
}

func FuzzDecodeRequest(f *testing.F) {
	f.Add([]byte(`{"action":"ACTION_ROTATE","reason":"r"}`))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, body []byte) {
		request := &pawlv1.Request{}
		if DecodeRequest(nil, body, request) == nil && len(request.GetReason()) > 4*1024 {
			t.Error("accepted a reason that is too long")
		}
	})
}
