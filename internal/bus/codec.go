package bus

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"buf.build/go/protovalidate"
	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	pawlv1 "pawl.dev/proto/pawl/v1"
)

const (
	contentType = "Content-Type"
	protobuf    = "application/protobuf"
)

// Encode validates m against its schema and returns its protobuf form.
func Encode(m proto.Message) ([]byte, error) {
	if err := protovalidate.Validate(m); err != nil {
		return nil, fmt.Errorf("not a valid %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	return proto.Marshal(m)
}

// Decode reads protobuf, or protojson where the content type says so or, in
// its absence, the body begins with "{" (which no protobuf message here can).
// Unknown JSON fields are refused by name; unknown protobuf fields are kept, so
// that an older version can pass on a newer one's events.
func Decode(header nats.Header, body []byte, into proto.Message) error {
	what := into.ProtoReflect().Descriptor().Name()
	if len(body) > MaxEvent {
		return fmt.Errorf("%s of %d bytes: at most %d are accepted", what, len(body), MaxEvent)
	}
	declared := header.Get(contentType)
	asJSON := strings.HasPrefix(declared, "application/json") || declared == "" && bytes.HasPrefix(body, []byte("{"))
	var err error
	if asJSON {
		err = protojson.Unmarshal(body, into)
	} else {
		err = proto.Unmarshal(body, into)
	}
	if err != nil {
		if !asJSON {
			return fmt.Errorf("not a %s: neither protobuf nor JSON (%d bytes)", what, len(body))
		}
		return fmt.Errorf("not a %s: %w", what, err)
	}
	if err := protovalidate.Validate(into); err != nil {
		if invalid := new(protovalidate.ValidationError); errors.As(err, &invalid) {
			return fmt.Errorf("not a valid %s: %s", what, strings.ReplaceAll(strings.TrimPrefix(invalid.Error(), "validation errors:\n - "), "\n - ", "; "))
		}
		return fmt.Errorf("not a valid %s: %w", what, err)
	}
	return nil
}

// DecodeRequest is Decode for a request, whose JSON may name the action shortly:
// {"action": "rotate"} is {"action": "ACTION_ROTATE"}.
func DecodeRequest(header nats.Header, body []byte, into *pawlv1.Request) error {
	if len(body) <= MaxEvent {
		body = shortAction.ReplaceAllFunc(body, func(field []byte) []byte {
			at := bytes.LastIndexByte(field[:len(field)-1], '"') + 1
			return slices.Concat(field[:at], []byte("ACTION_"), bytes.ToUpper(field[at:]))
		})
	}
	return Decode(header, body, into)
}

// shortAction matches the first field of a JSON object that is an action in
// lower case; inside a JSON string its quotes would be escaped.
var shortAction = regexp.MustCompile(`^\s*\{(?:[^"]*"(?:[^"\\]|\\.)*"\s*:\s*(?:"(?:[^"\\]|\\.)*"|[^",{}]*)\s*,)*?\s*"action"\s*:\s*"[a-z]+"`)

func setContentType(m *nats.Msg) {
	if m.Header == nil {
		m.Header = nats.Header{}
	}
	m.Header.Set(contentType, protobuf)
}

// urgentHeader marks the events and wake-ups of urgent flows.
const urgentHeader = "Pawl-Urgent"

// MarkUrgent marks a message as one of an urgent flow.
func MarkUrgent(header nats.Header) { header.Set(urgentHeader, "1") }

// PassUrgency marks a message about the rotation if the rotation is urgent.
func (l Log) PassUrgency(header nats.Header) {
	if Urgent(l.Records[0].Header) {
		MarkUrgent(header)
	}
}

// Urgent reports whether a message is of an urgent flow.
func Urgent(header nats.Header) bool { return header.Get(urgentHeader) != "" }
