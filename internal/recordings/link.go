package recordings

import (
	"crypto/hmac"
	"encoding/base64"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

// Path is where recordings are served: behind it stand the ID and the ending of a file.
const Path = "/v1/recordings/"

// link returns the address of a recording, which works until the recording is removed; empty if
// CRMs cannot reach the API.
func (k *Keeper) link(f kept) string {
	if k.opts.PublicURL == "" {
		return ""
	}
	until := strconv.FormatInt(f.at.Add(k.opts.Retention).Unix(), 10)
	values := url.Values{"until": {until}, "signature": {k.signature(f.id, until)}}
	return k.opts.PublicURL + Path + f.id + "." + f.kind.extension + "?" + values.Encode()
}

func (k *Keeper) signature(id, until string) string {
	return base64.RawURLEncoding.EncodeToString(k.sum("link", id, until))
}

// The answers to those who open a link, which are people.
const (
	wrongLink = "This link is not valid.\nЭта ссылка недействительна.\n"
	goneText  = "This recording is kept no longer.\nЭта запись больше не хранится.\n"
	errorText = "The recording cannot be read at this moment.\nЗапись сейчас не читается.\n"
)

// ServeHTTP serves a recording by its link, also in ranges, and logs that it was opened.
func (k *Keeper) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, Path), ".")
	query := r.URL.Query()
	until, signature := query.Get("until"), query.Get("signature")
	w.Header().Set("Cache-Control", "private, no-store") // a proxy must not keep it longer than the bridge does
	if !hmac.Equal([]byte(signature), []byte(k.signature(id, until))) {
		http.Error(w, wrongLink, http.StatusForbidden)
		return
	}
	found, err := k.folder.find(id)
	if seconds, _ := strconv.ParseInt(until, 10, 64); time.Now().Unix() > seconds {
		err = errGone
	}
	var f *os.File
	if err == nil {
		f, err = os.Open(found.path)
	}
	switch {
	case errors.Is(err, errGone), errors.Is(err, os.ErrNotExist):
		http.Error(w, goneText, http.StatusGone)
		return
	case err != nil:
		k.opts.Logger.Error("a recording cannot be read", "recording", id, "err", err)
		http.Error(w, errorText, http.StatusInternalServerError)
		return
	}
	defer func() { _ = f.Close() }()
	if isBeginning(r) {
		k.opts.Logger.Info("a recording was opened", "recording", id, "remote", remote(r))
	}
	h := w.Header()
	h.Set("Content-Type", found.kind.mediaType)
	h.Set("Content-Disposition", `inline; filename="`+id+"."+found.kind.extension+`"`)
	h.Set("Content-Security-Policy", "sandbox; default-src 'none'; media-src 'self'")
	h.Set("X-Content-Type-Options", "nosniff")
	// An hour of speech takes longer than a request may, on a slow line.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(serveTime))
	http.ServeContent(w, r, "", found.at, f)
}

// serveTime bounds one response with a recording.
const serveTime = 30 * time.Minute

// isBeginning reports whether a request may fetch the beginning of a recording: a player fetches it
// in many parts.
func isBeginning(r *http.Request) bool {
	from, isRange := strings.CutPrefix(strings.TrimSpace(r.Header.Get("Range")), "bytes=")
	first, _, _ := strings.Cut(from, "-")
	begin, err := strconv.ParseUint(first, 10, 63)
	return r.Method == http.MethodGet && (!isRange || err != nil || begin == 0)
}

func remote(r *http.Request) slog.Value {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	return slog.StringValue(host)
}
