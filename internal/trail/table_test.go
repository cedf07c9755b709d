package trail

import "testing"

func TestNoCellOfTheTableIsAFormula(t *testing.T) {
	for cell, want := range map[string]string{"": "", "app": "app", "a=1": "a=1", "=1+1": "'=1+1", "+1": "'+1", "-1": "'-1", "@x": "'@x", " =1": "' =1", "\t=1": "'\t=1", "\r\n@x": "'\r\n@x", "＝1": "'＝1"} {
		if got := plain(cell); got != want {
			t.Errorf("%q is written as %q", cell, got)
		}
	}
}
