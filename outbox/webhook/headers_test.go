package webhook

import (
	"net/http"
	"reflect"
	"testing"
	"time"

	"pzbridge/outbox/store"
)

// The headers that people see hide every value of the configuration, and the URL but for its host.
func TestShownHeadersHideTheEndpointsOwn(t *testing.T) {
	s := New(store.Endpoint{
		Name:        "crm",
		URL:         "https://user:t0psecret@crm.example/t0psecret",
		Headers:     http.Header{"Authorization": {"Bearer t0psecret"}, "User-Agent": {"other"}, "X-Short": {"t0p"}},
		Format:      store.FormatForm,
		Timeout:     time.Second,
		Concurrency: 1,
	}, Options{UserAgent: "pzbridge/0"})
	defer s.Close()
	want := http.Header{
		"Host":          {"crm.example"},
		"Content-Type":  {"application/x-www-form-urlencoded"},
		"User-Agent":    {"pzbridge/0"},
		"Authorization": {"(hidden)"},
		"X-Short":       {"(hidden)"},
	}
	if got := s.Headers(); !reflect.DeepEqual(got, want) {
		t.Errorf("%v", got)
	}
}
