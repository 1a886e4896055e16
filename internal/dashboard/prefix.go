package dashboard

import (
	"net/http"
	"regexp"
)

// A proxy may show the dashboard under a path of its own, such as /calls-bridge, which it takes off
// each request and says in the header X-Forwarded-Prefix. Pages and redirects are written as if
// there was none, and get it at the end.

// wellFormedPrefix keeps a header from writing anything else than a path into a page.
var wellFormedPrefix = regexp.MustCompile(`^(/[A-Za-z0-9._~-]+)+$`)

// prefix is the path under which a trusted proxy shows the dashboard; empty for none.
func (d *Dashboard) prefix(r *http.Request) string {
	if p := r.Header.Get("X-Forwarded-Prefix"); d.opts.BehindProxy && wellFormedPrefix.MatchString(p) {
		return p
	}
	return ""
}

// links are the addresses in a page that lead to this bridge. In a text no quotation mark stands as
// it is.
var links = regexp.MustCompile(`( (?:href|action|src|data-live)=")/`)

// underPrefix returns HTML with the prefix of a request in its links.
func (d *Dashboard) underPrefix(r *http.Request, html []byte) []byte {
	prefix := d.prefix(r)
	if prefix == "" {
		return html
	}
	return links.ReplaceAll(html, []byte("${1}"+prefix+"/"))
}

// redirect leads the browser to another page.
func (d *Dashboard) redirect(w http.ResponseWriter, r *http.Request, path string) {
	http.Redirect(w, r, d.prefix(r)+path, http.StatusSeeOther)
}
