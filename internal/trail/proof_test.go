package trail

import "testing"

func TestRecordIsProvedToBeInTheNewestCheckpoint(t *testing.T) {
	a := filled(t)
	for sequence := range uint64(12) {
		p := must(Prove(Live(t.Context(), a.operator, a.keys), "PAWL_NOTE", sequence+1))
		if p.Record.GetSequence() != sequence+1 || p.Checkpoint.Size != 12 {
			t.Errorf("proof of %d in %d", p.Record.GetSequence(), p.Checkpoint.Size)
		}
		p.Record.Body = changed(message{p.Record.Subject, p.Record.Body}).data
		wants(t, p.Check(), int64(sequence), "is not among the records of the checkpoint of 12")
	}
	_, err := Prove(Live(t.Context(), a.operator, a.keys), "PAWL_NOTE", 13)
	wants(t, err, 12, "is covered by no checkpoint yet")
	if _, err := Prove(Live(t.Context(), a.operator, a.keys), "PAWL_NOTE", 14); err == nil || err.Error() != "message 14 of PAWL_NOTE has no record" {
		t.Errorf("got %v", err)
	}
}
