package crm

import "io"

// Recordings are those that the bridge has fetched; nil if it fetches none.
type Recordings interface {
	// Open opens the file of an event that a recording is ready. Fails with fs.ErrNotExist if it is
	// kept no longer.
	Open(eventID string) (f io.ReadCloser, name string, size int64, err error)
	// LinkOf returns the link of the recording of a call, by the ID of the event that it is over;
	// empty if there is none.
	LinkOf(eventID string) string
}
