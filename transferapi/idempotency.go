package transferapi

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox"
)

// Keys remembers which requests have been carried out, through restarts.
type Keys interface {
	ClaimKey(bearer string, key, request [32]byte) (taken *outbox.Claim, err error)
	AnswerKey(bearer string, key, request [32]byte, status int, answer []byte) error
	ReleaseKey(key [32]byte) error
}

// longestKey is how many bytes an Idempotency-Key may have.
const longestKey = 255

// once carries out a command if it has not been carried out with this key before, else it answers as then. The key is taken before anything is
// written, so that not even a crash makes a telephone ring twice, and given back if nothing was written.
func (a *API) once(r *http.Request, key string, cmd telephony.Command, carryOut func(context.Context) answer) answer {
	if key == "" || len(key) > longestKey {
		return answer{problem: &problem{Status: http.StatusBadRequest, Detail: "The header Idempotency-Key must have 1 to 255 characters."}}
	}
	hash := sha256.Sum256([]byte(caller(r) + "\x00" + key))
	said, err := json.Marshal(cmd)
	if err != nil {
		return answer{problem: &problem{Status: http.StatusInternalServerError, Detail: sentence(err)}}
	}
	request := sha256.Sum256(said)
	if !a.busy.take(r.Context(), hash) {
		return answer{problem: &problem{Status: http.StatusServiceUnavailable, Detail: "The request was given up."}}
	}
	defer a.busy.giveBack(hash)
	taken, err := a.opts.Keys.ClaimKey(caller(r), hash, request)
	switch {
	case err != nil:
		return answer{problem: &problem{
			Status: http.StatusServiceUnavailable, Detail: "The Idempotency-Key could not be stored, so nothing was sent; try again. The reason: " + err.Error() + ".",
		}}
	case taken == nil:
	case taken.Request != request:
		return answer{problem: &problem{
			Status: http.StatusUnprocessableEntity, Detail: "This Idempotency-Key has come with another request before: use a new one for each command.",
		}}
	case a.askedSince(cmd, taken.At): // that was an answer to another question
	case taken.Status == 0:
		return answer{problem: &problem{
			Status: http.StatusGatewayTimeout, Detail: "How this command ended is not known, since the bridge was stopped or its disk failed meanwhile: it may have been carried out.",
		}}
	default:
		return answer{status: taken.Status, body: taken.Answer, again: true}
	}
	// Whoever asks with a key may go away and ask again; the command does not end with the connection.
	ctx, cancel := endsWithServer(r)
	defer cancel()
	done := carryOut(ctx)
	if done.written {
		err = a.opts.Keys.AnswerKey(caller(r), hash, request, done.code(), done.json())
	} else {
		err = a.opts.Keys.ReleaseKey(hash)
	}
	if err != nil {
		a.opts.Logger.Error("what became of an Idempotency-Key cannot be stored", "err", err.Error())
	}
	return done
}

// endsWithServer gives a request's context without its end when whoever has asked goes away. It still ends when the server gives its requests up, so that they
// are answered.
func endsWithServer(r *http.Request) (ctx context.Context, cancel func()) {
	ctx, cancelCtx := context.WithCancel(context.WithoutCancel(r.Context()))
	server, _ := r.Context().Value(http.ServerContextKey).(*http.Server)
	if server == nil || server.BaseContext == nil {
		return ctx, cancelCtx
	}
	stop := context.AfterFunc(server.BaseContext(nil), cancelCtx)
	return ctx, func() { stop(); cancelCtx() }
}

// askedSince says whether the call that a command transfers has asked anew where to go since a time.
func (a *API) askedSince(cmd telephony.Command, at time.Time) bool {
	if cmd.Kind != telephony.CommandTransfer {
		return false
	}
	route, err := a.opts.Events.Route(cmd.CallID)
	return err == nil && route != nil && route.AskedAt.After(at)
}

// busy holds the keys whose commands are being carried out.
type busy struct {
	mu   sync.Mutex
	keys map[[32]byte]chan struct{}
}

// take waits until nobody else has the key. It is false if ctx ended before.
func (b *busy) take(ctx context.Context, key [32]byte) bool {
	for {
		b.mu.Lock()
		other, taken := b.keys[key]
		if !taken {
			b.keys[key] = make(chan struct{})
			b.mu.Unlock()
			return true
		}
		b.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return false
		}
	}
}

func (b *busy) giveBack(key [32]byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.keys[key])
	delete(b.keys, key)
}
