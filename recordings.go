package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"

	"pzbridge/internal/clock"
	"pzbridge/internal/config"
	"pzbridge/internal/crm"
	"pzbridge/internal/recordings"
	"pzbridge/internal/telephony"
	"pzbridge/outbox"
	"pzbridge/outbox/store"
)

// settingRecordings is the name of the setting that holds the key of recordings: whoever has it can
// make links.
const settingRecordings = "recordings_key"

// newKeeper returns what fetches and serves recordings; nil if that is off and there are none from
// before. Stopping ends when the program begins to stop.
func newKeeper(
	stopping context.Context, cfg config.Config, engine store.Engine, ages *clock.Clock, logger *slog.Logger,
) (*recordings.Keeper, error) {
	if _, err := os.Stat(cfg.Recordings.Dir); !cfg.Recordings.On && err != nil {
		return nil, nil
	}
	key, err := engine.Setting(stopping, settingRecordings, rand.Text())
	if err != nil {
		return nil, fmt.Errorf("keep the key of recordings in the outbox: %w", err)
	}
	converter, _ := exec.LookPath("ffmpeg") // without it, recordings stay in the form that they have
	keeper, err := recordings.New(recordings.Options{
		Dir:       cfg.Recordings.Dir,
		From:      cfg.Recordings.From,
		Map:       cfg.Recordings.Map,
		Retention: cfg.Recordings.Retention,
		MaxBytes:  cfg.Recordings.MaxBytes,
		PublicURL: cfg.PublicURL,
		Converter: converter,
		Key:       []byte(key),
		NumberKey: cfg.Phone.Key,
		Events:    engine,
		Age:       ages.Age,
		Stopping:  stopping,
		Logger:    logger,
	})
	if err != nil {
		return nil, err
	}
	return keeper, nil
}

// addKeeper gives the outbox the recordings and, if any are to be fetched, their lane.
func addKeeper(o *outbox.Options, cfg config.Config, keeper *recordings.Keeper) {
	if keeper == nil {
		return
	}
	o.Recordings = keeper
	if cfg.Recordings.On {
		o.Inner = []store.Endpoint{recordings.Endpoint()}
		o.Senders[recordings.Lane] = keeper
	}
}

// addRecordings adds to the rules which events the lane of recordings gets.
func addRecordings(r *store.Rules) {
	others := r.IsFor
	r.Endpoints = append(r.Endpoints, recordings.Lane)
	r.IsFor = func(endpoint string, e *store.Event, route *telephony.Route) bool {
		if endpoint == recordings.Lane {
			return recordings.IsFor(e)
		}
		return others(endpoint, e, route)
	}
}

// recordingsOf are the recordings for the CRMs with a preset; nil if there are none.
func recordingsOf(keeper *recordings.Keeper) crm.Recordings {
	if keeper == nil {
		return nil
	}
	return keeper
}

// hasLinks reports whether the bridge gives links to recordings.
func hasLinks(cfg config.Config) bool { return cfg.Recordings.On && cfg.PublicURL != "" }

// linksOf serves the links of recordings; nil if there are none.
func linksOf(keeper *recordings.Keeper) http.Handler {
	if keeper == nil {
		return nil
	}
	return keeper
}
