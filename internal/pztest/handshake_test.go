package pztest_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"pzbridge/internal/pz"
	"pzbridge/internal/pztest"
)

// handshake is a handshake that was tried on the vendor's server, with its outcome.
type handshake struct {
	Password string
	Target   string
	Headers  map[string]string
	Outcome  string
	Client   *struct{ Type, GUID, PhoneNumber string }
}

func handshakes(t *testing.T) (list []handshake) {
	t.Helper()
	f, err := os.Open("testdata/handshakes.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var h handshake
		if err := json.Unmarshal(lines.Bytes(), &h); err != nil {
			t.Fatal(err)
		}
		list = append(list, h)
	}
	if len(list) < 20 {
		t.Fatalf("there are %d handshakes only", len(list))
	}
	return list
}

// Every handshake that was tried on the vendor's server has the same outcome here.
func TestHandshakeOutcomesMatchTheRecording(t *testing.T) {
	for _, h := range handshakes(t) {
		t.Run(h.Target+" "+fmt.Sprint(h.Headers), func(t *testing.T) {
			server := pztest.NewServer(pztest.Options{Password: h.Password})
			defer server.Close()
			header := http.Header{}
			for name, value := range h.Headers {
				header[name] = []string{value}
			}
			conn, resp, err := websocket.DefaultDialer.Dial(server.URL+h.Target, header)
			if err != nil {
				if resp == nil || h.Outcome != fmt.Sprintf("HTTP %d", resp.StatusCode) {
					t.Errorf("got %v, %v, want %s", resp, err, h.Outcome)
				}
				return
			}
			defer conn.Close()
			got, clients := outcome(t, conn)
			if got != h.Outcome {
				t.Errorf("got %s, want %s", got, h.Outcome)
			}
			if want := h.Client; want != nil && (len(clients) != 1 || clients[0].Type != want.Type ||
				clients[0].GUID != want.GUID || clients[0].PhoneNumber != want.PhoneNumber) {
				t.Errorf("GetClients shows %+v, want %+v", clients, *want)
			}
		})
	}
}

// outcome sends GetClients and describes, in the terms of the recording, how the connection goes
// on.
func outcome(t *testing.T, conn *websocket.Conn) (string, []pz.Client) {
	t.Helper()
	send(t, conn, pz.Base64.Pack(pz.Request{Method: pz.MethodGetClients, ID: "1"}.XML()))
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, payload, err := conn.ReadMessage()
	var closed *websocket.CloseError
	if errors.As(err, &closed) {
		return fmt.Sprintf("close %d", closed.Code), nil
	}
	doc, _, errUnpack := pz.Unpack(payload)
	_, responses, errParse := pz.ParseServerMessage(doc)
	if err := errors.Join(err, errUnpack, errParse); err != nil || len(responses) != 1 {
		t.Fatal(err, responses)
	}
	return "accepted", responses[0].Clients
}

// The client's handshake equals, byte by byte, one that the vendor's server accepted.
func TestClientHandshakeMatchesAnAcceptedOne(t *testing.T) {
	written := 0
	for _, h := range handshakes(t) {
		id, complete := identityOf(h)
		if h.Outcome != "accepted" || !complete {
			continue
		}
		written++
		query, header := id.Handshake()
		if want := h.Headers; want != nil {
			for name, value := range want {
				if len(header[name]) != 1 || header[name][0] != value || query != "" {
					t.Errorf("%+v: got %s, %v", h, query, header)
				}
			}
			continue
		}
		if "/?"+query != h.Target || header != nil {
			t.Errorf("got /?%s, %v\nwant %s", query, header, h.Target)
		}
	}
	if written < 5 {
		t.Errorf("only %d handshakes were compared", written)
	}
}

// identityOf returns the identity in a handshake, and whether Identity.Handshake would produce that
// handshake: all fields are present, and in the query if a query can carry them.
func identityOf(h handshake) (id pz.Identity, complete bool) {
	var in pz.Introduction
	if h.Headers != nil {
		var headers pz.Attrs
		for name, value := range h.Headers {
			headers = append(headers, pz.Attr{Name: name, Value: value})
		}
		in = pz.ReadIntroduction("", headers)
	} else if query, atRoot := strings.CutPrefix(h.Target, "/?"); atRoot && strings.Count(query, "&") == 6 {
		in = pz.ReadIntroduction(query, nil)
	}
	id = in.Identity
	id.Password = h.Password
	query, _ := id.Handshake()
	sameWay := (query == "") == (h.Headers != nil)
	return id, in.HasType && in.Protocol == 2 && sameWay && in.Packed == pz.PackPassword(h.Password)
}

// A server does not answer a request in the other form.
func TestRequestInTheOtherFormIsNotAnswered(t *testing.T) {
	for _, codec := range []pz.Codec{pz.Base64, pz.Plain} {
		server := pztest.NewServer(pztest.Options{Codec: codec})
		defer server.Close()
		conn := dial(t, server, pz.Identity{ClientType: "crm", GUID: "g", Protocol: 2}, false)
		send(t, conn, codec.Other().Pack(pz.Request{Method: pz.MethodGetVersion, ID: "1"}.XML()))
		if got := receiveAll(t, conn, codec); len(got) != 0 {
			t.Errorf("a server that speaks %s answered %v", codec, got)
		}
	}
}
