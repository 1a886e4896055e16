package transferapi

import (
	"context"
	"net/http"
	"strconv"
	"time"
)

// Limits on the concurrent reads of one bearer. The request rate alone is not enough: reads share
// the processor with the deliveries, and an answer stays in memory until the caller has read it.
const (
	maxScans   = 1  // scans of the outbox
	maxAnswers = 4  // answers in memory, from the scan until the caller has read them
	maxPolls   = 16 // requests that wait for an event
	// maxSlotWait is how long a request waits for a slot before it is refused.
	maxSlotWait = time.Second
)

// readSlots holds the read slots of one bearer. All its tokens share them.
type readSlots struct{ scans, answers, polls slots }

func newReadSlots() *readSlots {
	return &readSlots{make(slots, maxScans), make(slots, maxAnswers), make(slots, maxPolls)}
}

// slots is a counting semaphore; its capacity is the number of requests that may hold a slot.
type slots chan struct{}

// acquire takes a slot, waiting up to wait for one. It returns false if none is free by then, or if
// ctx ends.
func (s slots) acquire(ctx context.Context, wait time.Duration) bool {
	select {
	case s <- struct{}{}:
		return true
	default:
	}
	if wait <= 0 {
		return false
	}
	timeUp := time.NewTimer(wait)
	defer timeUp.Stop()
	select {
	case s <- struct{}{}:
		return true
	case <-timeUp.C:
	case <-ctx.Done():
	}
	return false
}

func (s slots) release() { <-s }

// tooManyRequests is the answer to a request for which no slot is free.
func tooManyRequests(detail string) answer {
	return answer{problem: &problem{Status: http.StatusTooManyRequests, Detail: detail}, retryAfter: 1}
}

// readHandler returns a handler that reads from the outbox with find. It holds the bearer's scan
// slot only during find, not while the caller reads the answer.
func (a *API) readHandler(find func(r *http.Request) answer) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		a.withReadSlots(w, r, func(scan func(func()) bool) {
			var result answer
			if scan(func() { result = find(r) }) {
				result.write(w)
			}
		})
	}
}

// withReadSlots calls reply while the request holds an answer slot of its bearer. reply passes its
// read of the outbox to scan, which runs it while the request holds a scan slot. If a slot is not
// free within maxSlotWait, withReadSlots answers the request with 429 and, where the scan slot was
// missing, scan returns false.
func (a *API) withReadSlots(w http.ResponseWriter, r *http.Request, reply func(scan func(read func()) bool)) {
	bearer := a.readSlots[caller(r)]
	if !bearer.answers.acquire(r.Context(), maxSlotWait) {
		tooManyRequests("Too many answers to this token are under way: take them before you ask for more.").write(w)
		return
	}
	defer bearer.answers.release()
	reply(func(read func()) bool {
		if !bearer.scans.acquire(r.Context(), maxSlotWait) {
			tooManyRequests(
				"Another request with this token is looking through the outbox: one can at a time.",
			).write(w)
			return false
		}
		defer bearer.scans.release()
		read()
		return true
	})
}

// okAnswer is a 200 with a body.
func okAnswer(body any) answer { return answer{status: http.StatusOK, body: encodeJSON(body)} }

// problemAnswer is an answer with a problem.
func problemAnswer(p problem) answer { return answer{problem: &p} }

// setRetryAfter sets Retry-After in seconds.
func setRetryAfter(w http.ResponseWriter, seconds int) {
	w.Header().Set("Retry-After", strconv.Itoa(seconds))
}
