package telephony

import (
	"errors"
	"net"
	"syscall"
)

// Code names what went wrong. It is stored with attempts and routes, so a code keeps its meaning.
type Code string

// The codes. The package advice holds, for each, what to do about it.
const (
	// The outbox.
	CodeFull Code = "outbox_full" // args: bytes in use, bytes allowed
	// CodeDatabase means that the database of the outbox cannot be used now.
	CodeDatabase       Code = "database_unavailable" // args: what it or the network says
	CodeNoDelivery     Code = "no_such_delivery"
	CodeNoRedelivery   Code = "no_such_redelivery"
	CodeNoCall         Code = "no_such_call"
	CodeUnindexed      Code = "still_indexing"
	CodeNoPerson       Code = "no_number_of_a_person"
	CodeBadCursor      Code = "bad_cursor"
	CodeChanged        Code = "changed_meanwhile"
	CodeTooLong        Code = "too_long"
	CodeBadState       Code = "no_such_state"
	CodeBadRecord      Code = "record_damaged"
	CodeDamaged        Code = "file_damaged" // args: what was found
	CodeFileGone       Code = "file_gone"
	CodePruned         Code = "events_removed"   // args: the oldest cursor
	CodeNoEndpoint     Code = "no_such_endpoint" // args: the name
	CodeNoURL          Code = "endpoint_reads"   // args: the name
	CodeFileInUse      Code = "file_in_use"
	CodeBridgeRuns     Code = "bridge_runs"   // a command needs a file that is in use
	CodeNotOutbox      Code = "not_an_outbox" // args: what was found
	CodeBadBackup      Code = "not_a_backup"
	CodeNewerFile      Code = "file_of_newer"   // args: its layout, the newest known layout
	CodeNewerTables    Code = "tables_of_newer" // args: their version, the newest known version
	CodeLinkToNothing  Code = "link_to_nothing"
	CodeNoRightToWrite Code = "no_right_to_write" // args: user, folder
	CodeNoRightToRead  Code = "no_right_to_read"  // args: user, file
	CodeNoRightToFile  Code = "no_right_to_file"  // args: user
	CodeClockWrong     Code = "clock_wrong"       // args: the date that it shows
	CodeDiskFull       Code = "no_space_on_device"
	CodeNoBackup       Code = "backup_not_written" // args: folder

	// The copy of a file into a database.
	CodeMoved            Code = "outbox_moved"    // args: the database
	CodeMovedElsewhere   Code = "moved_elsewhere" // args: the database
	CodeNotMoved         Code = "not_moved"       // there is nothing to take back
	CodeHalfCopied       Code = "copy_not_whole"  // args: the file
	CodeTakenBack        Code = "copy_taken_back" // args: the file
	CodeStillCopied      Code = "still_copied"    // it needs the whole history
	CodeNotEmpty         Code = "database_not_empty"
	CodeOtherCopy        Code = "other_copy"         // args: the other file
	CodeBridgeOnDatabase Code = "bridge_on_database" // args: the names of bridges
	CodeDelivered        Code = "copy_in_use"        // the database has delivered

	// Commands, and answers to the question where a call goes.
	CodeNotConnected       Code = "not_connected"
	CodeNotListening       Code = "not_listening"
	CodeNotSent            Code = "not_sent"
	CodeNoAnswer           Code = "no_answer"
	CodeRefused            Code = "refused"                // args: the exchange's reason, its code
	CodeRefusedIdentity    Code = "refused_authentication" // args: the exchange's code
	CodeRefusedUnexplained Code = "refused_unexplained"    // args: the exchange's code
	CodeFromNotAllowed     Code = "from_not_allowed"
	CodeToNotAllowed       Code = "to_not_allowed"
	CodeCommandRate        Code = "command_rate"
	CodeCommandsClosed     Code = "commands_closed"
	CodeNeverAsked         Code = "never_asked"
	CodeRouteClosed        Code = "route_closed"
	CodeNotKept            Code = "answer_not_stored"
	CodeCallOver           Code = "call_over"
	CodeDecided            Code = "already_decided" // args: the number, who answered
	CodeNoReply            Code = "no_reply"        // args: the time for answers
	CodeNoReplyNoToken     Code = "no_reply_no_token"
	CodeBadReplyNoToken    Code = "bad_reply_no_token" // args: what is wrong
	CodeNotAsked           Code = "not_asked"          // args: how many are asked at a time

	// The connection to the exchange.
	CodeForbidden         Code = "handshake_forbidden"
	CodeHandshake         Code = "handshake_status" // args: the HTTP status
	CodeNoServer          Code = "not_a_server"     // args: what was found
	CodeUntrusted         Code = "untrusted_certificate"
	CodeOtherCertificate  Code = "other_certificate" // args: its fingerprint
	CodeOldTLS            Code = "old_tls"
	CodePerhapsTLS        Code = "perhaps_tls" // args: the host
	CodeUnidentified      Code = "server_unidentified"
	CodeSilent            Code = "server_silent"   // args: for how long
	CodeEndlessMessage    Code = "endless_message" // args: for how long
	CodeNotReading        Code = "server_not_reading"
	CodeSwitchedOff       Code = "switched_off"
	CodeSpare             Code = "bridge_is_spare"
	CodeTakenOver         Code = "taken_over"
	CodeWatchLost         Code = "work_lost"
	CodeSetBack           Code = "database_set_back"
	CodeSameName          Code = "same_bridge_name" // args: the name
	CodeBehind            Code = "listener_behind"
	CodeStopping          Code = "bridge_stops"
	CodeEnded             Code = "closed_by_server"
	CodeGoingAway         Code = "closed_server_stops"
	CodeEndedSilently     Code = "closed_without_reason"
	CodeBrokeOff          Code = "connection_broke_off"
	CodeServerError       Code = "closed_server_error"
	CodeRestarting        Code = "closed_server_restarts"
	CodeLicenceUnchecked  Code = "licence_unchecked"
	CodeLicenceInvalid    Code = "licence_invalid"
	CodeLicenceExpired    Code = "licence_expired"
	CodeLicenceKind       Code = "licence_kind"
	CodeLicenceVersion    Code = "licence_version"
	CodeLicenceClient     Code = "licence_client_type"
	CodeTooManyUsers      Code = "too_many_users"
	CodeWrongPassword     Code = "wrong_password"
	CodeSameGUID          Code = "same_guid"
	CodeClosedUnknown     Code = "closed_with_unknown_code" // args: the close code
	CodeConnectionRefused Code = "connection_refused"       // args: the address
	CodeConnectionReset   Code = "connection_reset"
	CodeNoHost            Code = "no_such_host" // args: the name
	CodeTimeout           Code = "timed_out"

	// A CRM's response.
	CodeNoResponse  Code = "no_response" // args: within which time
	CodeBadRedirect Code = "bad_redirect"
	CodeBadStatus   Code = "bad_status" // args: the status
	CodeBadURL      Code = "bad_url"
	CodeCRMRefuses  Code = "crm_refuses"   // args, also of the codes below: the status
	CodeCRMNoPath   Code = "crm_not_found" // or it takes another method there
	CodeCRMMoved    Code = "crm_redirects"
	CodeCRMGone     Code = "crm_gone"
	CodeCRMTooMany  Code = "crm_too_many_requests"
	CodeCRMStatus   Code = "crm_status" // any other

	// Of CRMs with a preset.
	CodeCRMKeyRefused Code = "crm_key_refused" // args: what the CRM says, if it says anything
	CodeCRMSays       Code = "crm_says"        // args: the words with which the CRM refuses
	CodeCRMWantsLine  Code = "crm_wants_line"  // the company's own number; args: the same

	// Of portals of Bitrix24; args: what the portal says, if it says anything.
	CodePortalWebhook Code = "portal_webhook"
	CodePortalScope   Code = "portal_scope"
	CodePortalPlan    Code = "portal_plan"
	CodePortalAppOnly Code = "portal_app_only"
	CodePortalInstall Code = "portal_install" // of a local application, as the codes below
	CodePortalAdmin   Code = "portal_admin"   // no args
	CodePortalOther   Code = "portal_other"   // no args
	CodePortalClient  Code = "portal_client"
	CodePortalOAuth   Code = "portal_oauth"
	CodePortalBusy    Code = "portal_busy"   // no args
	CodePortalUpload  Code = "portal_upload" // no args

	// Of recordings.
	CodeRecordingPlace  Code = "recording_place"  // args: from where it may not be fetched
	CodeRecordingLarge  Code = "recording_large"  // args: the largest size
	CodeRecordingAbsent Code = "recording_absent" // no args, as the codes below
	CodeRecordingGrows  Code = "recording_grows"
	CodeRecordingPage   Code = "recording_page"
	CodeRecordingLogin  Code = "recording_login"
)

