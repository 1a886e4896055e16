package demo

import (
	"bytes"
	"context"
	_ "embed" // for the page
	"encoding/binary"
	"errors"
	"fmt"
	"html/template"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"pzbridge/internal/pz"
	"pzbridge/internal/sleep"
)

// Preset is a demo of a CRM that is told by its own interface: an http.Handler with what that CRM
// receives, and with a page of what a person would see in it, with switches.
type Preset struct {
	stage *Stage
	crm   presetCRM
	mux   *http.ServeMux
	url   string // its own address
}

// presetCRM is a fake of a CRM, and what its page shows.
type presetCRM interface {
	http.Handler
	// variables are those of the bridge for this CRM, with its own address.
	variables(url string) map[string]string
	calls() []shownCall // the oldest first
	// record returns the recording that it has of a call, by its number in calls; nil if it has
	// none of its own.
	record(number int) []byte
	requests() []shownRequest
	faults() []string
	changed() <-chan struct{} // closed when the next request comes
	// click calls a client from the CRM through the API of a stage.
	click(ctx context.Context, s *Stage) error
	revoke()
	restore()
	limit() // refuses some requests
}

// shownCall is a call as a person sees it in the CRM.
type shownCall struct {
	Client     string // with a plus
	IsIncoming bool
	Manager    string
	State      callState
	Talk       time.Duration
	Link       string // of the recording
	Note       string // what the CRM has made of it besides
}

// callState is how a call stands in the CRM.
type callState string

// The states. The first two have a card on the screen.
const (
	rings  callState = "rings"
	talks  callState = "talks"
	over   callState = "over" // and not in the history yet
	talked callState = "talked"
	missed callState = "missed"
	failed callState = "failed" // an outgoing call that nobody took
)

// Length is the time of talk, for people.
func (c shownCall) Length() string {
	seconds := int(c.Talk.Seconds())
	return fmt.Sprintf("%d:%02d", seconds/60, seconds%60)
}

// shownRequest is a request of the bridge.
type shownRequest struct {
	Time      time.Time
	What      string
	Answer    string
	IsRefused bool
}

// Clock is the time of the request.
func (r shownRequest) Clock() string { return r.Time.Format(time.TimeOnly) }

// The clients of the demo, of which the CRM knows the first one.
const (
	knownClient = "73430112233"
	stranger    = "79161234567"
)

// colleague rings with manager.
const colleague = "102"

// NewPreset makes a demo of a CRM with a preset, at an address. The stage has no CRM of its own.
func NewPreset(stage *Stage, preset, url string) (*Preset, error) {
	p := &Preset{stage: stage, mux: http.NewServeMux(), url: url}
	switch preset {
	case "bitrix24":
		p.crm = newPortal(url)
	case "megafon":
		p.crm = newMegaFon()
	default:
		return nil, errors.New("the demo has no CRM with the preset " + preset)
	}
	p.mux.HandleFunc("GET /{$}", p.page)
	p.mux.HandleFunc("POST /switch", p.flip)
	p.mux.HandleFunc("GET /recordings/{name}", tone)
	p.mux.HandleFunc("GET /crm/recordings/{number}", p.record)
	p.mux.HandleFunc("POST /", p.receive)
	return p, nil
}

// Variables are those of the bridge for this CRM. It fetches the recordings, which this demo serves
// in place of the exchange.
func (p *Preset) Variables() map[string]string {
	vars := p.crm.variables(p.url)
	vars["RECORDINGS"], vars["RECORDINGS_FROM"], vars["PUBLIC_URL"] = "on", p.url, p.stage.API
	return vars
}

// ServeHTTP receives what the bridge tells, and serves the page.
func (p *Preset) ServeHTTP(w http.ResponseWriter, r *http.Request) { p.mux.ServeHTTP(w, r) }

func (p *Preset) receive(w http.ResponseWriter, r *http.Request) {
	p.crm.ServeHTTP(w, r)
	list := p.crm.requests()
	last := list[len(list)-1]
	p.stage.Print("CRM      " + last.What + " → " + last.Answer)
}

