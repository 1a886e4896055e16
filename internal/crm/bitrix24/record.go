package bitrix24

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"mime/multipart"
	"net/http"
	"net/url"
	"strings"
	"time"

	"pzbridge/internal/crm"
	"pzbridge/internal/outbound"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

const (
	// maxInline is the largest recording in bytes that goes into a request itself. A larger one is
	// uploaded as it is read: an hour of wav is larger than the memory of a small machine.
	maxInline = 256 << 10
	// uploadTime bounds an upload.
	uploadTime = 15 * time.Minute
	// shortUpload bounds it for an endpoint with one attempt at a time: nothing else is sent
	// meanwhile.
	shortUpload = 30 * time.Second
	// patience is how long a recording waits for its call: the portal may be away when that ends,
	// and has it in its statistics, to which the recording is attached, a while later.
	patience = 72 * time.Hour
	// attachPause is the wait before it is tried again.
	attachPause = time.Minute
)

// later puts a recording off: the longer it has waited, the longer.
func (t *telling) later(o store.Outcome) store.Outcome {
	age := time.Since(t.job.Event.At)
	if age > patience {
		o.Verdict = store.Refused
		return o
	}
	o.Verdict, o.RetryAfter = store.Later, max(attachPause, o.RetryAfter, age/20)
	return o
}

var errNotEnded = errors.New("the portal has not got the end of the call")

// attach attaches the recording of a call that is over. The portal replaces one that it has, so
// that it may be attached again.
func (t *telling) attach() store.Outcome {
	switch {
	case !t.call.IsOver:
		return t.later(store.Outcome{Err: errNotEnded})
	case t.call.ID == "":
		return crm.Nothing("the portal does not have the call")
	}
	if t.recordings == nil {
		return crm.Nothing("the recording is kept no longer")
	}
	f, name, size, err := t.recordings.Open(t.job.EventID)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return crm.Nothing("the recording is kept no longer")
	case err != nil:
		return t.later(store.Outcome{Err: err})
	}
	defer func() { _ = f.Close() }()
	if !strings.HasSuffix(name, ".mp3") && !strings.HasSuffix(name, ".wav") {
		return crm.Nothing("the portal takes recordings in mp3 and wav alone")
	}
	var a answer
	if size <= maxInline {
		a = t.attachInline(f, name)
	} else {
		a = t.upload(f, name, size)
	}
	if a.isUnknownCall() {
		return t.later(a.Outcome)
	}
	a.remarkFile()
	return a.Outcome
}

const attachRecord = "telephony.externalCall.attachRecord"

// attachInline sends a small recording in one request.
func (t *telling) attachInline(f io.Reader, name string) answer {
	content, err := io.ReadAll(io.LimitReader(f, maxInline))
	if err != nil {
		return answer{Outcome: t.later(store.Outcome{Err: err})}
	}
	return t.do(t.ctx, attachRecord, map[string]any{
		"CALL_ID":      t.call.ID,
		"FILENAME":     name,
		"FILE_CONTENT": base64.StdEncoding.EncodeToString(content),
	}, false, t.job.MayRedial)
}

// upload asks the portal where to send a recording, and sends it there. One is sent at a time: it
// must not keep the portal's cards waiting.
func (t *telling) upload(f io.ReadCloser, name string, size int64) answer {
	select {
	case t.uploading <- struct{}{}:
		defer func() { <-t.uploading }()
	default:
		return answer{Outcome: store.Outcome{Verdict: store.Later, RetryAfter: 5 * time.Second, Err: errUploading}}
	}
	a := t.do(t.ctx, attachRecord, map[string]any{"CALL_ID": t.call.ID, "FILENAME": name}, false, t.job.MayRedial)
	if a.Verdict != store.Done {
		return a
	}
	var to struct {
		URL   string `json:"uploadUrl"`
		Field string `json:"fieldName"`
	}
	_ = json.Unmarshal(a.result, &to) // what cannot be read names nothing
	a.Response = "an address for the file"
	a.Steps[0].Response = a.Response // the address itself holds a token
	request, err := t.uploadRequest(to.URL)
	if err != nil || to.Field == "" {
		a.Verdict, a.Err = store.Refused, errNoUpload
		return a
	}
	body, contentType, err := form(f, to.Field, name, size)
	if err != nil {
		a.Verdict, a.Err = store.Refused, err
		return a
	}
	request.Header.Set("Content-Type", contentType)
	got, err := t.uploads.Do(t.ctx, outbound.Request{HTTP: request, Stream: body})
	switch {
	case t.ctx.Err() != nil:
		return answer{}
	case err != nil:
		return answer{Outcome: t.later(store.Outcome{Err: err, Steps: a.Steps})}
	}
	sent := t.read(got, "")
	sent.Response = outbound.NewRedactor(to.URL, nil).Replace(sent.Response) // error pages repeat addresses
	sent.Steps = append(a.Steps, store.Step{What: "upload", Status: sent.Status, Response: sent.Response})
	if sent.Verdict != store.Done { // of the address alone: the next try gets another
		sent.Outcome = t.later(store.Outcome{
			Status: sent.Status, Response: sent.Response, Steps: sent.Steps, RetryAfter: sent.RetryAfter,
			Err: errUpload,
		})
	}
	return sent
}

var (
	errUploading = errors.New("another recording is being uploaded")
	errUpload    = errors.New("the portal has not taken the recording")
	errNoUpload  = &telephony.Fault{
		Code: telephony.CodePortalUpload,
		Text: "the portal names no address of its own for the recording",
	}
)

// uploadRequest returns a request to where the portal has asked for a file. That must be the portal
// itself: the file is nobody else's.
func (s *Sender) uploadRequest(address string) (*http.Request, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	own := s.base
	if u.Scheme != own.Scheme || !strings.EqualFold(u.Hostname(), own.Hostname()) ||
		portOf(u) != portOf(own) {
		return nil, errNoUpload
	}
	request, err := http.NewRequest(http.MethodPost, u.String(), nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("User-Agent", s.userAgent)
	return request, nil
}

func portOf(u *url.URL) string {
	return cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
}

// form returns a form with a file, which is read as it is sent.
func form(f io.ReadCloser, field, name string, size int64) (body *outbound.Stream, contentType string, err error) {
	var frame bytes.Buffer
	w := multipart.NewWriter(&frame)
	if _, err := w.CreateFormFile(field, name); err != nil {
		return nil, "", err
	}
	head := bytes.Clone(frame.Bytes())
	frame.Reset()
	if err := w.Close(); err != nil {
		return nil, "", err
	}
	tail := frame.Bytes()
	return &outbound.Stream{
		Reader: io.MultiReader(bytes.NewReader(head), f, bytes.NewReader(tail)),
		Size:   int64(len(head)) + size + int64(len(tail)),
	}, w.FormDataContentType(), nil
}
