package store

import (
	"encoding/binary"
	"slices"
	"time"

	"pzbridge/internal/telephony"
)

// The attempts of a delivery are stored one behind the other, oldest first.

const (
	maxAttempts = 10      // that are kept of each delivery
	maxResponse = 1 << 10 // bytes of an answer
	maxError    = 1 << 10 // bytes of an error's text
)

// AppendAttempt returns a record of attempts with one more, and without those before the last ten.
// It is written into buf, which may be nil.
//
// One attempt: time in Unix milliseconds (8 bytes), duration in µs (8), status (2), response and
// error (each: length (2), text), number of steps (1), and of each step: status (2), what and
// response (each likewise). The highest bit of the number of steps says that the cause of the error
// follows the steps: number of its values (1), code and values (each likewise).
func AppendAttempt(buf, history []byte, a Attempt) []byte {
	if ends := attemptEnds(history); len(ends) >= maxAttempts {
		history = history[ends[len(ends)-maxAttempts]:]
	}
	v := append(slices.Grow(buf[:0], len(history)+22+len(a.Response)+len(a.Error)), history...)
	v = binary.BigEndian.AppendUint64(v, uint64(a.At.UnixMilli()))
	v = binary.BigEndian.AppendUint64(v, uint64(a.Took.Microseconds()))
	v = binary.BigEndian.AppendUint16(v, uint16(a.Status))
	v = appendText(appendText(v, cut(a.Response, maxResponse)), cut(a.Error, maxError))
	steps := a.Steps[:min(len(a.Steps), MaxSteps)]
	count := byte(len(steps))
	if a.Cause.Code != "" {
		count |= causeFlag
	}
	v = append(v, count)
	for _, s := range steps {
		v = binary.BigEndian.AppendUint16(v, uint16(s.Status))
		v = appendText(appendText(v, cut(s.What, maxResponse)), cut(s.Response, maxResponse))
	}
	if count&causeFlag != 0 {
		v = appendCause(v, a.Cause)
	}
	return v
}

const (
	causeFlag = 0x80 // in the number of an attempt's steps
	maxValues = 4    // of a cause
)

func appendCause(v []byte, c telephony.Cause) []byte {
	values := c.Args[:min(len(c.Args), maxValues)]
	v = appendText(append(v, byte(len(values))), cut(string(c.Code), maxError))
	for _, value := range values {
		v = appendText(v, cut(value, maxError))
	}
	return v
}

// cutCause takes a cause from a record of which it is known to be whole.
func cutCause(v []byte) (c telephony.Cause) {
	values := int(v[0])
	code, v := cutText(v[1:])
	c.Code = telephony.Code(code)
	for range values {
		var value string
		value, v = cutText(v)
		c.Args = append(c.Args, value)
	}
	return c
}

func appendText(v []byte, text string) []byte {
	return append(binary.BigEndian.AppendUint16(v, uint16(len(text))), text...)
}

func cut(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return s
}

// skipTexts gives where so many texts end that begin at a place, -1 if that is beyond the record.
func skipTexts(v []byte, at, texts int) int {
	for range texts {
		if at < 0 || at+2 > len(v) {
			return -1
		}
		at += 2 + int(binary.BigEndian.Uint16(v[at:]))
	}
	if at > len(v) {
		return -1
	}
	return at
}

// attemptHead is how long an attempt is before its texts.
const attemptHead = 18

// attemptEnd gives where the attempt ends that begins at a place, -1 if it cannot be read.
func attemptEnd(v []byte, at int) int {
	at = skipTexts(v, at+attemptHead, 2)
	if at < 0 || at == len(v) {
		return -1
	}
	steps, hasCause := int(v[at]&^causeFlag), v[at]&causeFlag != 0
	at++
	for range steps {
		if at = skipTexts(v, at+2, 2); at < 0 {
			return -1
		}
	}
	if hasCause {
		if at == len(v) {
			return -1
		}
		return skipTexts(v, at+1, 1+int(v[at]))
	}
	return at
}

// attemptEnds says where each attempt of a record ends. What cannot be read is left out.
func attemptEnds(history []byte) (ends []int) {
	for at := 0; at < len(history); {
		if at = attemptEnd(history, at); at < 0 {
			return ends
		}
		ends = append(ends, at)
	}
	return ends
}

// UpgradeAttempts returns a record of attempts that an older version has written, without steps, as
// it is now.
func UpgradeAttempts(old []byte) (history []byte) {
	for at := 0; at < len(old); {
		end := skipTexts(old, at+attemptHead, 2)
		if end < 0 {
			return history
		}
		history = append(append(history, old[at:end]...), 0)
		at = end
	}
	return history
}

// Attempts returns the attempts of a record, oldest first. What cannot be read is left out.
func Attempts(history []byte) []Attempt {
	var list []Attempt
	begin := 0
	for _, end := range attemptEnds(history) {
		v := history[begin:end]
		begin = end
		a := Attempt{
			At:     time.UnixMilli(int64(binary.BigEndian.Uint64(v))).UTC(),
			Took:   time.Duration(binary.BigEndian.Uint64(v[8:])) * time.Microsecond,
			Status: int(binary.BigEndian.Uint16(v[16:])),
		}
		v = v[attemptHead:]
		a.Response, v = cutText(v)
		a.Error, v = cutText(v)
		count := v[0]
		v = v[1:]
		for range count &^ causeFlag {
			s := Step{Status: int(binary.BigEndian.Uint16(v))}
			s.What, v = cutText(v[2:])
			s.Response, v = cutText(v)
			a.Steps = append(a.Steps, s)
		}
		if count&causeFlag != 0 {
			a.Cause = cutCause(v)
		}
		list = append(list, a)
	}
	return list
}

// cutText takes a text from the beginning of a record of which it is known to be whole.
func cutText(v []byte) (text string, rest []byte) {
	n := 2 + int(binary.BigEndian.Uint16(v))
	return string(v[2:n]), v[n:]
}

// LastTried returns when the last attempt of a record was made, zero if none was.
func LastTried(history []byte) time.Time {
	last, _ := lastAttempt(history)
	return last.At
}

// lastAttempt returns the last attempt of a record, and false if there is none.
func lastAttempt(history []byte) (Attempt, bool) {
	ends := attemptEnds(history)
	if len(ends) == 0 {
		return Attempt{}, false
	}
	begin := 0
	if len(ends) > 1 {
		begin = ends[len(ends)-2]
	}
	return Attempts(history[begin:])[0], true
}
