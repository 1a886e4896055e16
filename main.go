// Command pzbridge stands between a Prostie Zvonki server and CRMs: it keeps every event of the
// server in an outbox and POSTs it as a signed webhook to each CRM, and it passes calls, transfers
// and SMS from the CRMs to the server.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/google/uuid"

	"pzbridge/internal/advice"
	"pzbridge/internal/alert"
	"pzbridge/internal/backup"
	"pzbridge/internal/callpolicy"
	"pzbridge/internal/certificate"
	"pzbridge/internal/cli"
	"pzbridge/internal/clock"
	"pzbridge/internal/cluster"
	"pzbridge/internal/config"
	"pzbridge/internal/connlimit"
	"pzbridge/internal/dashboard"
	"pzbridge/internal/metrics"
	"pzbridge/internal/routing"
	"pzbridge/internal/telephony"
	"pzbridge/outbox"
	"pzbridge/outbox/bolt"
	"pzbridge/outbox/postgres"
	"pzbridge/outbox/store"
	"pzbridge/outbox/webhook"
	"pzbridge/relay"
	"pzbridge/transferapi"
)

// version is that of the tag in a release: see .goreleaser.yaml.
var version = "0.1.0"

// A clock that shows a time before released, the day of this version, is wrong. A timestamp in an
// outbox before first, the month of the first version, was taken from a wrong clock.
var (
	released = time.Date(2026, time.November, 30, 0, 0, 0, 0, time.UTC)
	first    = time.Date(2026, time.November, 1, 0, 0, 0, 0, time.UTC)
)

// gcPercent lets the heap grow to five times the live data, which is a few MiB. At Go's default of
// 100 the collector takes a seventh of the events per second of BenchmarkBridge.
const gcPercent = 400

// memoryShare is the share of the cgroup's memory limit above which the collector runs more often
// than gcPercent requires. The rest is left for stacks, kernel buffers and dirty pages of the
// outbox.
const memoryShare = 0.7

func main() {
	ctx := untilSignal()
	program := cli.Program{Version: version, Bridge: bridge, In: os.Stdin, Out: os.Stdout, Err: os.Stderr}
	os.Exit(program.Main(ctx, os.Args[1:]))
}

