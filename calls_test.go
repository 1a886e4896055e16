package main

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pzbridge/internal/pz"
	"pzbridge/internal/pztest"
)

// history is an event that ends a call, as the server makes it; direction is 0 for incoming.
func history(call, from, to, direction, talk string) pz.Attrs {
	return pz.Attrs{
		{Name: "Event", Value: "4"},
		{Name: "CallID", Value: call},
		{Name: "From", Value: from},
		{Name: "To", Value: to},
		{Name: "Start", Value: "1795415093"},
		{Name: "End", Value: "1795415153"},
		{Name: "Duration", Value: talk},
		{Name: "Direction", Value: direction},
	}
}

// calls finds calls by a number in any form and by filters, at a running bridge, and shows whether
// the CRM has got them.
func TestCallsCommandAtARunningBridge(t *testing.T) {
	t.Parallel() // most of it is waiting for processes
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	crm := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if body, _ := io.ReadAll(r.Body); bytes.Contains(body, []byte(`"call_id":"6"`)) {
			w.WriteHeader(http.StatusGone)
		}
	}))
	defer crm.Close()
	vars := variables(t, server, &receiver{Server: crm}, "API_TOKEN=operator-token-0123456789",
		"ENDPOINT_0_EVENTS=call.completed,sms.*")
	start(t, vars)
	eventually(t, "the bridge runs", func() bool { return server.Connected() == 1 })
	ask := func(args ...string) (string, int) {
		t.Helper()
		p := start(t, vars, append([]string{"calls"}, args...)...)
		code := p.exitCode()
		return p.log.String(), code
	}
	if out, code := ask(); code != 0 || !strings.Contains(out, "No calls were found.") {
		t.Errorf("with an empty outbox: exit code %d: %s", code, out)
	}
	for _, event := range []pz.Attrs{
		history("5", "73430112233", "101", "0", "63"),
		history("6", "79161234567", "102\x1b[31m", "0", "0"),
		history("7", "101", "74951112255", "1", "0"),
		history("8", "101", "102", "1", "5"),
		{
			{Name: "Event", Value: "128"},
			{Name: "CallID", Value: "9"},
			{Name: "From", Value: "103"},
			{Name: "To", Value: "79161234567"},
			{Name: "Smstext", Value: pz.SMSText("да")},
		},
		ringing("10", "74951110000"),
	} {
		if err := server.Generate(event); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all calls are there, and have been sent", func() bool {
		out, _ := ask()
		return strings.Count(out, "\n") == 7 && !strings.Contains(out, "pending")
	})
	id := regexp.MustCompile(`(?m)\d+$`)
	for name, c := range map[string]struct {
		args []string
		want []string // IDs, the latest first
	}{
		"all":                  {nil, []string{"10", "9", "8", "7", "6", "5"}},
		"a whole number":       {[]string{"-number", "+7 (343) 011-22-33"}, []string{"5"}},
		"with an 8":            {[]string{"-number", "83430112233"}, []string{"5"}},
		"without a code":       {[]string{"-number", "3430112233"}, []string{"5"}},
		"the last digits":      {[]string{"-number", "22-33"}, []string{"5"}},
		"digits in the middle": {[]string{"-number", "4951"}, []string{"10", "7"}},
		"an extension":         {[]string{"-number", "101"}, []string{"10", "8", "7", "5"}},
		"a client with an SMS": {[]string{"-number", "89161234567"}, []string{"9", "6"}},
		"another number":       {[]string{"-number", "+7 999 000-00-00"}, nil},
		"incoming":             {[]string{"-direction", "incoming"}, []string{"10", "6", "5"}},
		"missed":               {[]string{"-outcome", "missed"}, []string{"6"}},
		"no answer":            {[]string{"-outcome", "no_answer"}, []string{"7"}},
		"dead":                 {[]string{"-state", "dead"}, []string{"6"}},
		"both":                 {[]string{"-number", "4567", "-state", "delivered"}, []string{"9"}},
		"since":                {[]string{"-since", "1h", "-limit", "2"}, []string{"10", "9"}},
		"until":                {[]string{"-until", "1h"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			out, code := ask(c.args...)
			if got := id.FindAllString(out, -1); code != 0 || !slices.Equal(got, c.want) {
				t.Errorf("%v: it finds %v, want %v, exit code %d:\n%s", c.args, got, c.want, code, out)
			}
			if none := strings.Contains(out, "No calls were found."); none != (c.want == nil) {
				t.Errorf("%v: it says %s", c.args, out)
			}
		})
	}
	out, _ := ask()
	for _, want := range []string{
		`incoming\s+\+73430112233\s+101\s+answered\s+1m3s\s+crm delivered\s+5`,
		`incoming\s+\+79161234567\s.*\s+missed\s+0s\s+crm dead\s+6`,
		`outgoing\s+\+74951112255\s+101\s+no answer\s+0s\s+crm delivered\s+7`,
		`internal\s+101 102\s+\S+\s+answered\s+5s\s+crm delivered\s+8`,
		`SMS\s+\+79161234567\s+103\s+-\s+-\s+crm delivered\s+9`,
		`incoming\s+\+74951110000\s+101\s+going on\s+-\s+nowhere\s+10`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("no line is %s", want)
		}
	}
	if t.Failed() || strings.Contains(out, "\x1b") {
		t.Errorf("it says\n%s", out)
	}
	if out, _ := ask("-number", "4951"); !strings.Contains(out, "somewhere in a number") {
		t.Errorf("of digits in the middle it says %s", out)
	}
	if out, _ := ask("-limit", "2"); !strings.Contains(out, "There are more") {
		t.Errorf("of two among six it says %s", out)
	}
	for want, args := range map[string][]string{
		"Type at least the last four digits": {"-number", "+7 12"},
		"must be one of incoming, outgoing":  {"-direction", "in"},
		"there are pending, delivered":       {"-state", "lost"},
		"1 to 500":                           {"-limit", "0"},
		`"until" must be later than since`:   {"-since", "1h", "-until", "2h"},
	} {
		if out, code := ask(args...); code != 1 || !strings.Contains(out, want) {
			t.Errorf("%v: exit code %d: %s", args, code, out)
		}
	}
	for _, args := range [][]string{{"-since", "7d"}, {"-until", "yesterday"}, {"7343"}} {
		if out, code := ask(args...); code != 2 {
			t.Errorf("%v: exit code %d: %s", args, code, out)
		}
	}
	// What died before, or of others, is no failure of a redelivery.
	p := start(t, vars, "redeliver", "-endpoint", "crm", "-since", "1h", "-states", "delivered")
	const again = "4 deliveries are sent again (redelivery "
	if code := p.exitCode(); code != 0 || !strings.Contains(p.log.String(), again) {
		t.Errorf("redeliver: exit code %d: %s", code, p.log)
	}
	p = start(t, vars, "audit")
	line := regexp.MustCompile(`redelivered many +crm +4 +127\.0\.0\.1 +API`)
	if code := p.exitCode(); code != 0 || !line.MatchString(p.log.String()) {
		t.Errorf("audit: exit code %d: %s", code, p.log)
	}
	forgets := map[string]string{
		"-dry-run": "would be removed", "+7 343 011-22-33": "were removed", "101": "an extension is none",
	}
	for arg, want := range forgets {
		args := []string{"forget", arg}
		if arg == "-dry-run" {
			args = append(args, "+7 343 011-22-33")
		}
		p = start(t, vars, args...)
		if p.exitCode(); !strings.Contains(p.log.String(), want) {
			t.Errorf("%v: %s", args, p.log)
		}
	}
}
