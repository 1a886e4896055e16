// Package metrics counts what happens in the bridge and shows it in the format of Prometheus.
//
// The rooms that it watches know nothing of it: each declares a small interface of what it tells, and Metrics has the methods.
package metrics

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"pzbridge/internal/callpolicy"
	"pzbridge/internal/telephony"
	"pzbridge/outbox"
)

// Exchange is the session.
type Exchange interface{ Connection() telephony.Connection }

// Outbox is the outbox, as far as it is asked at each scrape.
type Outbox interface {
	Endpoints() ([]outbox.EndpointStatus, error)
	OldestPending(endpoint string) (time.Time, error)
	InUse() int64
}

// Metrics counts. All of its methods may be called at once.
type Metrics struct {
	registry *prometheus.Registry

	events      *prometheus.CounterVec
	deliveries  *prometheus.CounterVec
	attempts    *prometheus.HistogramVec
	toDelivery  *prometheus.HistogramVec
	commits     prometheus.Histogram
	commands    *prometheus.CounterVec
	refusals    *prometheus.CounterVec
	decisions   *prometheus.CounterVec
	routingTime prometheus.Histogram
	wrongTokens *prometheus.CounterVec
}

// The buckets, in seconds: what is quick by thousandths, and up to where it matters.
var (
	requestBuckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}
	waitBuckets    = []float64{.005, .01, .025, .05, .1, .25, .5, 1, 5, 30, 60, 300, 1800, 3600, 21600, 86400}
	commitBuckets  = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 5}
)

var commandKinds = []telephony.CommandKind{telephony.CommandCall, telephony.CommandTransfer, telephony.CommandSMS}

// New gives the metrics of one bridge of a version.
func New(version string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pzbridge_events_received_total", Help: "Events that the server has sent, by type.",
		}, []string{"type"}),
		deliveries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pzbridge_deliveries_total", Help: "How attempts and deliveries have ended: delivered, failed (it will be tried again), dead, expired.",
		}, []string{"endpoint", "outcome"}),
		attempts: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pzbridge_delivery_attempt_seconds", Help: "How long attempts have taken.", Buckets: requestBuckets,
		}, []string{"endpoint"}),
		toDelivery: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pzbridge_event_to_delivery_seconds", Help: "From when the bridge read an event to when the endpoint had taken it.", Buckets: waitBuckets,
		}, []string{"endpoint"}),
		commits: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "pzbridge_commit_seconds", Help: "How long a commit to the outbox's file has taken.", Buckets: commitBuckets,
		}),
		commands: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pzbridge_commands_total", Help: "Calls, transfers and SMS for the server, by how they ended: done, refused, not_sent, no_answer.",
		}, []string{"kind", "outcome"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pzbridge_commands_refused_total",
			Help: "Commands that were not allowed, by why: from, to (CALL_FROM and CALL_TO), rate (CALL_RATE), " +
				"closed (too many of that token were refused).",
		}, []string{"by", "kind", "reason"}),
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pzbridge_routing_decisions_total", Help: "Calls that asked where to go, by how that ended: won, closed (nobody wanted them in time).",
		}, []string{"outcome"}),
		routingTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "pzbridge_routing_seconds", Help: "From when a call asked where to go to when that was decided.", Buckets: requestBuckets,
		}),
	}
	m.wrongTokens = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "pzbridge_wrong_tokens_total", Help: "Requests with an unknown token: to the api, or to the dashboard to sign in.",
	}, []string{"to"})
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "pzbridge_build_info", Help: "1, with the version of the bridge."}, []string{"version"})
	build.WithLabelValues(version).Set(1)
	m.registry.MustRegister(
		m.events, m.deliveries, m.attempts, m.toDelivery, m.commits, m.commands, m.refusals, m.decisions, m.routingTime, m.wrongTokens, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	m.beginAtZero()
	return m
}

// beginAtZero shows every series from the start: a rule that looks for an increase does not see the first of one that begins with it.
func (m *Metrics) beginAtZero() {
	for _, kind := range telephony.EventTypes {
		m.events.WithLabelValues(string(kind))
	}
	for _, kind := range commandKinds {
		for _, outcome := range []string{"done", "refused", "not_sent", "no_answer"} {
			m.commands.WithLabelValues(string(kind), outcome)
		}
	}
	for _, to := range []string{ToAPI, ToDashboard} {
		m.wrongTokens.WithLabelValues(to)
	}
	for _, outcome := range []telephony.RouteOutcome{telephony.RouteWon, telephony.RouteClosed} {
		m.decisions.WithLabelValues(string(outcome))
	}
}

