package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"pzbridge/internal/demo"
	"pzbridge/internal/logtest"
	"pzbridge/internal/pipenet"
	"pzbridge/internal/pz"
	"pzbridge/internal/pztest"
	"pzbridge/internal/routing"
	"pzbridge/outbox/bolt/bolttest"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
	"pzbridge/relay"
)

var update = flag.Bool("update", false, "write the golden files anew")

const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// TestMain runs the program itself if RUN_MAIN is set, so that tests can start it as a process.
func TestMain(m *testing.M) {
	if os.Getenv("RUN_MAIN") != "" {
		main()
	}
	os.Exit(m.Run())
}

// process is the program in a process of its own.
type process struct {
	*exec.Cmd
	log *logtest.Buffer
}

// start runs the program with arguments and variables, in an empty folder.
func start(t *testing.T, vars map[string]string, args ...string) *process {
	t.Helper()
	p := prepare(t, vars, args...)
	p.mustStart(t)
	return p
}

// mustStart starts a process that ends with the test.
func (p *process) mustStart(t *testing.T) {
	t.Helper()
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Process.Kill() })
}

// prepare gives what start starts.
func prepare(t *testing.T, vars map[string]string, args ...string) *process {
	t.Helper()
	p := &process{exec.Command(os.Args[0], args...), &logtest.Buffer{}}
	p.Dir, p.Stderr, p.Stdout = t.TempDir(), p.log, p.log
	// Under the race detector a process would sleep for a second before it ends.
	p.Env = []string{"RUN_MAIN=1", "GORACE=atexit_sleep_ms=0", "PATH=" + os.Getenv("PATH")}
	for k, v := range vars {
		p.Env = append(p.Env, k+"="+v)
	}
	return p
}

// exitCode waits for the process to end.
func (p *process) exitCode() int {
	_ = p.Wait()
	return p.ProcessState.ExitCode()
}

// endsWell waits for the end of a process whose output is not read.
func (p *process) endsWell(t *testing.T) {
	t.Helper()
	ended := make(chan int, 1)
	go func() { ended <- p.exitCode() }()
	select {
	case code := <-ended:
		if code != 0 {
			t.Errorf("it exits with %d: %s", code, p.log)
		}
	case <-time.After(20 * time.Second):
		t.Error("it does not end")
	}
}

// receiver is a CRM that verifies webhooks and keeps them.
type receiver struct {
	*httptest.Server
	mu     sync.Mutex
	bodies [][]byte
	seen   int
}