// Cause names an error for those who show it: a code, and the values that its sentence repeats. The
// zero value is the cause of an error without a code.
type Cause struct {
	Code Code     `json:",omitempty"`
	Args []string `json:",omitempty"`
}

// Fault is an error with a Cause. Its text says what is wrong, and names neither a setting nor a
// remedy: see the package advice.
type Fault struct {
	Code Code
	Args []string
	Text string // empty if the text is that of Err
	Err  error  // may be nil
}

func (f *Fault) Error() string {
	switch {
	case f.Err == nil:
		return f.Text
	case f.Text == "":
		return f.Err.Error()
	}
	return f.Text + ": " + f.Err.Error()
}

// Unwrap returns Err.
func (f *Fault) Unwrap() error { return f.Err }

// Is reports whether target is a Fault with the same code, so that a sentinel also matches the
// faults that With has made from it.
func (f *Fault) Is(target error) bool {
	t, ok := target.(*Fault)
	return ok && t.Code == f.Code && f.Code != ""
}

// Cause returns the code and its values.
func (f *Fault) Cause() Cause { return Cause{f.Code, f.Args} }

// With returns the fault with more text, and with the values that the text repeats.
func (f *Fault) With(text string, args ...string) *Fault {
	return &Fault{Code: f.Code, Args: args, Text: f.Text + text, Err: f.Err}
}

