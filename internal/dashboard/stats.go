package dashboard

import (
	"context"
	"log/slog"
	"math"
	"sync"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox"
)

// span is how far back a chart looks: so many points, each of so much time.
type span struct {
	name   string // in an address
	step   time.Duration
	points int
}

// spans are the charts that there are.
var spans = []span{
	{"hour", time.Minute, 60},
	{"day", 10 * time.Minute, 144},
	{"week", time.Hour, 168},
}

// durationBuckets is the number of classes of response times. The upper bound of a class is √2 of
// that of the one before it, from 1 ms to 6 minutes, so that a quantile is right to a fifth.
const durationBuckets = 38

// bucketOf returns the class of a response time.
func bucketOf(took time.Duration) int {
	ms := took.Seconds() * 1000
	if ms <= 1 {
		return 0
	}
	return min(durationBuckets-1, int(math.Ceil(2*math.Log2(ms))))
}

// durationOf returns the middle of a class.
func durationOf(bucket int) time.Duration {
	return time.Duration(math.Pow(2, float64(bucket)/2-0.25) * float64(time.Millisecond))
}

// counts are what has happened in the time of a point.
type counts struct {
	Received  uint32 // events
	Delivered uint32 // attempts
	Failed    uint32
	Took      [durationBuckets]uint32 // of the attempts, by class
}

func (c *counts) isZero() bool { return *c == counts{} }

func (c *counts) add(other *counts) {
	c.Received += other.Received
	c.Delivered += other.Delivered
	c.Failed += other.Failed
	for i, n := range other.Took {
		c.Took[i] += n
	}
}

// quantile returns the response time below which a part of the attempts lies; 0 if there was none.
func (c *counts) quantile(part float64) time.Duration {
	total := uint32(0)
	for _, n := range c.Took {
		total += n
	}
	if total == 0 {
		return 0
	}
	rank := uint32(math.Ceil(part * float64(total)))
	for i, n := range c.Took {
		if rank <= n {
			return durationOf(i)
		}
		rank -= n
	}
	return durationOf(durationBuckets - 1)
}

// series is a ring of points.
type series struct {
	span
	ring   []counts
	newest int64 // the number of the newest point, in steps since 1970
}

func newSeries(s span) series { return series{span: s, ring: make([]counts, s.points)} }

// at returns the point of now. It clears the points that were passed. If the clock was set back,
// the counts go on in the newest point. If that would last for more than two spans, the clock was
// wrong before, and the counts begin anew.
func (s *series) at(now time.Time) *counts {
	number := now.UnixNano() / int64(s.step)
	if s.newest-number > 2*int64(s.points) {
		s.newest = 0
	}
	for n := 0; s.newest < number && n < s.points; n++ {
		s.newest = max(s.newest+1, number-int64(s.points)+1)
		s.ring[s.newest%int64(s.points)] = counts{}
	}
	return &s.ring[s.newest%int64(s.points)]
}

// list returns the points, the oldest first, and when the first one begins.
func (s *series) list(now time.Time) (list []counts, began time.Time) {
	s.at(now)
	for i := int64(1); i <= int64(s.points); i++ {
		list = append(list, s.ring[(s.newest+i)%int64(s.points)])
	}
	return list, time.Unix(0, (s.newest-int64(s.points)+1)*int64(s.step))
}

// Keeper keeps the counts across restarts.
type Keeper interface {
	// ChartCounts returns what SetChartCounts has stored, empty if there was none.
	ChartCounts(ctx context.Context) (string, error)
	SetChartCounts(ctx context.Context, counts string) error
	// OthersChartCounts returns what other bridges have stored that share the outbox.
	OthersChartCounts(ctx context.Context) ([]string, error)
}

// Stats counts what the charts show, for each endpoint and for all. It is an observer of the
// session and of the outbox. Its methods may be called concurrently.
type Stats struct {
	began   time.Time
	mu      sync.Mutex
	byName  map[string][]series // one of each span; "" is for all endpoints
	changed bool                // since the last store
	others  []*Stats            // what other bridges had counted a minute ago
}

// NewStats returns empty Stats.
func NewStats() *Stats { return &Stats{began: time.Now(), byName: map[string][]series{}} }

