package main

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"pzbridge/internal/pz"
	"pzbridge/internal/pztest"
)

// The console reads commands from a pipe, in upper and lower case. The exit code is 1 if one of
// them has failed.
func TestConsoleRunsCommandsFromAPipe(t *testing.T) {
	t.Parallel() // most of it is waiting for processes
	plain := pztest.NewServer(pztest.Options{Password: "geheim"})
	defer plain.Close()
	old := pztest.NewServer(pztest.Options{TLS: pztest.LegacyTLS()})
	defer old.Close()
	history := pz.Attrs{
		{Name: "type", Value: "4"},
		{Name: "callID", Value: "9"},
		{Name: "from", Value: "7343"},
		{Name: "to", Value: "101"},
		{Name: "duration", Value: "5"},
		{Name: "direction", Value: "0"},
	}
	remembers := pztest.NewServer(pztest.Options{History: []pz.Event{{Attrs: history}, {Attrs: history}}})
	defer remembers.Close()
	many := pztest.NewServer(pztest.Options{History: slices.Repeat([]pz.Event{{Attrs: history}}, 60)})
	defer many.Close()
	fresh := pztest.NewServer(pztest.Options{})
	defer fresh.Close()
	connect := "connect " + plain.URL + " asd\ngeheim\n"
	overTLS := strings.TrimPrefix(old.URL, "wss://")
	for name, c := range map[string]struct {
		input string
		code  int
		says  []string
	}{
		"clients": {connect + "Clients\n", 0, []string{"0 Diagnostic 127.0.0.1 asd Connected\n"}},
		"version": {connect + "VERSION\nexit\nnonsense\n", 0, []string{"Test Server v1.1.2\n"}},
		"events": {
			connect + "events\ngenerate incoming 777\nsms 1 2 asd 7 0J8=\n",
			0,
			[]string{" asks where to go: 777 · call ", ` SMS: 1 → 2 · "П" · call 7`},
		},
		"events as they come": {
			connect + "events raw\ngenerate incoming 777\nevents\nevents\nsms 1 2 asd 7 0J8=\n",
			0,
			[]string{`type="1"`, `from="777"`, `type="128"`},
		},
		"events in words again": {
			connect + "events raw\nevents words\ngenerate incoming 777\n",
			0,
			[]string{" asks where to go: 777"},
		},
		"another form of events": {"events xml\n", 1, []string{"Error: events [words|raw]"}},
		"what was missed": {
			"connect " + remembers.URL + " asd\n\n",
			0,
			[]string{
				" over (replayed): 7343 → 101 · incoming · 5s of talk · call 9\n",
				"The server has replayed all that this client had missed: events: 2.\n",
			},
		},
		"much was missed": {
			"connect " + many.URL + " asd\n\n",
			0,
			[]string{"The server has replayed all that this client had missed: events: 60.\n"},
		},
		"a type and an extension": {
			"connect " + fresh.URL + " qwe type=\"my CRM\" PHONE=101 mask=0\n\nclients\nevents\n" +
				"generate transfer 7 101\ngenerate transfer 7 102\n",
			0,
			[]string{"0 my CRM 127.0.0.1 qwe Connected 101\n", " rings: 7 → 101"},
		},
		"no such setting": {"connect " + plain.URL + " asd colour=red\n", 1, []string{`"colour=red" is no setting`}},
		"a bad mask":      {"connect " + plain.URL + " asd mask=all\n", 1, []string{"Error: mask must be a number"}},
		"a bad type":      {"connect " + plain.URL + " asd \"type= x\"\n", 1, []string{"Error: type begins or ends"}},
		"a bad guid":      {"connect " + plain.URL + " \" x\"\n", 1, []string{"Error: the client guid begins or ends"}},
		"no events":       {connect + "generate incoming 777\n", 0, []string{"Connected\nOK\n"}},
		"commands": {
			connect + "call 101 102\ntransfer 5 101\ntransfer 6\nsimulation off\n",
			0,
			[]string{"OK\nOK\nOK\nOK\n"},
		},
		"help":                   {"help\nHELP generate\n", 0, []string{"transfer <call id>", "generate history"}},
		"help of a command":      {"help connect\n", 0, []string{"wss://", "by TLS", "mask=   the events"}},
		"TLS by a word":          {"connect " + overTLS + " asd ssl\n\nversion\n", 0, []string{"Test Server"}},
		"TLS by a word, over ws": {"connect ws://" + overTLS + " asd SSL\n\nversion\n", 0, []string{"Test Server"}},
		"over TLS":               {"connect " + old.URL + " asd\n\nversion\n", 0, []string{"Test Server"}},
		"a wrong password": {
			"connect " + plain.URL + " asd\nfalsch\nversion\n",
			1,
			[]string{"Error: connection closed with code 4008", "Error: not connected"},
		},
		"no such command": {"nonsense\n", 1, []string{"there is no command"}},
		"no such event":   {connect + "generate nothing\n", 1, []string{"Error: "}},
		"not connected":   {"version\n", 1, []string{"not connected"}},
		"a bad address":   {"connect http://x y\n\n", 1, []string{"must be such as ws://"}},
		"a Cyrillic name": {
			"connect нигде.invalid y\n\n",
			1,
			[]string{"Error: connect to xn--c1acdjy.invalid:10150: "},
		},
		"no name at all": {"connect ws://нигде_.invalid y\n\n", 1, []string{"must be such as ws://"}},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "console")
			cmd.Env = []string{"RUN_MAIN=1", "GORACE=atexit_sleep_ms=0"}
			cmd.Stdin = strings.NewReader(c.input)
			out, _ := cmd.CombinedOutput()
			for _, want := range c.says {
				if !strings.Contains(string(out), want) {
					t.Errorf("it does not say %q", want)
				}
			}
			if strings.Count(string(out), "(replayed)") > 50 || strings.Contains(string(out), "7 → 102") {
				t.Error("it shows too much")
			}
			if code := cmd.ProcessState.ExitCode(); code != c.code || strings.Contains(string(out), "geheim") ||
				strings.Contains(string(out), "Disconnected") {
				t.Errorf("exit code %d:\n%s", code, out)
			}
		})
	}
}

