package bolt

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

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

// unixNano is a time in Unix nanoseconds, 0 for none.
func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// timeKey is a delivery's place in an index by time.
func timeKey(at int64, n uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(make([]byte, 0, 16), uint64(at)), n)
}

// readTimeKey is 0, which is no delivery's number, for a key that is damaged.
func readTimeKey(k []byte) (at int64, n uint64) {
	if len(k) != 16 {
		return 0, 0
	}
	return int64(binary.BigEndian.Uint64(k)), binary.BigEndian.Uint64(k[8:])
}

// longestCall is how long a call's ID may be, in bytes, before its hash stands for it.
const longestCall = 32

// callKey is the prefix of a call's events. It begins with its own length, so that no call's key
// begins another's. An ID that is too long for a key is hashed.
func callKey(call string) []byte {
	key := make([]byte, 0, 1+longestCall+8) // with room for a sequence
	if len(call) > longestCall {
		sum := sha256.Sum256([]byte(call))
		return append(append(key, longestCall+1), sum[:]...)
	}
	return append(append(key, byte(len(call))), call...)
}

// The head of a delivery's record, before its attempts. The upper half of its first byte is the
// version of the record: version 0 has no expiry.
const (
	headSize0       = 32
	headSize1       = 40
	requestSize     = 4
	deliveryVersion = 1
)

func recordVersion(v []byte) byte {
	if len(v) == 0 {
		return deliveryVersion
	}
	return v[0] >> 4
}

// The lower half of the first byte: the state, whether the delivery is put off, and whether the
// number of a request stands behind the head.
const (
	stateMask   = 0x3
	putOffFlag  = 0x4
	requestFlag = 0x8
)

// encodeDelivery: version, flags and state (1 byte), redelivered (1), step (2), attempts (4), due
// (8), failedAt (8), next (8), expires (8), and unless it is 0 the number of a request (4). Then
// the last attempts follow, oldest first.
func encodeDelivery(d store.Delivery, history []byte) []byte {
	v := make([]byte, 0, headSize1+requestSize+len(history))
	first := deliveryVersion<<4 | byte(d.State)
	if d.PutOff {
		first |= putOffFlag
	}
	if d.Request != 0 {
		first |= requestFlag
	}
	v = append(v, first, d.Redelivered)
	v = binary.BigEndian.AppendUint16(v, uint16(d.Step))
	v = binary.BigEndian.AppendUint32(v, uint32(d.Attempts))
	v = binary.BigEndian.AppendUint64(v, uint64(d.Due))
	v = binary.BigEndian.AppendUint64(v, uint64(d.FailedAt))
	v = binary.BigEndian.AppendUint64(v, d.Next)
	v = binary.BigEndian.AppendUint64(v, uint64(d.Expires))
	if d.Request != 0 {
		v = binary.BigEndian.AppendUint32(v, d.Request)
	}
	return append(v, history...)
}

// decodeDelivery gives a delivery, its last attempts, which may be a part of v, and the version of
// its record.
func decodeDelivery(v []byte) (d store.Delivery, history []byte, version byte, err error) {
	if len(v) < headSize0 {
		return store.Delivery{}, nil, 0, store.ErrBadRecord
	}
	version = recordVersion(v)
	flags, size := v[0]&0xf&^stateMask, headSize0
	if version == deliveryVersion {
		size = headSize1
		if flags&requestFlag != 0 {
			size += requestSize
		}
	}
	if version > deliveryVersion || version == 0 && flags != 0 || len(v) < size {
		return store.Delivery{}, nil, 0, store.ErrBadRecord
	}
	d = store.Delivery{
		State:       store.State(v[0] & stateMask),
		Redelivered: v[1],
		Step:        int(binary.BigEndian.Uint16(v[2:])),
		Attempts:    int(binary.BigEndian.Uint32(v[4:])),
		Due:         int64(binary.BigEndian.Uint64(v[8:])),
		FailedAt:    int64(binary.BigEndian.Uint64(v[16:])),
		Next:        binary.BigEndian.Uint64(v[24:]),
		PutOff:      flags&putOffFlag != 0,
	}
	history = v[size:]
	if version == deliveryVersion {
		d.Expires = int64(binary.BigEndian.Uint64(v[32:]))
		if flags&requestFlag != 0 {
			d.Request = binary.BigEndian.Uint32(v[headSize1:])
		}
	} else if len(history) > 0 {
		history = store.UpgradeAttempts(history)
	}
	return d, history, version, nil
}

// encodeEvent: ID (16 bytes), sequence (8), time in Unix milliseconds (8), type and call (each:
// length as 4 bytes, text), body.
func encodeEvent(e *store.NewEvent, sequence uint64, outcome telephony.Outcome) []byte {
	v := make([]byte, 0, 40+len(e.Type)+len(e.Call)+len(e.Body)+48)
	v = append(v, e.ID[:]...)
	v = binary.BigEndian.AppendUint64(v, sequence)
	v = binary.BigEndian.AppendUint64(v, uint64(e.At.UnixMilli()))
	for _, text := range [...]string{string(e.Type), e.Call} {
		v = append(binary.BigEndian.AppendUint32(v, uint32(len(text))), text...)
	}
	return e.AppendBody(v, sequence, outcome)
}

func decodeEvent(v []byte) (store.Event, error) {
	e, body, err := decodeEventHead(v)
	e.Body = bytes.Clone(body)
	return e, err
}

// decodeEventHead leaves the body where it is: it belongs to bbolt.
func decodeEventHead(v []byte) (e store.Event, body []byte, err error) {
	kind, call, body, err := splitEvent(v)
	if err != nil {
		return store.Event{}, nil, err
	}
	return store.Event{
		ID:       uuid.UUID(v[:16]),
		Sequence: binary.BigEndian.Uint64(v[16:]),
		At:       time.UnixMilli(int64(binary.BigEndian.Uint64(v[24:]))),
		Type:     telephony.EventType(kind),
		Call:     string(call),
	}, body, nil
}

// splitEvent finds the texts of an event where they stand, and copies nothing: a scan passes over
// most events, and a call's ID may be long.
func splitEvent(v []byte) (kind, call, body []byte, err error) {
	if len(v) < 32 {
		return nil, nil, nil, store.ErrBadRecord
	}
	v = v[32:]
	for _, text := range [...]*[]byte{&kind, &call} {
		if len(v) < 4 || uint64(len(v)) < 4+uint64(binary.BigEndian.Uint32(v)) {
			return nil, nil, nil, store.ErrBadRecord
		}
		n := binary.BigEndian.Uint32(v)
		*text, v = v[4:4+n], v[4+n:]
	}
	return kind, call, v, nil
}
