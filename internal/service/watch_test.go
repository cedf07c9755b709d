package service

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// delivered stands for a message of a consumer.
type delivered struct {
	jetstream.Msg
	stored time.Time
	times  uint64
}

func (d delivered) Metadata() (*jetstream.MsgMetadata, error) {
	return &jetstream.MsgMetadata{Timestamp: d.stored, NumDelivered: d.times}, nil
}

// looks is a consumer as the server tells of it at each look.
func looks(t *testing.T, w *watch, infos ...jetstream.ConsumerInfo) (remedies []remedy, deaf, lagging bool) {
	t.Helper()
	now := time.Now()
	for i := range infos {
		now = now.Add(watchEvery)
		remedy, d, l := w.look(&infos[i], now)
		remedies, deaf, lagging = append(remedies, remedy), d.Text != "", l.Text != ""
	}
	return remedies, deaf, lagging
}

func repeated(info jetstream.ConsumerInfo, times int) (all []jetstream.ConsumerInfo) {
	for range times {
		all = append(all, info)
	}
	return all
}

func TestDeafConsumerIsBoundThenReconnectedThenGivenUp(t *testing.T) {
	for name, info := range map[string]jetstream.ConsumerInfo{
		"messages wait":                      {NumPending: 3, NumWaiting: 1},
		"nobody asks for messages":           {},
		"a redelivery that nobody asks for":  {NumAckPending: 1},
		"messages wait and nobody asks":      {NumPending: 3},
		"others' acknowledgements are owing": {NumPending: 3, NumWaiting: 1, NumAckPending: 2},
	} {
		remedies, deaf, _ := looks(t, &watch{}, repeated(info, endAt)...)
		want := map[int]remedy{rebindAt: rebind, reconnectAt: reconnect, endAt: end}
		for i, remedy := range remedies {
			if remedy != want[i+1] {
				t.Errorf("%s: look %d leads to %d, want %d", name, i+1, remedy, want[i+1])
			}
		}
		if !deaf {
			t.Errorf("%s: not called deaf", name)
		}
	}
}

func TestWorkingConsumerIsNotCalledDeaf(t *testing.T) {
	moving := func(change func(i int, info *jetstream.ConsumerInfo)) (all []jetstream.ConsumerInfo) {
		for i := range 2 * endAt {
			info := jetstream.ConsumerInfo{NumPending: 3, NumWaiting: 1}
			change(i, &info)
			all = append(all, info)
		}
		return all
	}
	for name, infos := range map[string][]jetstream.ConsumerInfo{
		"idle":                      repeated(jetstream.ConsumerInfo{NumWaiting: 1}, 2*endAt),
		"idle, with a step to wait": repeated(jetstream.ConsumerInfo{NumWaiting: 1, NumAckPending: 1}, 2*endAt),
		"another replica takes":     moving(func(i int, info *jetstream.ConsumerInfo) { info.Delivered.Stream = uint64(i + 1) }),
		"redeliveries":              moving(func(i int, info *jetstream.ConsumerInfo) { info.Delivered.Consumer = uint64(i + 1) }),
		"paused":                    moving(func(_ int, info *jetstream.ConsumerInfo) { info.Paused = true }),
		"stands now and then":       moving(func(i int, info *jetstream.ConsumerInfo) { info.Delivered.Stream = uint64(i/2 + 1) }),
	} {
		remedies, deaf, _ := looks(t, &watch{}, infos...)
		for i, remedy := range remedies {
			if remedy != leave {
				t.Errorf("%s: look %d leads to %d", name, i+1, remedy)
			}
		}
		if deaf {
			t.Errorf("%s: called deaf", name)
		}
	}
	busy := &watch{}
	defer busy.begin(delivered{times: 1, stored: time.Now()})()
	remedies, deaf, lagging := looks(t, busy, repeated(jetstream.ConsumerInfo{NumPending: 3}, 2*endAt)...)
	if deaf || remedies[endAt] != leave || !lagging {
		t.Errorf("all workers busy: deaf %v, lagging %v, remedies %v", deaf, lagging, remedies)
	}
}

func TestMessagesThatWaitedLongAreToldAsALag(t *testing.T) {
	for _, c := range []struct {
		age            time.Duration
		times, waiting uint64
		lags, failing  bool
	}{
		{age: time.Second, times: 1, waiting: 9},
		{age: time.Minute, times: 1, waiting: 9, lags: true},
		{age: 10 * time.Minute, times: 1, waiting: 9, lags: true, failing: true},
		{age: 10 * time.Minute, times: 2, waiting: 9}, // a step that is tried again
		{age: 10 * time.Minute, times: 1},             // it has caught up
	} {
		w := &watch{}
		w.begin(delivered{stored: time.Now().Add(-c.age), times: c.times})()
		_, _, lagging := w.look(&jetstream.ConsumerInfo{NumPending: c.waiting, NumWaiting: 1}, time.Now())
		if lagging.Text != "" != c.lags || lagging.Failing != c.failing {
			t.Errorf("%+v: %+v", c, lagging)
		}
	}
}