// newReceiver starts a CRM. It answers the n-th request with 503 if refuse(n) is true.
func newReceiver(t *testing.T, refuse func(n int) bool) *receiver {
	t.Helper()
	verifier, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return // the bridge was killed
		}
		if err := verifier.Verify(body, req.Header); err != nil {
			t.Errorf("a signature is wrong: %v", err)
		}
		if id := req.Header.Get("webhook-id"); !bytes.HasPrefix(body, []byte(`{"id":"`+id+`"`)) {
			t.Errorf("webhook-id is %s, the body %s", id, body)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.seen++
		if refuse != nil && refuse(r.seen) {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		r.bodies = append(r.bodies, body)
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) webhooks(t *testing.T) []demo.Webhook {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	hooks := make([]demo.Webhook, len(r.bodies))
	for i, body := range r.bodies {
		if err := json.Unmarshal(body, &hooks[i]); err != nil {
			t.Fatal(err)
		}
	}
	return hooks
}

// eventually waits for a condition that other processes bring about.
func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !so() {
		if time.Now().After(deadline) {
			t.Fatalf("after 30 s it is not so: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// variables is a configuration for a server and a CRM.
func variables(t *testing.T, server *pztest.Server, crm *receiver, more ...string) map[string]string {
	t.Helper()
	vars := map[string]string{
		"PZ_URL":            server.URL,
		"ENDPOINT_0_NAME":   "crm",
		"ENDPOINT_0_URL":    crm.URL + "/?token=t0psecret",
		"ENDPOINT_0_SECRET": secret,
		"OUTBOX_PATH":       filepath.Join(t.TempDir(), "outbox.db"),
		"LISTEN_ADDR":       freePort(t),
		"LOG_LEVEL":         "debug",
	}
	for _, m := range more {
		name, value, _ := strings.Cut(m, "=")
		vars[name] = value
	}
	return vars
}

// asking is an event with which a call asks where to go, as the server sends it.
func asking(call, from string) pz.Attrs {
	return pz.Attrs{{Name: "Event", Value: "1"}, {Name: "CallID", Value: call}, {Name: "From", Value: from}}
}

// ringing is an event of a call that rings at 101.
func ringing(call, from string) pz.Attrs {
	return pz.Attrs{
		{Name: "Event", Value: "2"},
		{Name: "CallID", Value: call},
		{Name: "From", Value: from},
		{Name: "To", Value: "101"},
	}
}

// The frames that the vendor's server sent to a client that sees everything become these webhooks.
func TestRecordedFramesBecomeWebhooks(t *testing.T) {
	for _, mode := range []string{"ws", "wss"} {
		t.Run(mode, func(t *testing.T) {
			opts, more := pztest.Options{}, []string{"REPLAY_MAX_AGE=0"}
			if mode == "wss" {
				opts.TLS = pztest.LegacyTLS()
			}
			server := pztest.NewServer(opts)
			defer server.Close()
			if mode == "wss" {
				more = append(more, "PZ_TLS_LEGACY=true", "PZ_TLS_FINGERPRINT="+server.Fingerprint())
			}
			crm := newReceiver(t, nil)
			start(t, variables(t, server, crm, more...))
			eventually(t, "the bridge is connected", func() bool { return server.Connected() == 1 })
			events := 0
			for _, frame := range recordedEvents(t, mode) {
				server.EmitRaw([]byte(frame))
				events++
			}
			eventually(t, "every event has arrived", func() bool { return len(crm.webhooks(t)) == events })
			compareGolden(t, "internal/pztest/testdata/webhooks-"+mode+".jsonl", crm)
		})
	}
}

// recordedEvents gives the payloads of the events that the wallboard, which sees everything, was
// sent.
func recordedEvents(t *testing.T, mode string) []string {
	t.Helper()
	f, err := os.Open("internal/pztest/testdata/frames-" + mode + ".jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var frames []string
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r struct{ Client, Dir, Frame string }
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		if r.Client == "wallboard" && r.Dir == "server" {
			frames = append(frames, r.Frame)
		}
	}
	return frames
}

// varying matches what differs from run to run: the ID and the times of an event.
var varying = regexp.MustCompile(`"(id|timestamp|answer_by)":"([0-9a-f-]{36}|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z)"`)

func compareGolden(t *testing.T, path string, crm *receiver) {
	t.Helper()
	crm.mu.Lock()
	defer crm.mu.Unlock()
	// Webhooks of different calls may overtake each other; a body begins with the event's ID, which
	// is in the order of reading.
	slices.SortFunc(crm.bodies, bytes.Compare)
	var got strings.Builder
	for _, body := range crm.bodies {
		got.WriteString(varying.ReplaceAllString(string(body), `"$1":"…"`))
		got.WriteByte('\n')
	}
	if *update {
		if err := os.WriteFile(path, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("the webhooks are not those of %s:\n%s", path, got.String())
	}
}

// stored matches the line that the bridge writes, at the level debug, once an event is in the
// outbox.
var stored = regexp.MustCompile(`"msg":"event stored","event_id":"([^"]+)","type":"[^"]+","call_id":"([^"]+)"`)

// 1,000 events a second come in, the CRM answers 503 to every third request, and the bridge is
// killed again and again. Every event whose Append has returned arrives, with the ID that it had
// then.
func TestNoStoredEventIsLostWhenKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts the bridge again and again")
	}
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	crm := newReceiver(t, func(n int) bool { return n%3 == 0 })
	vars := variables(t, server, crm, "RETRY_SCHEDULE="+strings.TrimSuffix(strings.Repeat("50ms,", 40), ","))

	stop := make(chan struct{})
	var emitting sync.WaitGroup
	emitting.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ; {
			for range 10 {
				n++
				err := server.Generate(ringing(fmt.Sprint(n), "7343"))
				if err != nil {
					t.Error(err)
				}
			}
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	})
	ids := map[string]string{} // by call, of which each has one event
	acknowledged := func(p *process) {
		for _, m := range stored.FindAllStringSubmatch(p.log.String(), -1) {
			ids[m[2]] = m[1]
		}
	}
	for round := range 3 {
		p := start(t, vars)
		eventually(t, fmt.Sprintf("round %d stores some hundred events", round), func() bool {
			return strings.Count(p.log.String(), `"event stored"`) > 300*(round+1)
		})
		if err := p.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		_ = p.Wait()
		acknowledged(p)
	}
	close(stop)
	emitting.Wait()
	last := start(t, vars)
	if len(ids) < 900 {
		t.Fatalf("only %d events were stored", len(ids))
	}
	var missing []string
	deadline := time.Now().Add(60 * time.Second)
	for {
		arrived := map[string]string{}
		for _, h := range crm.webhooks(t) {
			if first, ok := arrived[h.Data.CallID]; ok && first != h.ID {
				t.Fatalf("call %s arrived with the IDs %s and %s", h.Data.CallID, first, h.ID)
			}
			arrived[h.Data.CallID] = h.ID
		}
		missing = nil
		for call, id := range ids {
			if arrived[call] != id {
				missing = append(missing, call)
			}
		}
		if len(missing) == 0 || time.Now().After(deadline) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if len(missing) > 0 {
		t.Errorf("%d of %d events that were stored did not arrive", len(missing), len(ids))
	}
	if err := last.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := last.exitCode(); code != 0 {
		t.Errorf("after SIGTERM it exits with %d", code)
	}
	if strings.Contains(last.log.String(), "t0psecret") {
		t.Error("the log tells what stands in the endpoint's address")
	}
}

// The reader of the log has stopped reading, or is gone. The bridge goes on, and ends in time.
func TestBridgeRunsOnWithoutALogReader(t *testing.T) {
	t.Parallel() // most of it is waiting for processes
	for name, leave := range map[string]func(log *os.File){
		"the reader stops": func(*os.File) {},
		"the reader goes":  func(log *os.File) { _ = log.Close() },
	} {
		t.Run(name, func(t *testing.T) { withUnreadLog(t, leave) })
	}
}

func withUnreadLog(t *testing.T, leave func(log *os.File)) {
	t.Helper()
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	crm := newReceiver(t, nil)
	unread, written, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer unread.Close()
	p := prepare(t, variables(t, server, crm, "SHUTDOWN_GRACE=5s"))
	p.Stderr = written
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Process.Kill() }()
	_ = written.Close()
	eventually(t, "the bridge is connected", func() bool { return server.Connected() == 1 })
	leave(unread)
	const events = 1000 // with two lines each, which is several times what a pipe takes
	for n := range events {
		err := server.Generate(ringing(fmt.Sprint(n), "7343"))
		if err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all events have arrived, though nobody reads the log", func() bool {
		return len(crm.webhooks(t)) == events
	})
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.endsWell(t)
}

// `pzbridge demo | head -1`: the demo ends with its reader, and leaves nothing behind.
func TestDemoEndsWithItsReader(t *testing.T) {
	read, written, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	p := prepare(t, map[string]string{"TMPDIR": folder}, "demo")
	p.Stdout = written
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Process.Kill() }()
	_ = written.Close()
	if _, err := bufio.NewReader(read).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	_ = read.Close()
	p.endsWell(t)
	left, err := os.ReadDir(folder)
	if err != nil || len(left) > 0 {
		t.Errorf("it has left %v, %v", left, err)
	}
}

