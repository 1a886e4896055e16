package cli

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
)

func (p Program) redeliver(ctx context.Context, args []string) error {
	fs := p.flags("redeliver [flags] [ID]", "Send a delivery again, or with -endpoint many, and then follow how those arrive. "+
		"Ctrl-C ends the following, not the sending.\n"+apiHelp)
	endpoint := fs.String("endpoint", "", "send again what is for the endpoint of that `name`")
	since := fs.String("since", "", "only events from that `time` on, such as 2026-11-23T06:25:53Z, or so long ago, such as 24h")
	until := fs.String("until", "", "only events before that `time`, or before so long ago")
	states := fs.String("states", "dead,expired", "only those that are `dead`, expired, delivered or missing")
	types := fs.String("types", "", "only events of these `types`, separated by commas")
	dryRun := fs.Bool("dry-run", false, "only say how many")
	if err := parseFlags(fs, args); err != nil {
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
		var d delivery
		if err := a.call(ctx, http.MethodPost, "/v1/deliveries/"+url.PathEscape(fs.Arg(0))+"/redeliver", nil, &d); err != nil {
			return err
		}
		fmt.Fprintf(p.Out, "%s of call %s goes to %s again.\n", d.Type, printable(d.CallID), d.Endpoint)
		return nil
	case fs.NArg() != 0 || *endpoint == "":
		return usageError("name one delivery, or an endpoint with -endpoint")
	}
	request := map[string]any{"endpoint": *endpoint, "states": split(*states), "dry_run": *dryRun}
	if list := split(*types); len(list) > 0 {
		request["types"] = list
	}
	for name, value := range map[string]string{"since": *since, "until": *until} {
		if value == "" {
			continue
		}
		at, err := timeOrAgo(value)
		if err != nil {
			return usageError(fmt.Sprintf("-%s %v", name, err))
		}
		request[name] = at
	}
	before, err := a.waiting(ctx, *endpoint)
	if err != nil {
		return err
	}
	var answer struct {
		Deliveries int `json:"deliveries"`
	}
	if err := a.call(ctx, http.MethodPost, "/v1/redeliver", request, &answer); err != nil {
		return err
	}
	if *dryRun {
		fmt.Fprintf(p.Out, "%d deliveries would be sent again.\n", answer.Deliveries)
		return nil
	}
	fmt.Fprintf(p.Out, "%d deliveries are sent again.\n", answer.Deliveries)
	return p.follow(ctx, a, *endpoint, before, answer.Deliveries)
}

// timeOrAgo reads a time, or how long ago it was.
func timeOrAgo(s string) (time.Time, error) {
	if ago, err := time.ParseDuration(s); err == nil {
		return time.Now().Add(-ago), nil
	}
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return at, fmt.Errorf("must be a time such as 2026-11-23T06:25:53Z, or so long ago, such as 24h; it is %q", s)
	}
	return at, nil
}

// follow draws how many of the deliveries that were asked for do not wait any more. New events count too, and what waited before:
// it may end a little late, or early beside a backlog.
func (p Program) follow(ctx context.Context, a api, endpoint string, before, many int) error {
	if many == 0 {
		return nil
	}
	drawn := p.Err
	if !isTerminal(p.Err) {
		drawn = io.Discard // a bar is drawn over itself, which a file does not know
	}
	bar := progressbar.NewOptions(many, progressbar.OptionSetWriter(drawn), progressbar.OptionShowCount(), progressbar.OptionSetDescription(endpoint),
		progressbar.OptionSetPredictTime(false), progressbar.OptionOnCompletion(func() { fmt.Fprintln(drawn) }))
	for {
		waiting, err := a.waiting(ctx, endpoint)
		if err != nil {
			return err
		}
		done := many - min(many, max(0, waiting-before))
		if err := bar.Set(done); err != nil || done == many {
			return err
		}
		select {
		case <-ctx.Done():
			fmt.Fprintln(drawn)
			return nil
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// waiting is how many deliveries wait for an endpoint.
func (a api) waiting(ctx context.Context, endpoint string) (int, error) {
	var answer struct {
		Endpoints []struct {
			Name       string `json:"name"`
			Deliveries struct {
				Pending int `json:"pending"`
			} `json:"deliveries"`
		} `json:"endpoints"`
	}
	if err := a.call(ctx, http.MethodGet, "/v1/endpoints", nil, &answer); err != nil {
		return 0, err
	}
	for _, e := range answer.Endpoints {
		if e.Name == endpoint {
			return e.Deliveries.Pending, nil
		}
	}
	return 0, fmt.Errorf("the bridge has no endpoint %q", endpoint)
}

func split(list string) (items []string) {
	for item := range strings.SplitSeq(list, ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}
