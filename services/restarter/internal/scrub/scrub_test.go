package scrub

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"
)

const canary = "Zk3Qp9Lm2Xv7Bn4Tc8Rw1Ys6Hd5Gf0Ja" // 32 characters, made up for these tests

func TestEveryShapeOfASecretIsTakenOut(t *testing.T) {
	short := "hunter2-short"
	for _, said := range []string{
		"stored SCRAM-SHA-256$4096:" + short + "==$c3RvcmVk:c2VydmVy here",
		"scram-sha-256$4096:" + short,
		"dial postgres://app:" + short + "@127.0.0.1:5432/db failed",
		"dial postgresql://app:p@ss/" + short + "@host/db failed",
		"host=h user=u password=" + short + " dbname=d",
		"host=h password='with space " + short + "' dbname=d",
		`host=h password='it\'s ` + short + `'`,
		"ALTER ROLE app PASSWORD '" + short + "'",
		"RUVECTOR_PASSWORD=" + short,
		"WORKER_PASSWORDS[0]: " + short,
		`{"user":"app","password":"` + short + `"}`,
		"Authorization: Bearer " + short,
		"GET /reload?token=" + short + "&x=1",
		"it is " + canary + short[:0],
		"password=\x1b[31m" + short + "\x1b[0m",
		"it is " + canary[:16] + "\x1b[1m" + canary[16:],
		"key 3q2+7wAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA8=",
	} {
		got := Text(said)
		if strings.Contains(got, short) || strings.Contains(got, canary[:16]) || strings.Contains(got, "3q2+7w") {
			t.Errorf("%q left a secret: %q", said, got)
		}
		if !strings.Contains(got, secret) {
			t.Errorf("%q: nothing shows that a secret was taken out: %q", said, got)
		}
	}
}

func TestOrdinaryOutputStaysReadable(t *testing.T) {
	for _, said := range []string{
		`FATAL: password authentication failed for user "app"`,
		"exit status 3\n\treloading /usr/local/lib/application/releases/current: permission denied",
		"GET http://127.0.0.1:8080/healthz answered 503 Service Unavailable",
		"rotation 0198f7a2-6c1e-7d3b-9a52-0f4b8c6d1e2a",
	} {
		if got := Text(said); got != said {
			t.Errorf("got %q, want %q unchanged", got, said)
		}
	}
}

func TestWhatCannotBeMarshalledIsTakenOut(t *testing.T) {
	if got := Text("a\xff\xfe\x00b\x07\r\n"); got != "ab" || !utf8.ValidString(got) {
		t.Fatalf("got %q", got)
	}
}

func TestASecretCutInHalfIsNotRepeated(t *testing.T) {
	for left := 4; left <= len(canary); left++ { // what the cut leaves of it
		var tail Tail
		fmt.Fprintf(&tail, "begin %s\n", canary)
		fmt.Fprint(&tail, strings.Repeat("x y\n", TailSize)[:TailSize-1-left])
		if got := tail.String(); strings.Contains(got, canary[len(canary)-4:]) {
			t.Fatalf("with %d characters left: %q", left, got)
		}
	}
}

func TestTheTailOfALongOutputIsKept(t *testing.T) {
	var tail Tail
	for i := range 10_000 {
		fmt.Fprintln(&tail, "line", i)
	}
	if got := tail.String(); !strings.HasSuffix(got, "line 9999") || len(got) > TailSize+len("…\n") {
		t.Fatalf("%d bytes, ending %q", len(got), got[max(0, len(got)-20):])
	}
	tail = Tail{}
	fmt.Fprint(&tail, strings.Repeat("a\n", TailSize)+"last") // in a single write
	if got := tail.String(); !strings.HasSuffix(got, "last") {
		t.Fatalf("ending %q", got[max(0, len(got)-20):])
	}
}
