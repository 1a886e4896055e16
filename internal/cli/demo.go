package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"pzbridge/internal/config"
	"pzbridge/internal/demo"
	"pzbridge/internal/pztest"
)

// onceTimeout is how long `demo -once` may take.
const onceTimeout = 15 * time.Second

func (p Program) demo(ctx context.Context, args []string) error {
	fs := p.flags("demo [flags]", "Show the whole thing at work, without any set-up: a simulated Prostie Zvonki server, the bridge, and a small CRM that\n"+
		"verifies each webhook and prints it on a line. It plays some calls, sends commands through the API, and goes on with a call\n"+
		"now and then until Ctrl-C.")
	once := fs.Bool("once", false, "play it once and exit")
	crmAddr := fs.String("crm", "", "run only the demo CRM, on this `address`, for the bridge of this configuration")
	if err := parse(fs, args); err != nil {
		return err
	}
	if *crmAddr != "" {
		return p.demoCRM(ctx, *crmAddr)
	}
	return p.wholeDemo(ctx, *once)
}

// demoCRM is the CRM alone, as a container beside the bridge.
func (p Program) demoCRM(ctx context.Context, addr string) error {
	cfg, err := load()
	if err != nil {
		return err
	}
	crm, err := demo.NewCRM(cfg.Endpoints[0].Secrets, p.printer())
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	fmt.Fprintln(p.Out, "The demo CRM listens on", l.Addr())
	return serveUntil(ctx, l, crm)
}

func (p Program) wholeDemo(ctx context.Context, once bool) error {
	dir, err := os.MkdirTemp("", "pzbridge-demo-")
	if err != nil {
		return err
	}
	remove := func() { _ = os.RemoveAll(dir) }
	defer remove()
	defer endAtSecondSignal(remove)()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	// Whoever reads along may have seen enough: the demo then ends as with Ctrl-C, and leaves nothing behind.
	signal.Ignore(syscall.SIGPIPE)
	p.Out = untilGone{p.Out, stop}

	print := p.printer()
	server := pztest.NewServer(pztest.Options{Log: func(line string) { print("server   " + line) }})
	defer server.Close()
	token, operator := "demo-"+rand.Text(), "operator-"+rand.Text()
	crmListener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	apiAddr, err := freeAddress()
	if err != nil {
		return err
	}
	cfg, err := config.Load(map[string]string{
		"PZ_URL":          server.URL,
		"ENDPOINT_0_NAME": "demo", "ENDPOINT_0_URL": "http://" + crmListener.Addr().String() + "/webhook",
		"ENDPOINT_0_SECRET": newSecret(), "ENDPOINT_0_TOKEN": token,
		"OUTBOX_PATH": filepath.Join(dir, "outbox.db"), "LISTEN_ADDR": apiAddr, "API_TOKEN": operator,
	})
	if err != nil {
		return err
	}
	crm, err := demo.NewCRM(cfg.Endpoints[0].Secrets, print)
	if err != nil {
		return err
	}
	logger := slog.New(slog.NewTextHandler(p.Err, &slog.HandlerOptions{Level: slog.LevelWarn}))

	var parts sync.WaitGroup
	var bridgeErr, crmErr error
	parts.Go(func() { defer stop(); crmErr = serveUntil(ctx, crmListener, crm) })
	parts.Go(func() { defer stop(); bridgeErr = p.Bridge(ctx, cfg, logger) })

	fmt.Fprintf(p.Out, "A simulated Prostie Zvonki server at %s, the bridge, and a CRM at %s.\n", server.URL, cfg.Endpoints[0].URL)
	fmt.Fprintf(p.Out, "The dashboard is at http://%s/, its token %s\n", apiAddr, operator)
	fmt.Fprintf(p.Out, "The API listens at http://%s; try it while this runs:\n\n", apiAddr)
	fmt.Fprintf(p.Out, "  curl http://%s/v1/calls -H 'Authorization: Bearer %s' \\\n", apiAddr, token)
	fmt.Fprintf(p.Out, "    -H 'Content-Type: application/json' -d '{\"from\":\"101\",\"to\":\"+7 343 0112233\"}'\n\n")
	stage := &demo.Stage{Server: server, CRM: crm, API: "http://" + apiAddr, Token: token, Print: print}
	playErr := p.playDemo(ctx, stage, once)
	stop()
	parts.Wait()
	return errors.Join(bridgeErr, crmErr, playErr)
}

// endAtSecondSignal ends the process at the second signal, as it ends without it, but cleans up
// before. What it returns takes that back.
func endAtSecondSignal(cleanUp func()) (takeBack func()) {
	signals, done := make(chan os.Signal, 2), make(chan struct{})
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		for range 2 {
			select {
			case <-signals:
			case <-done:
				return
			}
		}
		cleanUp()
		os.Exit(exitFailed)
	}()
	return func() {
		signal.Stop(signals)
		close(done)
	}
}

// playDemo plays it once, and unless that is all goes on until ctx ends.
func (p Program) playDemo(ctx context.Context, stage *demo.Stage, once bool) error {
	playCtx, cancel := context.WithTimeout(ctx, onceTimeout)
	defer cancel()
	err := stage.Play(playCtx)
	if ctx.Err() != nil {
		return nil // Ctrl-C
	}
	if err != nil || once {
		return err
	}
	stage.Print("demo     A call comes now and then; Ctrl-C ends it.")
	stage.Server.Simulate(true)
	<-ctx.Done()
	return nil
}

// printer gives a function that prints a line with the time, from any goroutine.
func (p Program) printer() func(string) {
	var mu sync.Mutex
	return func(line string) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintln(p.Out, time.Now().Format("15:04:05.000"), printable(line))
	}
}

// untilGone writes until nobody reads any more, and says when that is so.
type untilGone struct {
	io.Writer
	gone func()
}

func (w untilGone) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	if err != nil {
		w.gone()
	}
	return n, err
}

// serveUntil serves until ctx ends.
func serveUntil(ctx context.Context, l net.Listener, h http.Handler) error {
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// freeAddress finds a loopback address where nothing listens, 127.0.0.1:8080 if it can be.
func freeAddress() (string, error) {
	for _, addr := range []string{"127.0.0.1:8080", "127.0.0.1:0"} {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		defer func() { _ = l.Close() }()
		return l.Addr().String(), nil
	}
	return "", errors.New("there is no free port on 127.0.0.1")
}
