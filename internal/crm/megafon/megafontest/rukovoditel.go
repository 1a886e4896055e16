package megafontest

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// Rukovoditel is Rukovoditel CRM. It answers everything with status 200.
type Rukovoditel struct {
	CRM
}

// NewRukovoditel makes a Rukovoditel CRM that gave the PBX this key.
func NewRukovoditel(key string) *Rukovoditel {
	return &Rukovoditel{CRM: newCRM(key)}
}

// ServeHTTP receives a form post of the PBX.
func (c *Rukovoditel) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.serve(w, r, posted, c.handle)
}

func (c *Rukovoditel) handle(r Request) (int, reply) {
	if !c.knows(r.Form.Get("crm_token")) {
		return http.StatusOK, refusal("Invalid token")
	}
	if r.Form.Get("cmd") == "contact" {
		return http.StatusOK, c.contact(r.Form.Get("phone"), reply{"contact_name": "", "responsible": ""})
	}
	return http.StatusOK, nil
}

// Click makes the PBX at an address (https://host) call a client. It fails if the answer's text
// contains the word "error", and looks at nothing else: neither the status nor the uuid.
func (c *Rukovoditel) Click(
	ctx context.Context, client *http.Client, bridge, token, user, phone string,
) (answer string, err error) {
	_, answer, err = pbx{client, bridge, token, queryGet}.do(ctx, "makeCall", url.Values{
		"user": {user}, "phone": {phone},
	})
	if err == nil && strings.Contains(answer, "error") {
		err = fmt.Errorf("the PBX answered %q", answer)
	}
	return answer, err
}
