package recordings

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

const (
	// attemptTime bounds an attempt: an hour of wav is 58 MB, and lines are slow.
	attemptTime = 20 * time.Minute
	// maxSize is the largest file in bytes: nine hours of wav.
	maxSize = 512 << 20
	// settle is how long a file must keep its size to count as whole.
	settle = 3 * time.Second
	// settledAfter is the age of a call after which its file is not written to any more.
	settledAfter = 10 * time.Minute
	// patience is how long a host is waited for that cannot be reached, or refuses a file.
	patience = 72 * time.Hour
	// localWait is the wait after a file could not be stored.
	localWait = time.Minute
)

// looks are the ages of a call at which its file is looked for: exchanges write it late, and some
// convert it first.
var looks = []time.Duration{
	5 * time.Second, 30 * time.Second, 2 * time.Minute, 10 * time.Minute, time.Hour, 2 * time.Hour, 6 * time.Hour,
}

// laterLook is the wait between two looks after the last of these, for a file that cannot be
// fetched and may be there.
const laterLook = 2 * time.Hour

// nextLook returns how long to wait for the next look at the file of a call of an age; false if
// there is none left.
func nextLook(age time.Duration) (wait time.Duration, more bool) {
	for _, at := range looks {
		if at > age {
			return at - age, true
		}
	}
	return 0, false
}

// readCall reads the body of an event.
func readCall(body []byte) (telephony.Event, error) {
	var b struct {
		Data struct {
			CallID    string              `json:"call_id"`
			From      string              `json:"from"`
			To        string              `json:"to"`
			Line      string              `json:"line"`
			Direction telephony.Direction `json:"direction"`
			Client    string              `json:"client_number"`
			Extension string              `json:"extension"`
			Internal  bool                `json:"internal"`
			StartedAt time.Time           `json:"started_at"`
			EndedAt   time.Time           `json:"ended_at"`
			Duration  *int64              `json:"duration_seconds"`
			Recording string              `json:"recording_url"`
		} `json:"data"`
	}
	err := json.Unmarshal(body, &b)
	d := &b.Data
	return telephony.Event{
		CallID:       d.CallID,
		From:         d.From,
		To:           d.To,
		Line:         d.Line,
		Client:       d.Client,
		Extension:    d.Extension,
		Internal:     d.Internal,
		Direction:    d.Direction,
		StartedAt:    d.StartedAt,
		EndedAt:      d.EndedAt,
		Duration:     d.Duration,
		RecordingURL: d.Recording,
	}, err
}

// IsFor reports whether an event is that a call with a recording is over: the lane gets no other.
func IsFor(e *store.Event) bool {
	return e.Type == telephony.EventCompleted &&
		bytes.Contains(e.Body, []byte(`"recording_url":`)) // no text holds that: its quotes are escaped
}

// eventID returns the ID of the event that a recording is ready: always the same for a call.
func eventID(of uuid.UUID) uuid.UUID { return uuid.NewSHA1(of, []byte("recording")) }

// Close closes nothing: each file has a connection of its own.
func (k *Keeper) Close() {}

// Send fetches the recording of a call. What it has fetched before, and could not record, is not
// fetched again.
func (k *Keeper) Send(ctx context.Context, j store.Job) store.Outcome {
	age := max(0, time.Since(j.Event.At))
	c, err := readCall(j.Event.Body)
	if err != nil || c.RecordingURL == "" {
		return store.Outcome{Verdict: store.Done, Response: store.NothingToSend + "the call has no recording"}
	}
	id := eventID(j.Event.ID)
	found, err := k.folder.find(id.String())
	switch {
	case errors.Is(err, errGone):
		found, err = k.fetch(ctx, c, id.String(), age)
	case err != nil:
		err = local(err)
	}
	if ctx.Err() != nil {
		return store.Outcome{Verdict: store.CutOff}
	}
	if errors.Is(err, errStopping) {
		return store.Outcome{Verdict: store.Later, RetryAfter: looks[0], Response: err.Error()}
	}
	if err == nil {
		err = k.checkForgotten(ctx, j.EventID, found)
	}
	if err != nil {
		return k.failed(err, max(0, time.Since(j.Event.At)))
	}
	k.failures.Recovered("recordings are stored again")
	return store.Outcome{
		Verdict:  store.Done,
		Response: fmt.Sprintf("%d bytes, %s", found.size, found.kind.mediaType),
		Events:   []telephony.Event{k.ready(c, id, found)},
	}
}

