package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
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
	before, err := a.counts(ctx, request.Endpoint)
	if err == nil && !request.DryRun {
		before.Dead, err = a.deadNotChosen(ctx, request, before.Dead)
	}
	if err != nil {
		return err
	}
	count, err := a.redeliver(ctx, request)
	switch {
	case err != nil:
		return err
	case request.DryRun:
		fmt.Fprintf(p.Out, "%d deliveries would be sent again.\n", count)
		return nil
	}
	fmt.Fprintf(p.Out, "%d deliveries are sent again.\n", count)
	return p.follow(ctx, a, request.Endpoint, before, count)
}

// redeliver requests a redelivery and returns the number of deliveries chosen.
func (a api) redeliver(ctx context.Context, request redelivery) (int, error) {
	var answer struct {
		Deliveries int `json:"deliveries"`
	}
	err := a.call(ctx, http.MethodPost, "/v1/redeliver", request, &answer)
	return answer.Deliveries, err
}

// deadNotChosen returns how many of the dead deliveries a redelivery does not choose.
func (a api) deadNotChosen(ctx context.Context, request redelivery, dead int) (int, error) {
	if !slices.Contains(request.States, "dead") {
		return dead, nil
	}
	request.States, request.DryRun = []string{"dead"}, true
	chosen, err := a.redeliver(ctx, request)
	return dead - chosen, err
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

// follow draws a bar of how many of the chosen deliveries have left the pending state, and fails as
// soon as the endpoint has more dead deliveries than before. The API only counts all deliveries of
// the endpoint, including those of new events and of an earlier backlog, so follow may end a little
// late, or early if there is a backlog.
func (p Program) follow(ctx context.Context, a api, endpoint string, before counts, count int) error {
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
	for {
		now, err := a.counts(ctx, endpoint)
		if errors.Is(err, errInterrupted) {
			fmt.Fprintln(barOut)
			return nil
		}
		if err != nil {
			return err
		}
		done := count - min(count, max(0, now.Pending-before.Pending))
		if err := bar.Set(done); err != nil {
			return err
		}
		if died := now.Dead - before.Dead; died > 0 {
			fmt.Fprintln(barOut)
			return fmt.Errorf("%d deliveries have died meanwhile; "+
				"\"pzbridge deliveries -endpoint %s -state dead\" lists them", died, endpoint)
		}
		if done == count {
			return nil
		}
		if now.State == "failing" && before.State != now.State {
			fmt.Fprintf(p.Err, "\n%s is failing: what waits goes when it takes something again. "+
				"Ctrl-C ends the following.\n", endpoint)
			before.State = now.State
		}
		select {
		case <-ctx.Done():
			fmt.Fprintln(barOut)
			return nil
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// counts is the state of an endpoint, and how many of its deliveries are pending and dead.
type counts struct {
	State   string `json:"-"`
	Pending int    `json:"pending"`
	Dead    int    `json:"dead"`
}

// counts reads the counts of an endpoint. It fails if the bridge has no such endpoint.
func (a api) counts(ctx context.Context, endpoint string) (counts, error) {
	var answer struct {
		Endpoints []struct {
			Name       string `json:"name"`
			State      string `json:"state"`
			Deliveries counts `json:"deliveries"`
		} `json:"endpoints"`
	}
	if err := a.call(ctx, http.MethodGet, "/v1/endpoints", nil, &answer); err != nil {
		return counts{}, err
	}
	for _, e := range answer.Endpoints {
		if e.Name == endpoint {
			e.Deliveries.State = e.State
			return e.Deliveries, nil
		}
	}
	return counts{}, fmt.Errorf("the bridge has no endpoint %q", endpoint)
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
