package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
)

func (p Program) redeliver(ctx context.Context, args []string) error {
	fs := p.flags("redeliver [flags] [ID]", "Send a delivery again, or with -endpoint many, "+
		"and then follow how those arrive. Ctrl-C ends the following, not the sending.\n"+apiHelp)
	endpoint := fs.String("endpoint", "", "send again what is for the endpoint of that `name`")
	since := fs.String("since", "", "with -endpoint: only events from that `time` on, "+
		"such as 2026-11-23T06:25:53Z, or so long ago, such as 24h")
	until := fs.String("until", "", "only events before that `time`, or before so long ago")
	states := fs.String("states", "dead,expired", "only those that are `dead`, expired, delivered or missing")
	types := fs.String("types", "", "only events of these `types`, separated by commas")
	dryRun := fs.Bool("dry-run", false, "only say how many")
	if err := parseFlags(fs, args); err != nil {
		return err
	}
	if err := checkMaxArgs(fs, 1); err != nil {
		return err
	}
	a, err := newAPI()
	if err != nil {
		return err
	}
	switch {
	case fs.NArg() == 1 && fs.NFlag() > 0:
		return usageError("the flags choose among many deliveries: name one by its ID alone, or many with -endpoint")
	case fs.NArg() == 1:
		return p.redeliverOne(ctx, a, fs.Arg(0))
	case *endpoint == "":
		return usageError("name one delivery, or an endpoint with -endpoint")
	case *since == "":
		return usageError("say with -since from when on, such as -since 24h or -since 2026-11-23T06:25:53Z")
	case len(splitList(*states)) == 0:
		return usageError("-states must name some of dead, expired, delivered and missing")
	}
	request := redelivery{
		Endpoint: *endpoint,
		States:   splitList(*states),
		Types:    splitList(*types),
		DryRun:   *dryRun,
	}
	if request.Since, err = parseTimeOrAge(*since); err != nil {
		return usageError(fmt.Sprintf("-since %v", err))
	}
	if request.Until, err = parseTimeOrAge(*until); err != nil {
		return usageError(fmt.Sprintf("-until %v", err))
	}
	return p.redeliverMany(ctx, a, request)
}

func (p Program) redeliverOne(ctx context.Context, a api, id string) error {
	path, err := pathSegment(id)
	if err != nil {
		return err
	}
	var d delivery
	if err := a.call(ctx, http.MethodPost, "/v1/deliveries/"+path+"/redeliver", nil, &d); err != nil {
		return err
	}
	fmt.Fprintf(p.Out, "%s of call %s goes to %s again.\n", d.Type, d.call(), d.Endpoint)
	return nil
}

func (p Program) redeliverMany(ctx context.Context, a api, request redelivery) error {
	var answer struct {
		ID         string `json:"id"`
		Deliveries int    `json:"deliveries"`
	}
	err := a.call(ctx, http.MethodPost, "/v1/redeliver", request, &answer)
	switch {
	case err != nil:
		return err
	case request.DryRun:
		fmt.Fprintf(p.Out, "%d deliveries would be sent again.\n", answer.Deliveries)
		return nil
	}
	fmt.Fprintf(p.Out, "%d deliveries are sent again (redelivery %s).\n", answer.Deliveries, answer.ID)
	return p.follow(ctx, a, request.Endpoint, answer.ID, answer.Deliveries)
}

// redelivery is the API's request for a redelivery. Except for the endpoint, an empty field does
// not restrict the choice.
type redelivery struct {
	Endpoint string    `json:"endpoint"`
	Since    time.Time `json:"since"`
	Until    time.Time `json:"until,omitzero"`
	States   []string  `json:"states"`
	Types    []string  `json:"types,omitempty"`
	DryRun   bool      `json:"dry_run"`
}

// parseTimeOrAge parses a time in RFC 3339 form, or an age such as 24h. Empty gives the zero time.
func parseTimeOrAge(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(s); err == nil && ago >= 0 {
		return time.Now().Add(-ago), nil
	}
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return at, fmt.Errorf("must be a time such as 2026-11-23T06:25:53Z, or so long ago, such as 24h; it is %q", s)
	}
	return at, nil
}

// follow draws a bar of how many of the deliveries of a redelivery have ended, and fails if some
// have died by then.
func (p Program) follow(ctx context.Context, a api, endpoint, id string, count int) error {
	if count == 0 {
		return nil
	}
	barOut := p.Err
	if !isTerminal(p.Err) {
		barOut = io.Discard // a bar overwrites itself, which works on a terminal only
	}
	bar := progressbar.NewOptions(
		count,
		progressbar.OptionSetWriter(barOut),
		progressbar.OptionShowCount(),
		progressbar.OptionSetDescription(endpoint),
		progressbar.OptionSetPredictTime(false),
		progressbar.OptionOnCompletion(func() { fmt.Fprintln(barOut) }),
	)
	for saidFailing := false; ; {
		var now struct {
			Deliveries int `json:"deliveries"`
			Pending    int `json:"pending"`
			Dead       int `json:"dead"`
		}
		err := a.call(ctx, http.MethodGet, "/v1/redeliveries/"+id, nil, &now)
		if errors.Is(err, errInterrupted) {
			fmt.Fprintln(barOut)
			return nil
		}
		if err != nil {
			return err
		}
		if err := bar.Set(now.Deliveries - now.Pending); err != nil {
			return err
		}
		switch {
		case now.Pending > 0:
		case now.Dead > 0:
			return fmt.Errorf("%d deliveries have died meanwhile; "+
				"\"pzbridge deliveries -endpoint %s -state dead\" lists them", now.Dead, endpoint)
		default:
			fmt.Fprintln(p.Out, "None of them is pending any more, and none is dead.")
			return nil
		}
		if !saidFailing {
			if saidFailing, err = p.sayFailing(ctx, a, endpoint); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			fmt.Fprintln(barOut)
			return nil
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// sayFailing prints, if an endpoint is failing, that what waits for it goes later.
func (p Program) sayFailing(ctx context.Context, a api, endpoint string) (said bool, err error) {
	state, err := a.stateOf(ctx, endpoint)
	if err != nil || state != "failing" {
		return false, err
	}
	fmt.Fprintf(p.Err, "\n%s is failing: what waits goes when it takes something again. "+
		"Ctrl-C ends the following.\n", endpoint)
	return true, nil
}

// stateOf reads the state of an endpoint. It fails if the bridge has no such endpoint.
func (a api) stateOf(ctx context.Context, endpoint string) (string, error) {
	var answer struct {
		Endpoints []struct {
			Name  string `json:"name"`
			State string `json:"state"`
		} `json:"endpoints"`
	}
	if err := a.call(ctx, http.MethodGet, "/v1/endpoints", nil, &answer); err != nil {
		return "", err
	}
	for _, e := range answer.Endpoints {
		if e.Name == endpoint {
			return e.State, nil
		}
	}
	return "", fmt.Errorf("the bridge has no endpoint %q", endpoint)
}

// splitList splits a comma-separated list, without empty parts.
func splitList(list string) (items []string) {
	for item := range strings.SplitSeq(list, ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}
