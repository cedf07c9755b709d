package trail

import (
	"os"
	"testing"
)

// TestAnotherSigningKeyLeavesOldSignaturesGood puts the signing key aside, as when
// it is replaced.
func TestAnotherSigningKeyLeavesOldSignaturesGood(t *testing.T) {
	a := filled(t)
	if again := must(CreateKeys(a.keysDir)); again != nil {
		t.Fatalf("overwrote %v", again)
	}
	if err := os.Remove(signingFile(a.keysDir)); err != nil {
		t.Fatal(err)
	}
	must(CreateKeys(a.keysDir))
	old := a.keys
	a.signer, a.keys = must(LoadSigner(a.keysDir)), must(LoadKeys(PublicFile(a.keysDir)))
	a.sign()
	if result, err := a.verify(); err != nil || result.Records != 13 || result.Checkpoints != 4 {
		t.Errorf("%+v, %v", result, err)
	}
	a.keys = old
	_, err := a.verify()
	wants(t, err, 13, "which is no key that is trusted here")
}
