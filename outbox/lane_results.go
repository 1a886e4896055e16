package outbox

import (
	"context"
	"slices"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// collect takes the results that the workers have handed in, and logs them.
func (l *lane) collect() {
	l.mu.Lock()
	list, changes := l.ended, l.healthChanges
	l.ended, l.healthChanges = l.freeEnded, nil
	l.ordered.Add(-int64(len(list)))
	l.mu.Unlock()
	var news []telephony.Event
	for i := range list {
		e := &list[i]
		delete(l.callsOut, e.result.Job.Event.Call)
		if e.unmade {
			if e.result.Job.Delivery.Expires != 0 {
				l.expireAt = sooner(l.expireAt, time.Now()) // Expire has passed it over
			}
			l.queue.Release([]uint64{e.result.Job.Number})
			l.stale = true
			if l.withCall && e.isBegun {
				l.calls.leave(e.result.Job.Event.Call)
			}
			continue
		}
		if e.verdict == store.More && l.failing {
			l.lastProbe = e.result.Job.Number - 1 // so that the same job is the next probe
		}
		news = append(news, l.logAttempt(e)...)
		l.add(e.result, e.at)
	}
	for i := range changes {
		news = append(news, l.logHealthChange(&changes[i])...)
	}
	l.publish(news)
	clear(list) // so that what was sent can be collected
	l.freeEnded = list[:0]
}

// add adds a result to those to be recorded; at is when it was ready.
func (l *lane) add(r store.Result, at time.Time) {
	if len(l.results) == 0 {
		l.waiting = at
	}
	l.results = append(l.results, r)
}

// flush starts a commit of the results if it is time, or returns when it will be.
func (l *lane) flush(work context.Context) (at time.Time) {
	if l.recording || len(l.results) == 0 {
		return time.Time{}
	}
	now := time.Now()
	switch {
	case now.Before(l.recordAt) && work.Err() != nil:
		// The grace of the shutdown is over. The deliveries stay pending in the engine, and are
		// tried again after the next start.
		l.results = nil
		return time.Time{}
	case now.Before(l.recordAt):
		return sooner(l.recordAt, now.Add(storeRetryWait))
	case l.ordered.Load() > 0 && len(l.results) < maxOutcomes && now.Before(l.waiting.Add(outcomeWait)):
		return l.waiting.Add(outcomeWait)
	}
	batch := l.results
	l.results, l.freeResults, l.recording = l.freeResults, nil, true
	// Outcomes are recorded also during a shutdown.
	go func() { l.recorded <- recorded{batch, l.queue.Record(context.WithoutCancel(work), batch)} }()
	return time.Time{}
}

func (l *lane) commitEnded(r recorded) {
	now := time.Now()
	l.recording, l.waiting, l.stale = false, now, true
	if r.err != nil {
		// The deliveries stay claimed. If they were tried again at once, a healthy CRM would get
		// them over and over while our disk is full.
		l.setStuck(r.err)
		l.writing.Failed("the outcomes of attempts cannot be recorded", r.err, "attempts", len(r.results))
		l.results = append(r.results, l.results...)
		l.recordAt = now.Add(storeRetryWait)
		return
	}
	l.setStuck(nil)
	l.writing.Recovered("outcomes are recorded again")
	l.recordAt = time.Time{}
	lost, firstLost := 0, ""
	hasEvents := false
	for i := range r.results {
		result := &r.results[i]
		hasEvents = hasEvents || len(result.Events) > 0
		if result.Lost {
			if lost++; lost == 1 {
				firstLost = result.Job.EventID
			}
			continue
		}
		if l.withCall && result.Attempt != nil {
			l.leaveRecorded(result.Job.Event.Call)
		}
		d := &result.Job.Delivery
		if d.Next != 0 || result.Now.State != store.Pending || d.Expires != 0 {
			// It may have held a delivery that has expired, or have expired itself meanwhile.
			l.expireAt = sooner(l.expireAt, now.Add(minExpireGap))
		}
		if result.Attempt == nil && !result.Overruled {
			l.logExpired(&result.Job)
		}
	}
	if lost > 0 {
		// The deliveries stay claimed until the next start. If they were tried again, the CRM would
		// get them over and over.
		l.logger.Error("the outcomes of attempts are lost, since a page of the outbox is damaged; "+
			"they are made again after the next start", "attempts", lost, "event_id", firstLost)
	}
	if hasEvents {
		l.wakeAll()
	}
	clear(r.results) // so that what was sent can be collected
	l.freeResults = r.results[:0]
}

// leaveRecorded ends an attempt of a call once it is recorded, at an endpoint whose sender keeps
// bytes for a call: the next attempt is to begin with those. What was claimed before is claimed
// again.
func (l *lane) leaveRecorded(call string) {
	l.calls.leave(call)
	l.ready = slices.DeleteFunc(l.ready, func(j store.Job) bool {
		isOld := call != "" && j.Event.Call == call
		if isOld {
			l.queue.Release([]uint64{j.Number})
		}
		return isOld
	})
}