// untilSignal returns a context that ends on the first signal to stop; a second signal then ends
// the process at once. Closing a terminal window sends SIGHUP, which counts unless it is ignored,
// as under nohup. SIGHUP arrives twice, from the shell and from the kernel, so it never counts as
// the second signal.
func untilSignal() context.Context {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		signals = append(signals, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	context.AfterFunc(ctx, func() {
		signal.Ignore(syscall.SIGHUP)
		stop()
	})
	return ctx
}

// bridge runs until ctx ends, or until a part of it fails.
func bridge(ctx context.Context, cfg config.Config, logger *slog.Logger) (err error) {
	// net/http reports some conditions to the standard logger only, such as a CRM that sends more
	// than its Content-Length.
	log.SetFlags(0)
	log.SetOutput(slog.NewLogLogger(logger.Handler(), slog.LevelDebug).Writer())
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if _, err := memlimit.Set(memlimit.WithRatio(memoryShare)); err != nil {
		logger.Debug("no limit of memory was found", "err", err)
	}
	ctx, stopping := context.WithCancel(ctx)
	defer stopping()
	counters := metrics.New(version)
	stats := dashboard.NewStats()
	ages := clock.New(released, first)
	engine, err := openEngine(ctx, cfg, ages, counters, logger)
	isAway := errors.Is(err, postgres.ErrUnavailable) || errors.Is(err, context.Canceled)
	if ctx.Err() != nil && isAway { // it was to end, and has nothing to store yet
		logger.Info("pzbridge stopped")
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, engine.Close()) }()
	keeper, err := newKeeper(ctx, cfg, engine, ages, logger) // nil without recordings
	if err != nil {
		return err
	}
	senders := newSenders(cfg, engine, recordingsOf(keeper), logger)
	defer closeSenders(senders)
	boxOptions := outbox.Options{
		Engine:         engine,
		Bridge:         bridgeName(cfg),
		Endpoints:      cfg.Endpoints,
		Senders:        maps.Clone(senders),
		Formatter:      webhook.Formatter{},
		Numbers:        cfg.Phone,
		RetrySchedule:  cfg.RetrySchedule,
		RoutingTimeout: cfg.RoutingTimeout,
		Retention:      cfg.OutboxRetention,
		Grace:          cfg.ShutdownGrace * 9 / 10, // the rest is for recording the outcomes
		Stopping:       ctx,
		Logger:         logger,
		Observer:       observers{counters, stats},
		Clock:          ages,
	}
	addKeeper(&boxOptions, cfg, keeper)
	box, err := outbox.New(ctx, boxOptions)
	if err != nil {
		return err
	}

	database, isShared := engine.(*postgres.Engine)
	if cfg.Identity.GUID == "" && !isShared {
		if cfg.Identity.GUID, err = box.ClientGUID(ctx, 1, uuid.NewString()); err != nil {
			return fmt.Errorf("keep the client GUID in the outbox: %w", err)
		}
	}
	enabled, err := box.IsToConnect(ctx)
	if err != nil {
		return err
	}
	events := &sink{box: box}
	connecting := relay.Options{
		URL:          cfg.URL,
		TLS:          relay.TLS(cfg.TLSRoots, cfg.TLSFingerprint, cfg.TLSLegacy),
		Identity:     cfg.Identity,
		Disabled:     !enabled,
		ReplayMaxAge: cfg.ReplayMaxAge,
		Clock:        ages,
		Grace:        cfg.ShutdownGrace / 4,
		Sink:         events,
		Explain:      advice.English,
		Logger:       logger,
		Observer:     observers{counters, stats},
	}
	var slot *cluster.Slot // nil: no other bridge is connected in place of this one
	if isShared {
		slot = shareConnection(&connecting, database, box, events, cfg)
	}
	session, err := relay.New(connecting)
	if err != nil {
		return err
	}
	var alerts *alert.Watch
	bridges := cluster.New(cluster.Options{
		Engine:    engine,
		Outbox:    box,
		Session:   session,
		Slot:      slot,
		Refusals:  func() (int, time.Time) { return alerts.Refusals() },
		Name:      cfg.BridgeName,
		Version:   version,
		Endpoints: cfg.Endpoints,
		Logger:    logger,
	})
	alerts, err = alert.New(alert.Options{
		Exchange:       bridges,
		Outbox:         box,
		MaxBytes:       cfg.OutboxMaxBytes,
		Russian:        cfg.AlertLanguage == "ru",
		OthersRefusals: bridges.OthersRefusals,
		Logger:         logger,
	})
	if err != nil {
		return err
	}
	policy, err := callpolicy.New(callpolicy.Options{
		Rate:     cfg.CallRate,
		From:     cfg.CallFrom,
		To:       cfg.CallTo,
		Logger:   logger,
		Observer: refusalObservers{counters, alerts},
	})
	if err != nil {
		return err
	}
	// Left to the bridges that are connected, where there are several.
	var left func(context.Context, time.Time) ([]telephony.Route, error)
	takeEvery := time.Duration(0)
	if isShared {
		left, takeEvery = database.UnwrittenTransfers, time.Second
	}
	router, err := routing.NewRouter(routing.RouterOptions{
		Exchange:         session,
		Routes:           engine,
		DeclineOnSilence: cfg.DeclineOnSilence,
		Timeout:          cfg.CommandTimeout,
		Policy:           policy,
		Left:             left,
		Connected:        func() bool { return session.Connection().State == telephony.Connected },
		Logger:           logger,
		Observer:         counters,
	})
	if err != nil {
		return err
	}
	events.questions, err = routing.NewDispatcher(routing.Options{
		Questions: engine,
		Routes:    engine,
		Outbox:    box,
		Router:    router,
		Endpoints: cfg.Endpoints,
		Senders:   senders,
		Timeout:   cfg.RoutingTimeout,
		Freshness: ages.Freshness,
		TakeEvery: takeEvery,
		Logger:    logger,
	})
	if err != nil {
		return err
	}
	counters.Watch(session, box, cfg.OutboxMaxBytes, bridgeName(cfg))
	deliver := []func(context.Context) error{events.questions.Run, box.Run, router.Run}
	if keeper != nil {
		deliver = append(deliver, keeper.Run)
	}
	hook := newPortalHook(senders, session, logger)
	if hook != nil {
		deliver = append(deliver, hook.Run)
	}
	file, isFile := engine.(*bolt.Engine)
	if isFile && cfg.BackupDir != "" {
		nightly, err := backup.New(backup.Options{
			Folder:   backupFolder(cfg),
			Copy:     file.Backup,
			Usable:   isWorthCopying(file),
			Logger:   logger,
			Observer: counters,
		})
		if err != nil {
			return err
		}
		deliver = append(deliver, nightly.Run)
	}
	pages, err := dashboard.New(dashboard.Options{
		Exchange:    session,
		Outbox:      box,
		Stats:       stats,
		Headers:     headersOf(senders),
		Tokens:      cfg.APITokens,
		MaxBytes:    cfg.OutboxMaxBytes,
		BehindProxy: cfg.BehindProxy,
		Version:     version,
		Bridge:      bridgeName(cfg),
		Bridges:     bridges,
		Logger:      logger,
		WrongToken:  func() { counters.WrongToken(metrics.ToDashboard) },
	})
	if err != nil {
		return err
	}
	api, err := transferapi.New(transferapi.Options{
		Exchange:       session,
		Router:         router,
		Policy:         policy,
		Outbox:         box,
		Backup:         backupOf(file),
		Deliveries:     box,
		Events:         box,
		Calls:          box,
		Keys:           engine,
		Bridges:        bridges,
		Verdict:        verdictOf(pages),
		Charts:         chartsOf(pages),
		OthersTransfer: isShared,
		Metrics:        counters.Handler(),
		MetricsPublic:  cfg.MetricsPublic,
		Tokens:         tokens(cfg),
		CommandTimeout: cfg.CommandTimeout,
		Rate:           cfg.APIRate,
		Others:         interfacesOf(cfg, hook, box, engine, recordingsOf(keeper), logger),
		Recordings:     linksOf(keeper),
		CRMs:           crmsOf(senders),
		Logger:         logger,
		WrongToken:     func() { counters.WrongToken(metrics.ToAPI) },
	})
	if err != nil {
		return err
	}
	connections, hasFiles := connlimit.Budget(connectionsNeeded(cfg))
	limit := connlimit.New(connections)
	handler := limit.Handler(pages.Handler(api), func(r *http.Request) bool { return api.Knows(r) || pages.Knows(r) })
	var cert *certificate.Certificate // nil: without TLS
	if cfg.APICertFile != "" {
		cert, err = certificate.New(certificate.Options{Read: cfg.ReadAPICertificate, Logger: logger})
		if err != nil {
			return err
		}
	}
	listener, err := net.Listen("tcp", cfg.ListenAddr)
	if err != nil {
		return fmt.Errorf("the API cannot listen on LISTEN_ADDR: %w", err)
	}

	started := []any{
		"version", version, "server", cfg.URL.Host, "endpoints", len(cfg.Endpoints),
		"outbox", cfg.OutboxPlace(), "listen", listener.Addr().String(),
	}
	if cfg.Identity.GUID != "" {
		started = append(started, "client_guid", cfg.Identity.GUID)
	}
	logger.Info("pzbridge started", started...)
	if !enabled {
		logger.Warn("the connection to the server is switched off, " +
			"and stays so until PUT /v1/connection or the dashboard switches it on")
	}
	for _, warning := range cfg.Warnings() {
		logger.Warn(warning)
	}
	if !hasFiles {
		logger.Warn("the process may have too few files open for so many CRMs: " +
			"raise ulimit -n, or lower ENDPOINT_<n>_CONCURRENCY")
	}
	serveAPI := func(l net.Listener) func(context.Context) error {
		return serve(l, handler, cfg.ShutdownGrace/4, logger, api.Drain, pages.Drain)
	}
	front := serveAPI(limit.Listener(listener))
	if cert != nil {
		front = together(serveAPI(tls.NewListener(limit.Listener(listener), cert.TLS())), cert.Run)
	}
	// The parts stop in this order, which is the way the data flows. But for requests that are
	// under way, nothing waits for the database before the session ends, which would take calls
	// meanwhile that it may not be able to store.
	err = runAll(
		ctx,
		stopping,
		front,
		together(
			bridges.Listen,
			bridges.Alone("alerts", alerts.Run),
			func(ctx context.Context) error { return stats.Run(ctx, box, logger) },
		),
		together(deliver...),
		bridges.Run,
		engine.Run,
	)
	logger.Info("pzbridge stopped")
	return err
}

