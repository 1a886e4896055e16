package transferapi

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/advice"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// Keys stores which requests have been carried out, and their answers; they survive restarts.
type Keys interface {
	// ClaimKey takes a key, or gives what is known of the claim that took it before.
	ClaimKey(ctx context.Context, bearer string, key [32]byte, c store.KeyClaim) (taken *store.KeyClaim, err error)
	// SettleKey stores the answer of a claim, or forgets the key if its Status is 0.
	SettleKey(ctx context.Context, bearer string, key [32]byte, c store.KeyClaim) error
}

// maxKeyBytes bounds an Idempotency-Key.
const maxKeyBytes = 255

// carryOutOnce carries out a command unless a command with this key was carried out before; then it
// repeats the answer. It claims the key before anything is written to the exchange, so that not
// even a crash makes a telephone ring twice, and releases it if nothing was written.
func (a *API) carryOutOnce(
	r *http.Request,
	key string,
	cmd telephony.Command,
	carryOut func(context.Context) answer,
) answer {
	if key == "" || len(key) > maxKeyBytes {
		return answer{problem: &problem{
			Status: http.StatusBadRequest,
			Detail: "The header Idempotency-Key must have 1 to 255 characters.",
		}}
	}
	hash := sha256.Sum256([]byte(caller(r) + "\x00" + key))
	encoded, err := json.Marshal(cmd)
	if err != nil {
		return answer{problem: &problem{Status: http.StatusInternalServerError, Detail: sentence(err)}}
	}
	request := sha256.Sum256(encoded)
	if !a.keyLocks.acquire(r.Context(), hash) {
		return answer{problem: &problem{Status: http.StatusServiceUnavailable, Detail: "The request was given up."}}
	}
	defer a.keyLocks.release(hash)
	claim := store.KeyClaim{ID: uuid.New(), Request: request, At: time.Now()}
	earlier, err := a.opts.Keys.ClaimKey(r.Context(), caller(r), hash, claim)
	isNewQuestion := false
	if err == nil && earlier != nil && earlier.Request == request {
		isNewQuestion, err = a.hasNewQuestion(r.Context(), cmd, earlier.At)
	}
	switch {
	case err != nil:
		return answer{problem: &problem{
			Status: http.StatusServiceUnavailable,
			Code:   codeOf(err),
			Detail: "The Idempotency-Key could not be stored, so nothing was sent; try again. The reason: " +
				advice.English(err) + ".",
		}}
	case earlier == nil:
	case earlier.Request != request:
		return answer{problem: &problem{
			Status: http.StatusUnprocessableEntity,
			Detail: "This Idempotency-Key has come with another request before: use a new one for each command.",
		}}
	case isNewQuestion: // the earlier command answered another question
		claim.ID = earlier.ID
	case earlier.Status == 0:
		return answer{problem: &problem{
			Status: http.StatusGatewayTimeout,
			Detail: "How this command ended is not known, since the bridge was stopped or its disk failed meanwhile: " +
				"it may have been carried out.",
		}}
	default:
		return answer{status: earlier.Status, body: earlier.Answer, replayed: true}
	}
	// The caller may disconnect and repeat the request with its key, so the command does not end
	// with the connection.
	ctx, cancel := detach(r)
	defer cancel()
	result := carryOut(ctx)
	if result.written {
		claim.Status, claim.Answer, claim.At = result.code(), result.json(), time.Now()
	}
	if err = a.opts.Keys.SettleKey(context.WithoutCancel(ctx), caller(r), hash, claim); err != nil {
		a.opts.Logger.Error("what became of an Idempotency-Key cannot be stored", "err", err)
	}
	return result
}

// detach returns the request's context without the cancellation that follows when the caller
// disconnects. The context still ends when the server cancels its base context at shutdown, so that
// the request is answered.
func detach(r *http.Request) (ctx context.Context, cancel func()) {
	ctx, cancelCtx := context.WithCancel(context.WithoutCancel(r.Context()))
	server, _ := r.Context().Value(http.ServerContextKey).(*http.Server)
	if server == nil || server.BaseContext == nil {
		return ctx, cancelCtx
	}
	stop := context.AfterFunc(server.BaseContext(nil), cancelCtx)
	return ctx, func() { stop(); cancelCtx() }
}

// hasNewQuestion reports whether cmd is a transfer of a call that has a routing question newer than
// at.
func (a *API) hasNewQuestion(ctx context.Context, cmd telephony.Command, at time.Time) (bool, error) {
	if cmd.Kind != telephony.CommandTransfer {
		return false, nil
	}
	route, err := a.opts.Events.Route(ctx, cmd.CallID)
	if errors.Is(err, store.ErrBadRecord) {
		return false, nil // the next question writes it again
	}
	return err == nil && route != nil && route.AskedAt.After(at), err
}

// keyLocks serializes the commands of each Idempotency-Key. A channel is closed when its key is
// released.
type keyLocks struct {
	mu   sync.Mutex
	keys map[[32]byte]chan struct{}
}

// acquire waits until the key is free and takes it. It returns false if ctx ends first.
func (l *keyLocks) acquire(ctx context.Context, key [32]byte) bool {
	for {
		l.mu.Lock()
		released, held := l.keys[key]
		if !held {
			l.keys[key] = make(chan struct{})
			l.mu.Unlock()
			return true
		}
		l.mu.Unlock()
		select {
		case <-released:
		case <-ctx.Done():
			return false
		}
	}
}

func (l *keyLocks) release(key [32]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.keys[key])
	delete(l.keys, key)
}