// EventReceived counts an event.
func (s *Stats) EventReceived(telephony.EventType) {
	s.count("", func(c *counts) { c.Received++ })
}

// AttemptEnded counts an attempt.
func (s *Stats) AttemptEnded(endpoint, outcome string, took, _ time.Duration) {
	isDelivered, bucket := outcome == outbox.OutcomeDelivered, bucketOf(took)
	add := func(c *counts) {
		if isDelivered {
			c.Delivered++
		} else {
			c.Failed++
		}
		c.Took[bucket]++
	}
	s.count("", add)
	s.count(endpoint, add)
}

func (s *Stats) count(name string, add func(*counts)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	list := s.seriesOf(name)
	for i := range list {
		add(list[i].at(now))
	}
	s.changed = true
}

// seriesOf returns the series of a name. The caller holds mu.
func (s *Stats) seriesOf(name string) []series {
	list, known := s.byName[name]
	if !known {
		for _, sp := range spans {
			list = append(list, newSeries(sp))
		}
		s.byName[name] = list
	}
	return list
}

// points returns the points of a span for an endpoint, or for all if name is empty; the oldest
// first, and when the first one begins.
func (s *Stats) points(name string, of int, now time.Time) (list []counts, began time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list, began = s.seriesOf(name)[of].list(now)
	for _, other := range s.others {
		theirs, _ := other.points(name, of, now)
		for i := range theirs {
			list[i].add(&theirs[i])
		}
	}
	return list, began
}

// start returns when counting began if that is less than an hour ago, and nothing was counted
// before; otherwise the zero time.
func (s *Stats) start(now time.Time) time.Time {
	list, began := s.points("", 0, now)
	for i := range list {
		isBefore := began.Add(time.Duration(i+1) * time.Minute).Before(s.began)
		if !list[i].isZero() && isBefore {
			return time.Time{}
		}
	}
	if now.Sub(s.began) < time.Hour {
		return s.began
	}
	return time.Time{}
}

// quantiles returns the median and the 99th percentile of the response times of an endpoint in the
// last hour. ok is false if there were no attempts.
func (s *Stats) quantiles(endpoint string) (p50, p99 time.Duration, ok bool) {
	list, _ := s.points(endpoint, 0, time.Now())
	var sum counts
	for i := range list {
		sum.add(&list[i])
	}
	return sum.quantile(0.5), sum.quantile(0.99), sum.Delivered+sum.Failed > 0
}

const (
	// storeInterval is the time between two stores of the counts.
	storeInterval = time.Minute
	// storeTimeout bounds each: the counts are not worth a slow end of the bridge.
	storeTimeout = 2 * time.Second
)

// Run takes up the counts of before the start, and stores them every minute in which something has
// been counted, and at the end.
func (s *Stats) Run(ctx context.Context, keeper Keeper, logger *slog.Logger) error {
	text, err := keeper.ChartCounts(ctx)
	if err == nil {
		err = s.add(text)
	}
	if err != nil {
		logger.Warn("the counts of the charts cannot be read, and begin anew", "err", err)
	}
	tick := time.NewTicker(storeInterval)
	defer tick.Stop()
	s.readOthers(ctx, keeper, logger)
	for done := false; !done; {
		select {
		case <-tick.C:
			s.readOthers(ctx, keeper, logger)
		case <-ctx.Done():
			done = true
		}
		if !s.takeChanged() {
			continue
		}
		storing, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
		if err := keeper.SetChartCounts(storing, s.String()); err != nil {
			logger.Warn("the counts of the charts cannot be stored", "err", err)
		}
		cancel()
	}
	return nil
}

// readOthers reads what other bridges have counted.
func (s *Stats) readOthers(ctx context.Context, keeper Keeper, logger *slog.Logger) {
	texts, err := keeper.OthersChartCounts(ctx)
	if err != nil {
		return // the database is away, which others say
	}
	var others []*Stats
	for _, text := range texts {
		other := NewStats()
		if err := other.add(text); err != nil {
			logger.Debug("the counts of the charts of another bridge cannot be read", "err", err)
		}
		others = append(others, other)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.others = others
}

func (s *Stats) takeChanged() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := s.changed
	s.changed = false
	return changed
}
