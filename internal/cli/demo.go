package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"pzbridge/internal/config"
	"pzbridge/internal/crm"
	"pzbridge/internal/demo"
	"pzbridge/internal/pztest"
)

// onceTimeout bounds the script of the demo.
const onceTimeout = 15 * time.Second

func (p Program) demo(ctx context.Context, args []string) error {
	fs := p.flags("demo [flags]", "Show the whole thing at work, without any set-up: "+
		"a simulated Prostie Zvonki server, the bridge, and a small CRM that\n"+
		"verifies each webhook and prints it on a line. It plays some calls, sends commands through the API, "+
		"and goes on with a call\nnow and then until Ctrl-C.")
	once := fs.Bool("once", false, "play it once and exit")
	crmAddr := fs.String("crm", "", "bitrix24 or megafon: show on a page what a CRM with that preset would;\n"+
		"or an `address`: run only the demo CRM there, for the bridge of this configuration")
	if err := parse(fs, args); err != nil {
		return err
	}
	preset := crm.Preset(*crmAddr)
	if *crmAddr != "" && !slices.Contains(crm.Presets, preset) {
		return p.demoCRM(ctx, *crmAddr)
	}
	return p.runDemo(ctx, *once, preset)
}

// demoCRM runs the demo CRM alone, for a container beside the bridge.
func (p Program) demoCRM(ctx context.Context, addr string) error {
	cfg, err := load()
	if err != nil {
		return err
	}
	receiver, err := demo.NewCRM(cfg.Endpoints[0].Secrets, p.printer())
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	fmt.Fprintln(p.Out, "The demo CRM listens on", l.Addr())
	return serveUntil(ctx, l, receiver)
}

// runDemo runs the simulated server, the bridge and a CRM, with a preset or with webhooks, and
// plays the script.
func (p Program) runDemo(ctx context.Context, once bool, preset crm.Preset) error {
	dir, err := os.MkdirTemp("", "pzbridge-demo-")
	if err != nil {
		return err
	}
	remove := func() { _ = os.RemoveAll(dir) }
	defer remove()
	defer exitOnSecondSignal(remove)()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	// If the reader of the output goes away, the demo ends as with Ctrl-C and removes its folder.
	signal.Ignore(syscall.SIGPIPE)
	p.Out = cancelingWriter{p.Out, stop}

	printLine := p.printer()
	server := pztest.NewServer(pztest.Options{Log: func(line string) { printLine("server   " + line) }})
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
	crmURL := "http://" + crmListener.Addr().String()
	vars := map[string]string{
		"PZ_URL":            server.URL,
		"ENDPOINT_0_NAME":   "demo",
		"ENDPOINT_0_URL":    crmURL + "/webhook",
		"ENDPOINT_0_SECRET": newSecret(),
		"ENDPOINT_0_TOKEN":  token,
		"OUTBOX_PATH":       filepath.Join(dir, "outbox.db"),
		"LISTEN_ADDR":       apiAddr,
		"API_TOKEN":         operator,
		"LOG_LEVEL":         "warn",
		"LOG_FORMAT":        "text",
	}
	stage := &demo.Stage{Server: server, API: "http://" + apiAddr, Token: token, Print: printLine}
	cfg, receiver, play, err := stageCRM(stage, preset, crmURL, vars)
	if err != nil {
		return err
	}
	logger := cfg.Logger(p.Err, config.LogOutput{Terminal: isTerminal(p.Err), Colour: showsColours(p.Err)})

	var parts sync.WaitGroup
	var bridgeErr, crmErr error
	parts.Go(func() { defer stop(); crmErr = serveUntil(ctx, crmListener, receiver) })
	parts.Go(func() { defer stop(); bridgeErr = p.Bridge(ctx, cfg, logger) })

	fmt.Fprintf(p.Out, "A simulated Prostie Zvonki server at %s, the bridge, and a CRM at %s.\n",
		server.URL, crmURL)
	fmt.Fprintf(p.Out, "The dashboard is at http://%s/, its token %s\n", apiAddr, operator)
	p.invite(preset, crmURL, apiAddr, token)
	playErr := p.playDemo(ctx, stage, play, once)
	stop()
	parts.Wait()
	return errors.Join(bridgeErr, crmErr, playErr)
}

// invite prints what there is to try while the demo runs.
func (p Program) invite(preset crm.Preset, crmURL, apiAddr, token string) {
	if preset != "" {
		fmt.Fprintf(p.Out, "What a person would see in the CRM is at %s/\n\n", crmURL)
		return
	}
	fmt.Fprintf(p.Out, "The API listens at http://%s; try it while this runs:\n\n", apiAddr)
	fmt.Fprintf(p.Out, "  curl http://%s/v1/calls -H 'Authorization: Bearer %s' \\\n", apiAddr, token)
	fmt.Fprintf(p.Out, "    -H 'Content-Type: application/json' -d '{\"from\":\"101\",\"to\":\"+7 343 0112233\"}'\n\n")
}

// stageCRM puts a CRM on the stage, and returns the configuration of a bridge for it, and the
// script that it takes part in.
func stageCRM(stage *demo.Stage, preset crm.Preset, crmURL string, vars map[string]string) (
	cfg config.Config, receiver http.Handler, play func(context.Context) error, err error,
) {
	if preset == "" {
		if cfg, err = config.Load(vars); err == nil {
			stage.CRM, err = demo.NewCRM(cfg.Endpoints[0].Secrets, stage.Print)
		}
		return cfg, stage.CRM, stage.Play, err
	}
	shown, err := demo.NewPreset(stage, string(preset), crmURL)
	if err != nil {
		return cfg, nil, nil, err
	}
	maps.Copy(vars, shown.Variables())
	cfg, err = config.Load(vars)
	return cfg, shown, shown.Play, err
}

// exitOnSecondSignal makes the second signal call cleanUp and end the process. Without it, the
// second signal would end the process without a clean-up. The returned function undoes this.
func exitOnSecondSignal(cleanUp func()) (undo func()) {
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

// playDemo plays the script and then, unless once is set, simulates calls until ctx ends.
func (p Program) playDemo(
	ctx context.Context, stage *demo.Stage, play func(context.Context) error, once bool,
) error {
	playCtx, cancel := context.WithTimeout(ctx, onceTimeout)
	defer cancel()
	err := play(playCtx)
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

// printer returns a function that prints a line with the time. It is safe for concurrent use.
func (p Program) printer() func(string) {
	var mu sync.Mutex
	return func(line string) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintln(p.Out, time.Now().Format("15:04:05.000"), printable(line))
	}
}

// cancelingWriter calls onError when a write fails.
type cancelingWriter struct {
	io.Writer
	onError func()
}

func (w cancelingWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	if err != nil {
		w.onError()
	}
	return n, err
}

// serveUntil serves HTTP on a listener until ctx ends.
func serveUntil(ctx context.Context, l net.Listener, h http.Handler) error {
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// freeAddress returns a free loopback address, preferably 127.0.0.1:8080.
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
