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

// readReply reads what a webhook's response says of where a call should go: {"transfer_to":"101"},
// with the number as a string or as a whole number, or a list of such objects, as automations send
// it, of which the first one counts that has it. An empty number declines. It is nil for what is no
// JSON or has no transfer_to. A byte order mark is passed over.
func readReply(body []byte) *store.RouteReply {
	to, found, err := findTransferTo(body)
	if !found && err == nil {
		return nil
	}
	return &store.RouteReply{To: to, Err: err}
}

// findTransferTo is readReply with its parts apart; found is false where nothing is said, or to no
// effect.
func findTransferTo(body []byte) (to string, found bool, err error) {
	var first json.RawMessage
	// Whatever comes behind the first value, and when.
	if json.NewDecoder(bytes.NewReader(withoutMark(body))).Decode(&first) != nil {
		return "", false, nil
	}
	answers := []json.RawMessage{first}
	if bytes.HasPrefix(first, []byte{'['}) {
		_ = json.Unmarshal(first, &answers) // it was read just now
	}
	for _, answer := range answers {
		if to, found, err = readTransferTo(answer); found || err != nil {
			return to, found, err
		}
	}
	return "", false, nil
}

// readTransferTo reads one object.
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

// endPatience is how long the end of an answer to a question is waited for that says all already: a
// program may work on before it ends what it has sent, and a person waits on the line.
const endPatience = 100 * time.Millisecond

// readUntilReply reads a response to its end, and gives it as far as it came. Once its first JSON
// value is whole and says where the call goes, its end is waited for no longer than endPatience;
// giveUp then ends the reading. The decoder reads each byte once, however they drip in.
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
