package pztest

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"pzbridge/internal/pz"
)

// version is the answer to GetVersion, that of the imitated server.
const version = "Test Server v1.1.2"

// answer executes a request and returns the response without its request ID. The caller holds mu.
func (s *Server) answer(req pz.Request) pz.Response {
	done, failed := pz.Response{Code: pz.CodeDone}, pz.Response{Code: pz.CodeError}
	switch req.Method {
	case pz.MethodGetVersion:
		done.Version = version
		return done
	case pz.MethodGetClients:
		done.Clients = s.listClients()
		return done
	}
	s.requests = append(s.requests, req)
	switch req.Method {
	case pz.MethodCall:
		from, to := req.Data.Get("From"), req.Data.Get("To")
		if from == "" || to == "" {
			return failed
		}
		s.log("Call event from CRM: src = %s, dst = %s", from, to)
		return done
	case pz.MethodTransfer:
		// The real server does not refuse an unknown or malformed call ID either.
		id, hasID := req.Data.Lookup("CallID")
		to, hasTo := req.Data.Lookup("To")
		if !hasID || !hasTo {
			return failed
		}
		s.log("Transfer event from CRM: callID = %s, dst = %s", id, to)
		return done
	case pz.MethodGenerate:
		e, err := s.makeEvent(req.Data)
		if err != nil {
			return failed
		}
		if req.Data.Get("Event") == pz.TypeSMS {
			s.log("SMS event from CRM: src = %s, dst = %s", req.Data.Get("From"), req.Data.Get("To"))
		}
		s.emit(e, req.Data.Get("ClientGUID"))
		return done
	case pz.MethodSimulation:
		switch strings.ToLower(req.Data.Get("Mode")) {
		case "on":
			s.startSimulation()
		case "off":
			s.stopSimulation()
		default:
			return failed
		}
		return done
	}
	return failed
}

// Generate builds an event from the fields of a Generate request and emits it, as if a client had
// sent the request. It fails if the fields are not valid.
func (s *Server) Generate(fields pz.Attrs) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.makeEvent(fields)
	if err != nil {
		return err
	}
	s.emit(e, fields.Get("ClientGUID"))
	return nil
}

// shape lists the fields that an event of a type must and may have; a missing optional field is
// sent empty, as the real server does.
type shape struct{ required, optional []string }

var shapes = map[string]shape{
	pz.TypeTransferRequested: {[]string{"From"}, []string{"Line"}},
	pz.TypeIncoming:          {[]string{"From", "To"}, []string{"Line"}},
	pz.TypeCompleted: {
		[]string{"From", "To", "Start", "End", "Duration", "Direction"}, []string{"Line", "Record"},
	},
	pz.TypeOutgoing:         {[]string{"From", "To"}, nil},
	pz.TypeOutgoingAnswered: {[]string{"From", "To"}, nil},
	pz.TypeIncomingAnswered: {[]string{"From", "To"}, []string{"Line"}},
	pz.TypeUndocumented:     {[]string{"From", "To"}, nil},
	pz.TypeSMS:              {[]string{"From", "To", "Smstext"}, nil},
	pz.TypeSMSStatus:        {[]string{"From", "To", "Result"}, []string{"Line", "Smstext"}},
}

func (s *Server) makeEvent(fields pz.Attrs) (pz.Event, error) {
	kind := fields.Get("Event")
	shape, ok := shapes[kind]
	if !ok {
		return pz.Event{}, fmt.Errorf("there is no event type %q", kind)
	}
	id := fields.Get("CallID")
	if id == "" {
		id = s.newCallID()
	}
	if _, err := strconv.ParseUint(id, 10, 64); err != nil {
		return pz.Event{}, fmt.Errorf("the call id %q is no number", id)
	}
	attrs := make(pz.Attrs, 0, 12)
	attrs = append(attrs, pz.Attr{Name: pz.AttrType, Value: kind}, pz.Attr{Name: pz.AttrCallID, Value: id})
	for _, name := range shape.required {
		v := fields.Get(name)
		if v == "" {
			return pz.Event{}, fmt.Errorf("%s is missing", name)
		}
		attrs = append(attrs, pz.Attr{Name: strings.ToLower(name), Value: v})
	}
	for _, name := range shape.optional {
		v, _ := fields.Lookup(name)
		attrs = append(attrs, pz.Attr{Name: strings.ToLower(name), Value: v})
	}
	return pz.Event{Attrs: ordered(attrs)}, nil
}

