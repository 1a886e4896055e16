package cli

import (
	"context"
	"maps"
	"net/http"
	"net/url"
	"slices"

	"pzbridge/internal/advice"
	"pzbridge/internal/recordings"
)

// recent is what the running bridge has stored of late.
type recent struct {
	extensions []string // of calls that are over
	recording  string   // the address of the newest recording, as the server has named it
}

// readRecent asks the running bridge for its newest calls. It returns the zero value if none runs
// here, as before the first start.
func readRecent(ctx context.Context) (r recent) {
	a, err := newAPI()
	if err != nil {
		return recent{}
	}
	query := url.Values{"order": {"desc"}, "types": {"call.completed"}, "limit": {"500"}}
	var page struct {
		Events []struct {
			Data struct {
				Extension string `json:"extension"`
				Recording string `json:"recording_url"`
			} `json:"data"`
		} `json:"events"`
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	if a.call(ctx, http.MethodGet, "/v1/events?"+query.Encode(), nil, &page) != nil {
		return recent{}
	}
	met := map[string]bool{}
	for _, e := range page.Events {
		if e.Data.Extension != "" {
			met[e.Data.Extension] = true
		}
		if r.recording == "" {
			r.recording = e.Data.Recording
		}
	}
	r.extensions = slices.Sorted(maps.Keys(met))
	return r
}

// recordings checks whether recordings can be fetched, kept and served.
func (d *checker) recordings(ctx context.Context) {
	set := &d.cfg.Recordings
	if !set.On {
		return
	}
	if err := recordings.CheckFolder(set.Dir); err != nil {
		d.fail("recordings", "they cannot be kept in %s: %v", set.Dir, err)
	}
	d.newestRecording(ctx)
	d.publicURL(ctx)
}

// newestRecording checks whether the newest recording is there.
func (d *checker) newestRecording(ctx context.Context) {
	if d.recent.recording == "" {
		d.warn("recordings", "no call with a recording is known: run this again after one, beside the running bridge")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	set := &d.cfg.Recordings
	where, size, err := recordings.Look(ctx, set.From, set.Map, d.recent.recording)
	if err != nil {
		d.fail("recordings", "the newest one, at %s, cannot be fetched: %s", where, advice.English(err))
		return
	}
	d.pass("recordings", "the newest one is at %s, and has %d bytes", where, size)
}

// publicURL checks whether the bridge is reached by the address of its links. That may work from
// outside alone.
func (d *checker) publicURL(ctx context.Context) {
	if d.cfg.PublicURL == "" {
		d.warn("recordings", "CRMs get no link to them, since PUBLIC_URL is not set")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, d.cfg.PublicURL+"/healthz", http.NoBody)
	if err != nil {
		d.fail("recordings", "PUBLIC_URL cannot be read: %v", err)
		return
	}
	response, err := directClient().Do(request)
	switch {
	case err != nil:
		d.warn("recordings", "PUBLIC_URL does not lead to the bridge from here, "+
			"which need not be so from outside: %v", err)
		return
	case response.StatusCode != http.StatusOK:
		d.warn("recordings", "PUBLIC_URL leads to something that answers HTTP %d, which is no bridge that runs",
			response.StatusCode)
	default:
		d.pass("recordings", "PUBLIC_URL leads to the bridge")
	}
	_ = response.Body.Close()
}