// checkForgotten removes a file if its call was forgotten while it was fetched. Whoever forgets a
// number removes the calls first and the files then, so that none stays.
func (k *Keeper) checkForgotten(ctx context.Context, eventID string, found kept) error {
	if _, err := k.opts.Events.Event(ctx, eventID); errors.Is(err, store.ErrNotFound) {
		return &refusedError{errors.Join(err, remove(found))}
	}
	return nil
}

// ready returns the event that a recording is ready.
func (k *Keeper) ready(e telephony.Event, id uuid.UUID, found kept) telephony.Event {
	e.ID, e.Type, e.Time = id.String(), telephony.EventRecordingReady, time.Now().UTC()
	e.RecordingURL = k.link(found)
	e.Recording = &telephony.Recording{Size: found.size, Type: found.kind.mediaType}
	return e
}

// failed returns what a failure means. None is one of the lane: a host that is away holds up the
// recordings of no other.
func (k *Keeper) failed(err error, age time.Duration) store.Outcome {
	var (
		refused  *refusedError
		absent   *notYetError
		file     *fileError
		unstored *localError
		busyHost *busyError
	)
	o := store.Outcome{Verdict: store.Later, Err: err, RetryAfter: localWait}
	switch {
	case errors.As(err, &refused):
		o.Verdict = store.Refused
		return o
	case errors.As(err, &absent):
		wait, more := nextLook(age)
		if !more {
			o.Verdict = store.Refused
		}
		o.RetryAfter = wait
		return o
	case errors.As(err, &file):
		if o.RetryAfter, _ = nextLook(age); o.RetryAfter == 0 {
			o.RetryAfter = laterLook
		}
	case errors.As(err, &unstored):
		k.failures.Failed("recordings cannot be stored", err)
	case errors.As(err, &busyHost):
		o.RetryAfter = busyHost.wait
	}
	if age > patience {
		o.Verdict = store.Refused
	}
	return o
}

// fetch fetches the file of a call and keeps it.
func (k *Keeper) fetch(ctx context.Context, c telephony.Event, id string, age time.Duration) (kept, error) {
	p, err := k.opts.find(c.RecordingURL)
	if err != nil {
		return kept{}, err
	}
	if age < looks[0] {
		if err := k.pause(ctx, looks[0]-age); err != nil {
			return kept{}, err
		}
	}
	h := k.hosts.get(p.name())
	leave, err := h.enter(ctx)
	if err != nil {
		return kept{}, err
	}
	defer leave()
	began := time.Now()
	attempt, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	part, err := k.transfer(attempt, p, age)
	if part != nil {
		defer discard(part)
	}
	if ctx.Err() != nil || errors.Is(err, errStopping) { // it says nothing of the host
		return kept{}, err
	}
	if err := h.note(p.hide(err), began); err != nil {
		return kept{}, err
	}
	return k.store(ctx, part, p, c, id)
}

// transfer copies a file from its source, once its size stands still.
func (k *Keeper) transfer(ctx context.Context, p place, age time.Duration) (part *os.File, err error) {
	limit := min(maxSize, k.opts.MaxBytes)
	size, err := k.sources.look(ctx, p, limit)
	switch {
	case err != nil:
		return nil, err
	case size == 0:
		return nil, notYet(errAbsent)
	case size > limit:
		return nil, errTooLarge(limit)
	}
	if age < settledAfter {
		if err := k.pause(ctx, settle); err != nil {
			return nil, err
		}
	}
	source, err := k.sources.open(ctx, p)
	if err != nil {
		return nil, err
	}
	defer func() { _ = source.Close() }()
	if part, err = k.folder.part(); err != nil {
		return nil, local(err)
	}
	copied, err := copyTo(part, source, limit)
	switch {
	case err != nil:
		return part, err
	case copied > limit:
		return part, errTooLarge(limit)
	case copied != size || source.size >= 0 && copied != source.size:
		return part, notYet(errGrows)
	}
	return part, checkContent(part, copied, age)
}

