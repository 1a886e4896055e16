package outbox

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/telephony"
)

// errDamaged means that a record is not what this program writes.
var errDamaged = errors.New("its record in the outbox is damaged")

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(make([]byte, 0, 8), n) }

// decodeNumber is 0 for what is no number.
func decodeNumber(v []byte) uint64 {
	if len(v) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(v)
}

// numberAt is the number with which the value of a call's event begins, 0 if it is damaged.
func numberAt(v []byte) uint64 { return decodeNumber(v[:min(len(v), 8)]) }

func dueKey(due int64, n uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(make([]byte, 0, 16), uint64(due)), n)
}

// readDueKey is 0, which is no delivery's number, for a key that is damaged.
func readDueKey(k []byte) (due int64, n uint64) {
	if len(k) != 16 {
		return 0, 0
	}
	return int64(binary.BigEndian.Uint64(k)), binary.BigEndian.Uint64(k[8:])
}

// longestCall is how long a call's ID may be before its hash stands for it.
const longestCall = 32

// callKey is the prefix of a call's events. It has a length of its own, so that no call's key begins another's, and
// an ID that is no decimal number but a novel is hashed.
func callKey(call string) []byte {
	key := make([]byte, 0, 1+longestCall+8) // with room for a sequence
	if len(call) > longestCall {
		sum := sha256.Sum256([]byte(call))
		return append(append(key, longestCall+1), sum[:]...)
	}
	return append(append(key, byte(len(call))), call...)
}

// deliverySize is how long a delivery's record is before its attempts begin.
const deliverySize = 32

// encodeDelivery: state (1 byte), redelivered (1), step (2), attempts (4), due (8), failedAt (8), next (8). Then the last attempts follow, oldest first.
func encodeDelivery(d delivery, history []byte) []byte {
	v := make([]byte, 0, deliverySize+len(history))
	v = append(v, byte(d.state), d.redelivered)
	v = binary.BigEndian.AppendUint16(v, uint16(d.step))
	v = binary.BigEndian.AppendUint32(v, uint32(d.attempts))
	v = binary.BigEndian.AppendUint64(v, uint64(d.due))
	v = binary.BigEndian.AppendUint64(v, uint64(d.failedAt))
	return append(binary.BigEndian.AppendUint64(v, d.next), history...)
}

func decodeDelivery(v []byte) (delivery, error) {
	if len(v) < deliverySize || state(v[0]) > dead {
		return delivery{}, errDamaged
	}
	return delivery{
		state: state(v[0]), redelivered: v[1],
		step: int(binary.BigEndian.Uint16(v[2:])), attempts: int(binary.BigEndian.Uint32(v[4:])),
		due: int64(binary.BigEndian.Uint64(v[8:])), failedAt: int64(binary.BigEndian.Uint64(v[16:])), next: binary.BigEndian.Uint64(v[24:]),
	}, nil
}

const (
	keptAttempts = 10      // of each delivery
	keptResponse = 1 << 10 // bytes of an answer
	keptError    = 1 << 10 // bytes of an error's text
)

// Attempt is one try and how it ended.
type Attempt struct {
	At       time.Time
	Took     time.Duration
	Status   int    // of the answer; 0 when there was none
	Response string // the first 1 KiB of the answer's body, what is secret of the endpoint taken out
	Error    string // why there was no answer; holds no secret
}

// addAttempt gives the record of attempts with one more, and without those before the last ten. It is written into room, which may be nil.
//
// One attempt: time in unix milliseconds (8 bytes), duration in µs (8), status (2), response and error (each: length (2), text).
func addAttempt(room, history []byte, a Attempt) []byte {
	if ends := attemptEnds(history); len(ends) >= keptAttempts {
		history = history[ends[len(ends)-keptAttempts]:]
	}
	v := append(slices.Grow(room[:0], len(history)+22+len(a.Response)+len(a.Error)), history...)
	v = binary.BigEndian.AppendUint64(v, uint64(a.At.UnixMilli()))
	v = binary.BigEndian.AppendUint64(v, uint64(a.Took.Microseconds()))
	v = binary.BigEndian.AppendUint16(v, uint16(a.Status))
	for _, text := range [...]string{cut(a.Response, keptResponse), cut(a.Error, keptError)} {
		v = append(binary.BigEndian.AppendUint16(v, uint16(len(text))), text...)
	}
	return v
}

