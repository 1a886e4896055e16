package pz

import "fmt"

// The codes with which a server closes a connection, as the vendor documents them.
const (
	CloseLicenceUnchecked = 4001
	CloseLicenceInvalid   = 4002
	CloseLicenceExpired   = 4003
	CloseLicenceKind      = 4004
	CloseLicenceVersion   = 4005
	CloseLicenceClient    = 4006
	CloseTooManyUsers     = 4007
	CloseInvalidPassword  = 4008
	CloseSameGUID         = 4009
)

// closeCodes gives, for each close code, what it means, and whether dialling again soon may
// succeed.
var closeCodes = map[int]struct {
	meaning   string
	retriable bool
}{
	1000:                  {"the server ended the connection", true},
	1001:                  {"the server is going away", true},
	1005:                  {"the server ended the connection without saying why", true},
	1006:                  {"the connection broke off", true},
	1011:                  {"the server met an error of its own", true},
	1012:                  {"the server is restarting", true},
	CloseLicenceUnchecked: {"the server could not check its licence key", true},
	CloseLicenceInvalid:   {"the server's licence key is invalid", false},
	CloseLicenceExpired:   {"the server's licence key has expired", false},
	CloseLicenceKind:      {"the server's licence key is not for this kind of PBX connector", false},
	CloseLicenceVersion:   {"the server's licence key is not for this version of the PBX connector", false},
	CloseLicenceClient:    {"the server has no licence for this CRM", false},
	CloseTooManyUsers:     {"too many users are connected to the server", true},
	CloseInvalidPassword:  {"the password is wrong", false},
	CloseSameGUID:         {"another client connected with the same GUID and took this one's place", false},
}

// CloseMeaning describes a close code in one clause, for a log line or a page.
func CloseMeaning(code int) string {
	if c, ok := closeCodes[code]; ok {
		return c.meaning
	}
	return fmt.Sprintf("the server closed the connection with the code %d, which is not documented", code)
}

// CloseRetriable reports whether dialling again soon after a close code may succeed. It is true for
// a code that is not documented.
func CloseRetriable(code int) bool {
	c, ok := closeCodes[code]
	return !ok || c.retriable
}