// Closing the terminal's window ends the process as Ctrl-C does, and leaves nothing behind.
func TestClosedWindowEndsTheProcess(t *testing.T) {
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	crm := newReceiver(t, nil)
	for name, c := range map[string]struct {
		vars  map[string]string
		args  []string
		ready string // what is printed once it runs
		last  string // what a graceful end says
	}{
		"the bridge": {variables(t, server, crm), nil, `"msg":"pzbridge started"`, `"msg":"pzbridge stopped"`},
		"demo":       {nil, []string{"demo"}, "POST /v1/calls", ""},
		"demo's CRM": {variables(t, server, crm), []string{"demo", "-crm", "127.0.0.1:0"}, "listens on", ""},
		"simulate":   {nil, []string{"simulate", "-p", "0"}, "listens on", ""},
		"console":    {nil, []string{"console", server.URL}, "Connected", ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := prepare(t, c.vars, c.args...)
			folder := t.TempDir()
			p.Env = append(p.Env, "TMPDIR="+folder)
			unread, typed, err := os.Pipe() // in which nobody writes
			if err != nil {
				t.Fatal(err)
			}
			defer typed.Close()
			defer unread.Close()
			p.Stdin = unread
			if err := p.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = p.Process.Kill() }()
			eventually(t, "it runs", func() bool { return strings.Contains(p.log.String(), c.ready) })
			if err := p.Process.Signal(syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
			p.endsWell(t)
			if !strings.Contains(p.log.String(), c.last) {
				t.Errorf("it has not ended by itself: %s", p.log)
			}
			if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
				t.Errorf("it has left %v, %v", left, err)
			}
		})
	}
}

