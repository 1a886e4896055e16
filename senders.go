package main

import (
	"log/slog"
	"net/http"

	"pzbridge/internal/config"
	"pzbridge/internal/crm/megafon"
	"pzbridge/internal/routing"
	"pzbridge/outbox"
	"pzbridge/outbox/store"
	"pzbridge/outbox/webhook"
	"pzbridge/transferapi"
)

// newSenders returns a sender for each endpoint with a URL, by the name of the endpoint.
func newSenders(cfg config.Config, notes store.Notes) map[string]store.Sender {
	senders := map[string]store.Sender{}
	for i := range cfg.Endpoints {
		e := &cfg.Endpoints[i]
		settings, hasPreset := cfg.CRMs[e.Name]
		switch {
		case hasPreset:
			senders[e.Name] = megafon.New(*e, megafon.Options{
				Settings:  settings,
				Notes:     notes,
				UserAgent: "pzbridge/" + version,
				Questions: routing.MaxQuestions,
			})
		case !e.Reads():
			senders[e.Name] = webhook.New(*e, webhook.Options{
				UserAgent: "pzbridge/" + version,
				Questions: routing.MaxQuestions,
			})
		}
	}
	return senders
}

// interfacesOf returns the interfaces of other makers that the CRMs with a preset call.
func interfacesOf(
	cfg config.Config, box *outbox.Outbox, notes store.Notes, logger *slog.Logger,
) map[string]func(*transferapi.API) http.Handler {
	if len(cfg.CRMs) == 0 {
		return nil
	}
	return map[string]func(*transferapi.API) http.Handler{
		megafon.Path: func(api *transferapi.API) http.Handler {
			return megafon.NewPBX(megafon.PBXOptions{
				Gate:     api,
				Events:   box,
				Notes:    notes,
				Settings: cfg.CRMs,
				Logger:   logger,
			})
		},
	}
}

// headersOf returns a function that returns the headers of the webhooks at an endpoint, as people
// may see them, and nil for an endpoint that takes none.
func headersOf(senders map[string]store.Sender) func(endpoint string) http.Header {
	return func(endpoint string) http.Header {
		if s, ok := senders[endpoint].(interface{ Headers() http.Header }); ok {
			return s.Headers()
		}
		return nil
	}
}

func closeSenders(senders map[string]store.Sender) {
	for _, s := range senders {
		s.Close()
	}
}
