// Package recordings fetches the recordings of calls from where the exchange keeps them, and serves
// them by links that work without a token.
//
//	call.completed ─► a lane of the outbox ─► Send: fetch ─► a file in the folder
//	                                                     └► call.recording_ready, with the link
//
// The lane waits, retries and goes on after a restart: Keeper is its Sender. The file is what is
// remembered of a recording: its name holds the ID of the event, and hashes of the call's numbers.
package recordings

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/repeat"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// Lane is the name of the endpoint whose events are the calls with a recording.
const Lane = store.InnerMark + "recordings"

// Options configures a Keeper.
type Options struct {
	Dir       string        // where the files are kept; shared, if several bridges share the outbox
	From      Allowed       // from where they are fetched; nothing is, if nothing is allowed
	Map       Rewrites      // of the addresses that the exchange names
	Retention time.Duration // how long a file is kept after it was fetched
	MaxBytes  int64         // of all files; the oldest make room for a new one
	// PublicURL is where CRMs reach the API, without a slash at its end. Empty: there are no links.
	PublicURL string
	Converter string // the path of ffmpeg, which makes mp3 of other forms; empty leaves them as they are
	// Key signs the links, and hides numbers in the names of files.
	Key []byte
	// NumberKey returns what is equal for all spellings of a number: see store.Rules.NumberKey.
	NumberKey func(number string) string
	Events    Events
	Age       func(at time.Time) time.Duration // of a file; nil counts by the wall clock
	Stopping  context.Context                  // ends when the program begins to stop
	Logger    *slog.Logger
}

// Events tell whether a call is still stored: it may have been forgotten while its recording was
// fetched.
type Events interface {
	Event(ctx context.Context, eventID string) (store.Event, error)
}

func (o *Options) validate() error {
	isComplete := o.Dir != "" && len(o.Key) > 0 && o.NumberKey != nil && o.Events != nil &&
		o.Stopping != nil && o.Logger != nil
	if !isComplete || o.Retention <= 0 || o.MaxBytes <= 0 {
		return errors.New("recordings: Options.Dir, Retention, MaxBytes, Key, NumberKey, Events, " +
			"Stopping and Logger must be set")
	}
	return nil
}

// Keeper fetches, keeps and serves recordings.
type Keeper struct {
	opts     Options
	folder   *folder
	sources  *sources
	hosts    hosts
	failures *repeat.Log // failures to store files
}

// New returns a keeper. A folder that cannot be written is logged, and no failure: calls go on, and
// what is to be fetched waits.
func New(opts Options) (*Keeper, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	if opts.Age == nil {
		opts.Age = time.Since
	}
	k := &Keeper{
		opts:     opts,
		folder:   &folder{dir: opts.Dir, limit: opts.MaxBytes},
		sources:  newSources(opts.From),
		hosts:    newHosts(),
		failures: repeat.New(opts.Logger),
	}
	if err := CheckFolder(opts.Dir); err != nil && !opts.From.IsEmpty() {
		k.failures.Failed("recordings cannot be stored", err)
	}
	return k, nil
}

// concurrency is how many recordings are waited for or fetched at a time: see perHost.
const concurrency = 32

// Endpoint returns the endpoint whose Sender the keeper is.
func Endpoint() store.Endpoint {
	return store.Endpoint{
		Name:        Lane,
		URL:         "file:recordings", // it does not read its events
		Secrets:     [][]byte{{}},
		Events:      store.Filter{string(telephony.EventCompleted)},
		Format:      store.FormatStandard,
		Timeout:     attemptTime,
		RingingTTL:  time.Minute,
		Concurrency: concurrency,
	}
}

// pruneEvery is the interval between removals of old files.
const pruneEvery = 10 * time.Minute

// Run removes old files until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	tick := time.NewTicker(pruneEvery)
	defer tick.Stop()
	for {
		n, err := k.folder.prune(ctx, func(at time.Time) bool { return k.opts.Age(at) > k.opts.Retention })
		if err != nil && ctx.Err() == nil {
			k.failures.Failed("old recordings cannot be removed", err)
		}
		if n > 0 {
			k.opts.Logger.Info("old recordings removed", "recordings", n)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// Forget removes the recordings of a person, or with dryRun only counts them. Key is of the number:
// see store.Rules.NumberKey.
func (k *Keeper) Forget(ctx context.Context, key string, dryRun bool) (n int, err error) {
	return k.folder.forget(ctx, k.who(key), dryRun)
}

// nobody stands in the name of a file of which no number is known.
const nobody = "0"

// who returns what stands for a number in the names of files.
func (k *Keeper) who(key string) string {
	if key == "" {
		return nobody
	}
	return hex.EncodeToString(k.sum("number", key)[:8])
}

// sum returns a keyed hash, for a purpose.
func (k *Keeper) sum(purpose string, parts ...string) []byte {
	h := hmac.New(sha256.New, k.opts.Key)
	for _, part := range append([]string{purpose}, parts...) {
		_, _ = io.WriteString(h, part+"\n") // a hash never fails
	}
	return h.Sum(nil)
}

// Open opens the recording of an EventRecordingReady. The name has the ending of its form. Fails
// with fs.ErrNotExist if it is kept no longer.
func (k *Keeper) Open(eventID string) (f io.ReadCloser, name string, size int64, err error) {
	found, err := k.folder.find(eventID)
	if err != nil {
		return nil, "", 0, err
	}
	f, err = os.Open(found.path)
	return f, found.id + "." + found.kind.extension, found.size, err
}

// CheckFolder returns why recordings cannot be kept in a folder. One that is not there is made when
// the first is kept.
func CheckFolder(dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	f, err := os.CreateTemp(dir, partPrefix)
	if err != nil {
		return nameless(err)
	}
	_ = f.Close()
	return os.Remove(f.Name())
}

// Look looks for a recording without fetching it: where it is, without a login, and how many bytes
// it has.
func Look(ctx context.Context, from Allowed, rewrites Rewrites, address string) (where string, size int64, err error) {
	o := Options{From: from, Map: rewrites}
	p, err := o.find(address)
	if err != nil {
		return "an address of the server", 0, err
	}
	if size, err = newSources(from).look(ctx, p, maxSize); err == nil && size == 0 {
		err = errAbsent
	}
	return p.name(), size, p.hide(err)
}

// LinkOf returns the link of a recording, by the ID of the event that its call is over; empty if
// there is none.
func (k *Keeper) LinkOf(completed string) string {
	id, err := uuid.Parse(completed)
	if err != nil {
		return ""
	}
	found, err := k.folder.find(eventID(id).String())
	if err != nil {
		return ""
	}
	return k.link(found)
}