// SIGHUP comes twice, from the shell and from the kernel. The second one does not cut off what the
// first one waits for.
func TestSecondSIGHUPCutsOffNothing(t *testing.T) {
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	arrived, answer := make(chan struct{}, 1), make(chan struct{})
	crm := newReceiver(t, func(int) bool {
		arrived <- struct{}{}
		<-answer
		return false
	})
	vars := variables(t, server, crm)
	p := start(t, vars)
	eventually(t, "the bridge is connected", func() bool { return server.Connected() == 1 })
	err := server.Generate(ringing("5", "7343"))
	if err != nil {
		t.Fatal(err)
	}
	<-arrived
	if err := p.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the API has stopped", func() bool {
		c, err := net.Dial("tcp", vars["LISTEN_ADDR"])
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
	if err := p.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	close(answer)
	p.endsWell(t)
	if !strings.Contains(p.log.String(), `"msg":"delivered"`) {
		t.Errorf("the webhook was cut off: %s", p.log)
	}
}

// nohup ignores SIGHUP, so the bridge goes on when the window is closed.
func TestBridgeRunsOnUnderNohup(t *testing.T) {
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	p := prepare(t, variables(t, server, newReceiver(t, nil)))
	p.Path, p.Args = "/bin/sh", []string{"sh", "-c", `trap "" HUP; exec "$0"`, os.Args[0]}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Process.Kill() }()
	eventually(t, "the bridge is connected", func() bool { return server.Connected() == 1 })
	if err := p.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	server.Disconnect(pz.CloseTooManyUsers, "")
	eventually(t, "it goes on", func() bool { return strings.Contains(p.log.String(), "code 4007") })
	if strings.Contains(p.log.String(), "pzbridge stopped") {
		t.Error("it has stopped")
	}
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.endsWell(t)
}

// A second Ctrl-C ends the demo at once, and leaves nothing behind either.
func TestSecondCtrlCLeavesNothingBehind(t *testing.T) {
	read, written, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	if _, err := written.Write(make([]byte, 64<<10)); err != nil { // there is no room for a line of the demo
		t.Fatal(err)
	}
	folder := t.TempDir()
	p := prepare(t, map[string]string{"TMPDIR": folder}, "demo")
	p.Stdout = written
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	_ = written.Close()
	ended := make(chan struct{})
	go func() { _ = p.Wait(); close(ended) }()
	defer func() { _ = p.Process.Kill(); <-ended }()
	left := func() []os.DirEntry {
		entries, err := os.ReadDir(folder)
		if err != nil {
			t.Fatal(err)
		}
		return entries
	}
	eventually(t, "the demo has begun", func() bool { return len(left()) > 0 })
	eventually(t, "it ends", func() bool {
		_ = p.Process.Signal(os.Interrupt)
		select {
		case <-ended:
			return true
		case <-time.After(100 * time.Millisecond):
			return false
		}
	})
	if entries := left(); len(entries) > 0 {
		t.Errorf("it has left %v", entries)
	}
}

