package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"time"

	"pzbridge/internal/config"
)

func (p Program) healthcheck(ctx context.Context, args []string) error {
	fs := p.flags("healthcheck", "Ask the bridge on this machine, at the port of LISTEN_ADDR, whether it is alive. "+
		"The exit code is 1 if it is not.\n"+
		"It is alive also without a connection to the Prostie Zvonki server: /readyz reports that.")
	if err := parse(fs, args); err != nil {
		return err
	}
	vars, err := config.Environment()
	if err != nil {
		return err
	}
	address, err := localURL(vars)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address+"/healthz", nil)
	if err != nil {
		return err
	}
	client := directClient()
	// Any certificate will do: the request has no token. A new file that the bridge has not taken
	// yet must not make it unhealthy.
	client.Transport.(*http.Transport).TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("the bridge does not answer: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return errors.New("the bridge answers " + resp.Status)
	}
	return nil
}
