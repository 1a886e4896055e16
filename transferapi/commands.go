package transferapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"pzbridge/internal/advice"
	"pzbridge/internal/telephony"
)

const (
	maxBody = 64 << 10 // bytes of a request's body

	// minRetryAfter is the shortest Retry-After, in seconds, while the bridge is not connected. It
	// applies when the next dial is due at once.
	minRetryAfter = 1
)

// fields holds the members of a request's object. All are strings.
type fields map[string]string

// fieldError names a wrong field; detail says what is wrong and what is expected.
type fieldError struct{ field, detail string }

func (e *fieldError) Error() string { return fmt.Sprintf("%q %s.", e.field, e.detail) }

func readCall(f fields) (telephony.Command, error) {
	from, errFrom := f.number("from")
	to, errTo := f.number("to")
	return telephony.Command{Kind: telephony.CommandCall, From: from, To: to}, errors.Join(errFrom, errTo)
}

func readTransfer(f fields) (telephony.Command, error) {
	id, errID := f.callID("call_id")
	to, present := f["to"]
	var errTo error
	if !present || to != "" { // an empty number declines the call
		to, errTo = f.number("to")
	}
	return telephony.Command{Kind: telephony.CommandTransfer, CallID: id, To: to}, errors.Join(errID, errTo)
}

func readSMS(f fields) (telephony.Command, error) {
	from, errFrom := f.number("from")
	to, errTo := f.number("to")
	var errText error
	if strings.TrimSpace(f["text"]) == "" {
		errText = &fieldError{"text", "is missing or empty"}
	}
	return telephony.Command{
		Kind: telephony.CommandSMS,
		From: from,
		To:   to,
		Text: f["text"],
	}, errors.Join(errFrom, errTo, errText)
}

// number returns a phone number in the form that goes to the exchange.
func (f fields) number(name string) (string, error) {
	v, ok := f[name]
	if !ok {
		return "", &fieldError{name, "is missing"}
	}
	v, err := telephony.CleanNumber(v)
	if err != nil {
		return "", &fieldError{name, err.Error()}
	}
	return v, nil
}

func (f fields) callID(name string) (string, error) {
	v, ok := f[name]
	if !ok {
		return "", &fieldError{name, "is missing"}
	}
	if _, err := strconv.ParseUint(v, 10, 64); err != nil {
		return "", &fieldError{
			name,
			"must be the call_id of an event: a decimal number of at most 64 bits, as a string",
		}
	}
	return v, nil
}

// answer is the answer to a request: a problem, or a status with a body.
type answer struct {
	problem  *problem
	status   int
	body     []byte // JSON
	written  bool   // the exchange may have received the command
	replayed bool   // it repeats the stored answer of an Idempotency-Key
	// retryAfter is the value of Retry-After in seconds; 0 leaves the header out.
	retryAfter int
}

func (d answer) code() int {
	if d.problem != nil {
		return d.problem.Status
	}
	return d.status
}

func (d answer) json() []byte {
	if d.problem != nil {
		return encodeJSON(d.problem.titled())
	}
	return d.body
}

func (d answer) write(w http.ResponseWriter) {
	if d.code() >= http.StatusBadRequest {
		w.Header().Set("Content-Type", problemType)
	}
	if d.replayed {
		w.Header().Set("Idempotency-Replayed", "true")
	}
	if d.retryAfter > 0 {
		setRetryAfter(w, d.retryAfter)
	}
	writeBytes(w, d.code(), d.json())
}

// command returns the handler of a kind of command. read builds the command from the request's
// fields; names lists the fields that the request may have.
func (a *API) command(read func(fields) (telephony.Command, error), names ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		f, refusal := readFields(w, r, names)
		if refusal != nil {
			refusal.write(w)
			return
		}
		cmd, err := read(f)
		if err != nil {
			badFields(err).write(w)
			return
		}
		carryOut := func(ctx context.Context) answer { return a.carryOut(ctx, w, caller(r), cmd) }
		if keys, given := r.Header["Idempotency-Key"]; given {
			a.carryOutOnce(r, keys[0], cmd, carryOut).write(w)
			return
		}
		carryOut(r.Context()).write(w)
	}
}

// Command carries out a command within the limits on calls and SMS, and logs it. It fails with the
// errors of telephony.
func (a *API) Command(ctx context.Context, by string, cmd telephony.Command) error {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, a.opts.CommandTimeout)
	defer cancel()
	err := a.do(ctx, by, cmd)
	args := []any{"kind", string(cmd.Kind), "by", by, "took", time.Since(began).Round(time.Microsecond).String()}
	if cmd.CallID != "" {
		args = append(args, "call_id", cmd.CallID)
	}
	var notAllowed *telephony.NotAllowedError
	switch {
	case err == nil:
		a.opts.Logger.Info("command done", args...)
	case !errors.As(err, &notAllowed): // else the policy has logged it
		a.opts.Logger.Warn("command failed", append(args, "err", err)...)
	}
	return err
}

// carryOut carries out a command and answers it.
func (a *API) carryOut(ctx context.Context, w http.ResponseWriter, by string, cmd telephony.Command) answer {
	err := a.Command(ctx, by, cmd)
	if err == nil {
		return answer{status: http.StatusOK, body: encodeJSON(map[string]string{"status": "done"}), written: true}
	}
	p := commandProblem(err)
	var notAllowed *telephony.NotAllowedError
	if errors.As(err, &notAllowed) {
		if notAllowed.RetryAfter > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(notAllowed.RetryAfter.Seconds()))))
		}
		return answer{problem: &p}
	}
	if p.Status == http.StatusServiceUnavailable {
		c := a.opts.Exchange.Connection()
		if c.LastError != "" {
			p.Detail += " The reason: " + lastError(c) + "."
		}
		wait := math.Ceil(time.Until(c.DialsAt).Seconds())
		setRetryAfter(w, max(minRetryAfter, int(wait)))
	}
	return answer{problem: &p, written: p.Status == http.StatusBadGateway || p.Status == http.StatusGatewayTimeout}
}

