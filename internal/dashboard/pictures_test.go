package dashboard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/google/uuid"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// office is a stage with the day of a small company: three CRMs, of which bitrix24 refuses and
// warehouse reads its events, and calls of every kind.
func office(t *testing.T, change func(*Options)) *stage {
	t.Helper()
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, `{"error":"wrong signature"}`)
	}))
	t.Cleanup(refusing.Close)
	more := func(name, address string, change func(*store.Endpoint)) store.Endpoint {
		e := store.Endpoint{
			Name:        name,
			URL:         address,
			Secrets:     [][]byte{make([]byte, 24)},
			Events:      store.Filter{"call.*", "sms.*"},
			Timeout:     time.Minute,
			Concurrency: 4,
			RingingTTL:  time.Hour,
		}
		if change != nil {
			change(&e)
		}
		return e
	}
	s := newStageOf(t, "+73430112233", change,
		more("bitrix24", refusing.URL, func(e *store.Endpoint) { e.Headers = http.Header{"X-Api-Key": {"t0psecret"}} }),
		more("warehouse", "", nil))
	talk := func(seconds int64) *int64 { return &seconds }
	calls := []struct {
		id     string
		event  telephony.Event
		answer telephony.EventType
	}{
		{"470657307770881", telephony.Event{
			Direction: telephony.Incoming, From: "+73430112233", To: "101", Line: "+73432000000", Duration: talk(125),
			RecordingURL: "https://pbx.example/records/470657307770881.mp3",
		}, telephony.EventIncomingAnswered},
		{"470657307770882", telephony.Event{
			Direction: telephony.Incoming, From: "+79221234567", To: "102", Duration: talk(0),
		}, ""},
		{"470657307770883", telephony.Event{
			Direction: telephony.Outgoing, From: "103", To: "+74959876543", Duration: talk(3905),
		}, telephony.EventOutgoingAnswered},
		{"470657307770884", telephony.Event{
			Direction: telephony.Outgoing, From: "101", To: "+78127654321", Duration: talk(0),
		}, ""},
		{"470657307770885", telephony.Event{
			Direction: telephony.Outgoing, From: "101", To: "102", Duration: talk(31),
		}, telephony.EventOutgoingAnswered},
	}
	s.fillCharts(time.Now())
	for _, c := range calls {
		first := telephony.EventOutgoing
		if c.event.Direction == telephony.Incoming {
			first = telephony.EventIncoming
			s.put(t, telephony.EventTransferRequested, c.id, c.event)
			s.decide(t, c.id, c.event.To)
		}
		ringing := c.event
		ringing.Duration, ringing.RecordingURL = nil, ""
		s.put(t, first, c.id, ringing)
		if c.answer != "" {
			s.put(t, c.answer, c.id, ringing)
		}
		s.put(t, telephony.EventCompleted, c.id, c.event)
	}
	s.put(t, telephony.EventSMSSent, "470657307770886",
		telephony.Event{From: "101", To: "+79031112233", Text: "Добрый день"})
	s.put(t, telephony.EventIncoming, "470657307770887",
		telephony.Event{Direction: telephony.Incoming, From: "+79012345678", To: "104"})
	const refused = 2 // deliveries of call 5, which crm refuses
	eventually(t, "crm has what it takes, and bitrix24 has refused", func() bool {
		list, err := s.box.Endpoints()
		return err == nil && list[0].Pending <= refused && list[1].Failures > 10
	})
	return s
}

// fillCharts counts the week of an office before now, in which bitrix24 was away for an afternoon.
func (s *stage) fillCharts(now time.Time) {
	random := rand.New(rand.NewPCG(1, 2))
	s.stats.mu.Lock()
	defer s.stats.mu.Unlock()
	for i, sp := range spans {
		for back := sp.points - 1; back > 0; back-- {
			at := now.Add(-time.Duration(back) * sp.step)
			busy := max(0.05, 1-math.Abs(float64(at.Hour())-13)/7) * sp.step.Minutes()
			calls := uint32(busy * (1 + 3*random.Float64()))
			all := pointBack(&s.stats.seriesOf("")[i], now, back)
			all.Received += 4 * calls
			for name, slow := range map[string]float64{"crm": 40, "bitrix24": 220} {
				c := pointBack(&s.stats.seriesOf(name)[i], now, back)
				isAway := name == "bitrix24" && at.Day() == now.Add(-20*time.Hour).Day() &&
					at.Hour() >= 12 && at.Hour() < 17
				for range 4 * calls {
					took := time.Duration(slow * (0.6 + random.ExpFloat64()) * float64(time.Millisecond))
					for _, to := range []*counts{c, all} {
						to.Took[bucketOf(took)]++
						if isAway {
							to.Failed++
						} else {
							to.Delivered++
						}
					}
				}
			}
		}
	}
}

