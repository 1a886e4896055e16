// Package metrics counts what happens in the bridge and serves it in the format of Prometheus.
//
// Each observed package declares a small observer interface of its own, and Metrics implements all
// of them, so that no package depends on this one. Durations are exported in seconds.
package metrics

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"pzbridge/internal/callpolicy"
	"pzbridge/internal/telephony"
	"pzbridge/outbox"
	"pzbridge/outbox/store"
)

// Exchange is the session with the exchange, read at each scrape.
type Exchange interface{ Connection() telephony.Connection }

// Outbox is the part of the outbox that is read at each scrape.
type Outbox interface {
	Endpoints(ctx context.Context) ([]outbox.EndpointStatus, error)
	OldestPending(ctx context.Context, endpoint string) (time.Time, error)
	InUse(ctx context.Context) (int64, error)
	// LaneStatus has an entry for each endpoint to which this bridge delivers.
	LaneStatus() map[string]store.LaneStatus
}

// Metrics holds the metrics of one bridge. Its methods may be called concurrently.
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
	backups     *prometheus.CounterVec
	lastBackup  *prometheus.GaugeVec // without labels; no series until there is a copy
}

// The histogram buckets, in seconds.
var (
	requestBuckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}
	waitBuckets    = []float64{.005, .01, .025, .05, .1, .25, .5, 1, 5, 30, 60, 300, 1800, 3600, 21600, 86400}
	commitBuckets  = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 5}
)

var commandKinds = []telephony.CommandKind{telephony.CommandCall, telephony.CommandTransfer, telephony.CommandSMS}

// New returns the metrics of a bridge of the given version.
func New(version string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pzbridge_events_received_total",
			Help: "Events that the server has sent, by type.",
		}, []string{"type"}),
		deliveries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pzbridge_deliveries_total",
			Help: "How attempts and deliveries have ended: delivered, failed (it will be tried again), dead, expired.",
		}, []string{"endpoint", "outcome"}),
		attempts: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "pzbridge_delivery_attempt_seconds",
			Help:    "How long attempts have taken.",
			Buckets: requestBuckets,
		}, []string{"endpoint"}),
		toDelivery: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "pzbridge_event_to_delivery_seconds",
			Help:    "From when the bridge read an event to when the endpoint had taken it.",
			Buckets: waitBuckets,
		}, []string{"endpoint"}),
		commits: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "pzbridge_commit_seconds",
			Help:    "How long a commit to the outbox's file has taken.",
			Buckets: commitBuckets,
		}),
		commands: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pzbridge_commands_total",
			Help: "Calls, transfers and SMS for the server, by how they ended: done, refused, not_sent, no_answer.",
		}, []string{"kind", "outcome"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pzbridge_commands_refused_total",
			Help: "Commands that were not allowed, by why: from, to (CALL_FROM and CALL_TO), rate (CALL_RATE), " +
				"closed (too many of that token were refused).",
		}, []string{"by", "kind", "reason"}),
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pzbridge_routing_decisions_total",
			Help: "Calls that asked where to go, by how that ended: won, closed (nobody wanted them in time).",
		}, []string{"outcome"}),
		routingTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "pzbridge_routing_seconds",
			Help:    "From when a call asked where to go to when that was decided.",
			Buckets: requestBuckets,
		}),
	}
	m.wrongTokens = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "pzbridge_wrong_tokens_total",
		Help: "Requests with an unknown token: to the api, or to the dashboard to sign in.",
	}, []string{"to"})
	m.backups = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "pzbridge_backups_total",
		Help: "Copies of the outbox for BACKUP_DIR, by how they ended: made, failed.",
	}, []string{"outcome"})
	m.lastBackup = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "pzbridge_backup_timestamp_seconds",
		Help: "When the newest copy in BACKUP_DIR was made, in seconds since 1970.",
	}, nil)
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "pzbridge_build_info",
		Help: "1, with the version of the bridge.",
	}, []string{"version"})
	build.WithLabelValues(version).Set(1)
	m.registry.MustRegister(
		m.events, m.deliveries, m.attempts, m.toDelivery, m.commits,
		m.commands, m.refusals, m.decisions, m.routingTime, m.wrongTokens, m.backups, m.lastBackup, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	m.startAtZero()
	return m
}