// The server is away for a minute. The bridge reconnects by itself, and the finished calls that it
// has missed arrive, once.
func TestMissedCallsArriveOnceAfterAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logger := slog.New(slog.NewTextHandler(t.Output(), nil))
		var mu sync.Mutex
		arrived := map[string]int{}
		crmNet := pipenet.Listen()
		crm := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			var hook demo.Webhook
			if err := json.NewDecoder(r.Body).Decode(&hook); err != nil {
				t.Error(err)
			}
			mu.Lock()
			arrived[hook.Data.CallID]++
			mu.Unlock()
		})}
		var serving sync.WaitGroup
		serving.Go(func() { _ = crm.Serve(crmNet) })

		box := bolttest.Open(t, storetest.Options{
			Endpoints: []store.Endpoint{{
				Name:        "crm",
				URL:         "http://crm",
				Secrets:     [][]byte{make([]byte, 24)},
				Events:      store.Filter{"call.*"},
				Timeout:     time.Minute,
				Concurrency: 16,
				RingingTTL:  5 * time.Minute,
			}},
			RetrySchedule: []time.Duration{time.Second},
			Grace:         time.Second,
			Logger:        logger,
			DialContext:   crmNet.Dial,
		})
		server, pbxNet := pztest.New(pztest.Options{}), make(chan *pipenet.Listener, 1)
		serve := func() {
			l := pipenet.Listen()
			pbxNet <- l
			server.Start(l)
		}
		session, err := relay.New(relay.Options{
			URL:      &url.URL{Scheme: "ws", Host: "pbx:10150"},
			Identity: pz.Identity{GUID: "g", EventsMask: 65535, Protocol: 2},
			Grace:    time.Second,
			Sink:     box,
			Logger:   logger,
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				l := <-pbxNet
				defer func() { pbxNet <- l }()
				return l.Dial(ctx, network, address)
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		router, err := routing.NewRouter(routing.RouterOptions{
			Exchange: session,
			Routes:   box.Engine,
			Timeout:  time.Second,
			Logger:   logger,
		})
		if err != nil {
			t.Fatal(err)
		}
		finish := func(call string) {
			line := "generate history 1 2 1385035625 1385035685 60 in http://x/1.mp3 2 " + call
			fields, err := pz.ParseGenerate(strings.Fields(line))
			if err != nil {
				t.Fatal(err)
			}
			if err := server.Generate(fields); err != nil {
				t.Fatal(err)
			}
		}
		serve()
		ctx, cancel := context.WithCancel(t.Context())
		var parts sync.WaitGroup
		parts.Go(func() {
			deliver := func(ctx context.Context) error { return box.Run(ctx, router) }
			if err := runAll(ctx, func() {}, session.Run, deliver); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		finish("1")
		synctest.Wait()
		server.Close()
		<-pbxNet
		finish("2")
		time.Sleep(time.Minute)
		finish("3")
		serve()
		time.Sleep(time.Minute) // the longest wait between two dials
		synctest.Wait()
		mu.Lock()
		if len(arrived) != 3 || arrived["1"] != 1 || arrived["2"] != 1 || arrived["3"] != 1 {
			t.Errorf("arrived: %v", arrived)
		}
		mu.Unlock()
		cancel()
		parts.Wait()
		server.Close()
		_ = crm.Close()
		serving.Wait()
	})
}

// A mistake of the administrator ends the program with one clear sentence and the exit code that
// fits.
func TestStartErrorsAreOneSentence(t *testing.T) {
	t.Parallel() // most of it is waiting for processes
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	crm := newReceiver(t, nil)
	running := variables(t, server, crm)
	start(t, running)
	eventually(t, "the first bridge runs", func() bool { return server.Connected() == 1 })
	notAFolder := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(notAFolder, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		vars map[string]string
		args []string
		code int
		says string
	}{
		{
			"a wrong secret",
			variables(t, server, crm, "ENDPOINT_0_SECRET=v1,"+secret),
			nil,
			2,
			`ENDPOINT_0_SECRET: remove "v1,"`,
		},
		{
			"the same by check",
			variables(t, server, crm, "ENDPOINT_0_SECRET=v1,"+secret),
			[]string{"check"},
			2,
			`ENDPOINT_0_SECRET: remove "v1,"`,
		},
		{
			"a second process on the file",
			variables(t, server, crm, "OUTBOX_PATH="+running["OUTBOX_PATH"]),
			nil,
			1,
			"only one bridge may run on one outbox file",
		},
		{
			"a folder that cannot be written",
			variables(t, server, crm, "OUTBOX_PATH="+notAFolder+"/outbox.db"),
			nil,
			1,
			"not a directory",
		},
		{"a port in use", variables(t, server, crm, "LISTEN_ADDR="+running["LISTEN_ADDR"]), nil, 1, "LISTEN_ADDR"},
		{
			"compacting what a bridge uses",
			variables(t, server, crm, "OUTBOX_PATH="+running["OUTBOX_PATH"]),
			[]string{"compact"},
			1,
			"only one bridge may run on one outbox file; stop the bridge first",
		},
		{
			"restoring over what a bridge uses",
			variables(t, server, crm, "OUTBOX_PATH="+running["OUTBOX_PATH"]),
			[]string{"restore", notAFolder},
			1,
			"only one bridge may run on one outbox file",
		},
		{
			"restoring what is no backup",
			variables(t, server, crm),
			[]string{"restore", notAFolder},
			1,
			"the file is no outbox, or is damaged: take another backup",
		},
		{
			"restoring a folder",
			variables(t, server, crm),
			[]string{"restore", t.TempDir()},
			1,
			"it is a folder, not a file",
		},
		{
			"restoring two",
			variables(t, server, crm),
			[]string{"restore", notAFolder, "-x"},
			2,
			"-x comes too late: flags stand before everything else",
		},
		{"restoring nothing", variables(t, server, crm), []string{"restore"}, 2, "name the backup's file"},
		{
			"a time zone that there is not",
			variables(t, server, crm, "TZ=Asia/Yekaterinbourg"),
			nil,
			2,
			`TZ: there is no time zone "Asia/Yekaterinbourg"`,
		},
		{"compacting nothing", variables(t, server, crm), []string{"compact"}, 1, "no such file"},
		{"no such command", nil, []string{"strat"}, 2, `there is no command "strat"`},
		{"no such flag", nil, []string{"simulate", "-x"}, 2, "-x"},
		{"a demo CRM that could verify nothing", map[string]string{
			"PZ_URL": "pbx", "ENDPOINT_0_NAME": "reader", "ENDPOINT_0_TOKEN": "reader-token-0123456789",
		}, []string{"demo", "-crm", "127.0.0.1:0"}, 1, "set ENDPOINT_0_SECRET"},
		{
			"nothing to check health of",
			map[string]string{"LISTEN_ADDR": freePort(t)},
			[]string{"healthcheck"},
			1,
			"does not answer",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := start(t, c.vars, c.args...)
			code := p.exitCode()
			out := p.log.String()
			if code != c.code || !strings.Contains(out, c.says) || strings.Contains(out, secret[6:]) {
				t.Errorf("exit code %d:\n%s", code, out)
			}
			if n := strings.Count(out, c.says); n != 1 {
				t.Errorf("it is said %d times:\n%s", n, out)
			}
		})
	}
}

