package postgres

import (
	"context"
	"time"

	"pzbridge/internal/sleep"
	"pzbridge/internal/telephony"
)

// follow looks for what other processes have stored, until ctx ends, and adds the counts up.
func (s *Engine) follow(ctx context.Context) {
	swept := time.Now() // when the endpoints of bridges that are gone were removed
	for sleep.For(ctx, s.poll) {
		isNew, counts, err := s.lookAtHead(ctx)
		if err != nil {
			continue // whatever needs the database says so
		}
		if isNew || s.hasLateLane() {
			s.followOthers()
		}
		if counts > maxTally {
			_ = s.addUp(ctx) // the next look tries again
		}
		_ = s.keepDoubt(ctx) // likewise
		if time.Since(swept) > time.Minute {
			swept = time.Now()
			_ = s.endSubscriptions(ctx) // likewise
		}
	}
}

// headState is what shows that another process has stored something.
type headState struct{ last, touched int64 }

// lookAtHead reports whether something was stored since the last look, and how many rows of counts
// there are, one more than maxTally at most.
func (s *Engine) lookAtHead(ctx context.Context) (isNew bool, counts int, err error) {
	var now headState
	err = s.look(ctx, func(tx *txn) error {
		_, err := tx.queryRow([]any{&now.last, &now.touched, &counts}, `SELECT last, touched,
			(SELECT count(*) FROM (SELECT FROM tally LIMIT $1) t) FROM head`, maxTally+1)
		return err
	})
	if err != nil {
		return false, 0, err
	}
	s.mu.Lock()
	isNew, isBelow := now != s.seen, now.last < s.seen.last
	if !isBelow {
		s.seen = now
	}
	s.mu.Unlock()
	if isBelow {
		// Without ctx, which ends as soon as the raise is known.
		return true, counts, s.change(context.WithoutCancel(ctx), func(tx *txn) error {
			_, err := tx.prepareAppend(nil) // raises the head
			return err
		})
	}
	return isNew, counts, nil
}

// sawHead notes the number of the last event that a transaction of this process has committed.
func (s *Engine) sawHead(last int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen.last = max(s.seen.last, last)
}

// raisedBy is by how much the numbers go beyond what was seen of a database that was set back.
const raisedBy = 1_000_000

// ErrSetBack means that the database has an earlier state than this process has seen: a standby
// that was behind has become the primary, or a backup was restored.
var ErrSetBack = &telephony.Fault{
	Code: telephony.CodeSetBack,
	Text: "the database has lost what was stored last, as after a fail-over to a standby that was behind, or a " +
		"restore; new events are numbered from beyond that on",
}

// aboveSeen returns the number of the last event, or one beyond all that this process has seen if
// the database was set back: no number may be used twice.
func (s *Engine) aboveSeen(last int64) (number int64, isRaised bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if last >= s.seen.last {
		return last, false
	}
	return s.seen.last + raisedBy, true
}
