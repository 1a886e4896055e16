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
	"pzbridge/internal/sleep"
)

// Stage is a running bridge with a simulated server on one side and the demo CRM on the other.
type Stage struct {
	Server *pztest.Server
	CRM    *CRM
	API    string // the address of the bridge's API
	Token  string // the CRM's token for the API
	Print  func(line string)
}

// pace is the time between two steps of the script, so that a person can read along.
const pace = 300 * time.Millisecond

// The call IDs are large numbers, as those of a real server are.
const (
	incomingID = "470657307770881"
	outgoingID = "470657307770882"
)

// Play runs the script: an incoming call that the CRM routes, a click-to-call through the API with
// its outgoing call, and an SMS through the API. It returns when the webhooks of all events have
// arrived at the CRM, or with an error if a step fails or ctx ends before.
func (s *Stage) Play(ctx context.Context) error {
	if err := s.waitConnected(ctx); err != nil {
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
			fields := map[string]string{"from": manager, "to": client, "text": "Спасибо за звонок!"}
			return s.post(ctx, "/v1/sms", fields)
		},
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
		if !sleep.For(ctx, pace) {
			return ctx.Err()
		}
	}
	const events = 8 // four of the incoming call, three of the outgoing call, one of the SMS
	return s.waitDelivered(ctx, events)
}

// waitDelivered waits until that many different events have arrived at the CRM.
func (s *Stage) waitDelivered(ctx context.Context, events int) error {
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
			return fmt.Errorf("%d events have arrived at the CRM, not %d", len(ids), events)
		}
	}
}

// waitConnected waits until the bridge's API reports a connection to the server.
func (s *Stage) waitConnected(ctx context.Context) error {
	for {
		var state struct {
			State string `json:"state"`
		}
		body, status, err := s.request(ctx, http.MethodGet, "/v1/connection", nil)
		if err == nil && status == http.StatusOK && json.Unmarshal(body, &state) == nil && state.State == "connected" {
			return nil
		}
		if !sleep.For(ctx, 20*time.Millisecond) {
			return fmt.Errorf("the bridge did not connect to the simulated server: status %d, %w", status, ctx.Err())
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
