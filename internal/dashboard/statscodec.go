package dashboard

import (
	"encoding/binary"
	"errors"
	"slices"
)

// The counts are stored as varints: of each endpoint its name, and of each span the number of the
// newest point, how many points are not empty, and of each of those its place in the ring and its
// counts. Those of response times are left out from the last one that is not 0 on.

// codecVersion begins the text: another one is not read, and the charts begin anew.
const codecVersion = 1

// maxStored bounds what is read: a few kilobytes for each endpoint.
const maxStored = 4 << 20

// String encodes the counts.
func (s *Stats) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := []byte{codecVersion}
	names := make([]string, 0, len(s.byName))
	for name := range s.byName {
		names = append(names, name)
	}
	slices.Sort(names)
	v = binary.AppendUvarint(v, uint64(len(names)))
	for _, name := range names {
		v = binary.AppendUvarint(v, uint64(len(name)))
		v = append(v, name...)
		for i := range s.byName[name] {
			v = s.byName[name][i].append(v)
		}
	}
	return string(v)
}

func (s *series) append(v []byte) []byte {
	filled := 0
	for i := range s.ring {
		if !s.ring[i].isZero() {
			filled++
		}
	}
	v = binary.AppendUvarint(v, uint64(s.newest))
	v = binary.AppendUvarint(v, uint64(filled))
	for i := range s.ring {
		c := &s.ring[i]
		if c.isZero() {
			continue
		}
		took := c.Took[:]
		for len(took) > 0 && took[len(took)-1] == 0 {
			took = took[:len(took)-1]
		}
		for _, n := range []int{i, int(c.Received), int(c.Delivered), int(c.Failed), len(took)} {
			v = binary.AppendUvarint(v, uint64(n))
		}
		for _, n := range took {
			v = binary.AppendUvarint(v, uint64(n))
		}
	}
	return v
}

var errBadCounts = errors.New("they were not stored by this version, or are damaged")

// add adds encoded counts to those of now. An empty text has none.
func (s *Stats) add(text string) error {
	if text == "" {
		return nil
	}
	r := reader{rest: []byte(text)}
	if len(text) > maxStored || r.byte() != codecVersion {
		return errBadCounts
	}
	read := map[string][]series{}
	for range r.upTo(1 << 12) {
		name := string(r.bytes(r.upTo(1 << 10)))
		var list []series
		for _, sp := range spans {
			list = append(list, r.series(sp))
		}
		read[name] = list
	}
	if r.failed || len(r.rest) > 0 {
		return errBadCounts
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, old := range read {
		list := s.seriesOf(name)
		for i := range list {
			list[i].merge(&old[i])
		}
	}
	return nil
}

// merge adds the points of a series of before, as far as they are not too old.
func (s *series) merge(old *series) {
	if s.newest == 0 {
		s.newest = old.newest
	}
	for back := range int64(s.points) {
		number := old.newest - back
		if number < 0 || number > s.newest || number <= s.newest-int64(s.points) {
			continue
		}
		s.ring[number%int64(s.points)].add(&old.ring[number%int64(s.points)])
	}
}

// reader reads varints. After the first that cannot be read it gives zeros only.
type reader struct {
	rest   []byte
	failed bool
}

func (r *reader) byte() byte {
	if b := r.bytes(1); len(b) == 1 {
		return b[0]
	}
	return 0
}

func (r *reader) bytes(n int) []byte {
	if n > len(r.rest) {
		r.failed, r.rest = true, nil
		return nil
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) uvarint() uint64 {
	n, size := binary.Uvarint(r.rest)
	if size <= 0 {
		r.failed, r.rest = true, nil
		return 0
	}
	r.rest = r.rest[size:]
	return n
}

// upTo reads a number that is at most so large.
func (r *reader) upTo(limit int) int {
	n := r.uvarint()
	if n > uint64(limit) {
		r.failed, r.rest = true, nil
		return 0
	}
	return int(n)
}

func (r *reader) series(sp span) series {
	s := newSeries(sp)
	s.newest = int64(r.uvarint() & (1<<62 - 1))
	for range r.upTo(sp.points) {
		c := &s.ring[r.upTo(sp.points-1)]
		c.Received, c.Delivered, c.Failed = uint32(r.uvarint()), uint32(r.uvarint()), uint32(r.uvarint())
		for i := range r.upTo(durationBuckets) {
			c.Took[i] = uint32(r.uvarint())
		}
	}
	return s
}