// startAtZero creates every series with 0. A series that first appears with its first count shows
// no increase, so an alert rule would miss that count.
func (m *Metrics) startAtZero() {
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
	for _, outcome := range []string{backupMade, backupFailed} {
		m.backups.WithLabelValues(outcome)
	}
	for _, outcome := range []telephony.RouteOutcome{telephony.RouteWon, telephony.RouteClosed} {
		m.decisions.WithLabelValues(string(outcome))
	}
}

// Watch adds the state of the session and of the outbox, which may hold maxBytes, to each scrape.
// bridge is the name of this bridge if several may share the outbox, else empty. Call it once,
// before the first scrape.
func (m *Metrics) Watch(exchange Exchange, box Outbox, maxBytes int64, bridge string) {
	m.registry.MustRegister(watcher{exchange, box, maxBytes, bridge})
	list, _ := box.Endpoints(context.Background()) // each scrape reports this error
	m.startRefusalsAtZero("operator")
	for _, e := range list {
		for _, outcome := range []string{
			outbox.OutcomeDelivered, outbox.OutcomeFailed, outbox.OutcomeDead, outbox.OutcomeExpired,
		} {
			m.deliveries.WithLabelValues(e.Name, outcome)
		}
		m.attempts.WithLabelValues(e.Name)
		m.toDelivery.WithLabelValues(e.Name)
		m.startRefusalsAtZero(e.Name)
	}
}

func (m *Metrics) startRefusalsAtZero(by string) {
	for _, kind := range commandKinds {
		for _, reason := range callpolicy.Reasons {
			m.refusals.WithLabelValues(by, string(kind), reason)
		}
	}
}

// Handler serves the metrics. A metric that cannot be read is left out.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
}

// EventReceived counts an event from the server.
func (m *Metrics) EventReceived(kind telephony.EventType) {
	m.events.WithLabelValues(string(kind)).Inc()
}

// CommandEnded counts a command that was sent, or could not be sent, to the server: outcome is
// done, refused, not_sent or no_answer.
func (m *Metrics) CommandEnded(kind telephony.CommandKind, outcome string) {
	m.commands.WithLabelValues(string(kind), outcome).Inc()
}

// CommandRefused counts a command that the bridge does not allow. by is the endpoint or "operator",
// reason one of callpolicy.Reasons.
func (m *Metrics) CommandRefused(by string, kind telephony.CommandKind, reason string) {
	m.refusals.WithLabelValues(by, string(kind), reason).Inc()
}

// Decided counts a routing question that was decided, and observes how long after the question.
func (m *Metrics) Decided(outcome telephony.RouteOutcome, took time.Duration) {
	m.decisions.WithLabelValues(string(outcome)).Inc()
	m.routingTime.Observe(took.Seconds())
}

// AttemptEnded counts an attempt by its outcome and observes its duration. age is the time since
// the bridge read the event; it is observed for delivered events only.
func (m *Metrics) AttemptEnded(endpoint, outcome string, took, age time.Duration) {
	m.deliveries.WithLabelValues(endpoint, outcome).Inc()
	m.attempts.WithLabelValues(endpoint).Observe(took.Seconds())
	if outcome == outbox.OutcomeDelivered {
		m.toDelivery.WithLabelValues(endpoint).Observe(age.Seconds())
	}
}

// GivenUp counts n deliveries that became dead without another attempt: damaged ones, or ones that
// were too old.
func (m *Metrics) GivenUp(endpoint string, n int) {
	m.deliveries.WithLabelValues(endpoint, outbox.OutcomeDead).Add(float64(n))
}

// Expired counts a delivery that was dropped because its event is out of date.
func (m *Metrics) Expired(endpoint string) {
	m.deliveries.WithLabelValues(endpoint, outbox.OutcomeExpired).Inc()
}

// The values of the label to of WrongToken.
const (
	ToAPI       = "api"
	ToDashboard = "dashboard"
)