// Watch lets each scrape ask the session and the outbox how they stand.
func (m *Metrics) Watch(exchange Exchange, box Outbox) {
	m.registry.MustRegister(watcher{exchange, box})
	list, _ := box.Endpoints() // each scrape says what is wrong with it
	m.noRefusals("operator")
	for _, e := range list {
		for _, outcome := range []string{outbox.OutcomeDelivered, outbox.OutcomeFailed, outbox.OutcomeDead, outbox.OutcomeExpired} {
			m.deliveries.WithLabelValues(e.Name, outcome)
		}
		m.attempts.WithLabelValues(e.Name)
		m.toDelivery.WithLabelValues(e.Name)
		m.noRefusals(e.Name)
	}
}

func (m *Metrics) noRefusals(by string) {
	for _, kind := range commandKinds {
		for _, reason := range callpolicy.Reasons {
			m.refusals.WithLabelValues(by, string(kind), reason)
		}
	}
}

// Handler shows the metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
}

// EventReceived counts an event that the server has sent.
func (m *Metrics) EventReceived(kind telephony.EventType) {
	m.events.WithLabelValues(string(kind)).Inc()
}

// CommandEnded counts a command.
func (m *Metrics) CommandEnded(kind telephony.CommandKind, outcome string) {
	m.commands.WithLabelValues(string(kind), outcome).Inc()
}

// CommandRefused counts a command that is not allowed.
func (m *Metrics) CommandRefused(by string, kind telephony.CommandKind, reason string) {
	m.refusals.WithLabelValues(by, string(kind), reason).Inc()
}

// Decided counts a decision about a call, and how long that took.
func (m *Metrics) Decided(outcome telephony.RouteOutcome, took time.Duration) {
	m.decisions.WithLabelValues(string(outcome)).Inc()
	m.routingTime.Observe(took.Seconds())
}

// AttemptEnded counts an attempt; age is how long ago the event was read.
func (m *Metrics) AttemptEnded(endpoint, outcome string, took, age time.Duration) {
	m.deliveries.WithLabelValues(endpoint, outcome).Inc()
	m.attempts.WithLabelValues(endpoint).Observe(took.Seconds())
	if outcome == outbox.OutcomeDelivered {
		m.toDelivery.WithLabelValues(endpoint).Observe(age.Seconds())
	}
}

// GivenUp counts deliveries that are dead without another attempt.
func (m *Metrics) GivenUp(endpoint string, n int) {
	m.deliveries.WithLabelValues(endpoint, outbox.OutcomeDead).Add(float64(n))
}

// Expired counts a delivery that is made no more, since it is too late.
func (m *Metrics) Expired(endpoint string) {
	m.deliveries.WithLabelValues(endpoint, outbox.OutcomeExpired).Inc()
}

// To what a request with a wrong token was.
const (
	ToAPI       = "api"
	ToDashboard = "dashboard"
)

// WrongToken counts a request with an unknown token.
func (m *Metrics) WrongToken(to string) { m.wrongTokens.WithLabelValues(to).Inc() }

// Committed counts a commit.
func (m *Metrics) Committed(took time.Duration) { m.commits.Observe(took.Seconds()) }

// watcher asks at each scrape.
type watcher struct {
	exchange Exchange
	box      Outbox
}

var (
	descConnected = prometheus.NewDesc("pzbridge_connected", "1 while there is a connection to the server.", nil, nil)
	descPending   = prometheus.NewDesc("pzbridge_outbox_pending", "Deliveries that wait.", []string{"endpoint"}, nil)
	descOldest    = prometheus.NewDesc("pzbridge_outbox_oldest_pending_seconds", "How long the oldest delivery that waits has waited, but for those that are made again; 0 if none does.", []string{"endpoint"}, nil)
	descBytes     = prometheus.NewDesc("pzbridge_outbox_bytes", "How much of the outbox's file is in use.", nil, nil)
	descFailing   = prometheus.NewDesc("pzbridge_endpoint_failing", "1 while an endpoint is only probed, since many attempts in a row have failed.", []string{"endpoint"}, nil)
)

// Describe is for the registry.
func (w watcher) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descConnected, descPending, descOldest, descBytes, descFailing} {
		ch <- d
	}
}

// Collect is for the registry.
func (w watcher) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	truth := map[bool]float64{true: 1}
	gauge(descConnected, truth[w.exchange.Connection().State == telephony.Connected])
	gauge(descBytes, float64(w.box.InUse()))
	list, err := w.box.Endpoints()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(descPending, err)
		return
	}
	for _, e := range list {
		gauge(descPending, float64(e.Pending), e.Name)
		gauge(descFailing, truth[e.State == "failing"], e.Name)
		oldest, err := w.box.OldestPending(e.Name)
		if err != nil {
			ch <- prometheus.NewInvalidMetric(descOldest, err)
			continue
		}
		waited := 0.0
		if !oldest.IsZero() {
			waited = max(0, time.Since(oldest).Seconds())
		}
		gauge(descOldest, waited, e.Name)
	}
}
