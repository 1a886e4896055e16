package bitrix24test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"
)

// fileField is the name of the form field for the file of an upload.
const fileField = "file"

// attachRecord takes the recording of a finished call: with FILE_CONTENT at once, without it by an
// upload. The portal reaches no RECORD_URL.
func (p *Portal) attachRecord(q query) answer {
	name, address := q.params.text("FILENAME"), q.params.text("RECORD_URL")
	if name == "" && address == "" {
		return invalid("Required parameters are not set. Request should contain or URL or FILENAME parameter")
	}
	call := p.call(q.params["CALL_ID"])
	if call == nil || !call.Finished {
		return invalid("Call is not found in the statistic table. Looks like it is not finished yet.")
	}
	if address != "" {
		return refused(http.StatusBadRequest, "SERVER_NOT_AVAILABLE", "CONNECTION: the portal cannot reach "+address)
	}
	encoded, given := q.params["FILE_CONTENT"]
	if !given {
		token := fmt.Sprintf("%x", p.next())
		p.uploads[token] = call
		return done(row{"uploadUrl": q.base + "/rest/upload.json?token=" + token, "fieldName": fileField})
	}
	content, err := base64.StdEncoding.DecodeString(text(encoded))
	if err != nil {
		return invalid("File content is not properly encoded. Base64 encoding is expected.")
	}
	return p.keep(call, name, content)
}

// upload is the second step of attachRecord. The token in the address is its authorization.
func (p *Portal) upload(q query) answer {
	call := p.uploads[q.params.text("TOKEN")]
	if call == nil {
		return refused(http.StatusUnauthorized, "NO_AUTH_FOUND", "Wrong authorization data")
	}
	return p.keep(call, q.params.text("FILENAME"), q.file)
}

// keep keeps a recording, in place of the former one if there is any.
func (p *Portal) keep(call *Call, name string, content []byte) answer {
	if !slices.Contains([]string{".wav", ".mp3"}, strings.ToLower(path.Ext(name))) {
		return invalid("Wrong file extension. Only wav and mp3 are allowed")
	}
	if len(content) == 0 {
		return invalid("File content is empty.")
	}
	file := p.next()
	call.RecordName, call.Record = name, content
	for _, statistic := range p.statistics {
		if statistic["CALL_ID"] == call.CallID {
			statistic["CALL_RECORD_URL"] = fmt.Sprintf("https://%s/disk/%d/%s", p.Domain, file, name)
		}
	}
	return done(row{"FILE_ID": file})
}