func TestCommandsPrintAtMostAScreen(t *testing.T) {
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	vars := variables(t, server, newReceiver(t, nil))
	bridge := start(t, vars)
	eventually(t, "the bridge runs", func() bool { return server.Connected() == 1 })
	if err := bridge.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = bridge.exitCode()
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"check"}, "The configuration is right."},
		{[]string{"compact"}, "KiB now."},
		{[]string{"secret"}, "whsec_"},
		{[]string{"version"}, "pzbridge " + version},
		{[]string{"--version"}, "pzbridge " + version},
		{[]string{"help"}, "simulate"},
		{[]string{"help", "-h"}, "simulate"},
		{[]string{"-h"}, "simulate"},
		{[]string{"help", "help"}, "simulate"},
		{[]string{"help", "simulate"}, "generate incoming"},
		{[]string{"demo", "-h"}, "-once"},
		{[]string{"doctor", "-h"}, "exit code is 1"},
		{[]string{"tail", "-h"}, "API_TOKEN"},
		{[]string{"deliveries", "-h"}, "-state"},
		{[]string{"redeliver", "-h"}, "-dry-run"},
		{[]string{"send-test", "-h"}, "pzbridge.test"},
	} {
		p := start(t, vars, c.args...)
		if code := p.exitCode(); code != 0 || !strings.Contains(p.log.String(), c.says) {
			t.Errorf("%v: exit code %d:\n%s", c.args, code, p.log.String())
		}
		// check prints every setting.
		if lines := strings.Count(p.log.String(), "\n"); lines > 40 && c.args[0] != "check" {
			t.Errorf("%v prints %d lines, more than a screen", c.args, lines)
		}
	}
}

