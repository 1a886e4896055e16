package store

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"pzbridge/internal/telephony"
)

// Endpoint is a CRM: where its events go, how they are signed, and which of them it gets.
type Endpoint struct {
	Name string
	// URL is http or https. Its path and query often hold a token, so it is never logged. An
	// endpoint without a URL reads its events over the API instead.
	URL     string
	Secrets [][]byte // each signs; at least one if URL is set, two while they are being changed
	Events  Filter
	Headers http.Header
	Format  Format        // empty is FormatStandard
	Timeout time.Duration // of a whole attempt
	// RingingTTL is how long the event that a call rings or was answered is of use to the endpoint;
	// its delivery then expires.
	RingingTTL time.Duration
	// Concurrency is the largest number of attempts in flight, questions not counted.
	Concurrency int
	// Rate is the largest number of attempts that begin per second, questions not counted; 0 means
	// no limit.
	Rate float64
	// Tokens authenticate the endpoint at the API. An endpoint without one can answer a routing
	// question only in the response to its webhook.
	Tokens []string
	// TLS holds the certificates to trust at an https URL and the client certificate to present
	// there. Nil trusts the certificates of the system and presents none.
	TLS *tls.Config
}

// IsInner reports whether an endpoint is one of the bridge itself, such as the one that fetches
// recordings: it has a lane, and no list for people shows it. No endpoint can be configured with
// such a name.
func IsInner(endpoint string) bool { return strings.HasPrefix(endpoint, InnerMark) }

// InnerMark begins the name of an inner endpoint.
const InnerMark = "~"

// Reads reports whether the endpoint reads its events: then nothing is sent to it.
func (e *Endpoint) Reads() bool { return e.URL == "" }

// Subscription is what decides which events an endpoint gets, and for how long they are of use to
// it.
type Subscription struct {
	Name       string
	Events     Filter
	RingingTTL time.Duration
	Reads      bool
}

// Subscription returns that of an endpoint.
func (e *Endpoint) Subscription() Subscription {
	return Subscription{Name: e.Name, Events: e.Events, RingingTTL: e.RingingTTL, Reads: e.Reads()}
}

// IsEqual reports whether two subscriptions are the same.
func (s Subscription) IsEqual(other Subscription) bool {
	return s.Name == other.Name && slices.Equal(s.Events, other.Events) && s.RingingTTL == other.RingingTTL &&
		s.Reads == other.Reads
}

// WithSubscriptions returns endpoints, and those that only other bridges have, as far as rules of
// delivery need them. An endpoint that another bridge has with another filter gets what any of the
// two lets through: while a configuration is changed bridge by bridge, nothing is missing.
func WithSubscriptions(own []Endpoint, others []Subscription) []Endpoint {
	list := slices.Clone(own)
	for _, s := range others {
		i := slices.IndexFunc(list, func(e Endpoint) bool { return e.Name == s.Name })
		if i < 0 {
			e := Endpoint{Name: s.Name, Events: s.Events, RingingTTL: s.RingingTTL}
			if !s.Reads {
				e.URL = "http://another-bridge.invalid"
			}
			list = append(list, e)
			continue
		}
		list[i].Events = slices.Concat(list[i].Events, s.Events)
	}
	return list
}

// ValidateEndpoints checks that each endpoint is complete and that their names differ.
func ValidateEndpoints(list []Endpoint) error {
	names := map[string]bool{}
	for i := range list {
		e := &list[i]
		hasSecret := e.Reads() || len(e.Secrets) > 0
		hasLimits := e.Timeout > 0 && e.Concurrency > 0 && e.RingingTTL > 0 && e.Rate >= 0
		switch {
		case e.Name == "" || !hasSecret || !hasLimits:
			return fmt.Errorf("endpoint %q must have a name, a secret if it has a URL, a timeout, "+
				"a concurrency and a time for ringing", e.Name)
		case names[e.Name]:
			return fmt.Errorf("two endpoints are named %q", e.Name)
		}
		names[e.Name] = true
	}
	return nil
}

// Format is the form in which an endpoint gets its events.
type Format string

// The formats. The signature covers the bytes that are sent, in every format.
const (
	FormatStandard Format = "standard" // JSON as it is stored
	FormatFlat     Format = "flat"     // one level of JSON, for programs that cannot look into objects
	FormatForm     Format = "form"     // the flat one as application/x-www-form-urlencoded
	FormatPZ       Format = "pz"       // the members of the array in the vendor's PHP library
	FormatText     Format = "text"     // {"text": one sentence}, as chats take it
)

// Formats lists the formats.
var Formats = []Format{FormatStandard, FormatFlat, FormatForm, FormatPZ, FormatText}

// The ways in which a request about an endpoint can fail.
var (
	// ErrNoEndpoint means that no endpoint of that name is configured.
	ErrNoEndpoint = &telephony.Fault{Code: telephony.CodeNoEndpoint, Text: "there is no endpoint of that name"}
	// ErrNoURL means that the endpoint has no URL, so that nothing can be sent to it.
	ErrNoURL = &telephony.Fault{Code: telephony.CodeNoURL, Text: "the endpoint has no URL: it reads its events"}
)