// A program that is no Prostie Zvonki server may send the handshake back, and with it the password.
// The console does not print it.
func TestConsoleHidesThePassword(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for first := true; ; first = false {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 4096)
			n, _ := c.Read(b)
			target := strings.Fields(string(b[:n]))[1]
			if first {
				_, _ = io.WriteString(c, "HTTP/1.1 "+target+"\r\n\r\n")
			} else {
				_, _ = io.WriteString(c, "HTTP/1.1 101 Ok\r\nContent-Length: "+target+"\r\n\r\n")
			}
			_ = c.Close()
		}
	}()
	for _, want := range []string{"does not speak HTTP", "(hidden)"} {
		p := prepare(t, map[string]string{"PZ_PASSWORD": "t0psecret?"}, "console", "ws://"+l.Addr().String())
		err, out := p.Run(), p.log.String()
		if err == nil || !strings.Contains(out, want) || strings.Contains(out, "dDBwc2VjcmV0P") ||
			strings.Contains(out, "t0psecret") {
			t.Errorf("%v: %s", err, p.log)
		}
	}
}

// With an address on the command line, the password comes from PZ_PASSWORD or PZ_PASSWORD_FILE.
func TestConsoleTakesThePasswordFromTheEnvironment(t *testing.T) {
	server := pztest.NewServer(pztest.Options{Password: "geheim"})
	defer server.Close()
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("geheim\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, vars := range [][]string{{"PZ_PASSWORD=geheim"}, {"PZ_PASSWORD_FILE=" + file}} {
		cmd := exec.Command(os.Args[0], "console", server.URL)
		cmd.Env = append([]string{"RUN_MAIN=1", "GORACE=atexit_sleep_ms=0"}, vars...)
		cmd.Stdin = strings.NewReader("version\n")
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "Test Server v1.1.2") {
			t.Errorf("%v: %v\n%s", vars, err, out)
		}
	}
}

// The flags of the command are the settings of each connection that does not have its own.
func TestConsoleTakesSettingsAsFlags(t *testing.T) {
	server := pztest.NewServer(pztest.Options{TLS: pztest.LegacyTLS()})
	defer server.Close()
	address := strings.TrimPrefix(server.URL, "wss://")
	cmd := exec.Command(os.Args[0],
		"console", "-ssl", "-raw", "-guid", "first", "-type", "jsapi", "-phone", "101", "-mask", "4", address)
	cmd.Env = []string{"RUN_MAIN=1", "GORACE=atexit_sleep_ms=0"}
	cmd.Stdin = strings.NewReader("connect " + address + " second phone=102\n\nclients\nevents\n" +
		"generate transfer 7 101\ngenerate transfer 7 102\n")
	out, err := cmd.CombinedOutput()
	for _, want := range []string{
		"0 jsapi 127.0.0.1 first Disconnected 101\n", "1 jsapi 127.0.0.1 second Connected 102\n", `to="102"`,
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("it does not say %q", want)
		}
	}
	if err != nil || strings.Contains(string(out), `to="101"`) {
		t.Errorf("%v:\n%s", err, out)
	}
	for _, args := range [][]string{{"-mask", "all"}, {"-type", " x"}, {"-guid", "x "}} {
		cmd := exec.Command(os.Args[0], append([]string{"console"}, args...)...)
		cmd.Env = []string{"RUN_MAIN=1", "GORACE=atexit_sleep_ms=0"}
		if out, _ := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != 2 {
			t.Errorf("%v: %s", args, out)
		}
	}
}

// The first response takes some seconds, and a request in the other encoding gets none, as with the
// real server.
func TestConsoleWaitsForASlowServer(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits for some seconds")
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer c.Close()
		for slow := true; ; slow = false {
			_, payload, err := c.ReadMessage()
			if err != nil {
				return
			}
			doc, codec, _ := pz.Unpack(payload)
			if codec != pz.Base64 {
				continue
			}
			if slow {
				time.Sleep(2500 * time.Millisecond)
			}
			req, _ := pz.ParseRequest(doc)
			response := pz.Response{Code: "0", RequestID: req.ID, Version: "Slow 1"}
			_ = c.WriteMessage(websocket.TextMessage, pz.Base64.Pack(response.XML()))
		}
	}))
	defer server.Close()
	cmd := exec.Command(os.Args[0], "console", "ws"+strings.TrimPrefix(server.URL, "http"))
	cmd.Env = []string{"RUN_MAIN=1", "GORACE=atexit_sleep_ms=0"}
	cmd.Stdin = strings.NewReader("version\n")
	began := time.Now()
	out, _ := cmd.CombinedOutput()
	if !strings.Contains(string(out), "Slow 1") {
		t.Errorf("after %s:\n%s", time.Since(began), out)
	}
}