// WrongToken counts a request with an unknown token; to is ToAPI or ToDashboard.
func (m *Metrics) WrongToken(to string) { m.wrongTokens.WithLabelValues(to).Inc() }

// The values of the label outcome of the copies.
const (
	backupMade   = "made"
	backupFailed = "failed"
)

// BackupFound sets when the newest copy of the outbox was made.
func (m *Metrics) BackupFound(at time.Time) {
	m.lastBackup.WithLabelValues().Set(float64(at.UnixMilli()) / 1000)
}

// BackupMade counts a copy of the outbox.
func (m *Metrics) BackupMade(at time.Time) {
	m.backups.WithLabelValues(backupMade).Inc()
	m.BackupFound(at)
}

// BackupFailed counts a copy of the outbox that could not be made.
func (m *Metrics) BackupFailed() { m.backups.WithLabelValues(backupFailed).Inc() }

// Committed observes the duration of a commit to the outbox.
func (m *Metrics) Committed(took time.Duration) { m.commits.Observe(took.Seconds()) }

// watcher is a collector that reads the session and the outbox at each scrape.
type watcher struct {
	exchange Exchange
	box      Outbox
	maxBytes int64
	bridge   string // empty: no other one can share the outbox
}

var (
	descConnected = prometheus.NewDesc("pzbridge_connected",
		"1 while there is a connection to the server.",
		nil, nil)
	descPending = prometheus.NewDesc("pzbridge_outbox_pending",
		"Deliveries that wait.",
		[]string{"endpoint"}, nil)
	descOldest = prometheus.NewDesc("pzbridge_outbox_oldest_pending_seconds",
		"How long the oldest delivery that waits has waited, but for those that are made again; 0 if none does.",
		[]string{"endpoint"}, nil)
	descBytes = prometheus.NewDesc("pzbridge_outbox_bytes",
		"How much of the outbox's file is in use.",
		nil, nil)
	descLimit = prometheus.NewDesc("pzbridge_outbox_limit_bytes",
		"How much of the outbox's file may be in use: OUTBOX_MAX_BYTES.",
		nil, nil)
	descFailing = prometheus.NewDesc("pzbridge_endpoint_failing",
		"1 while an endpoint is only probed, since many attempts in a row have failed.",
		[]string{"endpoint"}, nil)
	descBridge = prometheus.NewDesc("pzbridge_bridge_info",
		"1, with the name of the bridge: BRIDGE_NAME. Only with OUTBOX_URL, where several share a database.",
		[]string{"bridge"}, nil)
	descLanes = prometheus.NewDesc("pzbridge_lanes",
		"To how many endpoints this bridge delivers. Only with OUTBOX_URL, where several share them out.",
		nil, nil)
)

// Describe implements prometheus.Collector.
func (w watcher) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descConnected, descPending, descOldest, descBytes, descLimit, descFailing, descBridge, descLanes,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (w watcher) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	asFloat := map[bool]float64{true: 1}
	gauge(descConnected, asFloat[w.exchange.Connection().State == telephony.Connected])
	gauge(descLimit, float64(w.maxBytes))
	if w.bridge != "" {
		gauge(descBridge, 1, w.bridge)
		gauge(descLanes, float64(len(w.box.LaneStatus())))
	}
	ctx := context.Background() // a scrape has none of its own
	if n, err := w.box.InUse(ctx); err != nil {
		ch <- prometheus.NewInvalidMetric(descBytes, err)
	} else {
		gauge(descBytes, float64(n))
	}
	list, err := w.box.Endpoints(ctx)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(descPending, err)
		return
	}
	for _, e := range list {
		gauge(descPending, float64(e.Pending), e.Name)
		gauge(descFailing, asFloat[e.State == "failing"], e.Name)
		oldest, err := w.box.OldestPending(ctx, e.Name)
		if err != nil {
			ch <- prometheus.NewInvalidMetric(descOldest, err)
			continue
		}
		age := 0.0
		if !oldest.IsZero() {
			age = max(0, time.Since(oldest).Seconds())
		}
		gauge(descOldest, age, e.Name)
	}
}
