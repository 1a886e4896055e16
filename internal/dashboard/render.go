package dashboard

import (
	"bytes"
	"html/template"
	"net/http"
	"net/url"
	"strings"
	"time"

	"pzbridge/internal/telephony"
)

// newPages parses the templates once for each language, by the name of the language. Their
// functions know the language, so that no template has to pass it on.
func newPages() (map[string]*template.Template, error) {
	pages := map[string]*template.Template{}
	for _, t := range wordsOf {
		parsed, err := template.New("").Funcs(t.funcs()).ParseFS(templates, "templates/*.html")
		if err != nil {
			return nil, err
		}
		pages[t["lang"]] = parsed
	}
	return pages, nil
}

// funcs returns the functions of the templates for one language.
func (t words) funcs() template.FuncMap {
	return template.FuncMap{
		"t":        func(text string) string { return t[text] },
		"say":      t.say,
		"short":    t.short,
		"clock":    func(at time.Time) string { return at.Local().Format("15:04:05") },
		"datetime": func(at time.Time) string { return at.Local().Format(time.DateTime) },
		"iso":      func(at time.Time) string { return at.UTC().Format(time.RFC3339) },
		"zone":     func() string { return time.Now().Format("UTC-07:00") },
		"callPath": callPath,
		"brief":    telephony.Brief,
		"list":     listPath,
		"join":     func(names []string) string { return strings.Join(names, ", ") },
	}
}

// callPath returns the path of a call's page. It is empty without an ID, and for an ID over 1 KiB,
// whose path could exceed a server's limit.
func callPath(id string) string {
	const maxID = 1 << 10
	if id == "" || len(id) > maxID {
		return ""
	}
	return "/calls/" + url.PathEscape(id)
}

// page is the data of every template.
type page struct {
	Title   string // before the program's name
	Here    string // the path in the menu to which the page belongs
	Version string
	Bridge  string // the name of this bridge, if several share the outbox
	In      bool   // signed in
	// Refresh is after how many seconds a browser without JavaScript loads the page again; 0 means
	// never.
	Refresh int
	Data    any
}

// refreshing is the data of a page that a browser without JavaScript is to load again.
type refreshing interface{ refresh() int }

func (d *Dashboard) render(w http.ResponseWriter, r *http.Request, status int, name, title string, data any) {
	var b bytes.Buffer
	t := wordsFor(r)
	p := page{
		Title:   title,
		Here:    menuOf[name],
		Version: d.opts.Version,
		Bridge:  d.opts.Bridge,
		In:      d.Knows(r),
		Data:    data,
	}
	if v, ok := data.(refreshing); ok {
		p.Refresh = v.refresh()
	}
	if err := d.pages[t["lang"]].ExecuteTemplate(&b, name, p); err != nil {
		d.opts.Logger.Error("a page cannot be shown", "page", name, "err", err)
		http.Error(w, "The page cannot be shown; the log says why.", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Language", t["lang"])
	w.Header().Set("Vary", "Accept-Language")
	w.WriteHeader(status)
	_, _ = w.Write(d.underPrefix(r, b.Bytes()))
}

// menuOf maps a page to its place in the menu.
var menuOf = map[string]string{
	"home": "/", "connection": "/", "test": "/",
	"calls": "/calls", "call": "/calls",
	"deliveries": "/deliveries", "choice": "/deliveries", "redelivery": "/deliveries",
}

func (d *Dashboard) renderError(w http.ResponseWriter, r *http.Request, err error) {
	d.renderProblem(w, r, wordsFor(r).explain(err))
}

func (d *Dashboard) renderProblem(w http.ResponseWriter, r *http.Request, text string) {
	d.renderFailure(w, r, http.StatusBadRequest, text)
}

func (d *Dashboard) renderFailure(w http.ResponseWriter, r *http.Request, status int, text string) {
	d.render(w, r, status, "failed", wordsFor(r)["That did not work."], map[string]any{"Problem": text})
}