// bridgeName tells bridges on one database apart; a bridge with a file of its own needs none.
func bridgeName(cfg config.Config) string {
	if cfg.OutboxURL == "" {
		return ""
	}
	return cfg.BridgeName
}

func backupFolder(cfg config.Config) backup.Folder {
	return backup.Folder{Dir: cfg.BackupDir, Keep: cfg.BackupKeep}
}

// beforeMigration returns what copies a file of an older layout; nil without a folder for copies.
func beforeMigration(cfg config.Config, logger *slog.Logger) func(int, func(io.Writer) error) error {
	if cfg.BackupDir == "" {
		return nil
	}
	return func(layout int, write func(io.Writer) error) error {
		return backupFolder(cfg).BeforeLayout(layout, write, logger)
	}
}

// isWorthCopying returns an error while a copy of the outbox would be damaged, or named by a wrong
// clock. If its file is gone, a copy is what is needed most.
func isWorthCopying(engine *bolt.Engine) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := engine.Writable(ctx); !errors.Is(err, store.ErrFileGone) {
			return err
		}
		return nil
	}
}

// connectionsNeeded returns the number of connections to budget for: two to the server, since a new
// one may open before the old one has closed, and those to the CRMs. Routing may open more to a CRM
// that is slow to answer, up to routing.MaxQuestions, and those come out of what is left.
func connectionsNeeded(cfg config.Config) int {
	const questions = 32 // per CRM, at a time
	n := 2
	for _, e := range cfg.Endpoints {
		n += e.Concurrency + questions
	}
	return n
}

