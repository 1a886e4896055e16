package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"pzbridge/internal/pz"
	"pzbridge/internal/pztest"
)

// Stage is a running bridge with a simulated server on one side and the demo CRM on the other.
type Stage struct {
	Server *pztest.Server
	CRM    *CRM
	API    string // the address of the bridge's API
	Token  string // with which the CRM calls it
	Print  func(line string)
}

// pace is the time between two things that happen to a call: enough to read along.
const pace = 300 * time.Millisecond

// call ids of the demo are the real server's kind: large numbers.
const (
	incomingID = "470657307770881"
	outgoingID = "470657307770882"
)

// Play plays a call in, which the CRM answers where to go, a call out and an SMS, with a click-to-call and an SMS sent through the API, and
// returns when the CRM has been told of everything that happened.
func (s *Stage) Play(ctx context.Context) error {
	if err := s.connected(ctx); err != nil {
		return err
	}
	const client = "73430112233"
	steps := []func() error{
		func() error { return s.generate(pz.TypeTransferRequested, incomingID, client, "") },
		func() error { return s.generate(pz.TypeIncoming, incomingID, client, manager) },
		func() error { return s.generate(pz.TypeIncomingAnswered, incomingID, client, manager) },
		func() error { return s.completed(incomingID, client, manager, "0") },
		func() error {
			s.Print("CRM      → POST /v1/calls: " + manager + " wants to talk to " + client)
			return s.post(ctx, "/v1/calls", map[string]string{"from": manager, "to": client})
		},
		func() error { return s.generate(pz.TypeOutgoing, outgoingID, manager, client) },
		func() error { return s.generate(pz.TypeOutgoingAnswered, outgoingID, manager, client) },
		func() error { return s.completed(outgoingID, manager, client, "1") },
		func() error {
			s.Print("CRM      → POST /v1/sms: \"Спасибо за звонок!\" to " + client)
			return s.post(ctx, "/v1/sms", map[string]string{"from": manager, "to": client, "text": "Спасибо за звонок!"})
		},
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
		if err := sleep(ctx, pace); err != nil {
			return err
		}
	}
	const events = 8 // four of the call in, three of the call out, one SMS
	return s.told(ctx, events)
}

// told waits until the CRM has been told of that many events.
func (s *Stage) told(ctx context.Context, events int) error {
	for {
		hooks, more := s.CRM.Verified()
		ids := map[string]bool{}
		for _, h := range hooks {
			ids[h.ID] = true
		}
		if len(ids) >= events {
			s.Print(fmt.Sprintf("demo     %d events, %d webhooks, every signature verified.", len(ids), len(hooks)))
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return fmt.Errorf("the CRM was told of %d events, not of %d", len(ids), events)
		}
	}
}

// connected waits until the bridge says that it is connected.
func (s *Stage) connected(ctx context.Context) error {
	for {
		var state struct {
			State string `json:"state"`
		}
		body, status, err := s.request(ctx, http.MethodGet, "/v1/connection", nil)
		if err == nil && status == http.StatusOK && json.Unmarshal(body, &state) == nil && state.State == "connected" {
			return nil
		}
		if sleepErr := sleep(ctx, 20*time.Millisecond); sleepErr != nil {
			return fmt.Errorf("the bridge did not connect to the simulated server: status %d, %w", status, sleepErr)
		}
	}
}

func (s *Stage) generate(kind, id, from, to string) error {
	return s.Server.Generate(pz.Attrs{
		{Name: "Event", Value: kind},
		{Name: "CallID", Value: id},
		{Name: "From", Value: from},
		{Name: "To", Value: to},
		{Name: "Line", Value: "2"},
	})
}

func (s *Stage) completed(id, from, to, direction string) error {
	const talked = 42
	now := time.Now().Unix()
	return s.Server.Generate(pz.Attrs{
		{Name: "Event", Value: pz.TypeCompleted},
		{Name: "CallID", Value: id},
		{Name: "From", Value: from},
		{Name: "To", Value: to},
		{Name: "Direction", Value: direction},
		{Name: "Start", Value: strconv.FormatInt(now-talked, 10)},
		{Name: "End", Value: strconv.FormatInt(now, 10)},
		{Name: "Duration", Value: strconv.Itoa(talked)},
		{Name: "Record", Value: "http://pbx.example/recordings/" + id + ".mp3"},
	})
}

func (s *Stage) post(ctx context.Context, path string, fields map[string]string) error {
	body, err := json.Marshal(fields)
	if err != nil {
		return err
	}
	answer, status, err := s.request(ctx, http.MethodPost, path, body)
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("POST %s: %d %s", path, status, answer)
	}
	return nil
}

func (s *Stage) request(ctx context.Context, method, path string, body []byte) ([]byte, int, error) {
	req, err := http.NewRequestWithContext(ctx, method, s.API+path, bytes.NewReader(body))
	if err != nil {
		return nil, 0, err
	}
	req.Header.Set("Authorization", "Bearer "+s.Token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	return answer, resp.StatusCode, err
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
