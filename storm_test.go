//go:build unix

package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"pzbridge/internal/pztest"
)

// Ten thousand calls ask at once where to go. With three CRMs that hang, all are decided within
// ROUTING_TIMEOUT and four seconds (two on an idle machine). With CRMs that answer in 100 ms, each
// call is asked about. No call is transferred twice. It measures seconds, so it must run alone:
// PZBRIDGE_SLOW=1 runs it.
func TestTenThousandQuestionsAreDecidedInTime(t *testing.T) {
	if os.Getenv("PZBRIDGE_SLOW") == "" {
		t.Skip("PZBRIDGE_SLOW=1 runs it")
	}
	const calls, timeout = 10_000, 10 * time.Second
	for name, answer := range map[string]func(w http.ResponseWriter, r *http.Request){
		"CRMs that hang": func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			select {
			case <-r.Context().Done():
			case <-time.After(time.Minute):
			}
		},
		"CRMs that answer in 100 ms": func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(100 * time.Millisecond)
			_, _ = io.WriteString(w, `{"transfer_to":"101"}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := pztest.NewServer(pztest.Options{})
			defer server.Close()
			crm := httptest.NewServer(http.HandlerFunc(answer))
			defer crm.Close()
			vars := variables(t, server, &receiver{Server: crm},
				"METRICS_PUBLIC=true", "LOG_LEVEL=error", "ROUTING_TIMEOUT="+timeout.String())
			vars["ENDPOINT_0_EVENTS"] = "call.transfer_requested"
			for n := 1; n < 3; n++ {
				for _, v := range []string{"URL", "SECRET", "EVENTS"} {
					vars[fmt.Sprintf("ENDPOINT_%d_%s", n, v)] = vars["ENDPOINT_0_"+v]
				}
				vars[fmt.Sprintf("ENDPOINT_%d_NAME", n)] = fmt.Sprint("crm", n)
			}
			p := start(t, vars)
			eventually(t, "the bridge is connected", func() bool { return server.Connected() == 1 })
			began := time.Now()
			for n := range calls {
				err := server.Generate(asking(strconv.Itoa(n), "73430112233"))
				if err != nil {
					t.Fatal(err)
				}
			}
			eventually(t, "all are decided", func() bool { return len(server.Requests()) >= calls })
			took := time.Since(began)
			time.Sleep(time.Second) // in which there could be too many
			times, empty := map[string]int{}, 0
			for _, r := range server.Requests() {
				times[r.Data.Get("CallID")]++
				if r.Data.Get("To") == "" {
					empty++
				}
			}
			for call, n := range times {
				if n != 1 {
					t.Errorf("call %s is transferred %d times", call, n)
				}
			}
			status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Process.Pid))
			for line := range strings.Lines(string(status)) {
				if strings.HasPrefix(line, "VmHWM") || strings.HasPrefix(line, "FDSize") {
					t.Log(strings.TrimSpace(line))
				}
			}
			t.Logf("%d calls were decided after %s, %d of them to nobody", len(times), took, empty)
			if len(times) != calls || took > timeout+2*2*time.Second {
				t.Errorf("%d of %d are decided, the last after %s", len(times), calls, took)
			}
			if name == "CRMs that answer in 100 ms" && empty > 0 {
				t.Errorf("%d were decided without an answer", empty)
			}
		})
	}
}

// A process that stood still for longer than a peer may be silent reads what came meanwhile.
// Nothing is lost, and the call that asked meanwhile gets no question any more. It takes a minute:
// PZBRIDGE_SLOW=1 runs it.
func TestProcessThatStoodStillLosesNothing(t *testing.T) {
	if os.Getenv("PZBRIDGE_SLOW") == "" {
		t.Skip("PZBRIDGE_SLOW=1 runs it")
	}
	const events, standstill = 500, 70 * time.Second
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	crm := newReceiver(t, nil)
	p := start(t, variables(t, server, crm))
	eventually(t, "the bridge is connected", func() bool { return server.Connected() == 1 })
	if err := p.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for n := range events {
		err := server.Generate(ringing(strconv.Itoa(n), "7343"))
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := server.Generate(asking("1000", "7343")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(standstill)
	if err := p.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all arrive", func() bool { return len(crm.webhooks(t)) >= events })
	time.Sleep(time.Second)
	for _, hook := range crm.webhooks(t) {
		if hook.Type == "call.transfer_requested" {
			t.Error("a question of more than a minute ago is asked")
		}
	}
	if n := len(crm.webhooks(t)); n != events || len(server.Requests()) != 0 || server.Connected() != 1 {
		t.Errorf("%d webhooks, the server was asked %v, %d are connected", n, server.Requests(), server.Connected())
	}
}