// rules combines the rules of delivery (which endpoint gets an event, and until when) with those of
// routing (how an event or an answer changes the route of a call).
func rules(cfg config.Config) store.Rules { return rulesBeside(cfg, nil) }

// rulesBeside is rules with the endpoints of other bridges. Questions are asked of this bridge's
// own.
func rulesBeside(cfg config.Config, others []store.Subscription) store.Rules {
	r := outbox.Rules(outbox.RulesOptions{
		Endpoints:          store.WithSubscriptions(cfg.Endpoints, others),
		RetrySchedule:      cfg.RetrySchedule,
		OrderHold:          cfg.OrderHold,
		RoutingTimeout:     cfg.RoutingTimeout,
		QuietWithoutWinner: cfg.QuietWithoutWinner,
		Numbers:            cfg.Phone,
	})
	r.Receive, r.ChangeRoute = routing.Receive(cfg.Endpoints, cfg.RoutingTimeout), routing.Change
	if cfg.Recordings.On {
		addRecordings(&r)
	}
	return r
}

// verdictOf returns what the API says in the sentences of the dashboard.
func verdictOf(pages *dashboard.Dashboard) func(*http.Request) ([]transferapi.Finding, error) {
	return func(r *http.Request) (list []transferapi.Finding, err error) {
		findings, err := pages.Verdict(r)
		for _, f := range findings {
			list = append(list, transferapi.Finding(f))
		}
		return list, err
	}
}

// chartsOf returns the counts of the dashboard's charts.
func chartsOf(pages *dashboard.Dashboard) func(context.Context, string) (transferapi.Charts, error) {
	return func(ctx context.Context, span string) (transferapi.Charts, error) {
		step, names, points, err := pages.Charts(ctx, span)
		charts := transferapi.Charts{Span: span, Step: int(step.Seconds())}
		for _, name := range names {
			chart := transferapi.Chart{Endpoint: name}
			for _, p := range points[name] {
				point := transferapi.ChartPoint{
					At: p.At, Delivered: p.Delivered, Failed: p.Failed,
					P50: p.P50.Seconds() * 1000, P99: p.P99.Seconds() * 1000,
				}
				if name == "" {
					point.Received = &p.Received
				}
				chart.Points = append(chart.Points, point)
			}
			charts.Charts = append(charts.Charts, chart)
		}
		return charts, err
	}
}

func tokens(cfg config.Config) map[string][]string {
	list := map[string][]string{transferapi.Operator: cfg.APITokens}
	for _, e := range cfg.Endpoints {
		list[e.Name] = e.Tokens
	}
	return list
}

// together combines several parts into one: they stop at the same time.
func together(parts ...func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		results := make(chan error, len(parts))
		for _, run := range parts {
			go func() {
				defer stop() // a part that fails ends the others
				results <- run(ctx)
			}()
		}
		var err error
		for range parts {
			err = errors.Join(err, <-results)
		}
		return err
	}
}

// runAll starts all parts at once. When ctx ends or one of the parts returns, it calls stopping and
// stops them one after the other in the order given, and returns their errors.
func runAll(ctx context.Context, stopping func(), parts ...func(context.Context) error) error {
	ended := make(chan struct{}, len(parts))
	results := make([]chan error, len(parts))
	stops := make([]context.CancelFunc, len(parts))
	for i, run := range parts {
		partCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
		stops[i], results[i] = stop, make(chan error, 1)
		go func() {
			results[i] <- run(partCtx)
			ended <- struct{}{}
		}()
	}
	select {
	case <-ctx.Done():
	case <-ended:
	}
	stopping()
	var err error
	for i, stop := range stops {
		stop()
		err = errors.Join(err, <-results[i])
	}
	return err
}