// The metrics that a running bridge has after a call.
func TestMetricsOfARunningBridge(t *testing.T) {
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	crm := newReceiver(t, nil)
	vars := variables(t, server, crm, "METRICS_PUBLIC=true")
	start(t, vars)
	eventually(t, "the bridge is connected", func() bool { return server.Connected() == 1 })
	if err := server.Generate(asking("5", "7343")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the call is declined", func() bool { return len(server.Requests()) == 1 })
	var text string
	want := []string{
		`pzbridge_connected 1`, `pzbridge_events_received_total{type="call.transfer_requested"} 1`,
		`pzbridge_deliveries_total{endpoint="crm",outcome="delivered"} 1`,
		`pzbridge_routing_decisions_total{outcome="closed"} 1`,
		`pzbridge_commands_total{kind="transfer",outcome="done"} 1`,
		`pzbridge_outbox_pending{endpoint="crm"} 0`,
		`pzbridge_endpoint_failing{endpoint="crm"} 0`,
		`pzbridge_build_info{version="` + version + `"} 1`,
	}
	eventually(t, "the metrics say so", func() bool {
		resp, err := http.Get("http://" + vars["LISTEN_ADDR"] + "/metrics")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		text = "\n" + string(body)
		return err == nil && !slices.ContainsFunc(want, func(line string) bool {
			return !strings.Contains(text, "\n"+line+"\n")
		})
	})
	if strings.Contains(text, "t0psecret") {
		t.Error("the metrics tell what stands in the endpoint's address")
	}
}

// asks serves a handler, with a second for what is under way when cancel is called, and sends it a
// request.
func asks(t *testing.T, h http.Handler) (c net.Conn, cancel context.CancelFunc, ended <-chan error) {
	t.Helper()
	l := pipenet.Listen()
	ctx, cancel := context.WithCancel(t.Context())
	end := make(chan error, 1)
	go func() { end <- serve(l, h, time.Second, slog.New(slog.DiscardHandler))(ctx) }()
	c, err := l.Dial(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	return c, cancel, end
}

// A request that would take longer than the shutdown may is answered too, since its context ends in
// time.
func TestSlowRequestIsAnsweredAtShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, cancel, ended := asks(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			w.WriteHeader(http.StatusGatewayTimeout)
		}))
		synctest.Wait()
		began := time.Now()
		cancel()
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != http.StatusGatewayTimeout {
			t.Errorf("the answer: %v, %v", resp, err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

// A client that does not read its response keeps neither a goroutine nor a connection for long.
func TestStalledReaderIsDisconnected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		returned := make(chan struct{})
		_, cancel, ended := asks(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			defer close(returned)
			_, _ = w.Write(make([]byte, 1<<20))
		}))
		time.Sleep(writeTimeout + time.Second)
		select {
		case <-returned:
		default:
			t.Error("the handler still writes to somebody who does not read")
		}
		cancel()
		<-ended
	})
}

