package callpolicy

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/phone"
	"pzbridge/internal/telephony"
)

func plan(t *testing.T, internalDigits int) *phone.Plan {
	t.Helper()
	p, err := phone.New(phone.Options{Region: "RU", InternalDigits: internalDigits})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestNumberPatterns(t *testing.T) {
	for list, cases := range map[string]map[string]bool{
		"internal": {
			"1": true, "101": true, "123456": true, "1234567": false, "12-34 (56)": true, "12-34-567": false,
			"+101": false, "*72": false,
			"иван": true, "ivan.ivanov": true, "SIP/101": true, "sip:101@pbx.local": true,
			"PJSIP/101-0000000a": true, "PJSIP/1234567-0000000a": false,
			"SIP/trunk/79001112233": false, "w9w00447w911123": false, "SIP/79-001-112": false,
			"101@pbx": false, "/101": false, "": false,
		},
		"+7*,internal": {
			"+7 (343) 011-22-33": true, "+7": true, "79001112233": false, "+44 20": false, "102": true,
			"0+7": false, "SIP/+7": true,
		},
		"8??????????": {
			"8 (343) 011-22-33": true, "8343011223": false, "810442079460000": false, "8-343011223": false,
		},
		" +7 (343)* , 8-10": {"+7343 0": true, "810": true, "8(10)": true, "8100": false},
		"*":                 {"101": true, "+44 20": true, "SIP/trunk/79001112233": true, "*72": true},
		"+.5[0-9]":          {"+.5[09]": true, "+15": false, "+.54": false},
	} {
		n, err := ParseNumbers(list, plan(t, 6))
		if err != nil {
			t.Errorf("%s: %v", list, err)
			continue
		}
		for number, want := range cases {
			if n.match(number) != want {
				t.Errorf("%s: %q is %v", list, number, !want)
			}
		}
	}
	for _, list := range []string{"", "+7*,", ",", "+7*;internal", "\x00"} {
		if _, err := ParseNumbers(list, plan(t, 6)); err == nil {
			t.Errorf("%q is taken", list)
		}
	}
}

// How long an extension may be is a setting, also where a name stands before its digits. With 0
// there are none.
func TestExtensionsAreThoseOfThePlan(t *testing.T) {
	for digits, cases := range map[int]map[string]bool{
		0: {"1": false, "101": false, "ivan": false, "SIP/101": false, "+1": false},
		3: {
			"101": true, "1-01": true, " 10 1 ": true, "1010": false, "+10": false, "ivan": true, "ivan101": true,
			"ivan1010": false, "SIP/101": true, "SIP/1010": false, "PJSIP/101-0000002f": true,
			"PJSIP/1010-0000002f": false,
		},
		9: {
			"1234567": true, "123456789": true, "1234567890": false, "SIP/123456789": true, "8 10 500 21234": false,
			"SIP/trunk/79001112233": false,
		},
	} {
		n, err := ParseNumbers("internal", plan(t, digits))
		if err != nil {
			t.Fatal(err)
		}
		for number, want := range cases {
			if n.match(number) != want {
				t.Errorf("up to %d digits: %q is %v", digits, number, !want)
			}
		}
	}
}

// refusals counts refusals by bearer and reason.
type refusals map[string]int

func (r refusals) CommandRefused(by string, _ telephony.CommandKind, reason string) {
	r[by+" "+reason]++
}

func numbers(t *testing.T, list string) Numbers {
	t.Helper()
	n, err := ParseNumbers(list, plan(t, 6))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func newPolicy(t *testing.T) (p *Policy, log *bytes.Buffer, refused refusals) {
	t.Helper()
	log, refused = &bytes.Buffer{}, refusals{}
	p, err := New(Options{
		Rate:     30,
		From:     numbers(t, "internal"),
		To:       numbers(t, "+7*,internal"),
		Logger:   slog.New(slog.NewTextHandler(log, nil)),
		Observer: refused,
	})
	if err != nil {
		t.Fatal(err)
	}
	return p, log, refused
}

func call(from, to string) telephony.Command {
	return telephony.Command{Kind: telephony.CommandCall, From: from, To: to}
}

func transfer(to string) telephony.Command {
	return telephony.Command{Kind: telephony.CommandTransfer, CallID: "5", To: to}
}

func sms(to string) telephony.Command {
	return telephony.Command{
		Kind: telephony.CommandSMS,
		From: "101",
		To:   to,
		Text: "x",
	}
}

// reason returns the reason of a refusal and the time to wait; both are zero if err is nil.
func reason(t *testing.T, err error) (why string, wait time.Duration) {
	t.Helper()
	if err == nil {
		return "", 0
	}
	var refused *telephony.NotAllowedError
	if !errors.As(err, &refused) {
		t.Fatalf("refused with %v", err)
	}
	return refused.Reason, refused.RetryAfter
}

func TestNumbersThatCommandsMayUse(t *testing.T) {
	p, log, refused := newPolicy(t)
	for _, c := range []struct {
		cmd  telephony.Command
		want string
	}{
		{call("101", "+7 343 0112233"), ""},
		{call("101", "102"), ""},
		{call("+7 343 0112233", "101"), "from"},
		{call("101", "+44 20 79460000"), "to"},
		{transfer("101"), ""},
		{transfer(""), ""},
		{transfer("+44 20 79460000"), "to"},
		{sms("+7 343 0112233"), ""},
		{sms("+44 20 79460000"), "to"},
	} {
		if why, wait := reason(t, p.Allow("crm", c.cmd)); why != c.want || wait != 0 {
			t.Errorf("%+v: %q, %s", c.cmd, why, wait)
		}
	}
	if refused["crm from"] != 1 || refused["crm to"] != 3 || strings.Count(log.String(), "\n") != 4 ||
		!strings.Contains(log.String(), `number="+44 20 79460000" call_id=5`) {
		t.Errorf("%v\n%s", refused, log)
	}
}

// Each bearer has a rate of calls and one of SMS. Exceeding it limits neither transfers nor other
// bearers, and does not block the bearer.
func TestRateLimitsOneKindOfOneBearer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, log, _ := newPolicy(t)
		for i := range 50 {
			why, wait := reason(t, p.Allow("crm", call("101", "102")))
			if i < 30 && why != "" || i >= 30 && (why != "rate" || wait != 2*time.Second) {
				t.Fatalf("call %d: %q, %s", i, why, wait)
			}
		}
		for name, err := range map[string]error{
			"SMS":            p.Allow("crm", sms("102")),
			"a transfer":     p.Allow("crm", transfer("101")),
			"another's call": p.Allow("other", call("101", "102")),
		} {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		time.Sleep(2 * time.Second)
		if err := p.Allow("crm", call("101", "102")); err != nil {
			t.Error("after the wait:", err)
		}
		if n := strings.Count(log.String(), "\n"); n != 1 {
			t.Errorf("%d lines:\n%s", n, log)
		}
	})
}

