package recordings

import (
	"errors"
	"fmt"
	"io/fs"

	"pzbridge/internal/telephony"
)

// errGone means that a recording is kept no longer.
var errGone = fmt.Errorf("the recording is kept no longer: %w", fs.ErrNotExist)

// notYetError means that the file is not there, or not whole.
type notYetError struct{ reason error }

func (e *notYetError) Error() string { return e.reason.Error() }
func (e *notYetError) Unwrap() error { return e.reason }

func notYet(err error) error { return &notYetError{err} }

// fileError means that this file cannot be fetched now, which says nothing of others at its host.
type fileError struct{ reason error }

func (e *fileError) Error() string { return e.reason.Error() }
func (e *fileError) Unwrap() error { return e.reason }

// refusedError means that the file will never be fetched.
type refusedError struct{ reason error }

func (e *refusedError) Error() string { return e.reason.Error() }
func (e *refusedError) Unwrap() error { return e.reason }

// localError means that the bridge cannot store files.
type localError struct{ reason error }

func (e *localError) Error() string { return e.reason.Error() }
func (e *localError) Unwrap() error { return e.reason }

// local returns a *localError.
func local(err error) error { return &localError{nameless(err)} }

// nameless returns an error without the name of a file, in which exchanges often put the number of
// the client.
func nameless(err error) error {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Err
	}
	return err
}

func errNotAllowed(where string) error {
	return &refusedError{&telephony.Fault{
		Code: telephony.CodeRecordingPlace,
		Args: []string{where},
		Text: fmt.Sprintf("recordings may not be fetched from there: %s", where),
	}}
}

func errTooLarge(limit int64) error {
	size := fmt.Sprintf("%d MiB", limit>>20)
	return &refusedError{&telephony.Fault{
		Code: telephony.CodeRecordingLarge,
		Args: []string{size},
		Text: fmt.Sprintf("the recording is larger than %s", size),
	}}
}

// errAbsent means that the server, or the folder, has no such file.
var errAbsent = &telephony.Fault{Code: telephony.CodeRecordingAbsent, Text: "there is no such file"}

// errGrows means that the file is still being written.
var errGrows = &telephony.Fault{Code: telephony.CodeRecordingGrows, Text: "the file is still being written"}

// errPage means that what came is a page for people, such as one that asks for a password.
var errPage = &telephony.Fault{Code: telephony.CodeRecordingPage, Text: "what came is a web page, no recording"}

// errLogin means that the server wants another name or password.
var errLogin = &telephony.Fault{
	Code: telephony.CodeRecordingLogin,
	Text: "the server of the recordings refuses the name or the password",
}
