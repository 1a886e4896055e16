package transferapi

import (
	"net/http"
	"slices"

	"pzbridge/internal/telephony"
)

// The codes of problems that concern HTTP and not the bridge.
const (
	codeBadRequest       telephony.Code = "bad_request"
	codeBadField         telephony.Code = "bad_field" // the problem's field names it
	codeUnauthorized     telephony.Code = "unauthorized"
	codeForbidden        telephony.Code = "forbidden"
	codeNotFound         telephony.Code = "not_found"
	codeMethodNotAllowed telephony.Code = "method_not_allowed"
	codeTooLarge         telephony.Code = "too_large"
	codeNotJSON          telephony.Code = "not_json"
	codeKeyReused        telephony.Code = "key_reused"
	codeTooManyRequests  telephony.Code = "too_many_requests"
	codeInternal         telephony.Code = "internal_error"
	codeUnavailable      telephony.Code = "unavailable"
	codeOutcomeUnknown   telephony.Code = "outcome_unknown"
)

// statusCodes holds the code of each status whose cause has none of its own. A status that is not
// in it is always answered with a code of its own.
var statusCodes = map[int]telephony.Code{
	http.StatusBadRequest:            codeBadRequest,
	http.StatusUnauthorized:          codeUnauthorized,
	http.StatusForbidden:             codeForbidden,
	http.StatusNotFound:              codeNotFound,
	http.StatusMethodNotAllowed:      codeMethodNotAllowed,
	http.StatusRequestEntityTooLarge: codeTooLarge,
	http.StatusUnsupportedMediaType:  codeNotJSON,
	http.StatusUnprocessableEntity:   codeKeyReused,
	http.StatusTooManyRequests:       codeTooManyRequests,
	http.StatusInternalServerError:   codeInternal,
	http.StatusServiceUnavailable:    codeUnavailable,
	http.StatusGatewayTimeout:        codeOutcomeUnknown,
}

// causeCodes lists the causes that a program may meet as the code of a problem. Other causes are of
// interest to people only; the detail explains them, and the code is that of the status.
var causeCodes = []telephony.Code{
	telephony.CodeBadCursor,
	telephony.CodeBadState,
	telephony.CodeCallOver,
	telephony.CodeCommandRate,
	telephony.CodeCommandsClosed,
	telephony.CodeDatabase,
	telephony.CodeDecided,
	telephony.CodeDiskFull,
	telephony.CodeFromNotAllowed,
	telephony.CodeFull,
	telephony.CodeNeverAsked,
	telephony.CodeNoAnswer,
	telephony.CodeNoCall,
	telephony.CodeNoDelivery,
	telephony.CodeNoEndpoint,
	telephony.CodeNoPerson,
	telephony.CodeNoRedelivery,
	telephony.CodeNoURL,
	telephony.CodeNotConnected,
	telephony.CodeNotKept,
	telephony.CodeNotListening,
	telephony.CodeNotSent,
	telephony.CodePruned,
	telephony.CodeRefused,
	telephony.CodeRefusedIdentity,
	telephony.CodeRefusedUnexplained,
	telephony.CodeRouteClosed,
	telephony.CodeStillCopied,
	telephony.CodeToNotAllowed,
	telephony.CodeUnindexed,
}

// codeOf returns the first cause of an error that is in causeCodes, else an empty code.
func codeOf(err error) telephony.Code {
	for _, c := range telephony.Causes(err) {
		if slices.Contains(causeCodes, c.Code) {
			return c.Code
		}
	}
	return ""
}
