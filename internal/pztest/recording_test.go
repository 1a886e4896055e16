package pztest_test

import (
	"bufio"
	"cmp"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"pzbridge/internal/pz"
	"pzbridge/internal/pztest"
)

// recorded is one frame of a session that was recorded on the vendor's server.
type recorded struct {
	Client, Dir, Kind, Frame string
}

func recording(t *testing.T, mode string) []recorded {
	t.Helper()
	f, err := os.Open("testdata/frames-" + mode + ".jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var list []recorded
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r recorded
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		list = append(list, r)
	}
	return list
}

// clients are the recorded clients' phone numbers and masks, in the order in which they connected.
var clients = []struct {
	name, phone string
	mask        uint32
}{{"desk", "101", 0}, {"wallboard", "", 65535}, {"operator", "", 0}}

// The simulated server sends each client the same frames as the vendor's server.
func TestFramesMatchTheRecording(t *testing.T) {
	for _, mode := range []string{"ws", "wss"} {
		for _, older := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s,headers=%v", mode, older), func(t *testing.T) {
				replayRecording(t, mode, older)
			})
		}
	}
}

func replayRecording(t *testing.T, mode string, older bool) {
	frames := recording(t, mode)
	opts, codec := pztest.Options{}, pz.Base64
	if mode == "wss" {
		opts.TLS, codec = pztest.ModernTLS(), pz.Plain
	}
	opts.History = history(t, frames)
	server := pztest.NewServer(opts)
	defer server.Close()

	sockets, got := map[string]*websocket.Conn{}, map[string][]string{}
	for _, c := range clients {
		sockets[c.name] = dial(t, server, pz.Identity{
			ClientType:  "jsapi",
			GUID:        c.name,
			PhoneNumber: c.phone,
			EventsMask:  c.mask,
			Protocol:    2,
		}, older)
		got[c.name] = receiveAll(t, sockets[c.name], codec)
	}
	given := map[string]bool{} // call IDs that the server did not choose
	for _, e := range opts.History {
		given[e.Attrs.Get(pz.AttrCallID)] = true
	}
	want := map[string][]string{}
	for _, f := range frames {
		doc, _, err := pz.Unpack([]byte(f.Frame))
		if err != nil {
			t.Fatal(err)
		}
		if f.Dir == "server" {
			want[f.Client] = append(want[f.Client], string(doc))
			continue
		}
		req, err := pz.ParseRequest(doc)
		if err != nil {
			t.Fatal(err)
		}
		given[req.Data.Get("CallID")] = true
		send(t, sockets[f.Client], []byte(f.Frame))
	}
	// The operator sent all requests: once it has its last answer, all events are under way.
	for _, c := range slices.Backward(clients) {
		got[c.name] = append(got[c.name], receiveAll(t, sockets[c.name], codec)...)
	}
	made := map[string]string{} // recorded call ID → the one that our server chose in its place
	for _, c := range clients {
		got := got[c.name]
		if len(got) != len(want[c.name]) {
			t.Errorf("%s got %d frames, the recorded one %d:\n%s",
				c.name, len(got), len(want[c.name]), strings.Join(got, "\n"))
			continue
		}
		for i := range got {
			g, w := alike(t, got[i], want[c.name][i], given, made)
			if g != w {
				t.Errorf("%s, frame %d:\n got %s\nwant %s", c.name, i, g, w)
			}
		}
	}
}

// history returns the events that the recorded server still held: all of them were sent to the
// wallboard, whose mask selects every event.
func history(t *testing.T, frames []recorded) []pz.Event {
	var list []pz.Event
	for _, f := range frames {
		if f.Client != "wallboard" || f.Dir != "server" {
			continue
		}
		doc, _, err := pz.Unpack([]byte(f.Frame))
		if err != nil {
			t.Fatal(err)
		}
		events, _, err := pz.ParseServerMessage(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			if e.Attrs.Get(pz.AttrMissed) == "1" {
				isMissed := func(a pz.Attr) bool { return strings.HasPrefix(a.Name, pz.AttrMissed) }
				e.Attrs = slices.DeleteFunc(e.Attrs, isMissed)
				list = append(list, e)
			}
		}
	}
	return list
}

// alike returns the two documents without legitimate differences: call IDs that the server chooses,
// and clients that only the vendor's server had met.
func alike(t *testing.T, got, want string, given map[string]bool, made map[string]string) (string, string) {
	t.Helper()
	gotEvents, gotResponses, err := pz.ParseServerMessage([]byte(got))
	if err != nil {
		t.Fatal(err)
	}
	wantEvents, wantResponses, err := pz.ParseServerMessage([]byte(want))
	if err != nil {
		t.Fatal(err)
	}
	if len(gotEvents) == 1 && len(wantEvents) == 1 {
		g, w := gotEvents[0].Attrs.Get(pz.AttrCallID), wantEvents[0].Attrs.Get(pz.AttrCallID)
		if !given[w] {
			if first, ok := made[w]; ok && first != g {
				t.Errorf("one call got two IDs: %s and %s", first, g)
			}
			made[w] = g
			got = strings.Replace(got, `"`+g+`"`, `"`+w+`"`, 1)
		}
	}
	if len(wantResponses) == 1 && len(wantResponses[0].Clients) > 0 && len(gotResponses) == 1 {
		return threeClients(gotResponses[0]), threeClients(wantResponses[0])
	}
	return got, want
}

