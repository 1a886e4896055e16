package store

import "time"

// Rows are the deliveries of one endpoint within one transaction, as the rules of order need them.
// An engine implements Rows once; the functions below are the only code that keeps the order.
type Rows interface {
	// Get returns a delivery; false if there is none, or if its record cannot be read.
	Get(number uint64) (Delivery, bool)
	Put(number uint64, d Delivery)
	// Neighbour returns the nearest delivery of the same call before (-1) or after (+1) a number
	// for which want is true; the number is 0 if there is none.
	Neighbour(number uint64, step int, want func(Delivery) bool) (uint64, Delivery)
	// Err returns the first error of a read or write. A failed read does not mean that there is no
	// delivery, so callers check Err before they commit.
	Err() error
}

// Enqueue stores the delivery of an event that was just appended. It is held while the one
// before it in its call is pending: see behind.
func Enqueue(r Rows, n uint64, expires int64, hold time.Duration) {
	at, before := r.Neighbour(n, -1, Delivery.IsAny)
	var d Delivery
	if at != 0 {
		linkNext(r, at, before, n)
		d = behind(&before, hold)
	}
	d.Expires = expires
	r.Put(n, d)
}

// EnqueueQuestion stores the delivery of an event that endpoints are asked about. It waits for
// nothing, and holds the later deliveries of its call.
func EnqueueQuestion(r Rows, n uint64, expires int64) {
	if at, before := r.Neighbour(n, -1, Delivery.IsAny); at != 0 {
		linkNext(r, at, before, n)
	}
	r.Put(n, Delivery{Due: Asking, Expires: expires})
}

// Record stores a delivery after an attempt or after its expiry, and releases what it held. Claimed
// is the delivery as it was claimed, now its new state.
//
// A success always counts, also the late one of a process that has lost its lane. Anything else
// gives way to a redelivery that was requested since the claim: overruled is then true. Attempts
// are numbered, so recording the same result again changes nothing. A delivery that has been
// removed stays so.
func Record(r Rows, n uint64, claimed, now Delivery, hold time.Duration) (overruled bool) {
	before, ok := r.Get(n)
	if !ok {
		return true
	}
	isTried, isAsked := now.Attempts > claimed.Attempts, before.Redelivered != claimed.Redelivered
	isKnown := before.State != Pending // its expiry, once more
	if isTried {
		isKnown = before.Attempts >= now.Attempts // recorded already, or by another process
	}
	isLateSuccess := now.State == Delivered && before.State != Delivered && !isAsked
	if isKnown && !isLateSuccess {
		return before.State != now.State
	}
	attempts := now.Attempts
	if isKnown {
		attempts = before.Attempts + 1
	}
	if overruled = isAsked && now.State != Delivered; overruled {
		now = before
	}
	now.Attempts, now.Next = attempts, before.Next
	now.Redelivered, now.Request = before.Redelivered, before.Request
	r.Put(n, now)
	release(r, now, hold)
	return overruled
}

// Redeliver makes a delivery pending again, or for the first time. It then holds the later
// deliveries of its call that have not been tried. Request is the number of the redelivery of many
// that requests it, 0 if it is requested alone.
func Redeliver(r Rows, n uint64, now time.Time, hold time.Duration, request uint32) {
	at, before := r.Neighbour(n, -1, Delivery.IsPending)
	d, _ := r.Get(n)
	d = d.asRedelivered(pointer(at, before), now, hold, request)
	d.Next, _ = r.Neighbour(n, +1, Delivery.IsPending)
	r.Put(n, d)
	if at != 0 {
		linkNext(r, at, before, n)
	}
	release(r, d, 0)
}

// LineUp makes a delivery that waits for its time due at once, in the order of events, since an
// endpoint that has begun to fail is only probed. One that is due at once already stays as it is,
// and so does one that its sender has put off.
func LineUp(r Rows, n uint64, now time.Time) {
	d, ok := r.Get(n)
	if !ok || !d.IsDue() || d.Due <= 0 || d.PutOff && d.Due > now.UnixNano() {
		return
	}
	at, before := r.Neighbour(n, -1, Delivery.IsPending)
	d = d.backToQueue(pointer(at, before), now)
	r.Put(n, d)
	if at != 0 {
		linkNext(r, at, before, n)
	}
	release(r, d, 0)
}

// End stores the final state of a delivery that was not tried, and releases what it held.
func End(r Rows, n uint64, d Delivery, hold time.Duration) {
	r.Put(n, d)
	release(r, d, hold)
}

// Release releases what a delivery held that has been or will be removed.
func Release(r Rows, d Delivery, hold time.Duration) { release(r, d, hold) }

// Link stores, in the pending delivery before a pending one in its call, the number of the latter
// as Next.
func Link(r Rows, n uint64) {
	if at, before := r.Neighbour(n, -1, Delivery.IsAny); at != 0 {
		linkNext(r, at, before, n)
	}
}

// release sets the due time of the next delivery of the call after d, if it is pending, as d now
// determines it.
func release(r Rows, d Delivery, hold time.Duration) {
	if d.Next == 0 {
		return
	}
	if next, ok := r.Get(d.Next); ok && next.State == Pending {
		r.Put(d.Next, next.dueAfter(d, hold))
	}
}

// linkNext stores n as the Next of a pending delivery.
func linkNext(r Rows, at uint64, before Delivery, n uint64) {
	if before.State != Pending || before.Next == n {
		return
	}
	before.Next = n
	r.Put(at, before)
}

// pointer returns nil for the number 0, which means no delivery.
func pointer(n uint64, d Delivery) *Delivery {
	if n == 0 {
		return nil
	}
	return &d
}
