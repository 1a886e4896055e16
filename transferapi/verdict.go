package transferapi

import "net/http"

// Finding is a sentence about how the bridge stands.
type Finding struct {
	Level string `json:"level"`           // good, warn or bad
	About string `json:"about,omitempty"` // the CRM, or another bridge; empty if it is about none
	Text  string `json:"text"`            // the whole sentence, with what to do
}

// getVerdict says how the bridge stands, in the sentences of the dashboard.
func (a *API) getVerdict(r *http.Request) answer {
	list, err := a.opts.Verdict(r)
	if err != nil {
		return problemAnswer(deliveryProblem(err))
	}
	return okAnswer(struct {
		Level    string    `json:"level"`
		Findings []Finding `json:"findings"`
	}{list[0].Level, list})
}
