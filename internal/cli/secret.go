package cli

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
)

func (p Program) secret(_ context.Context, args []string) error {
	fs := p.flags("secret", "Print a fresh secret (whsec_…) for ENDPOINT_<n>_SECRET. "+
		"The CRM needs the same one, to verify what it gets.")
	if err := parse(fs, args); err != nil {
		return err
	}
	fmt.Fprintln(p.Out, newSecret())
	return nil
}

func newSecret() string {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // documented never to fail
	return "whsec_" + base64.StdEncoding.EncodeToString(key)
}
