package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"pzbridge/internal/connlimit"
	"pzbridge/internal/repeat"
)

// writeTimeout bounds a request from the end of its header to the last byte of the response.
// Handlers that need longer (a backup, a page with live updates) set their own deadline. A read of
// events may wait for a minute.
const writeTimeout = 2 * time.Minute

// responseReserve is the part of the grace that is left for writing the responses of the requests
// whose contexts end with the grace.
const responseReserve = 100 * time.Millisecond

// serve returns a part that runs an HTTP server. When its context ends, requests under way have
// grace to end; shortly before, the contexts of those that are left end. Drain is called at the
// start of the shutdown, to end the requests that would wait long.
func serve(
	l net.Listener, h http.Handler, grace time.Duration, logger *slog.Logger, drain ...func(),
) func(context.Context) error {
	return func(ctx context.Context) error {
		requests, timeUp := context.WithCancel(context.WithoutCancel(ctx))
		defer timeUp()
		server := &http.Server{
			BaseContext:       func(net.Listener) context.Context { return requests },
			ConnContext:       connlimit.Context,
			Handler:           h,
			ReadHeaderTimeout: 5 * time.Second,
			ReadTimeout:       30 * time.Second,
			WriteTimeout:      writeTimeout,
			IdleTimeout:       30 * time.Second,
			MaxHeaderBytes:    64 << 10,
			ErrorLog:          log.New(serverErrors{logger, repeat.NewTally(logger)}, "", 0),
		}
		for _, f := range drain {
			server.RegisterOnShutdown(f)
		}
		stopped := make(chan struct{})
		defer context.AfterFunc(ctx, func() {
			defer close(stopped)
			defer time.AfterFunc(max(grace/2, grace-responseReserve), timeUp).Stop()
			// Not ctx, which has ended already.
			graceCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
			defer cancel()
			if server.Shutdown(graceCtx) != nil {
				_ = server.Close()
			}
		})()
		err := server.Serve(l)
		if !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("the API stopped: %w", err)
		}
		<-stopped
		return nil
	}
}

// serverErrors writes the errors of an HTTP server to the log. Those of TLS handshakes go through a
// tally, since strangers can cause any number of them.
type serverErrors struct {
	logger     *slog.Logger
	handshakes *repeat.Tally
}

// Write takes one line of the server.
func (s serverErrors) Write(line []byte) (int, error) {
	text := strings.TrimSuffix(string(line), "\n")
	failed, isHandshake := strings.CutPrefix(text, "http: TLS handshake error from ")
	remote, reason, _ := strings.Cut(failed, ": ")
	switch {
	case !isHandshake:
		s.logger.Warn(text)
	case reason == "EOF": // a check whether the port is open, or a connection that was displaced
		s.logger.Debug("a client has hung up before the TLS handshake", "remote", remote)
	default:
		s.handshakes.Happened("clients cannot agree on HTTPS with the API", "remote", remote, "err", reason)
	}
	return len(line), nil
}
