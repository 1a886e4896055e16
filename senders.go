package main

import (
	"log/slog"
	"net/http"
	"strings"

	"pzbridge/internal/advice"
	"pzbridge/internal/config"
	"pzbridge/internal/crm"
	"pzbridge/internal/crm/bitrix24"
	"pzbridge/internal/crm/megafon"
	"pzbridge/internal/routing"
	"pzbridge/internal/telephony"
	"pzbridge/outbox"
	"pzbridge/outbox/store"
	"pzbridge/outbox/webhook"
	"pzbridge/relay"
	"pzbridge/transferapi"
)

// newSenders returns a sender for each endpoint with a URL, by the name of the endpoint. Kept are
// the recordings; nil if there are none.
func newSenders(
	cfg config.Config, notes store.Notes, kept crm.Recordings, logger *slog.Logger,
) map[string]store.Sender {
	senders := map[string]store.Sender{}
	portals := bitrix24.NewPortals()
	for i := range cfg.Endpoints {
		e := &cfg.Endpoints[i]
		settings := cfg.CRMs[e.Name]
		switch {
		case settings.Preset == crm.Bitrix24:
			senders[e.Name] = bitrix24.New(*e, bitrix24.Options{
				Settings: settings,
				Notes:    notes,
				Portals:  portals,

				Recordings: kept,
				Strangers:  crm.NewStrangers(logger),
				HookURL:    hookURL(cfg, e.Name),
				UserAgent:  "pzbridge/" + version,
				Questions:  routing.MaxQuestions,
			})
		case settings.Preset == crm.MegaFon:
			senders[e.Name] = megafon.New(*e, megafon.Options{
				Settings: settings,
				Notes:    notes,

				ServesRecordings: hasLinks(cfg),
				Strangers:        crm.NewStrangers(logger),

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

// hookURL is where the portal of an endpoint reaches its hook; "" if it reaches the bridge nowhere.
func hookURL(cfg config.Config, endpoint string) string {
	if cfg.PublicURL == "" {
		return ""
	}
	return cfg.PublicURL + strings.ReplaceAll(bitrix24.HookPath, "{name}", endpoint)
}

// newPortalHook returns what takes the clicks at the portals, nil if there is none.
func newPortalHook(
	senders map[string]store.Sender, session *relay.Session, logger *slog.Logger,
) *bitrix24.Hook {
	portals := map[string]*bitrix24.Sender{}
	for name, sender := range senders {
		if portal, isPortal := sender.(*bitrix24.Sender); isPortal {
			portals[name] = portal
		}
	}
	if len(portals) == 0 {
		return nil
	}
	return bitrix24.NewHook(bitrix24.HookOptions{
		Senders:   portals,
		Connected: func() bool { return session.Connection().State == telephony.Connected },
		English:   advice.English,
		Russian:   advice.Russian,
		Logger:    logger,
	})
}

// interfacesOf returns what the CRMs with a preset call, by path.
func interfacesOf(
	cfg config.Config, hook *bitrix24.Hook, box *outbox.Outbox, notes store.Notes, kept crm.Recordings,
	logger *slog.Logger,
) map[string]func(*transferapi.API) http.Handler {
	exchanges := map[string]crm.Settings{}
	for name, settings := range cfg.CRMs {
		if settings.Preset == crm.MegaFon {
			exchanges[name] = settings
		}
	}
	list := map[string]func(*transferapi.API) http.Handler{}
	if len(exchanges) > 0 {
		list[megafon.Path] = func(api *transferapi.API) http.Handler {
			opts := megafon.PBXOptions{Gate: api, Events: box, Notes: notes, Settings: exchanges, Logger: logger}
			if hasLinks(cfg) {
				opts.Recordings = kept
			}
			return megafon.NewPBX(opts)
		}
	}
	if hook != nil {
		list[bitrix24.HookPath] = func(api *transferapi.API) http.Handler {
			hook.Gate = api
			return hook
		}
		list[bitrix24.InstallPath] = func(*transferapi.API) http.Handler { return http.HandlerFunc(hook.Install) }
	}
	return list
}

// crmsOf returns the senders that can say how their CRM stands, by the name of the endpoint.
func crmsOf(senders map[string]store.Sender) map[string]crm.Checker {
	list := map[string]crm.Checker{}
	for name, sender := range senders {
		if checker, ok := sender.(crm.Checker); ok {
			list[name] = checker
		}
	}
	return list
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
