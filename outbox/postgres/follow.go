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
		look, err := s.lookAtHead(ctx)
		if err != nil {
			continue // whatever needs the database says so
		}
		if look.subscribed != s.shared.now.Load().change {
			_ = s.readSubscriptions(ctx) // the next look tries again
		}
		if look.isNew || s.hasLateLane() {
			s.followOthers()
		}
		if look.counts > maxTally {
			_ = s.addUp(ctx) // likewise
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

// headLook is what a look at the head shows.
type headLook struct {
	isNew      bool  // whether something was stored since the last look
	counts     int   // rows of counts, one more than maxTally at most
	subscribed int64 // the last change of the endpoints of the bridges
}

// lookAtHead looks at the head. If the database was set back, it raises the head.
func (s *Engine) lookAtHead(ctx context.Context) (look headLook, err error) {
	var now headState
	err = s.look(ctx, func(tx *txn) error {
		_, err := tx.queryRow([]any{&now.last, &now.touched, &look.subscribed, &look.counts},
			`SELECT last, touched, subscribed,
			(SELECT count(*) FROM (SELECT FROM tally LIMIT $1) t) FROM head`, maxTally+1)
		return err
	})
	if err != nil {
		return look, err
	}
	s.mu.Lock()
	isBelow := now.last < s.seen.last
	look.isNew = now != s.seen
	if !isBelow {
		s.seen = now
	}
	s.mu.Unlock()
	if isBelow {
		// Without ctx, which ends as soon as the raise is known.
		return look, s.change(context.WithoutCancel(ctx), func(tx *txn) error {
			_, err := tx.prepareAppend(nil) // raises the head
			return err
		})
	}
	return look, nil
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
