package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"
)

// Stored lists the subjects of a stream's messages that match the filter, in no
// order. Of a cluster, its leader answers: it has all that was acknowledged, where
// a read may meet a server that is behind, or cut off. So what concludes from an
// absence asks here. It returns an error where there is no leader.
func (b *Bus) Stored(ctx context.Context, stream, filter string) ([]string, error) {
	s, err := b.Stream(ctx, stream)
	if err != nil {
		return nil, err
	}
	ctx, cancel := Bound(ctx)
	defer cancel()
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(filter))
	if err != nil {
		return nil, fmt.Errorf("what %s holds: %w", stream, err)
	}
	return slices.Collect(maps.Keys(info.State.Subjects)), nil
}

// Last returns the newest message on a subject, decoded into a body if there is one
// to fill, and nil if there is no message. Of a cluster, any server may answer, also
// one that is behind.
func (b *Bus) Last(ctx context.Context, stream, subject string, into proto.Message) (*jetstream.RawStreamMsg, error) {
	s, err := b.Stream(ctx, stream)
	if err != nil {
		return nil, err
	}
	ctx, cancel := Bound(ctx)
	defer cancel()
	m, err := s.GetLastMsgForSubject(ctx, subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, nil
	}
	if err == nil && into != nil {
		err = Decode(m.Header, m.Data, into)
	}
	return m, err
}

// newestFromLeader is the subject of the request for a message of the log that the
// log's leader answers, which the client library makes only of streams without
// direct reads.
const newestFromLeader = "$JS.API.STREAM.MSG.GET." + StreamLog

// Newest returns the rotation and the sequence of the newest event in the
// credential's log, "" and 0 where it is empty. Like Stored it asks the leader: what
// is about to change something that has no fence of its own asks here last.
func (b *Bus) Newest(ctx context.Context, credential string) (rotation string, seq uint64, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("newest event of %s: %w", credential, err)
		}
	}()
	request, err := json.Marshal(map[string]string{"last_by_subj": logOf(credential)})
	if err != nil {
		return "", 0, err
	}
	ctx, cancel := Bound(ctx)
	defer cancel()
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message struct {
			Subject  string `json:"subject"`
			Sequence uint64 `json:"seq"`
		} `json:"message"`
	}
	err = b.Permitted(ctx, func(ctx context.Context) error {
		m, err := b.NATS.RequestWithContext(ctx, newestFromLeader, request)
		if err != nil {
			return err
		}
		return json.Unmarshal(m.Data, &answer)
	}, newestFromLeader)
	switch {
	case err != nil:
		return "", 0, err
	case answer.Error != nil && answer.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return "", 0, nil
	case answer.Error != nil:
		return "", 0, answer.Error
	}
	_, rotation, _, err = ParseLogSubject(answer.Message.Subject)
	return rotation, answer.Message.Sequence, err
}
