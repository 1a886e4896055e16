package store

import "time"

// Rows is what the rules of order see of one transaction: the deliveries of one endpoint. An engine
// implements it once; the functions below are the only place where order is kept.
type Rows interface {
	// Get gives a delivery. It is false where there is none, and where its record cannot be read.
	Get(number uint64) (Delivery, bool)
	Put(number uint64, d Delivery)
	// Neighbour gives the nearest delivery of the same call before (-1) or after (+1) a number of
	// which want is true; the number is 0 if there is none.
	Neighbour(number uint64, step int, want func(Delivery) bool) (uint64, Delivery)
	// Err is the error of the first read or write that failed. A failed read is not the answer
	// "there is none", so a caller looks here before it commits.
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

// EnqueueQuestion stores the delivery of an event that endpoints are asked about: it waits for
// nothing, and holds what comes after it in its call.
func EnqueueQuestion(r Rows, n uint64, expires int64) {
	if at, before := r.Neighbour(n, -1, Delivery.IsAny); at != 0 {
		linkNext(r, at, before, n)
	}
	r.Put(n, Delivery{Due: Asking, Expires: expires})
}

// Record stores what an attempt, or the end of its time, has made of a delivery, and releases what
// it held. Claimed is the delivery as it was claimed, now as it is to be.
//
// A success always counts, also a late one of a process that has lost its lane. Anything else gives
// way to a redelivery that was asked for since the claim: overruled is true then. Attempts are
// numbered, so the same result once more changes nothing. A delivery that is gone stays so.
func Record(r Rows, n uint64, claimed, now Delivery, hold time.Duration) (overruled bool) {
	before, ok := r.Get(n)
	if !ok {
		return true
	}
	isTried, isAsked := now.Attempts > claimed.Attempts, before.Redelivered != claimed.Redelivered
	isKnown := before.State != Pending // the end of its time, once more
	if isTried {
		isKnown = before.Attempts >= now.Attempts // that attempt is recorded, or another process's as this one
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
	r.Put(n, now)
	release(r, now, hold)
	return overruled
}

// Redeliver makes a delivery pending again, or for the first time, and holds what comes after it in
// its call and has not been tried yet.
func Redeliver(r Rows, n uint64, now time.Time, hold time.Duration) {
	at, before := r.Neighbour(n, -1, Delivery.IsPending)
	d, _ := r.Get(n)
	d = d.asRedelivered(pointer(at, before), now, hold)
	d.Next, _ = r.Neighbour(n, +1, Delivery.IsPending)
	r.Put(n, d)
	if at != 0 {
		linkNext(r, at, before, n)
	}
	release(r, d, 0)
}

// LineUp makes a delivery that waits for its time due at once, in the order of events, as an
// endpoint that has begun to fail is only probed. One that is due at once already stays as it is.
func LineUp(r Rows, n uint64, now time.Time) {
	d, ok := r.Get(n)
	if !ok || !d.IsDue() || d.Due <= 0 {
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

// End stores the last state of a delivery that was not tried, and releases what it held.
func End(r Rows, n uint64, d Delivery, hold time.Duration) {
	r.Put(n, d)
	release(r, d, hold)
}

// Release lets go what a delivery held that is gone, or is going to be removed.
func Release(r Rows, d Delivery, hold time.Duration) { release(r, d, hold) }

// Link notes at the delivery before a pending one in its call, if that is pending too, what comes
// after it.
func Link(r Rows, n uint64) {
	if at, before := r.Neighbour(n, -1, Delivery.IsAny); at != 0 {
		linkNext(r, at, before, n)
	}
}

// release gives the delivery that comes after d in its call, if it is pending, the due time that
// follows from how d stands now.
func release(r Rows, d Delivery, hold time.Duration) {
	if d.Next == 0 {
		return
	}
	if next, ok := r.Get(d.Next); ok && next.State == Pending {
		r.Put(d.Next, next.dueAfter(d, hold))
	}
}

// linkNext notes at a pending delivery that n comes after it in its call.
func linkNext(r Rows, at uint64, before Delivery, n uint64) {
	if before.State != Pending || before.Next == n {
		return
	}
	before.Next = n
	r.Put(at, before)
}

// pointer gives nil for the number 0, which is no delivery's.
func pointer(n uint64, d Delivery) *Delivery {
	if n == 0 {
		return nil
	}
	return &d
}
