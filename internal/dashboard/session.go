package dashboard

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"pzbridge/outbox/store"
)

const cookieName = "pzbridge"

// sessionsEvery is how often it is looked whether the operator has signed out at another bridge.
const sessionsEvery = time.Second

// generation is that of the sessions, as it was read last.
type generation struct {
	mu     sync.Mutex
	value  uint64
	readAt time.Time
}

// sessions returns the generation of the sessions that are valid. While it cannot be read it is
// that of before.
func (d *Dashboard) sessions(ctx context.Context) uint64 {
	g := &d.generation
	g.mu.Lock()
	defer g.mu.Unlock()
	if time.Since(g.readAt) >= sessionsEvery {
		ctx, cancel := context.WithTimeout(ctx, sessionsEvery)
		defer cancel()
		if value, err := d.opts.Outbox.Sessions(ctx); err == nil {
			g.value = value
		}
		g.readAt = time.Now()
	}
	return g.value
}

func (g *generation) set(value uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.value, g.readAt = value, time.Now()
}

// cookieValue returns the value of the session cookie: an HMAC with the token as its key, which
// does not reveal the token. It is valid until the token is removed or the operator signs out.
func (d *Dashboard) cookieValue(ctx context.Context, token string) string {
	mac := hmac.New(sha256.New, []byte(token))
	mac.Write([]byte("pzbridge dashboard"))
	mac.Write(binary.BigEndian.AppendUint64(nil, d.sessions(ctx)))
	return hex.EncodeToString(mac.Sum(nil))
}

// Knows reports whether a request comes from a signed-in browser.
func (d *Dashboard) Knows(r *http.Request) bool {
	cookie, err := r.Cookie(cookieName)
	return err == nil && slices.ContainsFunc(d.opts.Tokens, func(token string) bool {
		return equalSecrets(cookie.Value, d.cookieValue(r.Context(), token))
	})
}

func equalSecrets(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// requireSession serves a page to the operator; other browsers go to the page for signing in.
func (d *Dashboard) requireSession(next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !d.Knows(r) {
			d.redirect(w, r, "/login")
			return
		}
		next(w, r)
	})
}

// overHTTPS reports whether the browser's connection is HTTPS, also through a trusted proxy.
func (d *Dashboard) overHTTPS(r *http.Request) bool {
	// The first value is the browser's protocol; further proxies append theirs.
	first, _, _ := strings.Cut(r.Header.Get("X-Forwarded-Proto"), ",")
	return r.TLS != nil || d.opts.BehindProxy && strings.EqualFold(strings.TrimSpace(first), "https")
}

func (d *Dashboard) loginPage(w http.ResponseWriter, r *http.Request) {
	d.render(w, r, http.StatusOK, "login", "", map[string]any{"NoToken": len(d.opts.Tokens) == 0})
}

func (d *Dashboard) login(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 4096)
	token := strings.TrimSpace(r.PostFormValue("token"))
	valid := slices.ContainsFunc(d.opts.Tokens, func(known string) bool { return equalSecrets(token, known) })
	if !valid && d.opts.WrongToken != nil {
		d.opts.WrongToken()
	}
	switch {
	case valid:
		d.setCookie(w, r, d.cookieValue(r.Context(), token), 30*24*time.Hour)
		d.did(r, store.AuditSignedIn, "", 0)
		d.redirect(w, r, "/")
	case !d.wrongLogins.Allow(): // limits wrong tokens only, so that a stranger cannot lock the operator out
		d.render(w, r, http.StatusTooManyRequests, "login", "",
			map[string]any{"Problem": "Too many attempts. Wait a few seconds."})
	default:
		d.wrongTokens.Happened("somebody tried to open the dashboard with a wrong token", "remote", r.RemoteAddr)
		d.render(w, r, http.StatusUnauthorized, "login", "",
			map[string]any{"Problem": "That is not the token of API_TOKEN.", "NoToken": len(d.opts.Tokens) == 0})
	}
}

// logout ends the sessions of all browsers: there is one operator, and a stolen cookie becomes
// invalid too. A request without a valid session ends none.
func (d *Dashboard) logout(w http.ResponseWriter, r *http.Request) {
	known := d.Knows(r)
	d.setCookie(w, r, "", -time.Second)
	if known {
		generation, err := d.opts.Outbox.EndSessions(r.Context())
		if err != nil {
			t := wordsFor(r)
			d.renderProblem(w, r, t[notSignedOut]+": "+t.explain(err))
			return
		}
		d.generation.set(generation)
		d.did(r, store.AuditSignedOut, "", 0)
	}
	d.redirect(w, r, "/login")
}

func (d *Dashboard) setCookie(w http.ResponseWriter, r *http.Request, value string, life time.Duration) {
	http.SetCookie(w, &http.Cookie{
		Name:     cookieName,
		Value:    value,
		Path:     "/",
		MaxAge:   int(life.Seconds()),
		HttpOnly: true,
		SameSite: http.SameSiteStrictMode,
		Secure:   d.overHTTPS(r),
	})
}
