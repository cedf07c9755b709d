package rotator

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestWhoAsksDuringARunIsAnsweredByTheNextOne: what a run has seen is too old for who
// asks after its beginning.
func TestWhoAsksDuringARunIsAnsweredByTheNextOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		runs := 0
		j := joint[int, int]{most: together, within: time.Minute, run: func(_ context.Context, questions []int) ([]int, error) {
			runs++
			mine := runs
			time.Sleep(time.Second)
			for i := range questions {
				questions[i] = mine
			}
			return questions, nil
		}}
		var all sync.WaitGroup
		var mu sync.Mutex
		by := map[int]int{}
		ask := func() {
			run, err := j.ask(t.Context(), 0)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			by[run]++
		}
		all.Go(ask)
		synctest.Wait() // the first run is under way
		for range together + 10 {
			all.Go(ask)
		}
		all.Wait()
		if len(by) != 3 || by[1] != 1 || by[2] != together || by[3] != 10 {
			t.Errorf("answered by run: %v; want one, %d and 10", by, together)
		}
	})
}

func TestRunThatFailsAnswersNobodyAndTheNextOneDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("away")
		answers := []error{broken, nil}
		j := joint[int, int]{most: together, within: time.Minute, run: func(_ context.Context, questions []int) ([]int, error) {
			err := answers[0]
			answers = answers[1:]
			return questions, err
		}}
		if _, err := j.ask(t.Context(), 1); !errors.Is(err, broken) {
			t.Errorf("answered: %v", err)
		}
		if answer, err := j.ask(t.Context(), 2); err != nil || answer != 2 {
			t.Errorf("answered %d, %v", answer, err)
		}
		j.run = func(context.Context, []int) ([]int, error) { return nil, nil }
		if _, err := j.ask(t.Context(), 3); !errors.Is(err, errUnanswered) {
			t.Errorf("no answer is taken for one: %v", err)
		}
	})
}

// TestWhoHasGivenUpIsNotAskedFor: its emergency may have been taken over by another
// process, or be over.
func TestWhoHasGivenUpIsNotAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked [][]int
		j := joint[int, int]{most: together, within: time.Minute, run: func(_ context.Context, questions []int) ([]int, error) {
			asked = append(asked, questions)
			time.Sleep(time.Second)
			return questions, nil
		}}
		var all sync.WaitGroup
		all.Go(func() { _, _ = j.ask(t.Context(), 1) })
		synctest.Wait()
		gaveUp, giveUp := context.WithCancel(t.Context())
		all.Go(func() {
			if _, err := j.ask(gaveUp, 2); !errors.Is(err, context.Canceled) {
				t.Errorf("who has given up is answered: %v", err)
			}
		})
		all.Go(func() { _, _ = j.ask(t.Context(), 3) })
		synctest.Wait()
		giveUp()
		all.Wait()
		if len(asked) != 2 || len(asked[1]) != 1 || asked[1][0] != 3 {
			t.Errorf("asked %v", asked)
		}
	})
}
