package webhook

import "net/http"

// Headers returns the headers of the requests at the endpoint as people may see them: instead of
// each value that the configuration sets there stands "(hidden)", since such a value often is a
// password. Those that differ from attempt to attempt are left out.
func (s *Sender) Headers() http.Header {
	if s.request == nil {
		return http.Header{}
	}
	shown := http.Header{"Host": {s.request.URL.Host}}
	for name, values := range s.request.Header {
		_, isOwn := s.endpoint.Headers[name]
		if isOwn && name != "Content-Type" && name != "User-Agent" { // newRequest replaces these two
			values = []string{"(hidden)"}
		}
		shown[name] = values
	}
	return shown
}