// checkContent fails if a file is no whole recording.
func checkContent(part *os.File, size int64, age time.Duration) error {
	head, err := headOf(part)
	switch {
	case err != nil:
		return local(err)
	case isPage(head):
		return notYet(errPage)
	case wavSize(head) > size && age < settledAfter:
		return notYet(errGrows)
	}
	return nil
}

// headOf returns the beginning of a file.
func headOf(f *os.File) ([]byte, error) {
	head := make([]byte, headSize)
	n, err := f.ReadAt(head, 0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return head[:n], err
}

// copyTo copies a source, one byte more than the limit at most. A failed write is a *localError.
func copyTo(part *os.File, source io.Reader, limit int64) (n int64, err error) {
	to := &partWriter{part: part}
	n, err = io.Copy(to, io.LimitReader(source, limit+1))
	if to.err != nil {
		return n, local(to.err)
	}
	return n, err
}

// partWriter remembers that a write has failed, which is no fault of the source.
type partWriter struct {
	part *os.File
	err  error
}

func (w *partWriter) Write(p []byte) (int, error) {
	n, err := w.part.Write(p)
	w.err = err
	return n, err
}

// store keeps what was fetched, as mp3 if it is in another form and can be converted.
func (k *Keeper) store(ctx context.Context, part *os.File, p place, c telephony.Event, id string) (kept, error) {
	head, err := headOf(part)
	if err != nil {
		return kept{}, local(err)
	}
	form := kindOf(head, p.extension())
	if form != mp3 && form != wav && k.opts.Converter != "" {
		converted, err := k.converted(ctx, part)
		if err == nil {
			defer discard(converted)
			part, form = converted, mp3
		} else if ctx.Err() == nil {
			k.opts.Logger.Warn("a recording stays as it is, since ffmpeg cannot convert it",
				"call_id", c.CallID, "err", err)
		}
	}
	found, err := k.folder.keep(part, id, k.people(c), form)
	if err != nil {
		return kept{}, local(err)
	}
	return found, nil
}

// people returns what stands for the numbers of a call in the name of its file: see Keeper.who.
func (k *Keeper) people(c telephony.Event) string {
	var list []string
	for _, number := range []string{c.Client, c.From, c.To} {
		who := k.who(k.opts.NumberKey(number))
		if who != nobody && !slices.Contains(list, who) {
			list = append(list, who)
		}
	}
	if len(list) == 0 {
		return nobody
	}
	return strings.Join(list, "_")
}

// converted returns a file as mp3.
func (k *Keeper) converted(ctx context.Context, from *os.File) (*os.File, error) {
	part, err := k.folder.part()
	if err != nil {
		return nil, err
	}
	if err = convert(ctx, k.opts.Converter, from, part); err == nil {
		var info os.FileInfo
		if info, err = part.Stat(); err == nil && info.Size() == 0 {
			err = errors.New("it has made nothing of it")
		}
	}
	if err != nil {
		discard(part)
		return nil, err
	}
	return part, nil
}

// discard closes a file and removes it, unless it has got its name.
func discard(part *os.File) {
	_ = part.Close()
	_ = os.Remove(part.Name())
}

// errStopping means that the program is being stopped.
var errStopping = errors.New("the bridge is shutting down")

// pause waits for some time. It fails with errStopping, which keeps a shutdown from waiting for it,
// or with the error of ctx.
func (k *Keeper) pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-k.opts.Stopping.Done():
		return errStopping
	case <-ctx.Done():
		return ctx.Err()
	}
}
