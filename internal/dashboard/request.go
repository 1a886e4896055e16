package dashboard

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"pzbridge/outbox/store"
)

const (
	maxRequest  = 16 << 10 // shown bytes of a webhook's body
	maxRequests = 1 << 20  // bytes of bodies on one page; the following bodies are left out
)

// formatRequest returns a body for the page, indented if it is JSON, and whether it is whole. A
// body of over maxRequest bytes is copied up to there, so that the rest can be freed.
func formatRequest(body []byte) (text string, whole bool) {
	var b bytes.Buffer
	if len(body) > maxRequest || json.Indent(&b, body, "", "  ") != nil {
		return strings.ToValidUTF8(string(body[:min(len(body), maxRequest)]), ""), len(body) <= maxRequest
	}
	return b.String(), true
}

// header is a line of the head of a request.
type header struct{ Name, Value string }

// requestHeaders returns the head of the webhooks that bring a delivery, without secrets; set are
// those that all webhooks at the endpoint have. The webhook's own headers have the spelling of
// their specification.
func requestHeaders(
	t words, delivery *store.DeliveryView, set http.Header, contentType string, length int,
) []header {
	list := []header{
		{"Host", set.Get("Host")},
		{"User-Agent", set.Get("User-Agent")},
		{"Content-Type", contentType},
		{"Content-Length", strconv.Itoa(length)},
		{"webhook-id", delivery.EventID},
		{"webhook-timestamp", t["made for each attempt"]},
		{"webhook-signature", t["made for each attempt"]},
	}
	for _, name := range slices.Sorted(maps.Keys(set)) {
		isListed := slices.ContainsFunc(list, func(h header) bool { return h.Name == name })
		for _, value := range set[name] {
			if !isListed {
				list = append(list, header{name, value})
			}
		}
	}
	return slices.DeleteFunc(list, func(h header) bool { return h.Value == "" })
}
