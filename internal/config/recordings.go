package config

import (
	"math"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"pzbridge/internal/recordings"
)

// minRecordings is the least RECORDINGS_MAX_BYTES: room for an hour of wav.
const minRecordings = 64 << 20

// Recordings are the variables RECORDINGS and RECORDINGS_…
type Recordings struct {
	On bool
	// Dir is where they are kept. While recordings are off, those that it has are served and
	// removed all the same. It may be empty then.
	Dir       string
	From      recordings.Allowed
	Map       recordings.Rewrites
	Retention time.Duration
	MaxBytes  int64
}

// parseRecordings parses the variables of recordings, and PUBLIC_URL, into c.
func (t text) parseRecordings(c *Config, p *problems) {
	c.PublicURL = parsePublicURL(t.PublicURL, p)
	r := &c.Recordings
	r.On = parseChoice("RECORDINGS", t.Recordings, "on", "off", p)
	r.Retention = parseDuration("RECORDINGS_RETENTION", t.RecordingsKept, time.Minute, p)
	r.MaxBytes = parseBytes("RECORDINGS_MAX_BYTES", t.RecordingsMaxBytes, minRecordings, math.MaxInt64, p)
	r.Dir = t.RecordingsDir
	switch {
	case r.Dir == "" && t.OutboxURL == "":
		r.Dir = filepath.Join(filepath.Dir(t.OutboxPath), "recordings")
	case r.Dir == "" && r.On:
		p.add("RECORDINGS_DIR", "is missing: with OUTBOX_URL it names a folder that all bridges share")
	}
	if !r.On {
		for _, v := range []setting{
			{"RECORDINGS_FROM", t.RecordingsFrom},
			{"RECORDINGS_MAP", t.RecordingsMap},
		} {
			if v.value != "" {
				p.add(v.name, "has a meaning only with RECORDINGS=on")
			}
		}
		return
	}
	var err error
	if r.From, err = recordings.ParseAllowed(t.RecordingsFrom); err != nil {
		p.add("RECORDINGS_FROM", "%v", err)
	} else if r.From.IsEmpty() {
		p.add("RECORDINGS_FROM", "is missing: name the hosts and folders from which recordings may be fetched, "+
			"such as ftp://192.168.1.5 or /records")
	} else if r.Map, err = recordings.ParseRewrites(t.RecordingsMap, r.From); err != nil {
		p.add("RECORDINGS_MAP", "%v: name that place in RECORDINGS_FROM, if it is the right one", err)
	}
}

// parsePublicURL parses PUBLIC_URL.
func parsePublicURL(s string, p *problems) string {
	if s == "" {
		return ""
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.User != nil ||
		u.RawQuery != "" || u.Fragment != "" {
		p.add("PUBLIC_URL", "must be the address by which CRMs reach the bridge, such as https://bridge.firm.ru; "+
			"it is %q", s)
		return ""
	}
	return strings.TrimRight(u.String(), "/")
}
