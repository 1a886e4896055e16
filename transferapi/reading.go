package transferapi

import (
	"context"
	"net/http"
	"strconv"
	"time"
)

// What one bearer's reading may take of the bridge at a time. Its rate alone bounds nothing: the bearers share the processor with the deliveries, and an answer
// stays in memory until it is taken.
const (
	maxScans   = 1  // looks through the outbox's file
	maxAnswers = 4  // answers under way, from the look on until the caller has taken them
	maxPolls   = 16 // reads that wait for an event
	// maxTurn is how long a request waits for its turn before it is refused.
	maxTurn = time.Second
)

// reader holds the places of one bearer. All tokens of a bearer share them.
type reader struct{ scans, answers, polls places }

func newReader() *reader {
	return &reader{make(places, maxScans), make(places, maxAnswers), make(places, maxPolls)}
}

// places are what a number of requests at most may hold at a time.
type places chan struct{}

// take waits for a place, up to a time. It is false if there was none, or if ctx ended.
func (p places) take(ctx context.Context, wait time.Duration) bool {
	select {
	case p <- struct{}{}:
		return true
	default:
	}
	if wait <= 0 {
		return false
	}
	timeUp := time.NewTimer(wait)
	defer timeUp.Stop()
	select {
	case p <- struct{}{}:
		return true
	case <-timeUp.C:
	case <-ctx.Done():
	}
	return false
}

func (p places) giveBack() { <-p }

// refused is the answer to a request for which there is no place.
func refused(detail string) answer {
	return answer{problem: &problem{Status: http.StatusTooManyRequests, Detail: detail}, retryAfter: 1}
}

// reading makes a handler of what looks something up in the outbox: it waits for its turn, and the look is over before the caller takes the answer.
func (a *API) reading(look func(r *http.Request) answer) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		a.inTurn(w, r, func(scan func(func()) bool) {
			var found answer
			if scan(func() { found = look(r) }) {
				found.write(w)
			}
		})
	}
}

// inTurn has a request answered when there is a place for its answer, which it keeps until it returns. What scan is given looks through the outbox when it is its
// turn. Where that does not come in time, the request is refused: scan is false then, and nothing is left to be answered.
func (a *API) inTurn(w http.ResponseWriter, r *http.Request, reply func(scan func(look func()) bool)) {
	bearer := a.readers[caller(r)]
	if !bearer.answers.take(r.Context(), maxTurn) {
		refused("Too many answers to this token are under way: take them before you ask for more.").write(w)
		return
	}
	defer bearer.answers.giveBack()
	reply(func(look func()) bool {
		if !bearer.scans.take(r.Context(), maxTurn) {
			refused("Another request with this token is looking through the outbox: one can at a time.").write(w)
			return false
		}
		defer bearer.scans.giveBack()
		look()
		return true
	})
}

// found is an answer with what was looked up.
func found(body any) answer { return answer{status: http.StatusOK, body: encodeJSON(body)} }

// failed is an answer that tells of a problem.
func failed(p problem) answer { return answer{problem: &p} }

// setRetryAfter says in how many seconds a request may be made again.
func setRetryAfter(w http.ResponseWriter, seconds int) {
	w.Header().Set("Retry-After", strconv.Itoa(seconds))
}