// newCallID returns an unused call ID. The caller holds mu.
func (s *Server) newCallID() string {
	s.lastID++
	return strconv.FormatUint(s.lastID, 10)
}

// with returns the event with one more attribute.
func with(e pz.Event, name, value string) pz.Event {
	return pz.Event{Attrs: ordered(append(slices.Clone(e.Attrs), pz.Attr{Name: name, Value: value}))}
}

// ordered sorts attributes into their order on the wire: type and callID first, then the others by
// name.
func ordered(attrs pz.Attrs) pz.Attrs {
	named := attrs[min(2, len(attrs)):]
	slices.SortStableFunc(named, func(a, b pz.Attr) int { return cmp.Compare(a.Name, b.Name) })
	return attrs
}

func (s *Server) listClients() []pz.Client {
	var list []pz.Client
	for i, c := range s.clients {
		connected := "0"
		if c.link != nil {
			connected = "1"
		}
		list = append(list, pz.Client{
			ID:          strconv.Itoa(i),
			IP:          c.ip,
			Type:        c.identity.ClientType,
			GUID:        c.identity.GUID,
			Connected:   connected,
			PhoneNumber: c.identity.PhoneNumber,
		})
	}
	return list
}

// simulation plays a call every simulationPeriod until it is stopped.
type simulation struct{ stop chan struct{} }

const simulationPeriod = 10 * time.Second

// Simulate starts or stops the simulation, which plays an incoming call every 10 s.
func (s *Server) Simulate(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if on {
		s.startSimulation()
	} else {
		s.stopSimulation()
	}
}

// startSimulation starts the simulation unless it runs. The caller holds mu.
func (s *Server) startSimulation() {
	if s.simulate != nil || s.http == nil {
		return
	}
	sim := &simulation{stop: make(chan struct{})}
	s.simulate = sim
	s.handlers.Go(func() {
		tick := time.NewTicker(simulationPeriod)
		defer tick.Stop()
		for {
			select {
			case <-sim.stop:
				return
			case <-tick.C:
				s.playIncoming(sim.stop)
			}
		}
	})
}

// stopSimulation stops the simulation if it runs. The caller holds mu.
func (s *Server) stopSimulation() {
	if s.simulate != nil {
		close(s.simulate.stop)
		s.simulate = nil
	}
}

// transferredTo returns the number to which a client has transferred a call; empty if none has.
func (s *Server) transferredTo(id string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range slices.Backward(s.requests) {
		if r.Method == pz.MethodTransfer && r.Data.Get("CallID") == id {
			return r.Data.Get("To")
		}
	}
	return ""
}

// playIncoming plays one incoming call, from the request for its destination to its end, over some
// seconds, or until stop is closed.
func (s *Server) playIncoming(stop <-chan struct{}) {
	s.mu.Lock()
	id := s.newCallID()
	s.mu.Unlock()
	from, to := fmt.Sprintf("7343%07d", rand.IntN(10_000_000)), fmt.Sprintf("10%d", 1+rand.IntN(9))
	began := time.Now()
	fields := func(kind string, more ...pz.Attr) pz.Attrs {
		return append(pz.Attrs{
			{Name: "Event", Value: kind},
			{Name: "CallID", Value: id},
			{Name: "From", Value: from},
			{Name: "To", Value: to},
			{Name: "Line", Value: "1"},
		}, more...)
	}
	steps := []func() pz.Attrs{
		func() pz.Attrs { return fields(pz.TypeTransferRequested) },
		func() pz.Attrs {
			to = cmp.Or(s.transferredTo(id), to)
			return fields(pz.TypeIncoming)
		},
		func() pz.Attrs { return fields(pz.TypeIncomingAnswered) },
		func() pz.Attrs {
			now := time.Now()
			unix := func(t time.Time) string { return strconv.FormatInt(t.Unix(), 10) }
			return fields(pz.TypeCompleted,
				pz.Attr{Name: "Start", Value: unix(began)}, pz.Attr{Name: "End", Value: unix(now)},
				pz.Attr{Name: "Duration", Value: strconv.Itoa(int(now.Sub(began).Seconds()))},
				pz.Attr{Name: "Direction", Value: "0"})
		},
	}
	for _, step := range steps {
		if err := s.Generate(step()); err != nil {
			s.log("simulation: %v", err)
		}
		select {
		case <-stop:
			return
		case <-time.After(time.Second):
		}
	}
}