// Play plays the script: a call that rings at two, one that is missed, and one that begins with a
// click in the CRM. It returns when the CRM has all of them with their recordings, which the bridge
// looks for five seconds after a call, or with an error if a step fails, the
// CRM sees a fault, or ctx ends before.
func (p *Preset) Play(ctx context.Context) error {
	if err := p.stage.waitConnected(ctx); err != nil {
		return err
	}
	s := p.stage
	const first, second = "470657307770891", "470657307770892"
	steps := []func() error{
		func() error { return s.generate(pz.TypeTransferRequested, first, knownClient, "") },
		func() error { return s.generate(pz.TypeIncoming, first, knownClient, manager) },
		func() error { return s.generate(pz.TypeIncoming, first, knownClient, colleague) },
		func() error { return s.generate(pz.TypeIncomingAnswered, first, knownClient, manager) },
		func() error { return p.over(first, knownClient, manager, "0", 42) },
		func() error { return s.generate(pz.TypeIncoming, second, stranger, colleague) },
		func() error { return p.over(second, stranger, colleague, "0", 0) },
		func() error { return p.click(ctx) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
		if !sleep.For(ctx, pace) {
			return ctx.Err()
		}
	}
	const calls = 3
	for {
		more := p.crm.changed()
		list := slices.DeleteFunc(p.crm.calls(), func(c shownCall) bool { return !c.isWhole() })
		if len(list) >= calls {
			break
		}
		select {
		case <-more:
		case <-ctx.Done():
			return fmt.Errorf("of %d calls the CRM has these: %+v", calls, list)
		}
	}
	if faults := p.crm.faults(); len(faults) > 0 {
		return fmt.Errorf("the CRM has seen a fault: %s", faults[0])
	}
	p.stage.Print(fmt.Sprintf("demo     %d calls, as the CRM has them.", calls))
	return nil
}

// isWhole reports whether the CRM has all of a call: its end, and the recording if people talked.
func (c shownCall) isWhole() bool {
	return c.State == missed || c.State == failed || c.State == talked && c.Link != ""
}

// record serves a recording that the CRM itself has.
func (p *Preset) record(w http.ResponseWriter, r *http.Request) {
	number, err := strconv.Atoi(r.PathValue("number"))
	content := p.crm.record(number)
	if err != nil || content == nil {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "audio/wav")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
}

// click calls a client from the CRM, and plays the call that follows.
func (p *Preset) click(ctx context.Context) error {
	p.stage.Print("CRM      → a click: " + manager + " wants to talk to " + knownClient)
	if err := p.crm.click(ctx, p.stage); err != nil {
		return fmt.Errorf("a click in the CRM: %w", err)
	}
	id := fmt.Sprint(470657307770900 + time.Now().UnixMilli()%1_000_000)
	for _, kind := range []string{pz.TypeOutgoing, pz.TypeOutgoingAnswered} {
		if !sleep.For(ctx, pace) {
			return ctx.Err()
		}
		if err := p.stage.generate(kind, id, manager, knownClient); err != nil {
			return err
		}
	}
	if !sleep.For(ctx, pace) {
		return ctx.Err()
	}
	return p.over(id, manager, knownClient, "1", 17)
}

// over ends a call, with a recording if anybody has talked.
func (p *Preset) over(id, from, to, direction string, talk int) error {
	now := time.Now().Unix()
	fields := pz.Attrs{
		{Name: "Event", Value: pz.TypeCompleted},
		{Name: "CallID", Value: id},
		{Name: "From", Value: from},
		{Name: "To", Value: to},
		{Name: "Direction", Value: direction},
		{Name: "Start", Value: fmt.Sprint(now - int64(talk) - 5)},
		{Name: "End", Value: fmt.Sprint(now)},
		{Name: "Duration", Value: fmt.Sprint(talk)},
	}
	if talk > 0 {
		fields = append(fields, pz.Attr{Name: "Record", Value: p.url + "/recordings/" + id + ".wav"})
	}
	return p.stage.Server.Generate(fields)
}

//go:embed preset.html
var presetPage string

var presetTemplate = template.Must(template.New("preset").Parse(presetPage))

// page shows what a person would see in the CRM.
func (p *Preset) page(w http.ResponseWriter, r *http.Request) {
	const shown = 20
	calls, requests := p.crm.calls(), p.crm.requests()
	slices.Reverse(calls)
	slices.Reverse(requests)
	view := struct {
		Russian  bool
		Calls    []shownCall
		Requests []shownRequest
		Faults   []string
	}{
		Russian:  strings.HasPrefix(r.Header.Get("Accept-Language"), "ru"),
		Calls:    calls[:min(len(calls), shown)],
		Requests: requests[:min(len(requests), shown)],
		Faults:   p.crm.faults(),
	}
	var page bytes.Buffer
	if err := presetTemplate.Execute(&page, view); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = page.WriteTo(w)
}

// flip is a switch of the page.
func (p *Preset) flip(w http.ResponseWriter, r *http.Request) {
	switch r.FormValue("do") {
	case "revoke":
		p.crm.revoke()
	case "restore":
		p.crm.restore()
	case "limit":
		p.crm.limit()
	case "click":
		if err := p.click(r.Context()); err != nil {
			p.stage.Print("CRM      ✗ " + err.Error())
		}
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// tone serves a second of a tone, as the recording of a call.
func tone(w http.ResponseWriter, r *http.Request) {
	const rate, hertz = 8000, 440
	samples := make([]int16, rate)
	for i := range samples {
		samples[i] = int16(8000 * math.Sin(2*math.Pi*hertz*float64(i)/rate))
	}
	var wav bytes.Buffer
	wav.WriteString("RIFF")
	write := func(list ...any) {
		for _, v := range list {
			_ = binary.Write(&wav, binary.LittleEndian, v) // to memory
		}
	}
	size := uint32(2 * len(samples))
	write(36+size, []byte("WAVEfmt "), uint32(16), uint16(1), uint16(1), uint32(rate), uint32(2*rate), uint16(2),
		uint16(16), []byte("data"), size, samples)
	w.Header().Set("Content-Type", "audio/wav")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(wav.Bytes()))
}