// CALL_FROM and CALL_TO hold for every way by which a telephone can be made to ring: a call, a
// transfer, an SMS, and the answer to a webhook.
func TestCallRulesHoldOnEveryWay(t *testing.T) {
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	const abroad, token = "+44 20 79460000", "crm-token-0123456789"
	crm := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"transfer_to":"`+abroad+`"}`)
	}))
	defer crm.Close()
	vars := variables(t, server, newReceiver(t, nil),
		"ENDPOINT_0_URL="+crm.URL, "ENDPOINT_1_NAME=poller", "ENDPOINT_1_TOKEN="+token,
		"ENDPOINT_1_EVENTS=call.completed", "CALL_TO=+7*,internal", "INTERNAL_DIGITS=3",
		"METRICS_PUBLIC=true", "CALL_RATE=2")
	bridge := start(t, vars)
	eventually(t, "the bridge is connected", func() bool { return server.Connected() == 1 })
	if err := server.Generate(asking("5", "7343")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the call is declined, since the only answer does not count", func() bool {
		return len(server.Requests()) == 1
	})
	post := func(path, body string) int {
		r, err := http.NewRequest(http.MethodPost, "http://"+vars["LISTEN_ADDR"]+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+token)
		r.Header.Set("Content-Type", "application/json")
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		return answer.StatusCode
	}
	for _, c := range []struct {
		path, body string
		want       int
	}{
		{"/v1/calls", `{"from":"101","to":"` + abroad + `"}`, 403},
		{"/v1/calls", `{"from":"+79001112233","to":"102"}`, 403},
		{"/v1/calls", `{"from":"1010","to":"102"}`, 403},
		{"/v1/calls", `{"from":"101","to":"1020"}`, 403},
		{"/v1/transfers", `{"call_id":"5","to":"` + abroad + `"}`, 403},
		{"/v1/sms", `{"from":"101","to":"` + abroad + `","text":"x"}`, 403},
		{"/v1/calls", `{"from":"101","to":"102"}`, 200},
		{"/v1/calls", `{"from":"SIP/101","to":"+7 343 0112233"}`, 200},
		{"/v1/calls", `{"from":"101","to":"102"}`, 429},
	} {
		if got := post(c.path, c.body); got != c.want {
			t.Errorf("%s %s: %d, not %d", c.path, c.body, got, c.want)
		}
	}
	for _, r := range server.Requests() {
		if strings.Contains(fmt.Sprint(r), abroad) {
			t.Errorf("the server was asked: %v", r)
		}
	}
	eventually(t, "each has its line", func() bool {
		return strings.Count(bridge.log.String(), `"msg":"command refused"`) == 8
	})
	resp, err := http.Get("http://" + vars["LISTEN_ADDR"] + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	metrics, err := io.ReadAll(resp.Body)
	for _, want := range []string{
		`pzbridge_commands_refused_total{by="crm",kind="transfer",reason="to"} 1`,
		`pzbridge_commands_refused_total{by="poller",kind="call",reason="rate"} 1`,
		`pzbridge_commands_refused_total{by="operator",kind="call",reason="closed"} 0`,
	} {
		if err != nil || !strings.Contains(string(metrics), "\n"+want+"\n") {
			t.Errorf("the metrics have no line %s (%v)", want, err)
		}
	}
}

const operatorToken = "operator-token-0123456789"

// getFrom reads from a bridge's API as the operator.
func getFrom(t *testing.T, vars map[string]string, path string) (status int, body []byte) {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, "http://"+vars["LISTEN_ADDR"]+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+operatorToken)
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, []byte("{}") // it has not started yet
	}
	defer answer.Body.Close()
	body, err = io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, body
}
