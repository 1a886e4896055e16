package outbox

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
)

// readAnswer reads what a webhook's response says of where a call should go: {"transfer_to":"101"},
// with the number as a string or as a whole number, or a list of such objects, as automations send
// it, of which the first one counts that says something. An empty number declines. What is no JSON,
// or says nothing of transfer_to, says nothing. A byte order mark is passed over.
func readAnswer(body []byte) (to string, said bool, err error) {
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
		if to, said, err = readTransferTo(answer); said || err != nil {
			return to, said, err
		}
	}
	return "", false, nil
}

// readTransferTo reads one object.
func readTransferTo(object json.RawMessage) (to string, said bool, err error) {
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

// readResponse reads a response to its end, and gives it as far as it came. Where it answers a
// question, its end is waited for only for answerEnds once its first JSON value is whole and says
// where the call goes; giveUp then ends the reading. The decoder reads each byte once, however they
// drip in.
func readResponse(body io.Reader, asks bool, giveUp func()) []byte {
	var read bytes.Buffer
	if asks {
		in := bufio.NewReader(io.TeeReader(body, &read))
		if mark, _ := in.Peek(len(byteOrderMark)); string(mark) == byteOrderMark {
			_, _ = in.Discard(len(byteOrderMark))
		}
		var first json.RawMessage
		if json.NewDecoder(in).Decode(&first) == nil {
			if _, said, _ := readAnswer(first); said {
				defer time.AfterFunc(answerEnds, giveUp).Stop()
			}
		}
	}
	_, _ = read.ReadFrom(body)
	return read.Bytes()
}