// CauseOf returns the cause of an error: the outermost of Causes. It is zero if there is none.
func CauseOf(err error) Cause {
	if list := Causes(err); len(list) > 0 {
		return list[0]
	}
	return Cause{}
}

// Causes returns the causes of an error and of those that it wraps, the outermost first. An error
// has a cause if it has the method Cause or, in a package that does not import this one, Code and
// Args; otherwise the last of the list is that of libraryCause.
func Causes(err error) (list []Cause) {
	list = appendCauses(nil, err)
	if c := libraryCause(err); c.Code != "" {
		list = append(list, c)
	}
	return list
}

// appendCauses walks the tree of an error, as errors.As does. The nodes are any and not error since
// a type switch on an error would look at the outermost one only, which linters reject.
func appendCauses(list []Cause, node any) []Cause {
	switch e := node.(type) {
	case interface{ Cause() Cause }:
		if c := e.Cause(); c.Code != "" {
			list = append(list, c)
		}
	case interface {
		Code() string
		Args() []string
	}:
		list = append(list, Cause{Code(e.Code()), e.Args()})
	}
	switch e := node.(type) {
	case interface{ Unwrap() error }:
		list = appendCauses(list, e.Unwrap())
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			list = appendCauses(list, inner)
		}
	}
	return list
}

// libraryCause returns the cause of an error of the standard library that people often meet. It is
// the only function that knows these errors.
func libraryCause(err error) Cause {
	var op *net.OpError
	var name *net.DNSError
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ENOSPC):
		return Cause{Code: CodeDiskFull}
	case errors.Is(err, syscall.ECONNREFUSED):
		c := Cause{Code: CodeConnectionRefused}
		if errors.As(err, &op) && op.Addr != nil {
			c.Args = []string{op.Addr.String()}
		}
		return c
	case errors.Is(err, syscall.ECONNRESET):
		return Cause{Code: CodeConnectionReset}
	case errors.As(err, &name) && name.IsNotFound:
		return Cause{CodeNoHost, []string{name.Name}}
	case errors.As(err, &timeout) && timeout.Timeout():
		return Cause{Code: CodeTimeout}
	}
	return Cause{}
}
