package dashboard

// plot is the chart of the last hour.
type plot struct {
	Bars   []bar
	Most   int // the highest count of a minute
	Events int // totals of the hour, likewise Taken and Failed
	Taken  int
	Failed int
}

// bar is one minute of a plot that is 60 high: the heights of the counts and their upper edges.
type bar struct{ X, Events, EventsY, Delivered, DeliveredY, Failed, FailedY int }

func newPlot(events, delivered, failed []int) plot {
	p := plot{Most: 1}
	for i := range events {
		p.Most = max(p.Most, events[i], delivered[i]+failed[i])
		p.Events += events[i]
		p.Taken += delivered[i]
		p.Failed += failed[i]
	}
	const height, step = 60, 10
	scale := func(n int) int {
		if n == 0 {
			return 0
		}
		return max(1, n*height/p.Most)
	}
	for i := range events {
		b := bar{
			X:         i * step,
			Events:    scale(events[i]),
			Delivered: scale(delivered[i]),
			Failed:    scale(failed[i]),
		}
		b.EventsY, b.DeliveredY = height-b.Events, height-b.Delivered
		b.FailedY = b.DeliveredY - b.Failed
		p.Bars = append(p.Bars, b)
	}
	return p
}
