package webhook

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// readReply reads from the response to a webhook where a call should go: {"transfer_to":"101"},
// with the number as a string or a whole number, or a list of such objects, as automation tools
// send it, of which the first with a transfer_to counts. An empty number declines the call. The
// result is nil for a body that is not JSON or has no transfer_to. A byte order mark is skipped.
func readReply(body []byte) *store.RouteReply {
	to, found, err := findTransferTo(body)
	if !found && err == nil {
		return nil
	}
	return &store.RouteReply{To: to, Err: err}
}

// findTransferTo returns the parts of a reply; found is false if there is none, or if it is
// invalid.
func findTransferTo(body []byte) (to string, found bool, err error) {
	var first json.RawMessage
	// A Decoder, not Unmarshal: what follows the first value is ignored.
	if json.NewDecoder(bytes.NewReader(withoutMark(body))).Decode(&first) != nil {
		return "", false, nil
	}
	answers := []json.RawMessage{first}
	if bytes.HasPrefix(first, []byte{'['}) {
		_ = json.Unmarshal(first, &answers) // the Decoder has accepted it
	}
	for _, answer := range answers {
		if to, found, err = readTransferTo(answer); found || err != nil {
			return to, found, err
		}
	}
	return "", false, nil
}

// readTransferTo reads the reply from one object.
func readTransferTo(object json.RawMessage) (to string, found bool, err error) {
	var answer struct {
		TransferTo json.RawMessage `json:"transfer_to"`
	}
	if json.Unmarshal(object, &answer) != nil || answer.TransferTo == nil || string(answer.TransferTo) == "null" {
		return "", false, nil
	}
	if isWhole(answer.TransferTo) {
		to = string(answer.TransferTo)
	} else if json.Unmarshal(answer.TransferTo, &to) != nil {
		return "", false, errors.New("transfer_to must be a string or a whole number")
	}
	if to != "" {
		if to, err = telephony.CleanNumber(to); err != nil {
			return "", false, fmt.Errorf("transfer_to %w", err)
		}
	}
	return to, true, nil
}

func isWhole(value json.RawMessage) bool {
	return len(value) > 0 && strings.Trim(string(value), "0123456789") == ""
}

const byteOrderMark = "\uFEFF"

func withoutMark(body []byte) []byte { return bytes.TrimPrefix(body, []byte(byteOrderMark)) }

// endPatience is how long readUntilReply waits for the end of a response that already contains a
// reply: a program may go on working before it ends its response, and a caller is waiting on the
// line.
const endPatience = 100 * time.Millisecond

// readUntilReply reads a response to its end, and returns what it has read. Once the first JSON
// value is complete and contains a reply, it calls giveUp after endPatience, which ends the
// reading. The Decoder reads each byte once, so a response that arrives byte by byte costs no more.
func readUntilReply(body io.Reader, giveUp func()) []byte {
	var read bytes.Buffer
	in := bufio.NewReader(io.TeeReader(body, &read))
	if mark, _ := in.Peek(len(byteOrderMark)); string(mark) == byteOrderMark {
		_, _ = in.Discard(len(byteOrderMark))
	}
	var first json.RawMessage
	if json.NewDecoder(in).Decode(&first) == nil {
		if _, found, _ := findTransferTo(first); found {
			defer time.AfterFunc(endPatience, giveUp).Stop()
		}
	}
	_, _ = read.ReadFrom(body)
	return read.Bytes()
}