// do carries out a command. A transfer is an answer to a call's routing question, and the first
// answer wins.
func (a *API) do(ctx context.Context, by string, cmd telephony.Command) error {
	if cmd.Kind != telephony.CommandTransfer {
		if a.opts.Policy != nil {
			if err := a.opts.Policy.Allow(by, cmd); err != nil {
				return err
			}
		}
		return a.opts.Exchange.Do(ctx, cmd)
	}
	isConnected := a.opts.Exchange.Connection().State == telephony.Connected
	if cmd.To != "" && !isConnected && !a.opts.OthersTransfer {
		return telephony.ErrNotConnected // a call is not decided for a transfer that could not be sent
	}
	return a.opts.Router.Answer(ctx, cmd.CallID, "", by, cmd.To)
}

func commandProblem(err error) problem {
	// The reason of a refusal is the exchange's text, of any length. It is shortened, since an
	// Idempotency-Key keeps the answer for a day.
	p := problem{Status: http.StatusGatewayTimeout, Code: codeOf(err), Detail: telephony.BriefText(sentence(err))}
	var refused *telephony.RefusedError
	var decided *telephony.DecidedError
	var notAllowed *telephony.NotAllowedError
	switch {
	case errors.As(err, &notAllowed):
		p.Status, p.Field = http.StatusForbidden, notAllowed.Field
		if notAllowed.RetryAfter > 0 {
			p.Status = http.StatusTooManyRequests
		}
	case errors.Is(err, telephony.ErrNeverAsked):
		p.Status = http.StatusNotFound
	case errors.As(err, &decided):
		p.Status, p.Winner = http.StatusConflict, decided.Winner
	case errors.Is(err, telephony.ErrRouteClosed), errors.Is(err, telephony.ErrCallOver):
		p.Status = http.StatusGone
	case errors.As(err, &refused):
		p.Status = http.StatusBadGateway
	case errors.Is(err, telephony.ErrNotConnected),
		errors.Is(err, telephony.ErrOutboxFull),
		errors.Is(err, telephony.ErrNotSent),
		errors.Is(err, telephony.ErrNotKept):
		p.Status = http.StatusServiceUnavailable
		p.Detail += " Nothing was sent; try again."
	}
	return p
}

// badFields returns the problem of wrong fields. Field names the first one, Detail describes all.
func badFields(err error) *problem {
	var first *fieldError
	p := &problem{Status: http.StatusBadRequest, Code: codeBadField, Detail: strings.ReplaceAll(err.Error(), "\n", " ")}
	if errors.As(err, &first) {
		p.Field = first.field
	}
	return p
}

// readFields reads the request's object, or returns the problem with it. A field that is not in
// names is refused: it is a misspelling, and the intended field would be missing.
func readFields(w http.ResponseWriter, r *http.Request, names []string) (fields, *problem) {
	_, members, refusal := readObject(w, r, `, such as {"from":"101","to":"102"}`)
	if refusal != nil {
		return nil, refusal
	}
	f := fields{}
	for name, raw := range members {
		if !slices.Contains(names, name) {
			return nil, badFields(
				&fieldError{name, "is not a field of this request; it takes " + strings.Join(names, ", ")},
			)
		}
		if bytes.Equal(raw, []byte("null")) {
			continue // null counts as absent
		}
		var v string
		if err := json.Unmarshal(raw, &v); err != nil {
			return nil, badFields(&fieldError{name, "must be a string"})
		}
		f[name] = v
	}
	return f, nil
}

// readBody reads a request's JSON, at most maxBody bytes, or returns the problem with it.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, *problem) {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return nil, &problem{
			Status: http.StatusUnsupportedMediaType,
			Detail: "Send JSON with the header \"Content-Type: application/json\".",
		}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, &problem{Status: http.StatusRequestEntityTooLarge, Detail: "The request is larger than 64 KiB."}
	case err != nil:
		return nil, &problem{Status: http.StatusBadRequest, Detail: "The request could not be read to its end."}
	}
	if !utf8.Valid(body) {
		return nil, &problem{Status: http.StatusBadRequest, Detail: "The body is not UTF-8."}
	}
	return bytes.TrimPrefix(body, []byte("\uFEFF")), nil // .NET and PowerShell put a byte order mark first
}

// readObject reads the request's one JSON object, or returns the problem with it. The problem's
// text ends with example.
func readObject(
	w http.ResponseWriter,
	r *http.Request,
	example string,
) (body []byte, members map[string]json.RawMessage, refusal *problem) {
	if body, refusal = readBody(w, r); refusal != nil {
		return nil, nil, refusal
	}
	if json.Unmarshal(body, &members) != nil || members == nil {
		return nil, nil, &problem{
			Status: http.StatusBadRequest,
			Detail: "The body must be one JSON object in UTF-8" + example + ".",
		}
	}
	return body, members, nil
}

// sentence returns an error, and what to do about it, as a sentence with a capital letter and a
// full stop.
func sentence(err error) string {
	text := advice.English(err)
	first, size := utf8.DecodeRuneInString(text)
	return string(unicode.ToUpper(first)) + text[size:] + "."
}
