package demo

import (
	"bytes"
	"context"
	_ "embed" // for the page
	"encoding/binary"
	"fmt"
	"html/template"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"pzbridge/internal/crm/megafon/megafontest"
	"pzbridge/internal/pz"
	"pzbridge/internal/sleep"
)

// MegaFon is a demo of a CRM that takes the bridge for MegaFon's virtual PBX: an http.Handler with
// what that CRM receives, and with a page of what a person would see in it, with switches.
type MegaFon struct {
	stage *Stage
	crm   *megafontest.SalesMan
	mux   *http.ServeMux
	url   string // its own address
}

// MegaFonKey is the key that the CRM gives to its PBX, and MegaFonPath where it receives.
const (
	MegaFonKey  = "key-of-the-demo-crm"
	MegaFonPath = "/crm"
)

// The clients of the demo, of which the CRM knows the first one.
const (
	knownClient = "73430112233"
	stranger    = "79161234567"
)

// colleague rings with manager.
const colleague = "102"

// NewMegaFon makes a demo at an address. The stage has no CRM of its own.
func NewMegaFon(stage *Stage, url string) *MegaFon {
	m := &MegaFon{stage: stage, crm: megafontest.NewSalesMan(MegaFonKey), mux: http.NewServeMux(), url: url}
	m.crm.Assign(knownClient, manager)
	m.mux.HandleFunc("POST "+MegaFonPath, m.receive)
	m.mux.HandleFunc("GET /{$}", m.page)
	m.mux.HandleFunc("POST /switch", m.flip)
	m.mux.HandleFunc("GET /recordings/{name}", tone)
	return m
}

// ServeHTTP receives what the bridge tells, and serves the page.
func (m *MegaFon) ServeHTTP(w http.ResponseWriter, r *http.Request) { m.mux.ServeHTTP(w, r) }

func (m *MegaFon) receive(w http.ResponseWriter, r *http.Request) {
	m.crm.ServeHTTP(w, r)
	requests, _ := m.crm.Requests()
	last := requests[len(requests)-1]
	m.stage.Print(fmt.Sprintf("CRM      %s → HTTP %d %s", summary(last), last.Status, last.Answer))
}

// summary is a request in a few words.
func summary(r megafontest.Request) string {
	return strings.Join(strings.Fields(strings.Join([]string{
		r.Form.Get("cmd"), r.Form.Get("type"), r.Form.Get("status"), r.Form.Get("phone"), r.Form.Get("ext"),
	}, " ")), " ")
}

// Play plays the script: a call that rings at two, one that is missed, and one that begins
// with a click in the CRM. It returns when the CRM has all of them, or with an error if a step
// fails, the CRM sees a fault, or ctx ends before.
func (m *MegaFon) Play(ctx context.Context) error {
	if err := m.stage.waitConnected(ctx); err != nil {
		return err
	}
	s := m.stage
	steps := []func() error{
		func() error { return s.generate(pz.TypeTransferRequested, "470657307770891", knownClient, "") },
		func() error { return s.generate(pz.TypeIncoming, "470657307770891", knownClient, manager) },
		func() error { return s.generate(pz.TypeIncoming, "470657307770891", knownClient, colleague) },
		func() error { return s.generate(pz.TypeIncomingAnswered, "470657307770891", knownClient, manager) },
		func() error { return m.over("470657307770891", knownClient, manager, "0", 42) },
		func() error { return s.generate(pz.TypeIncoming, "470657307770892", stranger, colleague) },
		func() error { return m.over("470657307770892", stranger, colleague, "0", 0) },
		func() error { return m.click(ctx) },
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
		_, more := m.crm.Requests()
		records := slices.DeleteFunc(m.crm.Records(), func(r megafontest.Record) bool { return !isOver(r) })
		if len(records) >= calls {
			break
		}
		select {
		case <-more:
		case <-ctx.Done():
			return fmt.Errorf("of %d calls these are in the CRM's history: %+v", calls, records)
		}
	}
	if faults := m.crm.Faults(); len(faults) > 0 {
		return fmt.Errorf("the CRM has seen a fault: %s", faults[0])
	}
	m.stage.Print(fmt.Sprintf("demo     %d calls, as the CRM has them.", calls))
	return nil
}

// isOver reports whether a call is in the CRM's history.
func isOver(r megafontest.Record) bool {
	return slices.Contains([]string{"Success", "Missed", "Cancel"}, r.Status)
}

// click calls a client from the CRM, and plays the call that follows.
func (m *MegaFon) click(ctx context.Context) error {
	m.stage.Print("CRM      → makeCall: " + manager + " wants to talk to " + knownClient)
	_, err := m.crm.Click(ctx, http.DefaultClient, m.stage.API, m.stage.Token, manager, knownClient)
	if err != nil {
		return fmt.Errorf("a click in the CRM: %w", err)
	}
	id := fmt.Sprint(470657307770900 + time.Now().UnixMilli()%1_000_000)
	for _, kind := range []string{pz.TypeOutgoing, pz.TypeOutgoingAnswered} {
		if err := m.stage.generate(kind, id, manager, knownClient); err != nil {
			return err
		}
		if !sleep.For(ctx, pace) {
			return ctx.Err()
		}
	}
	return m.over(id, manager, knownClient, "1", 17)
}

// over ends a call, with a recording if anybody has talked.
func (m *MegaFon) over(id, from, to, direction string, talk int) error {
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
		fields = append(fields, pz.Attr{Name: "Record", Value: m.url + "/recordings/" + id + ".wav"})
	}
	return m.stage.Server.Generate(fields)
}

//go:embed megafon.html
var megafonPage string

var megafonTemplate = template.Must(template.New("megafon").Parse(megafonPage))

// page shows what a person would see in the CRM.
func (m *MegaFon) page(w http.ResponseWriter, r *http.Request) {
	requests, _ := m.crm.Requests()
	slices.Reverse(requests)
	records := m.crm.Records()
	slices.Reverse(records)
	type line struct {
		Time, What, Answer string
		IsRefused          bool
	}
	type call struct {
		megafontest.Record
		Talk string
	}
	view := struct {
		Russian bool
		Calls   []call
		Lines   []line
		Faults  []string
	}{
		Russian: strings.HasPrefix(r.Header.Get("Accept-Language"), "ru"),
		Faults:  m.crm.Faults(),
	}
	for _, c := range records[:min(len(records), 20)] {
		seconds := int(c.Duration.Seconds())
		view.Calls = append(view.Calls, call{c, fmt.Sprintf("%d:%02d", seconds/60, seconds%60)})
	}
	for _, q := range requests[:min(len(requests), 20)] {
		view.Lines = append(view.Lines, line{
			q.Time.Format(time.TimeOnly), summary(q), fmt.Sprint(q.Status, " ", q.Answer),
			q.Status >= http.StatusBadRequest || strings.Contains(q.Answer, "error"),
		})
	}
	var page bytes.Buffer
	if err := megafonTemplate.Execute(&page, view); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = page.WriteTo(w)
}

// flip is a switch of the page.
func (m *MegaFon) flip(w http.ResponseWriter, r *http.Request) {
	switch r.FormValue("do") {
	case "revoke":
		m.crm.Revoke()
	case "restore":
		m.crm.Restore()
	case "limit":
		m.crm.Limit(3)
	case "click":
		if err := m.click(r.Context()); err != nil {
			m.stage.Print("CRM      ✗ " + err.Error())
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
