package main

import (
	"maps"
	"testing"
	"time"
)

func TestQuantileIsTheNearestRank(t *testing.T) {
	var c cell
	for i := range 100 {
		c.took = append(c.took, time.Duration(i+1)*time.Millisecond)
	}
	for q, want := range map[float64]float64{0: 1, .5: 50, .99: 99, 1: 100} {
		if got := c.quantile(q); got != want {
			t.Errorf("quantile %v is %v; want %v", q, got, want)
		}
	}
	if got := median([]float64{9, 1, 4, 2}); got != 3 {
		t.Errorf("the median is %v; want 3", got)
	}
}

// What is mistaken for a change of a password, or missed, would flatter Pawl.
func TestTapTellsTheAltersApart(t *testing.T) {
	a := asked{}
	a.login("user\x00postgres\x00database\x00postgres\x00\x00")
	a.login("database\x00postgres\x00user\x00app_b\x00\x00")
	for _, statement := range []string{
		`ALTER ROLE "app_b" LOGIN PASSWORD  E'SCRAM-SHA-256$4096:…'`,
		`ALTER ROLE "app_b" NOLOGIN PASSWORD NULL`, `ALTER ROLE "app" NOLOGIN`, `ALTER ROLE "app_b" SET "role" TO 'app'`,
		`CREATE ROLE "app_b" NOLOGIN`, "COMMIT", "SELECT 1",
	} {
		a.message('P', "\x00"+statement+"\x00\x00\x00")
		a.message('B', "\x00")
		a.message('S', "")
	}
	a.message('Q', "ROLLBACK\x00")
	want := asked{passwordsRow: 1, otherAltersRow: 3, createsRow: 1, loginsRow: 1, sessionsRow: 1, commitsRow: 1, statementsRow: 8, roundTripsRow: 8}
	if !maps.Equal(a, want) {
		t.Errorf("got %+v; want %+v", a, want)
	}
}
