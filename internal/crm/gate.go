package crm

import (
	"context"
	"net/http"
	"time"

	"pzbridge/internal/telephony"
)

// Gate is the API's door for what CRMs call in forms of their own: who a caller is, and what it may
// do.
type Gate interface {
	// Bearer returns the name of the endpoint with a token. Wait is how long until it may make
	// another request, 0 if it may make this one.
	Bearer(r *http.Request, token string) (name string, wait time.Duration, known bool)
	// Command carries out a command as POST /v1/calls does, within the same limits. It fails with
	// the errors of telephony.
	Command(ctx context.Context, by string, cmd telephony.Command) error
}
