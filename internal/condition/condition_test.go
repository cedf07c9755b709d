package condition

import (
	"strings"
	"testing"
)

func TestWarningDoesNotMakeAServiceUnready(t *testing.T) {
	var s Set
	s.Raise(Condition{Name: "disk", Text: "3 days left"})
	if err := s.Err(); err != nil {
		t.Errorf("a warning fails readiness: %v", err)
	}
	s.Raise(Condition{Name: "stream", Object: "PAWL_AUDIT", Failing: true, Text: "refuses writes"})
	if err := s.Err(); err == nil || !strings.Contains(err.Error(), "stream PAWL_AUDIT: refuses writes") || strings.Contains(err.Error(), "disk") {
		t.Errorf("readiness says %v", err)
	}
}

func TestConditionIsToldOnceAndClearedByItsObject(t *testing.T) {
	var s Set
	deaf := Condition{Name: "deaf", Object: "a", Failing: true, Text: "x"}
	if !s.Raise(deaf) || s.Raise(deaf) {
		t.Error("the same condition is new twice, or never")
	}
	s.Raise(Condition{Name: "deaf", Object: "b", Failing: true, Text: "x"})
	if !s.Clear("deaf", "a") || s.Clear("deaf", "a") {
		t.Error("cleared twice, or never")
	}
	if all := s.List(); len(all) != 1 || all[0].Object != "b" {
		t.Errorf("left: %v", all)
	}
	var none *Set
	none.Raise(deaf)
	if none.Clear("deaf", "") || none.Err() != nil || none.List() != nil {
		t.Error("a nil set says something")
	}
}