func threeClients(r pz.Response) string {
	r.Clients = slices.DeleteFunc(r.Clients, func(c pz.Client) bool {
		return !slices.Contains([]string{"desk", "wallboard", "operator"}, c.GUID)
	})
	for i := range r.Clients {
		r.Clients[i].ID = ""
	}
	return string(r.XML())
}

func dial(t *testing.T, server *pztest.Server, id pz.Identity, older bool) *websocket.Conn {
	t.Helper()
	d := websocket.Dialer{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, HandshakeTimeout: 5 * time.Second}
	query, header := id.Handshake()
	if older {
		query, header = "", olderHeaders(query)
	}
	conn, resp, err := d.Dial(server.URL+"/?"+query, header)
	if err != nil {
		t.Fatalf("dial: %v (%v)", err, resp)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// olderHeaders converts a handshake's query to headers, the older form.
func olderHeaders(query string) http.Header {
	names := map[string]string{"CID": "ClientID", "CT": "ClientType", "GID": "ClientGUID"}
	header := http.Header{}
	for pair := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(pair, "=")
		header[cmp.Or(names[name], name)] = []string{value}
	}
	return header
}

func send(t *testing.T, conn *websocket.Conn, payload []byte) {
	t.Helper()
	if err := conn.WriteMessage(websocket.TextMessage, payload); err != nil {
		t.Fatal(err)
	}
}

// receiveAll returns every frame that the server has sent to a client so far: it sends a last
// request and reads up to its answer.
func receiveAll(t *testing.T, conn *websocket.Conn, codec pz.Codec) []string {
	t.Helper()
	const last = "999999"
	send(t, conn, codec.Pack(pz.Request{Method: pz.MethodGetVersion, ID: last}.XML()))
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	var list []string
	for {
		_, payload, err := conn.ReadMessage()
		if err != nil {
			t.Fatal(err)
		}
		doc, _, err := pz.Unpack(payload)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(doc), "<RequestID>"+last+"</RequestID>") {
			return list
		}
		list = append(list, string(doc))
	}
}

func closeCode(t *testing.T, conn *websocket.Conn) int {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	for {
		if _, _, err := conn.ReadMessage(); err != nil {
			var closed *websocket.CloseError
			if !errors.As(err, &closed) {
				t.Fatalf("the connection ended with %v, not with a close frame", err)
			}
			return closed.Code
		}
	}
}

func TestRefusedHandshakesAndRepeatedGUID(t *testing.T) {
	server := pztest.NewServer(pztest.Options{Password: "sesame"})
	defer server.Close()
	right := pz.Identity{
		Password:   "sesame",
		ClientType: "crm",
		GUID:       "g",
		Protocol:   2,
	}
	wrong := pz.Identity{
		Password:   "mice",
		ClientType: "crm",
		GUID:       "w",
		Protocol:   2,
	}

	t.Run("wrong password, protocol 2: upgraded, then closed with 4008", func(t *testing.T) {
		if code := closeCode(t, dial(t, server, wrong, false)); code != pz.CloseInvalidPassword {
			t.Errorf("closed with %d", code)
		}
	})
	for name, try := range map[string]func() (http.Header, string){
		"wrong password, protocol 1": func() (http.Header, string) {
			old := wrong
			old.Protocol = 1
			query, _ := old.Handshake()
			return nil, server.URL + "/?" + query
		},
		"no identity": func() (http.Header, string) { return nil, server.URL },
	} {
		t.Run(name+": HTTP 403", func(t *testing.T) {
			header, address := try()
			_, resp, err := websocket.DefaultDialer.Dial(address, header)
			if err == nil || resp == nil || resp.StatusCode != http.StatusForbidden {
				t.Errorf("got %v, %v", resp, err)
			}
		})
	}
	t.Run("the same GUID again: the older one is closed with 4009", func(t *testing.T) {
		first := dial(t, server, right, false)
		receiveAll(t, first, pz.Base64) // the server has accepted it
		second := dial(t, server, right, true)
		if code := closeCode(t, first); code != pz.CloseSameGUID {
			t.Errorf("closed with %d", code)
		}
		receiveAll(t, second, pz.Base64)
	})
}

// An event is sent to a GUID once: again only if the GUID missed it, and then marked as missed.
func TestMissedEventsAreReplayedOnce(t *testing.T) {
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	id := pz.Identity{
		ClientType: "crm",
		GUID:       "g",
		EventsMask: 65535,
		Protocol:   2,
	}
	finished := func(call string) {
		fields, err := pz.ParseGenerate(strings.Fields("generate history 1 2 100 200 50 in http://x/1.mp3 3 " + call))
		if err != nil {
			t.Fatal(err)
		}
		if err := server.Generate(fields); err != nil {
			t.Fatal(err)
		}
	}
	finished("1")
	finished("2")
	want := [][]string{{`missed="1"`, `missed="1" missedFinal="1"`}, {`missed="1" missedFinal="1"`}, nil}
	for i, round := range want {
		conn := dial(t, server, id, false)
		got := receiveAll(t, conn, pz.Base64)
		if len(got) != len(round) {
			t.Fatalf("connection %d got %v", i, got)
		}
		for j := range round {
			sameFinal := strings.Contains(round[j], "Final") == strings.Contains(got[j], "Final")
			if !strings.Contains(got[j], round[j]) || !sameFinal {
				t.Errorf("connection %d got %s", i, got[j])
			}
		}
		conn.Close()
		for server.Connected() > 0 {
			runtime.Gosched()
		}
		if i == 0 {
			finished("3")
		}
	}
}
