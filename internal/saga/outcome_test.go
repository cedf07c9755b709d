package saga

import (
	"errors"
	"slices"
	"testing"
	"time"
)

func TestJoinHidesNoNode(t *testing.T) {
	late := &NotYet{Again: 2 * time.Second, Why: "b is late", Laggards: []string{"b"}}
	later := &NotYet{Again: time.Second, Why: "c is later", Laggards: []string{"c"}}
	lost, wrong := errors.New("a is lost"), Permanentf("d is wrong")
	if err := Join([]error{nil, nil}); err != nil {
		t.Error(err)
	}
	if err := Join([]error{lost, nil, late, wrong}); err.Error() != "a is lost; d is wrong" || !IsPermanent(err) || errors.As(err, new(*NotYet)) {
		t.Errorf("got %v; want both faults, permanent, and no waiting", err)
	}
	if err := Join([]error{lost, late}); err != lost {
		t.Errorf("got %v; want %v", err, lost)
	}
	all := new(NotYet)
	if err := Join([]error{later, nil, late, later}); !errors.As(err, &all) || all.Again != time.Second || all.Why != "b is late; c is later" || !slices.Equal(all.Laggards, []string{"b", "c"}) {
		t.Errorf("got %v; want one wait for both, in one order", err)
	}
}