func cut(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return s
}

// attemptEnds says where each attempt of a record ends. What cannot be read is left out.
func attemptEnds(history []byte) (ends []int) {
	for at := 0; at+20 <= len(history); {
		at += 18
		for range 2 {
			if at+2 > len(history) {
				return ends
			}
			at += 2 + int(binary.BigEndian.Uint16(history[at:]))
		}
		if at > len(history) {
			return ends
		}
		ends = append(ends, at)
	}
	return ends
}

func decodeAttempts(history []byte) []Attempt {
	var list []Attempt
	begin := 0
	for _, end := range attemptEnds(history) {
		v := history[begin:end]
		begin = end
		response := int(binary.BigEndian.Uint16(v[18:]))
		list = append(list, Attempt{
			At:     time.UnixMilli(int64(binary.BigEndian.Uint64(v))).UTC(),
			Took:   time.Duration(binary.BigEndian.Uint64(v[8:])) * time.Microsecond,
			Status: int(binary.BigEndian.Uint16(v[16:])), Response: string(v[20 : 20+response]), Error: string(v[22+response:]),
		})
	}
	return list
}

// lastTried is when the last attempt of a record was made, zero if none was.
func lastTried(history []byte) (at time.Time) {
	if list := decodeAttempts(history); len(list) > 0 {
		at = list[len(list)-1].At
	}
	return at
}

// encodeEvent: ID (16 bytes), sequence (8), time in unix milliseconds (8), type and call (each: length as 4 bytes, text), body.
func encodeEvent(r *record, sequence uint64) []byte {
	v := make([]byte, 0, 40+len(r.kind)+len(r.call)+len(r.body)+20)
	v = append(v, r.id[:]...)
	v = binary.BigEndian.AppendUint64(v, sequence)
	v = binary.BigEndian.AppendUint64(v, uint64(r.at.UnixMilli()))
	for _, text := range [...]string{string(r.kind), r.call} {
		v = append(binary.BigEndian.AppendUint32(v, uint32(len(text))), text...)
	}
	if r.call == "" { // an event of no call has no sequence
		return append(v, r.body...)
	}
	v = append(v, r.body[:r.gap]...)
	v = strconv.AppendUint(v, sequence, 10)
	return append(v, r.body[r.gap:]...)
}

// stored is an event as it stands in the file. Nothing in it belongs to bbolt.
type stored struct {
	id       uuid.UUID
	sequence uint64    // within its call
	at       time.Time // when it was read, to the millisecond
	kind     telephony.EventType
	call     string
	body     []byte // of its webhook
}

func decodeEvent(v []byte) (stored, error) {
	e, body, err := decodeEventHead(v)
	e.body = bytes.Clone(body)
	return e, err
}

// decodeEventHead leaves the body where it is: it belongs to bbolt.
func decodeEventHead(v []byte) (e stored, body []byte, err error) {
	kind, call, body, err := splitEvent(v)
	if err != nil {
		return stored{}, nil, err
	}
	return stored{
		id: uuid.UUID(v[:16]), sequence: binary.BigEndian.Uint64(v[16:]), at: time.UnixMilli(int64(binary.BigEndian.Uint64(v[24:]))),
		kind: telephony.EventType(kind), call: string(call),
	}, body, nil
}

// splitEvent finds the texts of an event where they stand, and copies nothing: a scan passes over most of them, and a call's ID may be a novel.
func splitEvent(v []byte) (kind, call, body []byte, err error) {
	if len(v) < 32 {
		return nil, nil, nil, errDamaged
	}
	v = v[32:]
	for _, text := range [...]*[]byte{&kind, &call} {
		if len(v) < 4 || uint64(len(v)) < 4+uint64(binary.BigEndian.Uint32(v)) {
			return nil, nil, nil, errDamaged
		}
		n := binary.BigEndian.Uint32(v)
		*text, v = v[4:4+n], v[4+n:]
	}
	return kind, call, v, nil
}