// Ten refusals within a minute block a bearer's commands for ten minutes, except for declining a
// call. Other bearers are not affected.
func TestTenRefusalsBlockABearer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, log, refused := newPolicy(t)
		for range 20 { // nine within any minute
			_ = p.Allow("crm", call("101", "+44 20"))
			time.Sleep(7 * time.Second)
		}
		if err := p.Allow("crm", call("101", "102")); err != nil {
			t.Fatalf("closed by nine a minute: %v", err)
		}
		time.Sleep(time.Minute)
		for range 10 {
			_ = p.Allow("crm", transfer("+44 20"))
		}
		for _, cmd := range []telephony.Command{call("101", "102"), transfer("101"), sms("102")} {
			if why, wait := reason(t, p.Allow("crm", cmd)); why != "closed" || wait != 10*time.Minute {
				t.Errorf("%s: %q, %s", cmd.Kind, why, wait)
			}
		}
		if errs := errors.Join(p.Allow("crm", transfer("")), p.Allow("other", transfer("101"))); errs != nil {
			t.Error(errs)
		}
		if n := strings.Count(log.String(), "are closed"); n != 1 || refused["crm closed"] != 3 {
			t.Errorf("%d lines, %v:\n%s", n, refused, log)
		}
		time.Sleep(10*time.Minute - time.Second)
		if p.Allow("crm", transfer("101")) == nil {
			t.Error("open too early")
		}
		time.Sleep(time.Second)
		if err := p.Allow("crm", transfer("101")); err != nil {
			t.Errorf("still closed: %v", err)
		}
	})
}