// pointBack returns the point of a series so many steps before that of now.
func pointBack(s *series, now time.Time, back int) *counts {
	s.at(now)
	return &s.ring[(s.newest-int64(back))%int64(s.points)]
}

// usualAfter is how long after its beginning something usually happens to a call, so that its
// timeline looks like one.
var usualAfter = map[telephony.EventType]time.Duration{
	telephony.EventIncoming:         500 * time.Millisecond,
	telephony.EventIncomingAnswered: 6 * time.Second,
	telephony.EventOutgoingAnswered: 8 * time.Second,
	telephony.EventCompleted:        20 * time.Second,
}

// put appends an event of a type to a call.
func (s *stage) put(t *testing.T, kind telephony.EventType, call string, e telephony.Event) {
	t.Helper()
	s.stats.EventReceived(kind)
	e.ID, e.Type, e.CallID, e.Time = uuid.Must(uuid.NewV7()).String(), kind, call, time.Now().Add(usualAfter[kind])
	if err := s.box.Append(t.Context(), []telephony.Event{e}); err != nil {
		t.Fatal(err)
	}
}

// decide gives the answers to the question where a call goes: crm wins with a number.
func (s *stage) decide(t *testing.T, call, to string) {
	t.Helper()
	eventually(t, "crm was asked", func() bool {
		list, _, err := s.box.Deliveries(store.DeliveryQuery{CallID: call, Endpoint: "crm", Limit: 1})
		return err == nil && list[0].State != "pending"
	})
	route, err := s.box.Route(call)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []telephony.RouteChange{{
		Kind: telephony.RouteAnswer,
		Now:  route.AskedAt.Add(180 * time.Millisecond),
		Replies: []telephony.Reply{{
			By:   "crm",
			At:   route.AskedAt.Add(180 * time.Millisecond),
			Kind: telephony.ReplyNumber,
			To:   to,
		}},
	}, {
		Kind:     telephony.RouteTransferEnded,
		EventID:  route.EventID,
		Now:      route.AskedAt.Add(240 * time.Millisecond),
		Transfer: telephony.TransferDone,
	}} {
		if _, err := s.box.Engine.ChangeRoute(t.Context(), call, c); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPictures makes the pictures of the guides in the folder PICTURES, and with SCREENS=all a
// picture of each page in both languages, at both widths, light and dark; see docs/pictures.sh.
func TestPictures(t *testing.T) {
	folder := os.Getenv("PICTURES")
	if folder == "" {
		t.Skip("PICTURES names no folder")
	}
	tab, cancel := context.WithTimeout(browser(t), 3*time.Minute)
	defer cancel()
	s := office(t, nil)
	if err := chromedp.Do(tab, chromedp.EmulateViewport(1280, 800), chromedp.Navigate(s.URL+"/login")); err != nil {
		t.Fatal(err)
	}
	takePicture(t, tab, filepath.Join(folder, "login.png"))
	signIn(t, tab)
	pages := map[string]string{
		"dashboard": "/",
		"calls":     "/calls?number=2233",
		"call":      "/calls/470657307770881",
	}
	if os.Getenv("SCREENS") == "" {
		_ = os.Remove(filepath.Join(folder, "login.png"))
		for name, path := range pages {
			visit(t, tab, s.URL+path, look{lang: "en", width: 1100})
			takePicture(t, tab, filepath.Join(folder, name+".png"))
		}
		return
	}
	pages["deliveries"] = "/deliveries?endpoint=bitrix24"
	pages["deliveries-crm"] = "/deliveries?endpoint=crm"
	pages["calls-all"] = "/calls"
	pages["calls-none"] = "/calls?number=99999"
	pages["calls-few"] = "/calls?number=%2B99"
	pages["calls-order"] = "/calls?since=2026-11-30T10:00&until=2026-11-29T10:00"
	pages["call-missed"] = "/calls/470657307770882#h-webhooks"
	pages["call-sms"] = "/calls/470657307770886"
	pages["deliveries-none"] = "/deliveries?endpoint=crm&state=expired"
	pages["choice"] = "/redeliveries/new?endpoint=crm&state=delivered&chosen=all"
	pages["choice-crm"] = "/redeliveries/new?chosen=all"
	pages["connection"] = "/connection"
	pages["audit"] = "/audit"
	pages["charts"] = "/charts?span=day"
	pages["charts-week"] = "/charts?span=week"
	pages["failed"] = "/calls/none"
	number, _, err := s.box.Outbox.RedeliverAll(t.Context(), store.Redelivery{
		Endpoint: "crm",
		States:   []string{"delivered"},
		Types:    []telephony.EventType{telephony.EventCompleted},
	})
	if err != nil {
		t.Fatal(err)
	}
	pages["redelivery"] = fmt.Sprintf("/redeliveries/%d", number)
	list, _, err := s.box.Deliveries(store.DeliveryQuery{Endpoint: "bitrix24", Limit: 3})
	if err != nil {
		t.Fatal(err)
	}
	ids := url.Values{"chosen": {"ticked"}}
	for i := range list {
		ids.Add("id", list[i].ID)
	}
	pages["redelivery-ticked"] = "/redeliveries/ticked?" + ids.Encode()
	pages["choice-ticked"] = "/redeliveries/new?" + ids.Encode()
	for name, path := range pages {
		for _, l := range looks() {
			visit(t, tab, s.URL+path, l)
			if strings.HasPrefix(name, "call-missed") {
				evaluate[int](t, tab, `document.querySelectorAll("details").forEach(d => d.open = true) ?? 0`)
			}
			takePicture(t, tab, filepath.Join(folder, fmt.Sprintf("%s-%s.png", name, l)))
		}
	}
}

// TestPicturesOfSeveralBridges makes, with SCREENS=all, a picture of the first page of one of
// several bridges that differ, in each look.
func TestPicturesOfSeveralBridges(t *testing.T) {
	folder := os.Getenv("PICTURES")
	if folder == "" || os.Getenv("SCREENS") == "" {
		t.Skip("PICTURES names no folder, or SCREENS is not set")
	}
	tab, cancel := context.WithTimeout(browser(t), 3*time.Minute)
	defer cancel()
	list := twoBridges()
	gone := list[0]
	gone.Name, gone.Seen, gone.Lanes = "bridge3", time.Now().Add(-20*time.Minute), nil
	s := office(t, func(o *Options) {
		o.Bridge, o.Bridges, o.Outbox = "bridge2", append(list, gone), shared{o.Outbox}
	})
	s.exchange.mu.Lock()
	s.exchange.c = telephony.Connection{State: telephony.Disconnected, Since: time.Now()}
	s.exchange.mu.Unlock()
	visit(t, tab, s.URL+"/login", look{lang: "en", width: 1280})
	signIn(t, tab)
	for _, l := range looks() {
		visit(t, tab, s.URL+"/", l)
		takePicture(t, tab, filepath.Join(folder, fmt.Sprintf("dashboard-bridges-%s.png", l)))
	}
}

// signIn signs in on the page of a tab.
func signIn(t *testing.T, tab context.Context) {
	t.Helper()
	err := chromedp.Do(tab, chromedp.SendKeys("#token", token+"\n"), chromedp.WaitVisible("#h-calls"))
	if err != nil {
		t.Fatal(err)
	}
}

// look is how a browser shows a page.
type look struct {
	lang   string
	width  int64
	isDark bool
}

func (l look) String() string {
	if l.isDark {
		return fmt.Sprintf("%s-%d-dark", l.lang, l.width)
	}
	return fmt.Sprintf("%s-%d", l.lang, l.width)
}

func looks() (list []look) {
	for _, lang := range []string{"en", "ru"} {
		for _, width := range []int64{1280, 390} {
			list = append(list, look{lang, width, false}, look{lang, width, true})
		}
	}
	return list
}

// visit opens a page in a look.
func visit(t *testing.T, tab context.Context, address string, l look) {
	t.Helper()
	scheme := "light"
	if l.isDark {
		scheme = "dark"
	}
	_, errLang := chromedp.Call(tab, network.SetExtraHTTPHeaders, network.SetExtraHTTPHeadersParams{
		Headers: network.Headers{"Accept-Language": l.lang},
	})
	_, errScheme := chromedp.Call(tab, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	})
	err := chromedp.Do(
		tab,
		chromedp.EmulateViewport(l.width, 800),
		chromedp.Navigate(address),
		chromedp.WaitReady("footer"),
	)
	if err := errors.Join(errLang, errScheme, err); err != nil {
		t.Fatalf("%s: %v", address, err)
	}
}

func takePicture(t *testing.T, tab context.Context, path string) {
	t.Helper()
	png, err := chromedp.Run(tab, chromedp.FullScreenshot(100))
	if err := errors.Join(err, os.WriteFile(path, png, 0o644)); err != nil {
		t.Errorf("picture %s: %v", path, err)
	}
}
